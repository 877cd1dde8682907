"""Which query shall learn which target: the Hungarian assignment of predicted masks and classes.

    cost (Q, T) = 2 (-p(class)) + 5 BCE + 5 Dice       match_cost: class_cost, bce_cost, dice_cost
    the one-to-one pairs of the smallest sum           assign: scipy's linear_sum_assignment
    both, for a batch, at random points                match

As in Mask2Former (Cheng and others, CVPR 2022, arXiv 2112.01527): masks are compared at 12,544
random points, the same ones for all masks of an image, bilinear; -p stands for 1 - p, which changes
every cost of a target by the same 1 and no assignment. A paper with other targets (embeddings in
place of classes, say) adds up its own cost and calls `assign`.

min(Q, T) pairs are made: of more targets than queries some stay without.
"""

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..nn.checks import (
    check_axes,
    check_finite,
    check_float,
    check_index,
    check_int,
    check_numbers,
    describe,
)
from ..tokens.precision import full_precision, widen
from .losses import NUM_POINTS, check_labels, check_masks, random_points, sample_points

WEIGHTS = (2.0, 5.0, 5.0)                                                # class, BCE, Dice


class Match(NamedTuple):
    """Pairs: query[i] learns target[i]. Both (M,) int64, queries ascending."""

    query: Tensor
    target: Tensor


def class_cost(class_logits: Tensor, labels: Tensor) -> Tensor:
    """-softmax(class_logits)[label]: (*, Q, K + 1) and (*, T) -> (*, Q, T), in [-1, 0]."""
    p = class_logits.softmax(-1)
    index = labels[..., None, :].expand(*p.shape[:-1], labels.shape[-1])             # * q t
    return -p.gather(-1, index)


