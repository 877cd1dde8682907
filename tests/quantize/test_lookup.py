"""The nearest code is that of float64, whatever the offset, the dtype around it and the ties."""

import contextlib

import pytest
import torch

from vtlib.quantize import lookup
from vtlib.quantize.lookup import nearest

from ..bench.before import peak_bytes
from ..settings import SETTINGS, matmul_precision


def seeded(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def brute(x, codes):
    """(N,), by all differences in float64."""
    x, codes = x.double(), codes.double()
    parts = [(part[:, None] - codes).square().sum(dim=-1).argmin(dim=1) for part in x.split(8)]
    return torch.cat(parts)


@contextlib.contextmanager
def blocks(monkeypatch, rows, codes, pairs):
    with monkeypatch.context() as patch:
        patch.setattr(lookup, "ROWS", rows)
        patch.setattr(lookup, "CODES", codes)
        patch.setattr(lookup, "PAIRS", pairs)
        yield


@pytest.mark.parametrize("offset", [0, 100, 1000, 1e5])
@pytest.mark.parametrize("dim", [1, 8, 256])
def test_the_index_is_that_of_float64(offset, dim):
    x, codes = offset + seeded(300, dim), offset + seeded(700, dim, seed=1)
    assert torch.equal(nearest(x, codes), brute(x, codes))


def test_the_expanded_formula_goes_wrong_here():
    """What a float32 matrix product of latents around 100 gives: one in sixteen is another code."""
    x, codes = 100 + seeded(300, 256), 100 + seeded(700, 256, seed=1)
    expanded = x.square().sum(1)[:, None] + codes.square().sum(1) - 2 * x @ codes.T
    wrong = (expanded.argmin(1) != brute(x, codes)).float().mean()
    assert 0.01 < wrong < 0.2 and torch.equal(nearest(x, codes), brute(x, codes))


@pytest.mark.parametrize("sizes", [(7, 5, 6), (1, 1, 1), (512, 2048, 2**20)])
def test_blocks_change_nothing(monkeypatch, sizes):
    x, codes = seeded(40, 3), seeded(33, 3, seed=1)
    codes[20:] = codes[:13]
    x[30:] = codes[5:15]
    with blocks(monkeypatch, *sizes):
        assert torch.equal(nearest(x, codes), brute(x, codes))


def test_of_equal_codes_the_first_and_near_ties_are_settled():
    codes = seeded(50, 16).repeat(4, 1)
    x = 3 + seeded(200, 16, seed=1)
    index = nearest(x, codes)
    assert index.max() < 50 and torch.equal(index, brute(x, codes))
    close = 100 + torch.stack([torch.zeros(64), torch.full((64,), 1e-5)])
    middle = 100 + torch.rand(64, 64, generator=torch.Generator().manual_seed(2)) * 1e-5
    assert torch.equal(nearest(middle, close), brute(middle, close))
    assert not nearest(torch.zeros(9, 4), torch.zeros(5, 4)).any()


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e18, 1e30, 3e38])
def test_sizes_whose_squares_leave_float32(scale):
    x, codes = scale * seeded(60, 4).clamp(-1, 1), scale * seeded(50, 4, seed=1).clamp(-1, 1)
    assert torch.equal(nearest(x, codes), brute(x, codes))


def test_one_vector_or_one_code_far_from_all_others():
    x, codes = seeded(60, 8), seeded(50, 8, seed=1)
    x[3], codes[4] = 1e6, -1e5
    assert torch.equal(nearest(x, codes), brute(x, codes))
    codes[4] = -1e12
    assert torch.equal(nearest(x, codes), brute(x, codes))


@pytest.mark.parametrize("shape", [(400, 4, 4096), (300, 256, 500)])
def test_autocast_and_half_precision_choose_as_float32(shape):
    num, dim, size = shape
    x, codes = seeded(num, dim), seeded(size, dim, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = nearest(x, codes)
    assert torch.equal(inside, brute(x, codes))
    assert torch.equal(nearest(x.bfloat16(), codes), brute(x.bfloat16(), codes))
    assert torch.equal(nearest(x, codes.double()), brute(x, codes))


@pytest.mark.parametrize("setting", ["high", "medium"])
def test_products_of_less_precision_change_no_index(setting):
    x, codes = seeded(200, 64), seeded(300, 64, seed=1)
    with matmul_precision(setting):
        assert torch.equal(nearest(x, codes), brute(x, codes))


def test_a_rounded_product_changes_no_index(monkeypatch):
    """As where bf16 units do the product: inputs rounded, and torch's setting says so."""
    x, codes = seeded(200, 64), seeded(300, 64, seed=1)
    product = torch.addmm

    def rounded(bias, a, b, **options):
        return product(bias, a.bfloat16().float(), b.bfloat16().float(), **options)

    monkeypatch.setattr(lookup.torch, "addmm", rounded)
    with matmul_precision("medium"):
        assert torch.equal(nearest(x, codes), brute(x, codes))


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.__name__)
def test_torchs_settings_change_nothing(setting):
    x, codes = 5 + seeded(40, 6), 5 + seeded(70, 6, seed=1)
    with setting():
        index = nearest(x, codes)
    assert torch.equal(index, brute(x, codes))


def test_memory_does_not_grow_with_the_codebook():
    x = seeded(3000, 8)
    peaks = [peak_bytes(lambda size=size: nearest(x, seeded(size, 8))) for size in (4096, 32768)]
    assert peaks[1] < peaks[0] + 4 * 32768 * 8 * 4 < 3000 * 32768 * 4 / 10


def test_meta_and_compile():
    assert nearest(torch.zeros(4, 3, device="meta"), torch.zeros(5, 3, device="meta")).is_meta
    run = torch.compile(nearest, backend="eager", fullgraph=True)
    x, codes = seeded(40, 6), seeded(70, 6, seed=1)
    assert torch.equal(run(x, codes), brute(x, codes))


@pytest.mark.parametrize("x, codes, message", [
    (torch.zeros(0, 3), torch.zeros(2, 3), "x is empty"),
    (torch.zeros(2, 3), torch.zeros(0, 3), "codes is empty"),
    (torch.zeros(2, 3), torch.zeros(2, 4), "other D"),
    (torch.zeros(2, 3).long(), torch.zeros(2, 3), "x is torch.int64"),
    (torch.zeros(2, 3), torch.full((2, 3), torch.nan), "codes .* non-finite"),
    (torch.zeros(3), torch.zeros(2, 3), r"x has shape \(3,\)"),
    ([1.0], torch.zeros(2, 3), "x is a list"),
])
def test_bad_input(x, codes, message):
    with pytest.raises(ValueError, match=message):
        nearest(x, codes)
