"""What OneFormer is trained with: masks and classes of matched queries, for every layer, and the
query-text contrast.

    L = 2 L_cls + 5 L_bce + 5 L_dice, summed over all predictions, + 0.5 L_contrast

Each prediction is matched anew (`matching.match`), the one from the queries as formed, too: ten
with nine layers. Every picture may have the targets of another task (`task_targets`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..nn.checks import check_int, check_list, check_numbers, describe
from .losses import class_loss, mask_losses
from .matching import match
from .oneformer_tasks import Targets

NUM_POINTS = 112 * 112


class JointLoss(NamedTuple):
    """Scalars.

    Args:
        total: the weighted sum.
        classes: cross entropy, summed over predictions, as the next two, without weights.
        bce: of the masks.
        dice: of the masks.
        contrast: what was given, or 0.
    """

    total: Tensor
    classes: Tensor
    bce: Tensor
    dice: Tensor
    contrast: Tensor


def joint_loss(
    predictions: Sequence[tuple[Tensor, Tensor]],
    targets: Sequence[Targets],
    contrast: Tensor | None = None,
    generator: torch.Generator | None = None,
    num_points: int | None = NUM_POINTS,
    weights: Sequence[float] = (2.0, 5.0, 5.0, 0.5),
) -> JointLoss:
    """The loss of a batch, whose pictures may be of different tasks.

    Args:
        predictions: class logits (B, N, K + 1) and mask logits (B, N, H, W) of each layer, that is
            `[*out.earlier, out.last]`.
        targets: of each picture, masks of one size.
        contrast: `OneFormer.contrast`; None: without.
        generator: draws points, for matching and for the masks.
        num_points: of a mask; None: every pixel, and then masks are as large as mask logits.
        weights: of classes, BCE, Dice and contrast. The first three weigh the cost of a match, too.
    """
    found = check_list(predictions, "predictions", "a list of (class_logits, mask_logits)")
    if not found:
        raise ValueError("predictions is empty: needs one prediction at least")
    entries = check_list(targets, "targets", "a list of Targets, one a picture")
    for i, entry in enumerate(entries):
        if not isinstance(entry, Targets):
            raise ValueError(f"targets[{i}] is {describe(entry)} but needs to be Targets")
    if num_points is not None:
        num_points = check_int(num_points, "num_points", 1)
    weights = check_numbers(weights, "weights", 0, length=4)
    labels, masks = [entry.classes for entry in entries], [entry.masks for entry in entries]
    parts = []
    for class_logits, mask_logits in found:
        pairs = match(
            class_logits, mask_logits, labels, masks, generator, num_points, weights[:3]
        )
        of_masks = mask_losses(mask_logits, masks, pairs, generator, num_points)
        parts.append((class_loss(class_logits, labels, pairs), of_masks.bce, of_masks.dice))
    classes, bce, dice = (torch.stack(each).sum() for each in zip(*parts, strict=True))
    extra = torch.zeros_like(classes) if contrast is None else contrast
    sums = zip(weights, (classes, bce, dice, extra), strict=True)
    total = torch.stack([weight * part for weight, part in sums]).sum()
    return JointLoss(total, classes, bce, dice, extra)
