"""Crops and their context: pixel by pixel, at borders, codes of the scene, sliding."""

import pytest
import torch
import torch.nn.functional as F

from tests.wrong import raw_errors
from vtlib.nn import sincos_2d
from vtlib.segmentation.caswit import Segmented
from vtlib.segmentation.caswit_context import (
    centres,
    cut,
    cut_labels,
    footprint,
    pool_keys,
    scene_code,
    slide,
)


def picture(height=40, width=56, batch=2):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_the_crop_is_the_middle_of_its_context(factor):
    images = picture()
    crop, context = cut(images, (12, 20), (8, 16), factor)
    assert torch.equal(crop, images[..., 12:20, 20:36]) and context.shape == crop.shape
    (top, bottom), (left, right) = footprint((8, 16), (8, 16), factor)
    if factor != 3:
        copy = context[..., int(top):int(bottom), int(left):int(right)]
        torch.testing.assert_close(copy, F.avg_pool2d(crop, factor))
    assert (bottom - top, right - left) == pytest.approx((8 / factor, 16 / factor))
    assert (top + bottom, left + right) == pytest.approx((8, 16))


def test_the_context_covers_factor_times_the_crop():
    images = picture()
    _, context = cut(images, (12, 20), (8, 16))
    torch.testing.assert_close(context, F.avg_pool2d(images[..., 8:24, 12:44], 2))


@pytest.mark.parametrize("corner", [(0, 0), (32, 40), (0, 17)])
def test_reflected_at_borders(corner):
    images, margin = picture(), (4, 8)
    padded = F.pad(images, (8, 8, 4, 4), mode="reflect")
    top, left = corner
    window = padded[..., top:top + 8 + 2 * margin[0], left:left + 16 + 2 * margin[1]]
    torch.testing.assert_close(cut(images, corner, (8, 16))[1], F.avg_pool2d(window, 2))


def test_margins_beyond_the_picture():
    images = torch.arange(4.0).expand(1, 1, 4, 4)
    _, context = cut(images, (0, 0), (4, 4), 4)                 # the picture's own size, margin 6
    row = torch.tensor([0.0, 1, 2, 3, 2, 1]).repeat(4)[:16]     # of period 6, begins at 0 = -6
    torch.testing.assert_close(context[0, 0, 0], row.reshape(4, 4).mean(1))
    assert torch.equal(cut(images[..., :1, :1], (0, 0), (1, 1), 3)[1], images[..., :1, :1])


def test_labels_of_the_same_places():
    labels = torch.arange(40 * 56).reshape(1, 40, 56)
    crop, context = cut_labels(labels, (12, 20), (8, 16))
    assert torch.equal(crop, labels[:, 12:20, 20:36])
    assert torch.equal(context, labels[:, 9:24:2, 13:44:2])
    blocks = torch.arange(20 * 28).reshape(1, 20, 28)           # one label for each 2 x 2 pixels
    blocks = blocks.repeat_interleave(2, 1).repeat_interleave(2, 2)
    image = blocks[:, None].float()
    for corner in ((0, 0), (32, 40), (12, 20)):
        pooled = cut(image, corner, (8, 16))[1][:, 0]
        if corner == (12, 20):
            assert torch.equal(cut_labels(blocks, corner, (8, 16))[1].float(), pooled)


def test_the_footprint_of_the_card():
    (top, bottom), (left, right) = footprint((512, 512), (512, 512), 2)
    assert (top, bottom, left, right) == (128, 384, 128, 384)
    assert (bottom - top) * (right - left) * 4 == 512 * 512
    assert footprint((64, 64), (256, 128), 2) == ((112, 144), (48, 80))
    with pytest.raises(ValueError, match="does not hold a crop"):
        footprint((64, 64), (16, 64), 2)


# ----------------------------------------------------------------------------- codes, pooled keys
def test_codes_are_sines_of_places():
    rows, cols = torch.arange(3.0), torch.arange(5.0)
    torch.testing.assert_close(scene_code(rows, cols, 8), sincos_2d((3, 5), 8))


def test_the_same_place_has_the_same_code():
    """A 2 x 2 square of the crop's tokens has its middle where one token of the context has it."""
    device = torch.device("cpu")
    own, around = centres(8, 2.0, 8.0, device), centres(8, 4.0, 0.0, device)
    assert torch.equal(own.reshape(4, 2).mean(1), around[2:6])
    assert own[0] == 8 + 4 / 2 * 0.5                             # the token's 4 pixels are 2 there


@pytest.mark.parametrize("side, left", [(128, 32), (64, 32), (32, 32), (33, 17)])
def test_at_most_so_many_keys(side, left, most=32):
    x = torch.rand(1, 2, side, 8, generator=torch.Generator().manual_seed(0))
    pooled = pool_keys(x, most)
    assert pooled.shape == (1, 2, left, 8)
    kernel = -(-side // most)
    torch.testing.assert_close(pooled[:, :, 0], x[:, :, :kernel].mean(2))
    if side == 33:                                               # the last cell has one row only
        torch.testing.assert_close(pooled[:, :, -1], x[:, :, -1])


# ------------------------------------------------------------------------------------------ sliding
class Echo:
    """Scores that are the crop's pixels and its context's mean: what was seen can be told."""

    def __init__(self):
        self.crops = 0

    def __call__(self, crop, context):
        self.crops += 1
        return Segmented(torch.cat([crop, 0 * crop + context.mean()], dim=1), None, [])


@pytest.mark.parametrize("stride, crops", [(None, 6), (8, 16), (5, 30)])
def test_every_pixel_comes_back(stride, crops):
    images, net = picture(40, 44), Echo()
    out = slide(net, images, (16, 24), stride=stride)
    torch.testing.assert_close(out[:, :3], images)
    assert out.shape == (2, 6, 40, 44) and net.crops == crops


def test_overlaps_are_averaged():
    images, net = picture(16, 24), Echo()
    out = slide(net, images, (16, 16), stride=8)[:, 3]
    first, second = (cut(images, (0, left), (16, 16))[1].mean() for left in (0, 8))
    torch.testing.assert_close(out[0, 0, 0], first)
    torch.testing.assert_close(out[0, 0, 12], (first + second) / 2)
    torch.testing.assert_close(out[0, 0, 23], second)


def test_wrong_arguments():
    images, labels = picture(), torch.zeros(1, 40, 56, dtype=torch.long)
    place = dict(corner=(12, 20), crop_size=(8, 16), factor=2)
    assert not raw_errors(cut, dict(images=images, **place))
    assert not raw_errors(cut_labels, dict(labels=labels, **place))
    assert not raw_errors(footprint, dict(crop_size=(8, 8), context_size=(8, 8), factor=2))
    assert not raw_errors(pool_keys, dict(x=images, most=4))
    with pytest.raises(ValueError, match="outside"):
        cut(images, (33, 0), (8, 8))
    with pytest.raises(ValueError, match="whole pixels"):
        cut(images, (0, 0), (7, 8))
    with pytest.raises(ValueError, match="multiple of 4"):
        scene_code(torch.arange(3.0), torch.arange(3.0), 6)
    with pytest.raises(ValueError, match="smaller than crop_size"):
        slide(Echo(), images, (64, 16))
    with pytest.raises(ValueError, match="leaves gaps"):
        slide(Echo(), images, (8, 8), stride=9)
    with pytest.raises(ValueError, match="net"):
        slide(3, images)
