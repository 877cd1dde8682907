"""Three tasks from one panoptic annotation, and three answers from one set of queries (OneFormer).

Targets are of one picture. Answers are of a batch, without a loop over pictures or queries.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..nn.checks import check_axes, check_int, check_number, describe
from .oneformer_text import check_task


class Targets(NamedTuple):
    """What one picture should become.

    Args:
        classes: (T,) long, the class of each mask.
        masks: (T, H, W) bool.
        label: (H, W) long, the class of each pixel, 255 where there is none.
    """

    classes: Tensor
    masks: Tensor
    label: Tensor


IGNORED = 255


def task_targets(
    panoptic: Tensor,
    segments: Sequence[tuple[int, int, bool]],
    task: str,
    things: Collection[int],
) -> Targets:
    """The targets of a task from a panoptic annotation.

    semantic: one mask for each class that is there, things too, copies united; instance: one for
    each segment of a thing; panoptic: one for each segment. Masks come in the order in which
    segments name them; crowds and segments without a pixel are left out.

    Args:
        panoptic: (H, W), integers: the id of each pixel's segment.
        segments: (id, class, is a crowd) of each.
        task: "semantic", "instance" or "panoptic".
        things: numbers of the classes that are things.
    """
    check_task(task)
    if not isinstance(panoptic, Tensor) or panoptic.dim() != 2 or panoptic.is_floating_point():
        raise ValueError(f"panoptic is {describe(panoptic)} but needs to be integers (H, W)")
    if not len(segments):
        raise ValueError("segments is empty: a scene needs a segment at least")
    label = torch.full_like(panoptic, IGNORED, dtype=torch.long)
    classes: list[int] = []
    masks: list[Tensor] = []
    for number, category, crowd in segments:
        if not 0 <= category < IGNORED:
            raise ValueError(f"segments: class {category} must lie in 0 ... {IGNORED - 1}")
        mask = panoptic == number                                               # h w
        skipped = task == "instance" and category not in things
        if crowd or skipped or not mask.any():
            continue
        label[mask] = category
        if task == "semantic" and category in classes:
            masks[classes.index(category)] |= mask
            continue
        classes.append(category)
        masks.append(mask)
    empty = panoptic.new_zeros((0, *panoptic.shape), dtype=torch.bool)
    found = torch.tensor(classes, dtype=torch.long, device=panoptic.device)
    return Targets(found, torch.stack(masks) if masks else empty, label)


# ------------------------------------------------------------------------------------ the answers
def check_logits(class_logits: Tensor, mask_logits: Tensor) -> int:
    """K of class logits (B, N, K + 1) and mask logits (B, N, H, W). ValueError unless they fit."""
    check_axes(class_logits, "class_logits", "(B, N, K + 1)")
    check_axes(mask_logits, "mask_logits", "(B, N, H, W)")
    if class_logits.shape[:2] != mask_logits.shape[:2]:
        shapes = tuple(class_logits.shape), tuple(mask_logits.shape)
        raise ValueError(f"class_logits and mask_logits have shapes {shapes}: B and N must agree")
    return class_logits.shape[2] - 1


def is_thing(classes: Tensor, things: Collection[int], num_classes: int) -> Tensor:
    """Which classes are things: long (...) -> bool (...); the class "no object" is none.

    Args:
        classes: numbers 0 ... num_classes.
        things: those of the things.
        num_classes: K. ValueError for a thing beyond it.
    """
    if any(not 0 <= check_int(number, "things") < num_classes for number in things):
        raise ValueError(f"things={sorted(things)} must lie in 0 ... {num_classes - 1}")
    table = [number in things for number in range(num_classes + 1)]
    return torch.tensor(table, device=classes.device)[classes]


def semantic_scores(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Scores of classes (B, K, H, W): the sum over queries of softmax class times sigmoid mask,
    where "no object" takes its share of the softmax and has no map."""
    check_logits(class_logits, mask_logits)
    classes = class_logits.softmax(dim=-1)[..., :-1]
    return torch.einsum("bnk,bnhw->bkhw", classes, mask_logits.sigmoid())


class Panoptic(NamedTuple):
    """A panoptic answer.

    Args:
        ids: (B, H, W) long, number of the segment, from 1; 0 where there is none.
        segment: (B, N) long, the segment that a query drew on, 0 for none. Queries of one stuff
            class share one.
        classes: (B, N) long, of each query.
        things: (B, N) bool, whether that class is a thing.
    """

    ids: Tensor
    segment: Tensor
    classes: Tensor
    things: Tensor

    def rows(self, index: int) -> list[tuple[int, int, bool]]:
        """(segment, class, is a thing) of picture `index`, in the order of segments."""
        columns = zip(self.segment[index], self.classes[index], self.things[index], strict=True)
        rows = {(int(s), int(c), bool(t)) for s, c, t in columns}
        return sorted(row for row in rows if row[0])


