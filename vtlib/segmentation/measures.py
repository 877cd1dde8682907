"""What segmentation is judged by: mIoU over a set of pictures, its harmonic mean, PQ = SQ x RQ.

    MeanIoU             intersection over union of each class, pixels of the whole set pooled
      .per_class, .mean     mIoU: the mean of the classes that occur
      .harmonic             hIoU = 2 s u / (s + u) of seen and unseen mIoU (zero-shot papers)
    segments            of a map 1000 class + number, as EmojiWorld's panoptic maps are
    PanopticQuality     sum of IoU of matched segments / (TP + FP / 2 + FN / 2), by class
      .per_class, .mean     as COCO's panopticapi counts (Kirillov and others, CVPR 2019,
                            arXiv 1801.00868)

The IoU is torchmetrics' JaccardIndex. Two other measures of torchmetrics (1.9.0) answer another
question than their names say:
- its PanopticQuality drops pixels that the model leaves unlabelled, and then finding none of
  three objects is perfect; here, as in COCO's, they are missed;
- its MeanIoU averages over (picture, class) pairs, and reads class maps as one-hot unless told.

A measure is filled picture by picture with `update`, and read at any time.
"""

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..nn.checks import check_index, check_int, check_ints, check_range, describe


class HarmonicIoU(NamedTuple):
    """mIoU of the seen and of the unseen classes, and 2 s u / (s + u)."""

    seen: float
    unseen: float
    harmonic: float


