"""BI and BD against published references: outputs of MATLAB itself, Pillow, torch's antialiased
resizing, scipy's filters."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage

from vtlib import data
from vtlib.superres import bicubic, blur_down, degrade, psnr
from vtlib.superres.degrade import bicubic_taps, keys_cubic

# MATLAB's imresize(reshape(0:n*n-1, n, n)', 1/scale, "bicubic"), from the test data of
# sanghyun-son/bicubic_pytorch (gen_test.m).
MATLAB = {
    (8, 2): [
        [4.04296875, 6.08203125, 8.10546875, 10.14453125],
        [20.35546875, 22.39453125, 24.41796875, 26.45703125],
        [36.54296875, 38.58203125, 40.60546875, 42.64453125],
        [52.85546875, 54.89453125, 56.91796875, 58.95703125],
    ],
    (8, 4): [[12.3837890625, 16.6318359375], [46.3681640625, 50.6162109375]],
    (15, 3): [
        [14.41975308641976, 17.506172839506178, 20.518518518518526, 23.530864197530867,
         26.61728395061729],
        [60.71604938271606, 63.80246913580248, 66.81481481481481, 69.82716049382715,
         72.91358024691357],
        [105.90123456790124, 108.98765432098764, 112.0, 115.01234567901233, 118.09876543209876],
        [151.08641975308643, 154.1728395061728, 157.1851851851852, 160.19753086419752,
         163.28395061728395],
        [197.38271604938274, 200.4691358024691, 203.48148148148147, 206.49382716049382,
         209.58024691358023],
    ],
    (15, 5): [
        [29.1072, 34.288, 39.4688], [106.8192, 112.0, 117.1808], [184.5312, 189.712, 194.8928],
    ],
}
UP = [
    [108.685225, 27.6970975, -12.4465625, 26.8841925, 109.2025],
    [35.471365, 8.970789, -3.5895625, 6.637437, 26.961],
    [-0.6503125, -0.21221875, 0.39453125, -1.60790625, -6.53125],
    [-0.768075, -0.18963, 0.0459375, 0, 0],
    [0, 0, 0, 0, 0],
]


def close(got, want, atol):
    torch.testing.assert_close(got, torch.as_tensor(want, dtype=got.dtype), atol=atol, rtol=0)


@pytest.mark.parametrize("side, scale", MATLAB)
def test_shrinking_is_matlabs(side, scale):
    picture = torch.arange(side * side, dtype=torch.double).view(side, side)
    want = torch.tensor(MATLAB[side, scale], dtype=torch.double)
    torch.testing.assert_close(bicubic(picture, 1 / scale), want, atol=1e-10, rtol=0)
    close(bicubic(picture.float(), 1 / scale).double(), want, 1e-4)


def test_enlarging_is_matlabs():
    """imresize to 5 x 5 of a 4 x 4 picture with a bright corner, from the same test data: a = -0.5
    and mirrored borders."""
    picture = torch.zeros(4, 4, dtype=torch.double)
    picture[0, 0], picture[1, 0], picture[0, 1], picture[0, 3] = 100, 10, 1, 100
    index, weights = bicubic_taps(4, 5 / 4)
    along = torch.zeros(5, 4, dtype=torch.double).scatter_add(1, index, weights)
    close(along @ picture @ along.T, UP, 1e-10)


def test_the_sixteen_taps_of_a_quarter():
    """The x4 bicubic kernel as published in other libraries, rounded to 8 digits."""
    half = [
        -0.00170898, -0.01098633, -0.01831055, -0.01196289,
        0.02270508, 0.09741211, 0.18188477, 0.2409668,
    ]
    index, weights = bicubic_taps(64, 0.25)
    kept = weights[8][weights[8] != 0]
    close(kept, half + half[::-1], 1e-8)
    assert index[8][weights[8] != 0].tolist() == list(range(26, 42))   # centred on the block 32..35
    torch.testing.assert_close(weights.sum(1), torch.ones(16, dtype=torch.double))


@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 1 / 4, 2, 3, 4])
def test_equals_pillow_and_torch_away_from_borders(scale):
    torch.manual_seed(0)
    x = torch.rand(1, 1, 48, 72)
    got = bicubic(x, scale)
    size = got.shape[-2:]
    assert size == (round(48 * scale), round(72 * scale))
    margin = math.ceil(2 * max(scale, 1)) + 1
    inner = (..., slice(margin, -margin), slice(margin, -margin))
    picture = Image.fromarray(x[0, 0].numpy(), mode="F")
    resized = picture.resize(size[::-1], Image.Resampling.BICUBIC)
    pillow = torch.from_numpy(np.array(resized))
    torch.testing.assert_close(got[0, 0][inner], pillow[inner], atol=1e-5, rtol=0)
    antialiased = F.interpolate(x, size=size, mode="bicubic", antialias=True)
    torch.testing.assert_close(got[inner], antialiased[inner], atol=1e-5, rtol=0)
    # at the border they differ: torch drops taps, MATLAB mirrors
    assert (got - antialiased).abs().max() > 1e-4


def test_torch_without_antialias_is_another_kernel():
    x = data.photographs(96)["temple"][None]
    larger = F.interpolate(x, scale_factor=4, mode="bicubic")
    assert (bicubic(x, 4) - larger).abs().max() > 0.02                              # a = -0.75
    smaller = F.interpolate(x, scale_factor=0.25, mode="bicubic")
    assert psnr(bicubic(x, 0.25), smaller) < 30                              # and no antialiasing


def test_cubic():
    x = torch.tensor([0.0, 1.0, 2.0, 2.5, -0.5, 0.5, 1.5])
    torch.testing.assert_close(keys_cubic(x), torch.tensor([1.0, 0, 0, 0, 0.5625, 0.5625, -0.0625]))


def test_constants_and_slopes_survive():
    large, little = torch.full((2, 3, 16, 24), 0.3), torch.full((2, 3, 4, 6), 0.3)
    for shrink in (
        bicubic(large, 0.25), bicubic(little, 4), blur_down(large), blur_down(large, where="duf")
    ):
        torch.testing.assert_close(shrink, torch.full_like(shrink, 0.3), atol=1e-6, rtol=0)
    slope = torch.arange(64.0).expand(64, 64)
    blocks = slope[0].view(16, 4)[4:12]
    torch.testing.assert_close(bicubic(slope, 0.25)[8, 4:12], blocks.mean(1))
    torch.testing.assert_close(blur_down(slope)[8, 4:12], blocks.mean(1))  # centred on the block
    # 1.5 pixels further left
    torch.testing.assert_close(blur_down(slope, where="duf")[8, 4:12], blocks[:, 0])


def test_bd_equals_the_matlab_script():
    """fspecial("gaussian", 12, 1.6), imfilter(..., "replicate"), rows and columns 2:4:end-2 (from
    1), in plain numpy and scipy."""
    torch.manual_seed(0)
    x = torch.rand(2, 3, 24, 32, dtype=torch.double)
    at = np.arange(12) - 5.5
    kernel = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.6**2))
    kernel /= kernel.sum()
    # MATLAB puts the middle of an even kernel at its 6th row and column: the window is 5 before to
    # 6 after. scipy: 6 before, so origin -1
    def matlab(channel):
        return ndimage.correlate(channel, kernel, mode="nearest", origin=-1)[1:-2:4, 1:-2:4]

    want = np.array([[matlab(channel) for channel in image] for image in x.numpy()])
    torch.testing.assert_close(blur_down(x), torch.from_numpy(want), atol=1e-12, rtol=0)
    close(blur_down(x.float()).double(), want, 1e-6)


def test_bd_of_duf_equals_scipys_gaussian():
    torch.manual_seed(0)
    x = torch.rand(3, 24, 32, dtype=torch.double)
    want = np.array([ndimage.gaussian_filter(c, 1.6, mode="mirror")[::4, ::4] for c in x.numpy()])
    close(blur_down(x, where="duf"), want, 1e-12)


@pytest.mark.parametrize("scale, sigma", [(2, 0.8), (3, 1.2), (4, 0.5), (1, 1.0), (8, 0.3)])
def test_bd_other_scales(scale, sigma):
    x = torch.rand(1, 24, 48, dtype=torch.double)
    size = math.ceil(3 * sigma) * 2 + (2 if scale % 2 == 0 else 1)
    at = np.arange(size) - (size - 1) / 2
    kernel = np.exp(-at**2 / (2 * sigma**2))
    kernel /= kernel.sum()
    padded = np.pad(x[0].numpy(), 20, mode="edge")
    rows = range(24 // scale), range(48 // scale)
    first = [[20 + scale * i + (scale - size) // 2 for i in r] for r in rows]
    want = [[kernel @ padded[a:a + size, b:b + size] @ kernel for b in first[1]] for a in first[0]]
    close(blur_down(x, scale, sigma)[0], np.array(want), 1e-12)
    assert blur_down(x, scale, sigma, "duf").shape == (1, 24 // scale, 48 // scale)


@pytest.mark.parametrize("sigma", [0.012, 1e-160])
def test_a_narrow_gaussian_reads_the_nearest_pixels(sigma):
    """Even blocks have two pixels nearest to the middle, odd ones and DUF's one."""
    x = torch.rand(2, 12, 24, dtype=torch.double)
    middle = x.unfold(1, 4, 4).unfold(2, 4, 4)[..., 1:3, 1:3].mean((-2, -1))
    torch.testing.assert_close(blur_down(x, 4, sigma), middle)
    torch.testing.assert_close(blur_down(x, 3, sigma), x[:, 1::3, 1::3])
    torch.testing.assert_close(blur_down(x, 4, sigma, "duf"), x[:, ::4, ::4])


