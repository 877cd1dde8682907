"""The loss of a decoder that says a class for every pixel."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn.checks import at_hand, check_flag, check_images, check_index, check_int


def pixel_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int = 255,
    labelled_only: bool = False,
    name: str = "labels",
) -> Tensor:
    """Cross entropy at the size of the labels, in float32 at least; a scalar.

    Args:
        logits: (B, K, h, w), resized bilinearly.
        labels: (B, H, W) long, 0 ... K - 1 or ignore_index.
        ignore_index: the label without a loss.
        labelled_only: False: the mean over all pixels, ignored ones as zeros; True: over the
            others, 0 where there are none.
        name: what a message calls the labels.

    ValueError for another dtype or batch, and, on the CPU, for a class that does not exist.
    """
    check_images(logits, None, "logits")
    ignore_index, num_classes = check_int(ignore_index, "ignore_index"), logits.shape[1]
    check_index(labels, name, "(B, H, W)", (logits.shape[0], None, None))
    real = labels != ignore_index
    wrong = real & ((labels < 0) | (labels >= num_classes))
    if at_hand(labels) and wrong.any():
        raise ValueError(
            f"{name} has class {int(labels[wrong][0])}: needs 0 ... {num_classes - 1} "
            f"or ignore_index={ignore_index}"
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if logits.shape[2:] != labels.shape[1:]:
        logits = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
    each = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    if check_flag(labelled_only, "labelled_only"):
        return each.sum() / real.sum().clamp(min=1)
    return each.mean()
