"""The loss of pixels: resized logits, ignored labels, labels that cannot be."""

import pytest
import torch
import torch.nn.functional as F

from tests.wrong import raw_errors
from vtlib.segmentation import pixel_cross_entropy

LOGITS = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 3, (2, 8, 12), generator=torch.Generator().manual_seed(1))


def test_it_is_the_mean_over_all_pixels_of_the_labels():
    large = F.interpolate(LOGITS, (8, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(pixel_cross_entropy(LOGITS, LABELS), F.cross_entropy(large, LABELS))


def test_ignored_pixels_are_zeros_in_the_mean():
    labels = LABELS.clone()
    labels[:, :4] = 255
    large = F.interpolate(LOGITS, (8, 12), mode="bilinear", align_corners=False)
    want = F.cross_entropy(large[:, :, 4:], labels[:, 4:]) / 2
    torch.testing.assert_close(pixel_cross_entropy(LOGITS, labels), want)
    logits = LOGITS.clone().requires_grad_()
    pixel_cross_entropy(logits, torch.full_like(LABELS, 255)).backward()
    assert logits.grad.abs().sum() == 0


@pytest.mark.parametrize("labels, said", [
    (LABELS.int(), "labels is torch.int32"),
    (LABELS[:1], "labels is torch.int64"),
    (LABELS + 1, "labels has class 3: needs 0 ... 2"),
    (LABELS - 1, "labels has class -1"),
])
def test_labels_that_cannot_be(labels, said):
    with pytest.raises(ValueError, match=said):
        pixel_cross_entropy(LOGITS, labels)


def test_no_error_from_deep_inside():
    fits = dict(logits=LOGITS, labels=LABELS, ignore_index=255)
    assert raw_errors(pixel_cross_entropy, fits, part=True) == []