def test_wrong_degradation_is_seen():
    """Why definitions matter: the two BD of one photograph are a quarter-pixel and more apart."""
    x = data.photographs(128)["temple"]
    assert psnr(blur_down(x), blur_down(x, where="duf")) < 32
    centred, corner = blur_down(x), blur_down(x, where="duf")
    assert psnr(bicubic(x, 0.25), centred) > psnr(bicubic(x, 0.25), corner) + 3


def test_leading_axes_dtype_meta_gradient():
    x = torch.rand(2, 3, 3, 16, 24)
    for f in (lambda t: bicubic(t, 0.25), blur_down, lambda t: blur_down(t, where="duf")):
        torch.testing.assert_close(f(x)[1, 2], f(x[1, 2]))
        assert f(x.to(torch.bfloat16)).dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(f(x), f(x.clone()), atol=1e-6, rtol=0)
            assert f(x).dtype == torch.float32
        assert f(x.to("meta")).shape == (2, 3, 3, 4, 6)
        leaf = x.clone().requires_grad_()
        f(leaf).sum().backward()
        share = torch.tensor(x.numel() / 16 / 16)
        torch.testing.assert_close(leaf.grad.sum() / 16, share, rtol=1e-4, atol=1e-4)
    assert bicubic(torch.rand(1, 1), 4).shape == (4, 4)
    assert bicubic(torch.rand(4, 4), 0.25).shape == (1, 1)
    assert blur_down(torch.rand(4, 4)).shape == (1, 1)
    assert torch.equal(bicubic(x, 1), x)


