"""What larger surroundings cost: counted by hand where that is short."""

import pytest
import torch

from vtlib.segmentation import CASWiT, Swin, forward_cost, stage_tokens


def make(**options):
    sizes = dict(embed_dim=16, depths=(2, 2), num_heads=(1, 2), window_size=4, decoder="mlp")
    with torch.device("meta"):
        return CASWiT(3, **sizes, channels=16, fuse_at=(0, 1), **options)


def test_tokens_of_the_paper():
    assert stage_tokens((512, 512)) == [128**2, 64**2, 32**2, 16**2]
    assert stage_tokens((10, 4), stages=2) == [3, 2]


def test_products_of_one_block():
    """A Swin of one block: patches, qkv, scores, values, proj, MLP."""
    with torch.device("meta"):
        net = Swin(16, (1,), (1,), window_size=4, mlp_ratio=2.0)
    n, c = 64, 16
    want = n * c * 48 + n * c * 3 * c + 2 * n * 16 * c + n * c * c + 2 * n * c * 2 * c
    assert forward_cost(net, (32, 32))[:2] == (n, want)


def test_one_window_grows_and_two_branches_stay():
    net = make()
    alone = [forward_cost(net, (side, side)) for side in (64, 128, 256)]
    for small, large in zip(alone, alone[1:], strict=False):
        assert large.tokens == 4 * small.tokens
        assert 3.9 < large.multiply_adds / small.multiply_adds < 4.1
        assert 3.8 < large.memory / small.memory < 4.2
    two = forward_cost(net, (64, 64), (64, 64))
    assert two.tokens == 2 * alone[0].tokens
    assert alone[0].multiply_adds < two.multiply_adds < alone[2].multiply_adds
    assert alone[0].memory < two.memory < alone[2].memory


def test_pooled_keys_are_cheaper():
    full, pooled = (forward_cost(make(max_keys=k), (128, 128), (128, 128)) for k in (32, 8))
    assert pooled.multiply_adds < full.multiply_adds and pooled.memory < full.memory


def test_the_net_stays_as_it_was():
    net = make().train()
    forward_cost(net, (32, 32))
    assert net.training
    with pytest.raises(ValueError, match="net is .* needs to be a network on the meta device"):
        forward_cost(torch.nn.Linear(2, 2), (32, 32))
    with pytest.raises(ValueError, match="sizes"):
        forward_cost(net, (32,))
    with pytest.raises(ValueError, match="patch_size"):
        stage_tokens((32, 32), patch_size=0)
