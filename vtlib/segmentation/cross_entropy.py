"""The loss of a decoder that says a class for every pixel."""

import torch.nn.functional as F
from torch import Tensor

from ..nn.checks import at_hand, check_images, check_index, check_int


def pixel_cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = 255) -> Tensor:
    """Cross entropy at the size of the labels, the mean over all pixels, ignored ones as zeros.

    Args:
        logits: (B, K, h, w), resized bilinearly.
        labels: (B, H, W) long, 0 ... K - 1 or ignore_index.
        ignore_index: the label without a loss.

    ValueError for another dtype or batch, and, on the CPU, for a class that does not exist.
    """
    check_images(logits, None, "logits")
    ignore_index, num_classes = check_int(ignore_index, "ignore_index"), logits.shape[1]
    check_index(labels, "labels", "(B, H, W)", (logits.shape[0], None, None))
    wrong = (labels != ignore_index) & ((labels < 0) | (labels >= num_classes))
    if at_hand(labels) and wrong.any():
        raise ValueError(
            f"labels has class {int(labels[wrong][0])}: needs 0 ... {num_classes - 1} "
            f"or ignore_index={ignore_index}"
        )
    logits = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none").mean()