def bce_cost(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """Mean over points of the binary cross entropy, of all pairs: (*, Q, P), (*, T, P) ->
    (*, Q, T)."""
    inside, outside = F.softplus(-mask_logits), F.softplus(mask_logits)  # -log p, -log(1 - p)
    masks = masks.transpose(-2, -1)                                                  # * p t
    return (inside @ masks + outside @ (1 - masks)) / mask_logits.shape[-1]


def dice_cost(mask_logits: Tensor, masks: Tensor) -> Tensor:
    """1 - (2 sum p t + 1) / (sum p + sum t + 1) of all pairs: (*, Q, P), (*, T, P) -> (*, Q, T)."""
    p = mask_logits.sigmoid()
    both = p @ masks.transpose(-2, -1)                                               # * q t
    return 1 - (2 * both + 1) / (p.sum(-1)[..., :, None] + masks.sum(-1)[..., None, :] + 1)


def match_cost(
    class_logits: Tensor,
    mask_logits: Tensor,
    labels: Tensor,
    masks: Tensor,
    weights: Sequence[float] = WEIGHTS,
) -> Tensor:
    """The cost of every query for every target (*, Q, T), float32 at least, also under autocast.

    Args:
        class_logits: (*, Q, K + 1), the last for "no object".
        mask_logits: at P points or pixels, (*, Q, P).
        labels: (*, T) int64.
        masks: at the same points, (*, T, P) floats in [0, 1].
        weights: of class, BCE and Dice, none negative.
    """
    check_float(class_logits, "class_logits")
    check_float(mask_logits, "mask_logits")
    check_float(masks, "masks")
    check_index(labels, "labels")
    points, queries = mask_logits.shape[-1], mask_logits.shape[:-1]
    same = class_logits.shape[:-1] == queries and labels.shape == masks.shape[:-1]
    if not same or masks.shape[-1] != points:
        raise ValueError(
            f"class_logits is {describe(class_logits)}, mask_logits {describe(mask_logits)}, "
            f"labels {describe(labels)}, masks {describe(masks)}: "
            f"needs (*, Q, K + 1), (*, Q, P), (*, T), (*, T, P)"
        )
    by_class, by_bce, by_dice = check_numbers(weights, "weights", 0, length=3)
    with full_precision(mask_logits.device):
        class_logits, mask_logits = widen(class_logits), widen(mask_logits)
        masks = masks.to(mask_logits.dtype)
        return (
            by_class * class_cost(class_logits, labels)
            + by_bce * bce_cost(mask_logits, masks)
            + by_dice * dice_cost(mask_logits, masks)
        )


def assign(cost: Tensor) -> Match:
    """The min(Q, T) pairs, no query and no target twice, of the smallest summed cost.

    It is found on the CPU. Needs scipy, which comes with vtlib[course]. ValueError for a cost
    (Q, T) that is not finite: a model that diverged shall say so.
    """
    check_float(cost, "cost")
    if cost.dim() != 2:
        raise ValueError(f"cost is {describe(cost)} but needs to be (Q, T)")
    check_finite(cost, "cost")
    solve = _scipy().linear_sum_assignment
    rows = solve(cost.detach().to("cpu", torch.float64).numpy())
    query, target = (torch.from_numpy(r).to(cost.device, torch.int64) for r in rows)
    return Match(query, target)


@torch.no_grad()
def match(
    class_logits: Tensor,
    mask_logits: Tensor,
    labels: Sequence[Tensor],
    masks: Sequence[Tensor],
    generator: torch.Generator | None = None,
    num_points: int | None = NUM_POINTS,
    weights: Sequence[float] = WEIGHTS,
) -> list[Match]:
    """The pairs of each image of a batch; an image without targets has none.

    The costs of all images are computed in one go and fetched once; only the assignment goes image
    by image.

    Args:
        class_logits: (B, Q, K + 1), the last for "no object".
        mask_logits: (B, Q, H, W).
        labels: of each image (T_b,) int64, 0 ... K - 1.
        masks: of each image (T_b, H', W') in [0, 1], bool or float.
        generator: draws the points.
        num_points: random points of an image; None: every pixel, and then H' = H and W' = W.
        weights: of class, BCE and Dice.

    ValueError for lists that don't fit the batch or each other, a label out of range, masks outside
    [0, 1], points without a generator, and logits that are not finite.
    """
    check_axes(class_logits, "class_logits", "(B, Q, K + 1)")
    check_axes(mask_logits, "mask_logits", "(B, Q, H, W)")
    if class_logits.shape[:2] != mask_logits.shape[:2]:
        shapes = f"{tuple(class_logits.shape)} and mask_logits {tuple(mask_logits.shape)}"
        raise ValueError(f"class_logits has shape {shapes}: both need the same B and Q")
    labels = check_labels(labels, class_logits)
    masks = check_masks(masks, mask_logits, full=num_points is None)
    counts = [len(m) for m in masks]
    if [len(entry) for entry in labels] != counts:
        given = [len(entry) for entry in labels]
        raise ValueError(f"labels has {given} targets and masks {counts}: needs one label a mask")
    if not max(counts):
        none = torch.empty(0, dtype=torch.int64, device=mask_logits.device)
        return [Match(none, none.clone()) for _ in counts]
    with full_precision(mask_logits.device):
        logits = widen(mask_logits)
        targets = pad_sequence([m.to(logits.dtype) for m in masks], batch_first=True)  # b t h w
        if num_points is None:
            logits, targets = logits.flatten(2), targets.flatten(2)
        else:
            count = check_int(num_points, "num_points", 1)
            points = random_points(len(logits), count, generator, logits.device)
            logits, targets = sample_points(logits, points), sample_points(targets, points)
        padded = pad_sequence(list(labels), batch_first=True)                            # b t
        cost = match_cost(class_logits, logits, padded, targets, weights)                # b q t
    device, cost = cost.device, cost.to("cpu")
    found = [assign(cost[b, :, :count]) for b, count in enumerate(counts)]
    return [Match(query.to(device), target.to(device)) for query, target in found]


def _scipy() -> ModuleType:
    try:                                           # here: vtlib imports without the extras
        return importlib.import_module("scipy.optimize")
    except ImportError as error:
        raise ImportError("assign needs scipy: pip install 'vtlib[course]'") from error
