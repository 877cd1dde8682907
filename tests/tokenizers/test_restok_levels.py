"""ResTok's levels: sizes, residual pooling, residual merging, the mask, nested dropout."""

import pytest
import torch
import torch.nn.functional as F

from vtlib.tokenizers.restok_levels import (
    MERGE,
    block_causal_mask,
    hide,
    level_grids,
    level_sizes,
    merge_pairs,
    nested_lengths,
    nested_probabilities,
    pool_levels,
    sum_levels,
)


def seeded(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def up(level, size=(16, 16)):
    return F.interpolate(level, size=size, mode="nearest")


def level_maps(tokens, grids):
    parts = tokens.split([h * w for h, w in grids], dim=1)
    return [
        part.mT.unflatten(2, grid).contiguous() for part, grid in zip(parts, grids, strict=True)
    ]


def test_sizes_and_grids():
    assert level_sizes(128) == (1, 1, 2, 4, 8, 16, 32, 64) and sum(level_sizes(128)) == 128
    wanted = ((1, 1), (1, 1), (1, 2), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8))
    assert level_grids(128) == wanted
    assert level_sizes(2) == (1, 1)


def test_residual_levels_hold_what_is_new():
    x, grids = seeded(2, 3, 16, 16) + 5, level_grids(128)
    levels = level_maps(pool_levels(x, grids), grids)
    assert levels[1].abs().max() < 1e-6                         # the second 1 x 1 has nothing left
    for level, parent in zip(levels[1:], grids, strict=False):
        assert F.adaptive_avg_pool2d(level, parent).abs().max() < 1e-5
    tokens = pool_levels(x, grids)
    blocks = up(F.avg_pool2d(x, 2))
    torch.testing.assert_close(sum_levels(tokens, grids, (16, 16)), blocks, atol=1e-5, rtol=1e-5)


def test_plain_levels_are_means_of_the_map():
    x, grids = seeded(2, 3, 16, 16), level_grids(32)
    tokens = pool_levels(x, grids, residual=False)
    maps = level_maps(tokens, grids)
    for level, (h, w) in zip(maps, grids, strict=True):
        torch.testing.assert_close(level, F.avg_pool2d(x, (16 // h, 16 // w)))
    mean = torch.stack([up(level) for level in maps]).mean(0)
    torch.testing.assert_close(sum_levels(tokens, grids, (16, 16), residual=False), mean)


def test_claim_residuals_are_no_copies_and_add_up():
    """Claim 1 of the card on smooth maps: a plain level is much like its parent, a residual one not
    at all; each further level brings the sum nearer to the map."""
    x, grids = up(seeded(64, 1, 5, 5), (16, 16)), level_grids(64)
    x = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), 5, 1)
    alike = {}
    for residual in (True, False):
        tokens = pool_levels(x, grids, residual)
        fine, coarse = (up(level) for level in level_maps(tokens, grids)[-1:-3:-1])
        pair = torch.stack([fine.flatten(), coarse.flatten()])
        alike[residual] = torch.corrcoef(pair)[0, 1].item()
    assert abs(alike[True]) < 0.01 and alike[False] > 0.8
    tokens, errors = pool_levels(x, grids), []
    for k in range(2, len(grids) + 1):
        part = tokens[:, : sum(level_sizes(64)[:k])]
        errors.append((sum_levels(part, grids[:k], (16, 16)) - x).square().mean().item())
    assert all(later < before for before, later in zip(errors, errors[1:], strict=False))


@pytest.mark.parametrize("merge", MERGE)
def test_merged_and_rest_are_the_tokens(merge):
    x = seeded(2, 24, 5)
    merged, rest = merge_pairs(x, merge)
    assert merged.shape == (2, 12, 5) and rest.shape == x.shape
    torch.testing.assert_close(merged.repeat_interleave(2, dim=1) + rest, x)
    same, untouched = merge_pairs(x, merge, residual=False)
    assert torch.equal(same, merged) and torch.equal(untouched, x)
    if merge == "nearest":
        assert torch.equal(merged, x[:, ::2]) and not rest[:, ::2].any() and rest[:, 1::2].any()
    else:
        torch.testing.assert_close(rest[:, ::2], -rest[:, 1::2])
        rows = F.avg_pool2d(x.mT.unflatten(2, (4, 6)), (1, 2)).flatten(2).mT
        torch.testing.assert_close(merged, rows)                       # neighbours in a row


def test_mask_is_level_against_level():
    sizes = [3, 6, 1, 1, 2]
    level = [i for i, size in enumerate(sizes) for _ in range(size)]
    mask = block_causal_mask(sizes)
    assert mask.dtype == torch.bool
    for q, own in enumerate(level):
        assert mask[q].tolist() == [own >= other for other in level]
    assert block_causal_mask(sizes, "meta").is_meta


def test_nested_dropout_of_the_paper():
    assert nested_lengths(128) == (4, 8, 16, 32, 64, 128)
    wanted = torch.tensor([0.00645, 0.0129, 0.0258, 0.0516, 0.1032, 0.8], dtype=torch.float64)
    found = nested_probabilities(128)
    torch.testing.assert_close(found, wanted, atol=5e-5, rtol=0)
    assert found.sum().item() == pytest.approx(1)
    assert nested_probabilities(4).tolist() == [1.0]
    assert nested_probabilities(16, drop=1.0).tolist() == pytest.approx([1 / 3, 2 / 3, 0])
    assert nested_lengths(16, 3) == (4, 8, 16)


def test_hide():
    codes, token = seeded(3, 8, 5), torch.full((1, 1, 5), 7.0)
    assert hide(codes, None, token) is codes
    assert torch.equal(hide(codes, 8, token), codes)
    found = hide(codes, torch.tensor([0, 3, 8]), token)
    for row, keep in zip(range(3), (0, 3, 8), strict=True):
        assert torch.equal(found[row, :keep], codes[row, :keep]) and (found[row, keep:] == 7).all()
    assert torch.equal(hide(codes, 3, token)[1], found[1])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: level_sizes(48), "num_latents=48"),
        (lambda: level_sizes(1), "num_latents"),
        (lambda: pool_levels(torch.rand(1, 2, 4, 4), [(2, 8)]), "larger than the map"),
        (lambda: pool_levels(torch.rand(2, 4, 4), [(1, 1)]), "maps"),
        (lambda: sum_levels(torch.rand(1, 5, 2), level_grids(4), (8, 8)), "5 tokens"),
        (lambda: merge_pairs(torch.rand(1, 3, 2)), "even"),
        (lambda: merge_pairs(torch.rand(1, 4, 2), "max"), "merge='max'"),
        (lambda: block_causal_mask([2, 0]), "sizes"),
        (lambda: nested_lengths(16, 17), "least"),
        (lambda: nested_probabilities(16, drop=1.5), "drop"),
        (lambda: hide(torch.rand(2, 4, 1), 5, torch.zeros(1, 1, 1)), "keep"),
        (lambda: hide(torch.rand(2, 4, 1), torch.tensor([1]), torch.zeros(1, 1, 1)), "keep"),
        (lambda: hide(torch.rand(2, 4, 1), torch.tensor([1, 5]), torch.zeros(1, 1, 1)), "keep"),
    ],
)
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=said):
        call()
