"""Boundary IoU: bands by hand and by a loop, what it sees and mIoU does not."""

import pytest
import torch

from tests.wrong import raw_errors
from vtlib.segmentation.boundary import boundary_iou, inner_band


def square(side=20, top=4, left=4, size=12):
    labels = torch.zeros(1, side, side, dtype=torch.long)
    labels[:, top:top + size, left:left + size] = 1
    return labels


@pytest.mark.parametrize("width", [1, 2, 3])
def test_the_band_by_a_loop(width):
    mask = torch.rand(9, 11, generator=torch.Generator().manual_seed(0)) < 0.85
    want = torch.zeros_like(mask)
    for y in range(9):
        for x in range(11):
            near = [
                (y + dy, x + dx)
                for dy in range(-width, width + 1) for dx in range(-width, width + 1)
            ]
            inside = all(0 <= a < 9 and 0 <= b < 11 and mask[a, b] for a, b in near)
            want[y, x] = mask[y, x] and not inside
    assert torch.equal(inner_band(mask, width), want)
    assert torch.equal(inner_band(mask[None, None], width)[0, 0], want)


def test_by_hand():
    truth, moved = square(), square(left=5)
    ring = 12**2 - 8**2
    assert inner_band(truth == 1, 2).sum() == ring
    assert torch.equal(boundary_iou(truth, truth, 2), torch.ones(2))
    # rings of the squares, one pixel apart: two rows of 11 above and below, and in each of the
    # 8 rows between one pixel at either side
    shared = 4 * 11 + 8 * 2
    assert boundary_iou(moved, truth, 2)[1] == shared / (2 * ring - shared)
    plain = (12 * 11) / (12 * 13)
    assert boundary_iou(moved, truth, 2)[1] < 0.7 < plain


def test_ignored_and_absent():
    truth = square()
    wrong = truth.clone()
    wrong[:, :, 10:] = 0
    truth[:, :, 8:] = 255
    assert boundary_iou(wrong, truth, 3).isnan().tolist() == [False, False, True]
    masked = boundary_iou(wrong, truth, 2)[0]
    assert masked == 1.0


def test_wrong_arguments():
    fits = dict(pred=square(), labels=square(), num_classes=2, width=2, ignore_index=255)
    assert not raw_errors(boundary_iou, fits)
    with pytest.raises(ValueError, match="masks"):
        inner_band(square(), 2)
    with pytest.raises(ValueError, match="pred"):
        boundary_iou(square()[:, 1:], square(), 2)