class MeanIoU:
    """IoU of each class over a set of pictures: pixels are pooled before anything is divided.

    IoU_c = |predicted c and truly c| / |predicted c or truly c|, among the pixels whose truth is
    not `ignore_index`. Then:
    - a class that is neither predicted nor true is NaN in `per_class` and left out of every mean;
      a class that is predicted but never true has IoU 0 and is in the mean;
    - a prediction of `ignore_index` is no way out: the pixel counts as missed for its true class;
    - `ignore_index` may be a class (0 for a background, say): that one is NaN.

    Needs torchmetrics, of vtlib[course].

    Args:
        num_classes: K.
        ignore_index: of pixels that are not counted; None: all are.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = 255) -> None:
        self.num_classes = check_int(num_classes, "num_classes", 1)
        if ignore_index is not None:
            ignore_index = check_int(ignore_index, "ignore_index")
        self.ignore_index = ignore_index
        with torch.device("cpu"):          # its state; one class more: what is left unlabelled
            self._metric = _torchmetrics().MulticlassJaccardIndex(
                self.num_classes + 1, average="none", validate_args=False
            )

    def update(self, pred: Tensor, truth: Tensor) -> None:
        """Count the pixels of a picture, or of a batch.

        Args:
            pred: classes (*), int64; `ignore_index`: unlabelled.
            truth: of the same shape.

        ValueError for other dtypes or shapes, and for a class out of range.
        """
        check_index(pred, "pred")
        check_index(truth, "truth")
        _check_same(pred, truth)
        if self.ignore_index is not None:
            counted = truth != self.ignore_index
            pred, truth = pred[counted], truth[counted]                                  # n
            labelled = pred != self.ignore_index
            check_range(pred[labelled], "pred", 0, self.num_classes)
            pred = torch.where(labelled, pred, self.num_classes)
        else:
            check_range(pred, "pred", 0, self.num_classes)
        check_range(truth, "truth", 0, self.num_classes)
        self._metric.to(truth.device).update(pred.flatten(), truth.flatten())

    def per_class(self) -> Tensor:
        """IoU of each class (K,), NaN for one that does not occur. ValueError if nothing was
        counted."""
        table = self._metric.confmat
        if not int(table.sum()):
            raise ValueError("no labelled pixel was counted: update(pred, truth) comes first")
        union = table.sum(0) + table.sum(1) - table.diagonal()
        found = self._metric.compute().masked_fill(union == 0, torch.nan)
        return found[: self.num_classes]

    def mean(self, classes: Sequence[int] | None = None) -> float:
        """mIoU: the mean over those of `classes` (None: all) that occur. ValueError if none do."""
        found = self.per_class()
        if classes is not None:
            found = found[check_classes(classes, self.num_classes)]
        found = found[~found.isnan()]
        if not len(found):
            raise ValueError(f"classes={classes}: none of them occurs in what was counted")
        return float(found.double().mean())

    def harmonic(self, seen: Sequence[int], unseen: Sequence[int]) -> HarmonicIoU:
        """hIoU = 2 s u / (s + u), s and u the mIoU of two groups of classes; 0 if both are.

        Both groups are measured on one and the same prediction among all classes. ValueError for
        groups that share a class, and for one of which no class occurs.
        """
        groups = [check_classes(group, self.num_classes) for group in (seen, unseen)]
        shared = sorted(set(groups[0]) & set(groups[1]))
        if shared:
            raise ValueError(f"seen and unseen share the classes {shared}: a class is one or other")
        s, u = self.mean(groups[0]), self.mean(groups[1])
        return HarmonicIoU(s, u, 2 * s * u / (s + u) if s + u else 0.0)


def segments(codes: Tensor, void: int | None = None, factor: int = 1000) -> tuple[Tensor, Tensor]:
    """ids (H, W) and classes (S,) of a panoptic map of codes, factor x class + number: every code
    that occurs is a segment, in ascending order.

    Args:
        codes: (H, W) int64, none negative but `void`.
        void: the code of pixels without a segment. None: there are none, and in EmojiWorld's maps
            the background, 0, is one segment of class 0. As void it would excuse any prediction.
        factor: what the class is multiplied by.
    """
    check_index(codes, "codes", "(H, W)")
    factor = check_int(factor, "factor", 1)
    if void is not None:
        void = check_int(void, "void")
    empty = torch.zeros_like(codes, dtype=torch.bool) if void is None else codes == void
    check_range(codes.masked_fill(empty, 0), "codes", 0, torch.iinfo(torch.int64).max)
    found, place = codes.unique(return_inverse=True)                                 # u, h w
    real = torch.ones_like(found, dtype=torch.bool) if void is None else found != void
    ids = torch.where(real, real.cumsum(0), 0)[place]
    return ids, found[real] // factor


class Quality(NamedTuple):
    """Panoptic, segmentation and recognition quality, and the number of classes in the mean.

    PQ = SQ x RQ holds for each class, not for the means.
    """

    pq: float
    sq: float
    rq: float
    num_classes: int


class PanopticQuality:
    """PQ, SQ and RQ over a set of pictures, equal to COCO's panopticapi. No crowd segments.

    A panoptic map is ids (H, W): 0 for no segment, i for the i-th, of class `classes[i - 1]`;
    `segments` makes both of one map of codes. A predicted and a true segment of one class match if
    IoU > 1/2, its union without the pixels whose truth is 0 (void); no segment can match twice.
    - TP: matched pairs. FN: the other true segments.
    - FP: the other predicted ones, unless more than half of their pixels are void: exactly half is
      an FP.
    - SQ = mean IoU of the matched, RQ = TP / (TP + FP / 2 + FN / 2), PQ = SQ RQ; SQ is 0 without a
      match.
    Pixels predicted as 0 belong to no segment, and true segments under them are missed as any.

    Args:
        num_classes: K, things and stuff together.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = check_int(num_classes, "num_classes", 1)
        count = torch.zeros(self.num_classes, dtype=torch.int64, device="cpu")
        self.iou = count.double()
        self.tp, self.fp, self.fn = count, count.clone(), count.clone()

    def update(
        self, pred: Tensor, pred_classes: Tensor, truth: Tensor, truth_classes: Tensor
    ) -> None:
        """Count the segments of one picture.

        Args:
            pred: ids (H, W), int64, 0 ... P.
            pred_classes: (P,) int64, 0 ... K - 1.
            truth: ids (H, W), 0 ... T.
            truth_classes: (T,).

        ValueError for shapes that differ, an id or a class out of range, and a segment without a
        pixel: occluded objects have no number.
        """
        for name, ids, classes in (
            ("pred", pred, pred_classes), ("truth", truth, truth_classes)
        ):
            check_index(ids, name, "(H, W)")
            check_index(classes, f"{name}_classes", "(S,)")
            check_range(classes, f"{name}_classes", 0, self.num_classes)
            check_range(ids, name, 0, len(classes) + 1)
        _check_same(pred, truth)
        columns = len(pred_classes) + 1
        pairs = (truth * columns + pred).flatten()
        table = torch.bincount(pairs, minlength=(len(truth_classes) + 1) * columns)
        table = table.to("cpu").reshape(-1, columns)                             # T+1 P+1
        _check_areas(table.sum(0)[1:], "pred")
        _check_areas(table.sum(1)[1:], "truth")
        self._count(table, pred_classes.to("cpu"), truth_classes.to("cpu"))

    def _count(self, table: Tensor, pred_classes: Tensor, truth_classes: Tensor) -> None:
        """table: pixels of each pair of ids (T+1, P+1), those of void and of no segment first."""
        inside, void = table[1:, 1:], table[0, 1:]                               # T P, P
        pred_area, truth_area = table.sum(0)[1:], table.sum(1)[1:]               # P, T
        union = truth_area[:, None] + (pred_area - void) - inside                # T P
        same = truth_classes[:, None] == pred_classes
        matched = same & (2 * inside > union)                                    # IoU > 1/2
        truth_index, pred_index = matched.nonzero(as_tuple=True)
        found = truth_classes[truth_index]
        pairs = truth_index, pred_index
        self.iou.index_add_(0, found, inside[pairs].double() / union[pairs].double())
        false = ~matched.any(0) & (2 * void <= pred_area)
        missed = ~matched.any(1)
        for counter, classes in (
            (self.tp, found), (self.fp, pred_classes[false]), (self.fn, truth_classes[missed])
        ):
            counter += torch.bincount(classes, minlength=self.num_classes)

    def per_class(self) -> Tensor:
        """PQ, SQ, RQ of each class (K, 3), float64, NaN for a class without any segment (COCO's
        table shows 0 there, and leaves it out of the mean too)."""
        total = self.tp + (self.fp + self.fn).double() / 2
        pq, rq = self.iou / total, self.tp / total                               # 0 / 0 is NaN
        sq = self.iou / self.tp.clamp_min(1)
        return torch.stack([pq, sq.where(total > 0, torch.nan), rq], dim=1)

    def mean(self, classes: Sequence[int] | None = None) -> Quality:
        """The means over those of `classes` (None: all; things, say) that have a segment, predicted
        and counted or true. ValueError if none has."""
        found = self.per_class()
        if classes is not None:
            found = found[check_classes(classes, self.num_classes)]
        found = found[~found[:, 0].isnan()]
        if not len(found):
            raise ValueError(f"classes={classes}: none of them has a segment in what was counted")
        pq, sq, rq = found.mean(0).tolist()
        return Quality(pq, sq, rq, len(found))