def panoptic_segments(
    class_logits: Tensor,
    mask_logits: Tensor,
    things: Collection[int],
    threshold: float = 0.5,
    overlap: float = 0.8,
) -> Panoptic:
    """Every pixel goes to one segment or none.

    Queries whose best class is an object with a probability above `threshold` compete for each
    pixel by class probability times mask probability. A query is dropped if it wins less than
    `overlap` of its own mask (probability at least 0.5), and it draws where it wins and its mask
    is.

    Args:
        class_logits: (B, N, K + 1), the last class is "no object".
        mask_logits: (B, N, H, W).
        things: numbers of the classes that are things; masks of the others are joined by class.
        threshold: of a query's class probability.
        overlap: share of its own mask that a query must win.
    """
    num_classes = check_logits(class_logits, mask_logits)
    threshold = check_number(threshold, "threshold", 0, 1)
    overlap = check_number(overlap, "overlap", 0, 1)
    scores, classes = class_logits.softmax(dim=-1).max(dim=-1)                  # b n
    masks = mask_logits.sigmoid()
    kept = (classes != num_classes) & (scores > threshold)
    contest = (scores[..., None, None] * masks).masked_fill(~kept[..., None, None], -1.0)
    winner = contest.argmax(dim=1)                                              # b h w
    number = torch.arange(masks.shape[1], device=masks.device)
    won = winner[:, None] == number[None, :, None, None]                        # b n h w
    solid = masks >= 0.5
    won_area, own_area = (m.flatten(2).sum(dim=2).float() for m in (won, solid))
    drawn = (won & solid).flatten(2).any(dim=2)                 # own_area is not 0 where this holds
    valid = kept & drawn & (won_area / own_area >= overlap)                     # b n
    # queries of one stuff class draw the segment of the first of them
    stuff = ~is_thing(classes, things, num_classes)
    same = (classes[:, :, None] == classes[:, None]) & stuff[:, None] & valid[:, None]
    own = torch.eye(len(number), dtype=torch.bool, device=masks.device)
    first = (same | own).to(torch.uint8).argmax(dim=2)                          # b n
    leads = valid & (first == number)
    segment = leads.long().cumsum(dim=1).gather(1, first) * valid               # b n
    inside = solid.gather(1, winner[:, None]).squeeze(1)
    ids = segment.gather(1, winner.flatten(1)).view_as(winner) * inside
    return Panoptic(ids, segment, classes, ~stuff & (classes != num_classes))


class Instances(NamedTuple):
    """The k best (query, class) pairs.

    Args:
        scores: (B, k), falling.
        classes: (B, k) long.
        masks: (B, k, H, W) bool.
        things: (B, k) bool; where it is False the pair is of no thing and does not count.
    """

    scores: Tensor
    classes: Tensor
    masks: Tensor
    things: Tensor


def instances(
    class_logits: Tensor, mask_logits: Tensor, things: Collection[int], num_best: int = 100
) -> Instances:
    """Things with scores: a query may answer with several classes.

    The `num_best` pairs of query and class with the largest class probability; their score is that
    times the mean mask probability inside the mask. Pairs of stuff take places too, as in the
    release, and are marked.

    Args:
        class_logits: (B, N, K + 1), the last class is "no object".
        mask_logits: (B, N, H, W).
        things: numbers of the classes that are things.
        num_best: k, at most N K.
    """
    num_classes = check_logits(class_logits, mask_logits)
    pairs = class_logits.softmax(dim=-1)[..., :-1].flatten(1)                   # b nk
    num_best = check_int(num_best, "num_best", 1)
    if num_best > pairs.shape[1]:
        raise ValueError(f"num_best={num_best} but there are {pairs.shape[1]} pairs")
    scores, place = pairs.topk(num_best, dim=1)
    classes, query = place % num_classes, place // num_classes
    index = query[..., None, None].expand(-1, -1, *mask_logits.shape[2:])
    logits = mask_logits.gather(1, index)                                       # b k h w
    masks = logits > 0
    inside = (logits.sigmoid() * masks).flatten(2).sum(dim=2)
    scores = scores * inside / (masks.flatten(2).sum(dim=2) + 1e-6)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    classes = classes.gather(1, order)
    masks = masks.gather(1, order[..., None, None].expand_as(masks))
    return Instances(scores, classes, masks, is_thing(classes, things, num_classes))
