"""How well outlines agree: IoU of the bands along the borders of masks (Boundary IoU, Cheng et al.,
CVPR 2021, arXiv 2103.16562), which a large region's inside cannot hide."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn.checks import check_index, check_int


def inner_band(masks: Tensor, width: int) -> Tensor:
    """Pixels of each mask at most `width` from its outside, (..., H, W) bool -> the same.

    The distance is that of a square: the band is what an erosion by 2 width + 1 takes away. The
    picture's own border counts as outside, as in the official code.
    """
    width = check_int(width, "width", 1)
    if not isinstance(masks, Tensor) or masks.dtype != torch.bool or masks.dim() < 2:
        raise ValueError("masks needs to be a boolean tensor (..., H, W)")
    outside = (~masks).float().reshape(-1, 1, *masks.shape[-2:])
    outside = F.pad(outside, (width,) * 4, value=1.0)
    near = F.max_pool2d(outside, 2 * width + 1, stride=1) > 0
    return masks & near.reshape(masks.shape)


def boundary_iou(
    pred: Tensor, labels: Tensor, num_classes: int, width: int = 2, ignore_index: int = 255
) -> Tensor:
    """Boundary IoU of each class over a set of pictures: (num_classes,), NaN where none is.

    For a class with masks G and P: |band(G) & band(P)| / |band(G) | band(P)|, summed over the set.

    Args:
        pred: (B, H, W) long, predicted classes.
        labels: (B, H, W) long, the truth.
        num_classes: classes are 0 ... num_classes - 1.
        width: of the bands, in pixels (Cheng et al.: 2 % of the diagonal).
        ignore_index: pixels with this label count in no band.
    """
    check_index(labels, "labels", "(B, H, W)")
    check_index(pred, "pred", "(B, H, W)", tuple(labels.shape))
    num_classes = check_int(num_classes, "num_classes", 1)
    seen = labels != check_int(ignore_index, "ignore_index")
    shared, either = [], []
    for k in range(num_classes):
        truth, guess = inner_band(labels == k, width), inner_band(pred == k, width)
        shared.append((truth & guess & seen).sum())
        either.append(((truth | guess) & seen).sum())
    return torch.stack(shared) / torch.stack(either)
