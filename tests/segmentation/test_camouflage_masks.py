"""The mask generator: its pyramid, and queries that look where their mask is."""

import pytest
import torch

from vtlib.segmentation import MaskDecoder, PixelDecoder

GRIDS = ((16, 12), (8, 6), (4, 3), (2, 2))


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def levels(width=8):
    return [random(2, width, *grid, seed=i) for i, grid in enumerate(GRIDS)]


def test_pyramid():
    torch.manual_seed(0)
    net = PixelDecoder(8, 4)
    coarse, features = net(levels())
    assert [tuple(x.shape[2:]) for x in coarse] == [*GRIDS[:0:-1]]
    assert features.shape == (2, 8, 16, 12)
    changed = levels()
    changed[3] = changed[3] + random(2, 8, 2, 2, seed=7)                       # the coarsest
    assert not torch.allclose(net(changed)[1], features)


def test_queries_look_into_their_masks_only():
    torch.manual_seed(0)
    net = MaskDecoder(8, 3, 1, 2, 16).eval()
    features = random(1, 8, 16, 12, seed=5)
    logits = torch.full((1, 3, 16, 12), -5.0)
    logits[:, :, :8] = 5.0                                                     # the upper half
    seen = []

    def predict(queries, masks):
        seen.append(masks)
        return logits

    given = [random(1, 8, *grid, seed=i) for i, grid in enumerate(((4, 3), (8, 6), (16, 12)))]
    before = net(given, features, predict)
    hidden = [given[0].clone(), *given[1:]]
    hidden[0][:, :, 2:] += 3.0
    torch.testing.assert_close(net(hidden, features, predict), before)
    hidden[0][:, :, :2] += random(1, 8, 2, 3)
    assert not torch.allclose(net(hidden, features, predict), before)
    logits = torch.full_like(logits, -5.0)                    # nothing allowed: looks everywhere
    everywhere = net(given, features, predict)
    assert everywhere.isfinite().all() and not torch.allclose(everywhere, before)
    assert len(seen) == 8 and seen[0].shape == (1, 3, 16, 12)


@pytest.mark.parametrize("options, named", [
    (dict(num_queries=0), "num_queries"), (dict(num_layers=-1), "num_layers"),
    (dict(num_heads=3), "num_heads"), (dict(hidden_dim=0), "hidden_dim"),
])
def test_bad_input(options, named):
    sizes = dict(embed_dim=8, num_queries=3, num_layers=1, num_heads=2, hidden_dim=16)
    with pytest.raises(ValueError, match=named):
        MaskDecoder(**{**sizes, **options})
