"""Losses of predicted masks against the targets that a matching gave them.

    BCE    mean over points of -t log p - (1 - t) log(1 - p)          bce_loss
    Dice   1 - (2 sum p t + 1) / (sum p + sum t + 1)                  dice_loss
    points at which both are read                                    sample_points
    points where the prediction is unsure, and some anywhere          uncertain_points
    both, of all matched masks of a batch                             mask_losses
    cross entropy, unmatched queries are "no object"                  class_loss

p is the sigmoid of the logits. The points are those of PointRend (Kirillov and others, CVPR 2020,
arXiv 1912.08193) as Mask2Former (Cheng and others, CVPR 2022, arXiv 2112.01527) trains with them:
12,544 a mask, three quarters of them the most uncertain among three times as many random ones. They
ask no memory for masks at full size, and masks and targets need not be of one size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn.checks import (
    check_axes,
    check_float,
    check_generator,
    check_index,
    check_int,
    check_list,
    check_number,
    describe,
    readable,
)
from ..tokens.precision import full_precision, widen

NUM_POINTS = 12544                                                       # 112 x 112


class MaskLosses(NamedTuple):
    """Two scalars; a paper weighs them, 5 and 5 in Mask2Former."""

    bce: Tensor
    dice: Tensor


def bce_loss(logits: Tensor, targets: Tensor, count: float) -> Tensor:
    """Mean over the points of each mask, summed over masks, divided by `count`: a scalar.

    Args:
        logits: (M, P).
        targets: (M, P) in [0, 1].
        count: what one divides by, the number of target masks in the batch.
    """
    each = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return each.mean(1).sum() / count


def dice_loss(logits: Tensor, targets: Tensor, count: float) -> Tensor:
    """1 - (2 sum p t + 1) / (sum p + sum t + 1) of each mask, summed and divided by `count`.

    The ones make an empty target with an empty prediction cost 0.

    Args:
        logits: (M, P).
        targets: (M, P) in [0, 1].
        count: as in `bce_loss`.
    """
    p = logits.sigmoid()
    both = (p * targets).sum(1)
    each = 1 - (2 * both + 1) / (p.sum(1) + targets.sum(1) + 1)
    return each.sum() / count


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """The values of maps at points, bilinear; outside is 0, so the outer half pixel fades to half
    (and a sure logit looks less sure there): official code does so too.

    Args:
        maps: floats (B, N, H, W).
        points: (x, y) in [0, 1] of the whole map, (B, P, 2), the same ones for all N.

    Returns (B, N, P). ValueError for other shapes.
    """
    check_float(maps, "maps")
    check_float(points, "points")
    if maps.dim() != 4 or points.dim() != 3 or points.shape[::2] != (maps.shape[0], 2):
        raise ValueError(
            f"maps is {describe(maps)} and points {describe(points)}: "
            f"needs (B, N, H, W) and (B, P, 2)"
        )
    grid = (2 * points - 1).to(maps.dtype)[:, :, None]                               # b p 1 2
    return F.grid_sample(maps, grid, padding_mode="zeros", align_corners=False)[..., 0]


def random_points(
    rows: int, count: int, generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Uniform in [0, 1) x [0, 1): (rows, count, 2), float32.

    Args:
        rows: how many sets.
        count: points of each.
        generator: draws them, on its own device; ValueError for None.
        device: where they go.
    """
    check_generator(generator)
    home = generator.device                                              # type: ignore[union-attr]
    drawn = torch.rand(rows, count, 2, generator=generator, device=home, dtype=torch.float32)
    return drawn.to(device)


@torch.no_grad()
def uncertain_points(
    logits: Tensor,
    num_points: int,
    generator: torch.Generator | None,
    oversample: float = 3.0,
    importance: float = 0.75,
) -> Tensor:
    """Points (M, P, 2) for each of M masks: of P x oversample random ones the P x importance whose
    logit is nearest to 0, and then random ones. No gradient.

    Args:
        logits: (M, H, W).
        num_points: P.
        generator: draws them.
        oversample: at least 1.
        importance: a share in [0, 1].
    """
    check_axes(logits, "logits", "(M, H, W)")
    num_points = check_int(num_points, "num_points", 1)
    oversample = check_number(oversample, "oversample", 1)
    unsure = int(num_points * check_number(importance, "importance", 0, 1))
    points = random_points(
        len(logits), int(num_points * oversample), generator, logits.device
    )
    values = sample_points(widen(logits)[:, None], points)[:, 0]                     # m s
    index = (-values.abs()).topk(unsure, dim=1).indices                              # m u
    chosen = points.gather(1, index[..., None].expand(-1, -1, 2))
    others = random_points(len(logits), num_points - unsure, generator, logits.device)
    return torch.cat([chosen, others], dim=1)                                        # m p 2


