"""PSNR and SSIM on luma: against formulas, scikit-image, and MATLAB's definition of Y."""


import pytest
import torch
from skimage import metrics

from tests.fresh import fresh
from vtlib import data
from vtlib.superres import bicubic, luma, psnr, ssim


def pictures():
    photos = data.photographs(64)
    want = torch.stack([photos[n] for n in ("temple", "coffee", "fig")])
    return bicubic(bicubic(want, 0.25), 4).clamp(0, 1), want


def test_luma_is_studio_range():
    """MATLAB's rgb2ycbcr of uint8: black 16, white 235, red 81, green 145, blue 41 (rounded)."""
    corners = [[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    colours = torch.tensor(corners, dtype=torch.float)[..., None, None]
    assert luma(colours).mul(255).round().flatten().tolist() == [16, 235, 81, 145, 41]
    assert luma(torch.rand(2, 5, 3, 4, 6)).shape == (2, 5, 1, 4, 6)


def test_psnr_equals_formula_and_skimage():
    got, want = pictures()
    crop = (..., slice(4, -4), slice(4, -4))
    for k, value in enumerate(psnr(got, want, crop=4, y=False)):
        mse = (got[k] - want[k])[crop].square().mean()
        assert value == pytest.approx(-10 * mse.log10().item(), abs=1e-4)
    for k, value in enumerate(psnr(got, want, crop=4)):
        a, b = (luma(t[k])[0].numpy()[4:-4, 4:-4] for t in (want, got))
        reference = metrics.peak_signal_noise_ratio(a, b, data_range=1.0)
        assert value == pytest.approx(reference, abs=1e-3)


def test_each_picture_has_its_own_number():
    got, want = pictures()
    values = psnr(got, want)
    assert values.shape == (3,) and len({round(v.item(), 2) for v in values}) == 3
    torch.testing.assert_close(psnr(got[1:2], want[1:2]), values[1:2])
    torch.testing.assert_close(ssim(got[1:2], want[1:2]), ssim(got, want)[1:2])
    videos = psnr(got.expand(2, 3, 3, 64, 64), want.expand(2, 3, 3, 64, 64))
    assert videos.shape == (2, 3)
    assert psnr(got[0], want[0]).shape == ssim(got[0], want[0]).shape == ()
    torch.testing.assert_close(videos[1], values)


def test_known_values():
    want = torch.full((1, 3, 16, 16), 0.5)
    assert psnr(want + 0.1, want, y=False).item() == pytest.approx(20.0, abs=1e-3)
    # the studio range: 20 log10(255 / 219)
    assert psnr(want + 0.1, want).item() == pytest.approx(20 + 1.3219, abs=1e-3)
    assert psnr(want, want).isinf().all() and ssim(want, want).item() == pytest.approx(1.0)
    border = want.clone()
    border[..., :2, :] += 0.4
    assert psnr(border, want, crop=2).isinf().all() and psnr(border, want, crop=1).item() < 30


def test_ssim_equals_skimage_with_gaussian_window():
    got, want = pictures()
    for k, value in enumerate(ssim(got, want, crop=4)):
        a, b = (luma(t[k])[0].double().numpy()[4:-4, 4:-4] for t in (want, got))
        reference = metrics.structural_similarity(
            a, b, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert value.item() == pytest.approx(reference, abs=1e-4)
    assert 0 < ssim(got, want, y=False).min() < ssim(got, want, y=False).max() < 1


def test_autocast_changes_no_number():
    got, want = pictures()
    plain = ssim(got, want, crop=4), psnr(got, want, crop=4)
    with torch.autocast("cpu", torch.bfloat16):
        under = ssim(got, want, crop=4), psnr(got, want, crop=4)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(under[0], plain[0]) and torch.equal(under[1], plain[1])


def test_no_picture_has_no_number():
    got, want = pictures()
    videos = want.expand(2, 3, 3, 64, 64)
    for measure in (psnr, ssim):
        for y in (True, False):
            value = measure(got[:0], want[:0], y=y)
            assert value.shape == (0,) and value.dtype == torch.float32
        assert measure(videos[:, :0], videos[:, :0]).shape == (2, 0)
    with pytest.raises(ValueError, match="at least 11 x 11"):
        ssim(got[:0, ..., :8], want[:0, ..., :8])


def test_bad_input():
    x = torch.rand(2, 3, 16, 16)
    message = r"got has shape \(1, 3, 16, 16\) and want \(2, 3, 16, 16\)"
    with pytest.raises(ValueError, match=message):
        psnr(x[:1], x)
    with pytest.raises(ValueError, match="crop=8 leaves nothing of 16 x 16"):
        psnr(x, x, crop=8)
    with pytest.raises(ValueError, match="crop=-1"):
        psnr(x, x, crop=-1)
    with pytest.raises(ValueError, match="at least 11 x 11"):
        ssim(x, x, crop=3)
    with pytest.raises(ValueError, match=r"needs \(\*, 3, H, W\)"):
        luma(x[:, :1])
    assert psnr(x[:, :1] * 0.9, x[:, :1], y=False).shape == (2,)


def test_core_imports_without_the_extras():
    """torchmetrics and scikit-image belong to the course, not to the package."""
    code = """
import sys
for name in ("torchmetrics", "skimage", "scipy", "sklearn"):
    sys.modules[name] = None
import torch, vtlib.superres as s, vtlib.superres.spynet
x = torch.rand(3, 16, 16)
assert s.bicubic(x, 0.25).shape == (3, 4, 4) and s.psnr(x, x).isinf()
try:
    s.ssim(x, x)
except ImportError as error:
    assert "vtlib[course]" in str(error)
else:
    raise SystemExit("ssim ran")
"""
    fresh(code)
