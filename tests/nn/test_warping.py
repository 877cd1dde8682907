"""Warping against scipy and grid_sample, on known flows; which way a flow points; borders; pictures
of one pixel."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from vtlib import data
from vtlib.data import footage
from vtlib.nn import warp


def flow_of(x, y, h=6, w=9, batch=1):
    return torch.tensor([float(x), float(y)]).view(1, 2, 1, 1).expand(batch, 2, h, w)


def by_scipy(x, flow, mode, padding):
    """Channel by channel, each pixel read where its flow points."""
    h, w = x.shape[2:]
    rows, columns = np.mgrid[:h, :w]
    order = 1 if mode == "bilinear" else 0
    border = "nearest" if padding == "border" else "constant"
    out = np.empty(x.shape)
    for b, c in np.ndindex(*x.shape[:2]):
        at = [rows + flow[b, 1].numpy(), columns + flow[b, 0].numpy()]
        out[b, c] = map_coordinates(x[b, c].numpy(), at, order=order, mode=border)
    return torch.from_numpy(out)


def picture_and_flow(seed):
    torch.manual_seed(seed)
    x = torch.rand(2, 3, 7, 10, dtype=torch.double)
    return x, 4 * torch.randn(2, 2, 7, 10, dtype=torch.double)


def test_bilinear_border_equals_scipy():
    x, flow = picture_and_flow(0)
    want = by_scipy(x, flow, "bilinear", "border")
    torch.testing.assert_close(warp(x, flow), want, atol=1e-12, rtol=0)


def test_nearest_equals_scipy():
    x, flow = picture_and_flow(1)
    assert torch.equal(warp(x, flow, "nearest"), by_scipy(x, flow, "nearest", "border"))
    # scipy's "constant" ends half a pixel earlier than grid_sample's
    inside, far = (F.pad(t, (9,) * 4) for t in (x, flow))
    padded = by_scipy(inside, far.clamp(-9, 9), "nearest", "border")[..., 9:-9, 9:-9]
    assert torch.equal(warp(x, flow.clamp(-9, 9), "nearest", "zeros"), padded)


@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_equals_grid_sample_with_aligned_corners(mode, padding):
    """The official way: 2 p / max(size - 1, 1) - 1."""
    torch.manual_seed(2)
    x, flow = torch.rand(2, 3, 8, 5), 3 * torch.randn(2, 2, 8, 5)
    y, x0 = torch.meshgrid(torch.arange(8.0), torch.arange(5.0), indexing="ij")
    grid = torch.stack([2 * (x0 + flow[:, 0]) / 4 - 1, 2 * (y + flow[:, 1]) / 7 - 1], -1)
    want = F.grid_sample(x, grid, mode, padding, align_corners=True)
    torch.testing.assert_close(warp(x, flow, mode, padding), want, atol=1e-5, rtol=1e-5)


def test_channel_0_is_x_and_the_result_reads_at_pixel_plus_flow():
    x = torch.arange(54.0).view(1, 1, 6, 9)
    out = warp(x, flow_of(2, 1))
    assert out[0, 0, 0, 0].round() == x[0, 0, 1, 2]                        # row + y, column + x
    torch.testing.assert_close(out[..., :5, :7], x[..., 1:, 2:])
    assert torch.equal(out[..., -1, :], out[..., -2, :])                   # the border repeats
    assert (warp(x, flow_of(2, 1), padding="zeros")[..., -1, :] == 0).all()
    assert warp(x, flow_of(0.5, 0))[0, 0, 0, 0].item() == pytest.approx(0.5, abs=1e-5)


def test_the_flow_to_the_other_frame_brings_it_here():
    """Moving right by 2: frame 1 at p + 2 shows what frame 0 shows at p.

    So flow 0 -> 1 warps frame 1 onto frame 0, not 0 onto 1.
    """
    clip = footage.panned(2, 2, 32, seed=0, split="test", shrink=1.0, velocity=(-2.0, 1.0))
    there = clip.backward[:, 0]                                            # frame 0 to frame 1
    torch.testing.assert_close(there, flow_of(2, -1, 32, 32, 2), atol=1e-4, rtol=0)
    first, second = clip.frames.unbind(1)
    inner = (..., slice(4, -4), slice(4, -4))
    right = (warp(second, there) - first)[inner].abs().mean()
    wrong = (warp(second, -there) - first)[inner].abs().mean()
    assert right < 1e-4 and wrong > 20 * max(right, 1e-4)


def test_emojiworlds_flow_explains_what_is_visible():
    video = data.EmojiWorld(64, "test").video(4, 2, seed=0, speed=0.05, pan=0.02)
    first, second = video.frames.unbind(1)
    seen = ~video.occluded[:, 0]
    error = (warp(second, video.flow[:, 0]) - first).abs().mean(1)
    still = (second - first).abs().mean(1)
    assert error[seen].mean() < 0.35 * still[seen].mean()
    assert error[~seen].mean() > 2 * error[seen].mean()


@given(st.integers(1, 7), st.integers(1, 7), st.integers(-9, 9), st.integers(-9, 9))
@settings(max_examples=60, deadline=None)
def test_nearest_copies_values_exactly(h, w, dx, dy):
    x = torch.rand(1, 2, h, w)
    rows, columns = (torch.arange(h) + dy).clamp(0, h - 1), (torch.arange(w) + dx).clamp(0, w - 1)
    want = x[..., rows[:, None], columns]
    for nudge in (0.0, 0.3, -0.3):
        assert torch.equal(warp(x, flow_of(dx + nudge, dy - nudge, h, w), "nearest"), want)
    torch.testing.assert_close(warp(x, flow_of(dx, dy, h, w)), want, atol=1e-5, rtol=0)
    row, col = torch.arange(h) + dy, torch.arange(w) + dx
    inside = (row.clamp(0, h - 1) == row)[:, None] & (col.clamp(0, w - 1) == col)
    assert torch.equal(warp(x, flow_of(dx, dy, h, w), "nearest", "zeros"), want * inside)


def test_integer_maps_stay_integers():
    """What location maps of TTVSR need, also far from the origin: nearest sampling of whole numbers
    gives whole numbers."""
    row, col = torch.meshgrid(torch.arange(200.0), torch.arange(300.0), indexing="ij")
    grid = torch.stack([row, col])[None]
    out = warp(grid, torch.randn(1, 2, 200, 300) * 20, "nearest")
    assert torch.equal(out, out.round()) and out.min() >= 0
    assert out[:, 0].max() <= 199 and out[:, 1].max() <= 299


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_one_pixel_pictures(mode):
    x = torch.full((1, 2, 1, 1), 0.7)
    assert torch.allclose(warp(x, flow_of(5, -3, 1, 1), mode), x)
    assert (warp(x, flow_of(5, 0, 1, 1), mode, "zeros") == 0).all()
    assert torch.allclose(warp(x, flow_of(0, 0, 1, 1), mode, "zeros"), x)
    row = torch.rand(1, 1, 1, 6)
    torch.testing.assert_close(warp(row, flow_of(1, 2, 1, 6), mode)[..., :5], row[..., 1:])


def test_zero_flow_changes_nothing():
    x = torch.rand(2, 3, 6, 9)
    assert torch.equal(warp(x, torch.zeros(2, 2, 6, 9), "nearest"), x)
    torch.testing.assert_close(warp(x, torch.zeros(2, 2, 6, 9)), x, atol=1e-6, rtol=0)


def test_half_precision_keeps_positions_of_wide_pictures():
    """bfloat16 has 8 bits: 301 would become 300 or 302."""
    x = torch.arange(400.0).view(1, 1, 1, 400).expand(1, 1, 2, 400).remainder(2).to(torch.bfloat16)
    out = warp(x, flow_of(0, 0, 2, 400).to(torch.bfloat16))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, x, atol=1e-4, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        moved = warp(x.float(), flow_of(1, 0, 2, 400))
    torch.testing.assert_close(moved[..., :-1], x.float()[..., 1:], atol=1e-4, rtol=0)


def test_meta_device_double_and_batch():
    for mode in ("bilinear", "nearest"):
        far = (torch.rand(2, channels, 5, 4, device="meta") for channels in (3, 2))
        assert warp(*far, mode).shape == (2, 3, 5, 4)
    x, flow = torch.rand(3, 2, 6, 9), torch.randn(3, 2, 6, 9)
    assert torch.equal(warp(x, flow)[1:2], warp(x[1:2], flow[1:2]))
    x = torch.rand(1, 1, 4, 4).double().requires_grad_()
    flow = (torch.rand(1, 2, 4, 4).double() * 0.4 + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(warp, (x, flow))


def test_bad_input():
    x, flow = torch.rand(1, 3, 6, 9), torch.zeros(1, 2, 6, 9)
    with pytest.raises(ValueError, match="mode='cubic': needs one of bilinear, nearest"):
        warp(x, flow, "cubic")
    with pytest.raises(ValueError, match="padding='reflect': needs one of border, zeros"):
        warp(x, flow, padding="reflect")
    two, last = flow.expand(2, -1, -1, -1), flow.permute(0, 2, 3, 1)
    for wrong in (flow[:, :1], flow[..., :-1], two, last, flow[0]):
        with pytest.raises(ValueError, match=r"flow has shape .* needs flow \(B, 2, h, w\)"):
            warp(x, wrong)
