"""AP of instance masks with scores, as COCO counts it (Lin and others, ECCV 2014, arXiv 1405.0312).

    AveragePrecision        mean over IoU thresholds 0.50, 0.55 ... 0.95 of the area under the
      .per_class, .mean     precision-recall curve, by class: AP, AP50 and AP75

pycocotools counts; this file keeps two of its traps away (2.0.11):
- a true object with id 0 is never matched, because 0 also means "no match" there: numbered from 0,
  the perfect answer to one object scores 0. Ids start at 1 here;
- a set without one prediction cannot be loaded there. Its AP is 0 here.
"""

import contextlib
import importlib
import io
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..nn.checks import check_index, check_int, check_range, describe
from .measures import check_classes


class Precision(NamedTuple):
    """AP over ten thresholds, at IoU 0.50 and at 0.75, and the number of classes in the mean."""

    ap: float
    ap50: float
    ap75: float
    num_classes: int


class AveragePrecision:
    """AP over a set of pictures: pycocotools on masks. No crowd regions.

    Predictions of a class are taken from the highest score down. One is right at a threshold if
    its IoU with a true object of its class and picture, not taken by an earlier one, reaches it
    (the best such object is taken). AP is the mean over recalls 0, 0.01 ... 1 of the highest
    precision at that recall or a larger one.
    - A class without any true object is NaN in `per_class` and left out of every mean: what was
      predicted of it costs nothing. That is COCO's rule.
    - True objects may overlap, predictions too: masks are no partition.

    Needs pycocotools, of vtlib[course].

    Args:
        num_classes: K.
        max_detections: of one class in one picture; the best by score are counted.
    """

    def __init__(self, num_classes: int, max_detections: int = 100) -> None:
        self.num_classes = check_int(num_classes, "num_classes", 1)
        self.max_detections = check_int(max_detections, "max_detections", 1)
        self._images: list[dict] = []
        self._truth: list[dict] = []
        self._pred: list[dict] = []

    def update(
        self,
        masks: Tensor,
        scores: Tensor,
        classes: Tensor,
        truth_masks: Tensor,
        truth_classes: Tensor,
    ) -> None:
        """Count one picture.

        Args:
            masks: predicted (P, H, W) bool; P may be 0.
            scores: (P,) float, the larger the surer.
            classes: (P,) int64, 0 ... K - 1.
            truth_masks: (T, H, W) bool; T may be 0.
            truth_classes: (T,) int64.

        ValueError for other shapes or dtypes, a class out of range, a score that is not finite and
        a true object without a pixel.
        """
        for name, found, numbers in (
            ("masks", masks, classes), ("truth_masks", truth_masks, truth_classes)
        ):
            if found.dim() != 3 or found.dtype != torch.bool:
                raise ValueError(f"{name} is {describe(found)}: needs bool (objects, H, W)")
            label = "truth_classes" if name == "truth_masks" else "classes"
            check_index(numbers, label, "(objects,)")
            check_range(numbers, label, 0, self.num_classes)
            if len(numbers) != len(found):
                raise ValueError(f"{len(found)} {name} but {len(numbers)} {label}")
        if masks.shape[1:] != truth_masks.shape[1:]:
            raise ValueError(
                f"masks is {describe(masks)} and truth_masks {describe(truth_masks)}: both need "
                "the same H and W"
            )
        if scores.shape != classes.shape or not bool(scores.isfinite().all()):
            raise ValueError(f"scores is {describe(scores)}: needs {len(masks)} finite numbers")
        areas = truth_masks.flatten(1).sum(1)                                            # T
        empty = (areas == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"truth_masks has no pixel of its objects {empty}: leave them out")
        height, width = masks.shape[1:]
        image = len(self._images) + 1
        self._images.append({"id": image, "height": height, "width": width})
        self._record(self._truth, image, truth_masks, truth_classes)
        self._record(self._pred, image, masks, classes, scores)

    @staticmethod
    def _record(
        records: list[dict], image: int, masks: Tensor, classes: Tensor,
        scores: Tensor | None = None,
    ) -> None:
        """Append COCO's annotations of one picture; ids go on from 1.

        Args:
            records: of all pictures so far.
            image: its id.
            masks: (n, H, W) bool.
            classes: (n,).
            scores: (n,), of predictions.
        """
        fields = {
            "category_id": [number + 1 for number in classes.tolist()],
            "segmentation": encode(masks),
            "area": masks.flatten(1).sum(1).tolist(),
        }
        if scores is not None:
            fields["score"] = scores.tolist()
        for values in zip(*fields.values(), strict=True):
            row = dict(zip(fields, values, strict=True))
            records.append({"id": len(records) + 1, "image_id": image, "iscrowd": 0, **row})

    def per_class(self) -> Tensor:
        """AP, AP50, AP75 of each class (K, 3), float64, NaN for a class without a true object.
        ValueError if nothing was counted."""
        if not self._images:
            raise ValueError("no picture was counted: update(...) comes first")
        evaluation = _pycocotools("cocoeval").COCOeval(
            self._coco(self._truth), self._coco(self._pred), "segm"
        )
        evaluation.params.maxDets = [self.max_detections]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        with contextlib.redirect_stdout(io.StringIO()):                # it reports its progress
            evaluation.evaluate()
            evaluation.accumulate()
        precision = torch.from_numpy(evaluation.eval["precision"][:, :, :, 0, 0])  # 10 101 K
        by_threshold = precision.mean(1).masked_fill(precision[:, 0] < 0, torch.nan)
        return torch.stack([by_threshold.mean(0), by_threshold[0], by_threshold[5]], dim=1)

    def mean(self, classes: Sequence[int] | None = None) -> Precision:
        """The means over those of `classes` (None: all) that have a true object. ValueError if none
        has."""
        found = self.per_class()
        if classes is not None:
            found = found[check_classes(classes, self.num_classes)]
        found = found[~found[:, 0].isnan()]
        if not len(found):
            raise ValueError(f"classes={classes}: none of them has a true object")
        ap, ap50, ap75 = found.mean(0).tolist()
        return Precision(ap, ap50, ap75, len(found))

    def _coco(self, annotations: list[dict]):
        """pycocotools' index of pictures, classes and masks. The list is copied: it adds keys."""
        coco = _pycocotools("coco").COCO()
        coco.dataset = {
            "images": self._images,
            "annotations": [dict(a) for a in annotations],
            "categories": [{"id": number + 1} for number in range(self.num_classes)],
        }
        with contextlib.redirect_stdout(io.StringIO()):
            coco.createIndex()
        return coco


def encode(masks: Tensor) -> list[dict]:
    """COCO's run lengths of masks (n, H, W) bool."""
    columns = np.asfortranarray(masks.to("cpu").numpy().transpose(1, 2, 0).astype(np.uint8))
    return _pycocotools("mask").encode(columns) if len(masks) else []


def _pycocotools(part: str) -> ModuleType:
    try:                                           # here: vtlib imports without the extras
        return importlib.import_module(f"pycocotools.{part}")
    except ImportError as error:
        raise ImportError("AP needs pycocotools: pip install 'vtlib[course]'") from error