def test_bad_input():
    x = torch.rand(3, 18, 24)
    for f in (lambda: bicubic(x, 0.25), lambda: blur_down(x)):
        message = "images are 18 x 24, not a multiple of 4; cut them to 16 x 24"
        with pytest.raises(ValueError, match=message):
            f()
    for scale in (0.3, 1.5, 0, -2):
        message = f"scale={scale}: needs a whole number, or one over a whole number"
        with pytest.raises(ValueError, match=message):
            bicubic(x, scale)
    with pytest.raises(ValueError, match=r"scale=0.25 \(float\): needs an integer"):
        blur_down(x, 0.25)
    with pytest.raises(ValueError, match="sigma=0"):
        blur_down(x, 3, 0)
    with pytest.raises(ValueError, match="where='left': needs one of centred, duf"):
        blur_down(x, 3, where="left")
    with pytest.raises(ValueError, match="mirroring 6 pixels needs more"):
        blur_down(torch.rand(3, 4, 4), where="duf")
    with pytest.raises(ValueError, match="uint8 but needs a floating dtype"):
        bicubic(torch.zeros(3, 8, 8, dtype=torch.uint8), 0.25)
    with pytest.raises(ValueError, match="at least one pixel"):
        bicubic(torch.zeros(3, 0, 8), 0.25)


@pytest.mark.parametrize("call, message", [
    (lambda: degrade.bicubic_taps(8, 0), "scale=0"),
    (lambda: degrade.bicubic_taps(8, 1e300), "scale=1e"),
    (lambda: bicubic(torch.rand(3, 8, 8), 1e300), "scale=1e"),
    (lambda: degrade.bicubic_taps(8, float("nan")), "scale=nan"),
    (lambda: degrade.bicubic_taps("8", 2), "length='8'"),
    (lambda: degrade.blur_taps(8, 0, 1.6), "scale=0"),
    (lambda: degrade.blur_taps(8, 4, -1.0), "sigma=-1.0"),
    (lambda: degrade.blur_taps(8, 4, 1e300), "sigma=1e"),
    (lambda: degrade.blur_taps(8, 4, 1.6, "left"), "where='left'"),
    (lambda: degrade.keys_cubic([0.5]), "x is a list"),
])
def test_taps_of_nothing(call, message):
    with pytest.raises(ValueError, match=message):
        call()