def _check_same(pred: Tensor, truth: Tensor) -> None:
    if pred.shape != truth.shape or pred.device != truth.device:
        raise ValueError(
            f"pred is {describe(pred)} on {pred.device} and truth {describe(truth)} on "
            f"{truth.device}: both need the same shape and device"
        )


def check_classes(classes: Any, num_classes: int, name: str = "classes") -> list[int]:
    """The numbers as a list. ValueError for one out of range, given twice, or no number at all.

    Args:
        classes: the numbers.
        num_classes: K; they lie in 0 ... K - 1.
        name: what the message calls them.
    """
    found = list(check_ints(classes, name, 0))
    if not found or max(found) >= num_classes or len(set(found)) < len(found):
        raise ValueError(f"{name}={found}: needs different numbers in 0 ... {num_classes - 1}")
    return found


def _check_areas(areas: Tensor, name: str) -> None:
    empty = (areas == 0).nonzero().flatten() + 1
    if len(empty):
        raise ValueError(f"{name} has no pixel of its segments {empty.tolist()}: leave them out")


def _torchmetrics() -> ModuleType:
    try:                                           # here: vtlib imports without the extras
        return importlib.import_module("torchmetrics.classification")
    except ImportError as error:
        raise ImportError("MeanIoU needs torchmetrics: pip install 'vtlib[course]'") from error