def mask_losses(
    mask_logits: Tensor,
    masks: Sequence[Tensor],
    matches: Sequence[tuple[Tensor, Tensor]],
    generator: torch.Generator | None = None,
    num_points: int | None = NUM_POINTS,
    oversample: float = 3.0,
    importance: float = 0.75,
) -> MaskLosses:
    """BCE and Dice of the matched queries, over the number of targets in the batch (at least 1).

    Queries without a target get no gradient. Float32 at least, also under autocast. Without any
    target both are 0, with a gradient of 0.

    Args:
        mask_logits: (B, Q, H, W).
        masks: of each image (T_b, H', W') in [0, 1], bool or float; T_b may be 0.
        matches: of each image the numbers of queries and of targets, of `matching.match`.
        generator: draws the points.
        num_points: so many a mask, of `uncertain_points`; None: every pixel, and then H' = H and
            W' = W.
        oversample: as in `uncertain_points`.
        importance: as in `uncertain_points`.

    ValueError for lists that don't fit the batch, masks outside [0, 1], and points without a
    generator.
    """
    check_axes(mask_logits, "mask_logits", "(B, Q, H, W)")
    masks = check_masks(masks, mask_logits, full=num_points is None)
    matches = check_matches(matches, mask_logits, [len(m) for m in masks])
    count = max(sum(len(m) for m in masks), 1)
    batch, query = matched_queries(matches)
    if not len(query):
        nothing = widen(mask_logits[batch, query]).sum()
        return MaskLosses(nothing, nothing)
    with full_precision(mask_logits.device):
        logits = widen(mask_logits[batch, query])                                    # m h w
        targets = torch.cat([m[target] for m, (_, target) in zip(masks, matches, strict=True)])
        targets = targets.to(logits.dtype)
        if num_points is None:
            logits, targets = logits.flatten(1), targets.flatten(1)                  # m h*w
        else:
            points = uncertain_points(logits, num_points, generator, oversample, importance)
            logits = sample_points(logits[:, None], points)[:, 0]                    # m p
            targets = sample_points(targets[:, None], points)[:, 0]
        return MaskLosses(bce_loss(logits, targets, count), dice_loss(logits, targets, count))


def class_loss(
    class_logits: Tensor,
    labels: Sequence[Tensor],
    matches: Sequence[tuple[Tensor, Tensor]],
    no_object: float = 0.1,
) -> Tensor:
    """Cross entropy of all queries: a matched one has its target's class, any other the last class,
    "no object". A mean with weights: 1 for a class, `no_object` for the last.

    Args:
        class_logits: (B, Q, K + 1).
        labels: of each image (T_b,) int64, 0 ... K - 1.
        matches: as in `mask_losses`.
        no_object: weight of the last class, above 0.
    """
    check_axes(class_logits, "class_logits", "(B, Q, K + 1)")
    labels = check_labels(labels, class_logits)
    matches = check_matches(matches, class_logits, [len(entry) for entry in labels])
    last = class_logits.shape[2] - 1
    batch, query = matched_queries(matches)
    wanted = torch.full(
        class_logits.shape[:2], last, dtype=torch.int64, device=class_logits.device
    )
    wanted[batch, query] = torch.cat(
        [entry[target] for entry, (_, target) in zip(labels, matches, strict=True)]
    )
    with full_precision(class_logits.device):
        logits = widen(class_logits)
        weight = torch.ones(last + 1, dtype=logits.dtype, device=logits.device)
        weight[last] = check_number(no_object, "no_object", above=0)
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), weight)


def matched_queries(matches: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Image and query of every match of the batch: (M,) and (M,)."""
    query = torch.cat([q for q, _ in matches])
    batch = torch.cat([torch.full_like(q, b) for b, (q, _) in enumerate(matches)])
    return batch, query


def check_masks(masks: Sequence[Tensor], mask_logits: Tensor, full: bool) -> list[Tensor]:
    """The masks of each image as a list. full: whether they must be as large as the logits.

    Args:
        masks: what was given.
        mask_logits: (B, Q, H, W).
        full: as above.
    """
    found = check_list(masks, "masks", "a list of tensors, one an image")
    _check_length(found, "masks", len(mask_logits))
    for b, m in enumerate(found):
        if not isinstance(m, Tensor) or m.dim() != 3:
            raise ValueError(f"masks[{b}] is {describe(m)} but needs to be (T, H, W)")
        if full and m.shape[1:] != mask_logits.shape[2:]:
            sizes = f"{tuple(m.shape[1:])} and mask_logits {tuple(mask_logits.shape[2:])}"
            raise ValueError(f"masks[{b}] has the size {sizes}: without points needs one size")
        if m.shape[1:] != found[0].shape[1:]:
            sizes = f"{tuple(m.shape[1:])} and masks[0] {tuple(found[0].shape[1:])}"
            raise ValueError(f"masks[{b}] has the size {sizes}: a batch needs one size, pad them")
        if m.numel() and readable(m) and not 0 <= m.min() <= m.max() <= 1:
            raise ValueError(f"masks[{b}] has values outside [0, 1]: a mask is 0 or 1")
    return found


def check_labels(labels: Sequence[Tensor], class_logits: Tensor) -> list[Tensor]:
    """The labels of each image as a list; below K, for "no object" is no target."""
    found = check_list(labels, "labels", "a list of tensors, one an image")
    _check_length(found, "labels", len(class_logits))
    for b, entry in enumerate(found):
        check_index(entry, f"labels[{b}]", "(T,)", stop=class_logits.shape[2] - 1)
    return found


def check_matches(
    matches: Sequence[tuple[Tensor, Tensor]], logits: Tensor, counts: Sequence[int]
) -> list[tuple[Tensor, Tensor]]:
    """The pairs of each image as a list.

    Args:
        matches: what was given.
        logits: (B, Q, ...).
        counts: the number of targets of each image.
    """
    found = check_list(matches, "matches", "a list of (query, target), one an image")
    _check_length(found, "matches", len(logits))
    for b, (query, target) in enumerate(found):
        check_index(query, f"matches[{b}] query", "(M,)", stop=logits.shape[1])
        check_index(target, f"matches[{b}] target", "(M,)", (len(query),), stop=counts[b])
    return found


def _check_length(entries: list, name: str, batch: int) -> None:
    if len(entries) != batch:
        raise ValueError(f"{name} has {len(entries)} entries but the batch {batch} images")
