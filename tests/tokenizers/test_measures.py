"""What tokenizers are usually judged by."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from tests.settings import SETTINGS
from vtlib.tokenizers import measures


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(count, width=6, seed=0, scale=1.0, shift=0.0):
    mix = torch.randn(width, width, generator=generator(99))
    return scale * torch.randn(count, width, generator=generator(seed)) @ mix + shift


def by_the_formula(x, y):
    x, y = x.double().numpy(), y.double().numpy()
    sx, sy = np.cov(x.T), np.cov(y.T)
    apart = ((x.mean(0) - y.mean(0)) ** 2).sum()
    return apart + np.trace(sx + sy - 2 * sqrtm(sx @ sy).real)


@pytest.mark.parametrize("sizes", [(300, 200), (5, 4), (5, 300)])
def test_frechet_is_the_formula(sizes):
    x, y = rows(sizes[0]), rows(sizes[1], seed=1, scale=1.3, shift=0.5)
    found = measures.frechet(x, y, "noise")
    assert found.distance == pytest.approx(by_the_formula(x, y), rel=1e-4, abs=1e-4)
    assert found.count == min(sizes) and found.features == "noise"
    assert str(found).endswith(f"(Frechet, noise, N = {min(sizes)})")
    assert measures.frechet(y, x, "noise").distance == pytest.approx(found.distance)


def test_frechet_of_a_set_and_itself():
    x = rows(50)
    assert measures.frechet(x, x.flip(0), "x").distance < 1e-9
    moved = measures.frechet(x, x + torch.tensor([3.0, 4, 0, 0, 0, 0]), "x")
    assert moved.distance == pytest.approx(25, rel=1e-5)


def test_a_small_sample_is_too_far_and_the_line_takes_that_off():
    """Two sets of one distribution: the true distance is 0."""
    def one(seed):
        return torch.randn(400, 16, generator=generator(seed))

    x, y = one(1), one(2)
    near = [measures.frechet(x[:n], y[:n], "x").distance for n in (50, 100, 200, 400)]
    assert near == sorted(near, reverse=True) and near[0] > 4 * near[-1] > 0
    line = measures.frechet_infinity(x, y, "x", (50, 100, 200, 400), generator(), repeats=8)
    assert abs(line.distance) < near[-1] / 2 and line.count == 400
    again = measures.frechet_infinity(x, y, "x", (50, 100, 200, 400), generator(), repeats=8)
    assert again == line


@pytest.mark.parametrize("x, y, told", [
    (torch.zeros(1, 4), torch.zeros(5, 4), "x has 1 rows"),
    (torch.zeros(5, 4), torch.zeros(5, 3), "x has 4 features but y 3"),
    (torch.zeros(5, 4, 2), torch.zeros(5, 4), "x has shape"),
    (torch.zeros(5, 4), torch.full((5, 4), float("nan")), "y .*non-finite"),
    (torch.zeros(5, 4, dtype=torch.long), torch.zeros(5, 4), "floating"),
])
def test_sets_that_do_not_fit(x, y, told):
    with pytest.raises(ValueError, match=told):
        measures.frechet(x, y, "x")
    with pytest.raises(ValueError, match=told):
        measures.frechet_infinity(x, y, "x", (2, 3), generator())


@pytest.mark.parametrize("given, told", [
    (dict(sizes=(2,)), "two different numbers"),
    (dict(sizes=(2, 50)), "none above 6"),
    (dict(sizes=(1, 2)), "at least 2"),
    (dict(generator=0), "generator"),
    (dict(repeats=0), "repeats"),
])
def test_a_line_that_cannot_be_drawn(given, told):
    options = dict(sizes=(2, 4), generator=generator()) | given
    with pytest.raises(ValueError, match=told):
        measures.frechet_infinity(rows(6), rows(7), "x", **options)


def test_psnr_and_ssim_of_clamped_pictures():
    want = torch.rand(2, 3, 16, 16, generator=generator()) * 0.5 + 0.25
    got = want.clone()
    got[0] += 0.1
    assert measures.psnr(got, want).tolist() == [pytest.approx(20, abs=1e-3), float("inf")]
    beyond = torch.where(want > 0.5, 3.0, want)
    torch.testing.assert_close(measures.psnr(beyond, want), measures.psnr(beyond.clamp(0, 1), want))
    near = measures.ssim(got, want)
    assert near.shape == (2,) and near[1] == pytest.approx(1) and near[0] < 1
    with pytest.raises(ValueError, match="both need the same"):
        measures.psnr(got[:, :2], want)


def test_bits_per_pixel():
    assert measures.bits_per_pixel(64 * 12, (16, 32)) == 1.5
    for bits, size in ((-1, (8, 8)), (8, (0, 8)), (8, 8)):
        with pytest.raises(ValueError):
            measures.bits_per_pixel(bits, size)


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_of_torch_change_nothing(setting):
    x, y, sizes = rows(30), rows(30, seed=1), (10, 20)
    want = measures.frechet_infinity(x, y, "x", sizes, generator())
    with setting():
        assert measures.frechet_infinity(x, y, "x", sizes, generator()) == want
