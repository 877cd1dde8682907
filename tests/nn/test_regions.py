"""One token a region: copies of the class token that see their patches only."""

import pytest
import torch

from vtlib.nn import Block, region_tokens


@pytest.fixture
def blocks():
    torch.manual_seed(0)
    return [Block(12, 3).eval() for _ in range(2)]


@pytest.fixture
def tokens():
    return torch.randn(2, 7, 12, generator=torch.Generator().manual_seed(1))


def run(blocks, x):
    for block in blocks:
        x = block(x)
    return x


def test_all_patches_give_the_class_token(blocks, tokens):
    everything = torch.ones(2, 3, 6, dtype=torch.bool)
    found = region_tokens(tokens, everything, blocks)
    want = run(blocks, tokens)[:, :1].expand(-1, 3, -1)
    assert torch.allclose(found, want, atol=1e-6)


def test_in_the_last_block_only_its_patches_count(blocks, tokens):
    regions = torch.zeros(2, 1, 6, dtype=torch.bool)
    regions[0, 0, :2], regions[1, 0, 3] = True, True
    found = region_tokens(tokens, regions, blocks[:1])
    first = blocks[0](tokens[:1, :3])[0, 0]
    second = blocks[0](tokens[1:, [0, 4]])[0, 0]
    assert torch.allclose(found[:, 0], torch.stack([first, second]), atol=1e-6)


def test_regions_know_nothing_of_each_other(blocks, tokens):
    regions = torch.rand(2, 4, 6, generator=torch.Generator().manual_seed(2)) < 0.5
    both = region_tokens(tokens, regions, blocks)
    for m in range(4):
        alone = region_tokens(tokens, regions[:, m : m + 1], blocks)
        assert torch.allclose(alone[:, 0], both[:, m], atol=1e-6)
    assert region_tokens(tokens, regions[:, :0], blocks).shape == (2, 0, 12)


def test_bad_input(blocks, tokens):
    good = torch.ones(2, 3, 6, dtype=torch.bool)
    for regions in (good.float(), good[:1], good[..., :5], good[0], [1]):
        with pytest.raises(ValueError, match="regions is"):
            region_tokens(tokens, regions, blocks)
    with pytest.raises(ValueError, match="tokens"):
        region_tokens(tokens[0], good, blocks)
