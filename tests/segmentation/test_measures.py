"""mIoU and hIoU by hand, PQ against COCO's own numbers, and what torchmetrics' others really do.

panoptic.json was recorded from panopticapi-lite 0.2.0 by

    python -m venv coco
    coco/bin/pip install "numpy<2" panopticapi-lite==0.2.0
    coco/bin/python tests/segmentation/record_panoptic.py
"""

import json
import math
import pathlib

import pytest
import torch
from torchmetrics.detection import PanopticQuality as Forgiving
from torchmetrics.segmentation import DiceScore
from torchmetrics.segmentation import MeanIoU as OfPictures

from tests.fresh import fresh
from tests.settings import SETTINGS
from vtlib.data.emojiworld import EmojiWorld
from vtlib.segmentation.measures import MeanIoU, PanopticQuality, segments

RECORDED = json.loads(pathlib.Path(__file__).with_name("panoptic.json").read_text())
CASES = {case["name"]: case for case in RECORDED["cases"]}
THINGS = RECORDED["things"]
STUFF = [c for c in range(RECORDED["num_classes"]) if c not in THINGS]


def long(*values):
    return torch.tensor(*values, dtype=torch.int64, device="cpu")


def read(entry):
    """pred, pred_classes, truth, truth_classes of a recorded picture."""
    found = []
    for name in ("pred", "truth"):
        found.append(long([[int(c, 36) for c in row] for row in entry[name]]))
        found.append(long(entry[f"{name}_classes"]))
    return found


def counted(case):
    measure = PanopticQuality(RECORDED["num_classes"])
    for entry in case["pictures"]:
        measure.update(*read(entry))
    return measure


def forgiving(case, **options):
    """torchmetrics' PQ of the same maps: (class, number) of each pixel, class 4 for void."""
    measure = Forgiving(things=set(THINGS), stuffs=set(STUFF), **options)
    for entry in case["pictures"]:
        pred, pred_classes, truth, truth_classes = read(entry)
        pairs = []
        for ids, classes in ((pred, pred_classes), (truth, truth_classes)):
            classes = torch.cat([long([4]), classes])
            pairs.append(torch.stack([classes[ids], ids], dim=-1)[None])
        measure.update(*pairs)
    return measure.compute().item()


@pytest.mark.parametrize("name", CASES)
def test_equal_to_coco(name):
    want, measure = CASES[name]["want"], counted(CASES[name])
    for part, classes in (("all", None), ("things", THINGS), ("stuff", STUFF)):
        if want[part] is None:                                # COCO divides by zero
            with pytest.raises(ValueError, match="none of them has a segment"):
                measure.mean(classes)
        else:
            assert measure.mean(classes) == pytest.approx(want[part], abs=1e-12)
    if want["all"]:
        each = measure.per_class()
        assert each.nan_to_num(0).flatten().tolist() == pytest.approx(
            [value for row in want["per_class"] for value in row], abs=1e-12
        )
        assert len(each) - int(each[:, 0].isnan().sum()) == want["all"][3]


def test_finding_none_of_three_objects():
    """A third, for the ground: two kinds of objects were missed. torchmetrics: all is well."""
    case = CASES["no object of three"]
    assert counted(case).mean().pq == pytest.approx(1 / 3)
    assert forgiving(case, allow_unknown_preds_category=True) == 1


@pytest.mark.parametrize("name, coco, theirs", [
    ("one pixel labelled", 0, 1),
    ("a quarter of an object unlabelled", 1 - 0.25 / 6, 1),
    ("nothing labelled", 0, math.nan),
    ("two kinds exchanged", 0.5, 0.5),
])
def test_what_torchmetrics_forgives(name, coco, theirs):
    assert counted(CASES[name]).mean().pq == pytest.approx(coco)
    found = forgiving(CASES[name], allow_unknown_preds_category=True)
    assert found == pytest.approx(theirs, nan_ok=True)


def test_pq_is_sq_times_rq_of_each_class_and_not_of_the_mean():
    measure = counted(CASES["random 0"])
    pq, sq, rq = measure.per_class().unbind(1)
    torch.testing.assert_close(pq, sq * rq)
    mean = measure.mean()
    assert mean.pq != pytest.approx(mean.sq * mean.rq, rel=1e-3)


def test_pq_by_hand_and_its_borders():
    """8 true pixels of 16, class 0, void elsewhere."""
    truth = long([[1] * 8 + [0] * 8])

    def pq(pred, classes):
        measure = PanopticQuality(2)
        measure.update(long([pred]), long(classes), truth, long([0]))
        return measure

    exactly = pq([1] * 4 + [2] * 12, [0, 1])         # half; 4 of 12 pixels not void: no FP
    assert (exactly.tp.tolist(), exactly.fp.tolist(), exactly.fn.tolist()) == (
        [0, 0], [1, 0], [1, 0]
    )
    more = pq([1] * 5 + [0] * 11, [0])
    assert more.mean() == pytest.approx((5 / 8, 5 / 8, 1, 1))
    wide = pq([1] * 16, [0])                         # void is not in the union
    assert wide.mean() == (1, 1, 1, 1)
    even = pq([0] * 4 + [1] * 8 + [0] * 4, [1])      # exactly half void: a false positive
    assert even.fp.tolist() == [0, 1]


def test_order_of_segments_and_pictures_does_not_matter():
    entries = [read(entry) for entry in CASES["random 1"]["pictures"]]
    there, back = PanopticQuality(4), PanopticQuality(4)
    for pred, pred_classes, truth, truth_classes in entries:
        there.update(pred, pred_classes, truth, truth_classes)
    for pred, pred_classes, truth, truth_classes in entries[::-1]:
        turned = torch.where(pred > 0, len(pred_classes) + 1 - pred, 0)
        back.update(turned, pred_classes.flip(0), truth, truth_classes)
    assert there.mean() == pytest.approx(back.mean(), abs=1e-12)


IDS = long([[0, 1], [2, 2]])


@pytest.mark.parametrize("change, told", [
    (dict(pred=IDS.float()), "pred is torch.float32"),
    (dict(pred=IDS[0]), "pred is"),
    (dict(pred=IDS[:1], pred_classes=long([0])), "both need the same shape"),
    (dict(pred=IDS + 1), r"pred\[1, 0\]=3"),
    (dict(truth=IDS - 1), r"truth\[0, 0\]=-1"),
    (dict(pred_classes=long([0, 4])), r"pred_classes\[1\]=4"),
    (dict(truth_classes=long([0, -1])), r"truth_classes\[1\]=-1"),
    (dict(truth_classes=torch.tensor([0.0, 1])), "truth_classes is torch.float32"),
    (dict(pred_classes=long([0, 1, 2])), r"pred has no pixel of its segments \[3\]"),
    (dict(truth_classes=long([0, 1, 2])), r"truth has no pixel of its segments \[3\]"),
])
def test_maps_that_are_none(change, told):
    given = dict(pred=IDS, pred_classes=long([0, 1]), truth=IDS, truth_classes=long([0, 1]))
    measure = PanopticQuality(4)
    with pytest.raises(ValueError, match=told):
        measure.update(**(given | change))
    assert int(measure.tp.sum() + measure.fp.sum() + measure.fn.sum()) == 0
    with pytest.raises(ValueError, match="none of them has a segment"):
        measure.mean()
    with pytest.raises(ValueError, match="num_classes=0"):
        PanopticQuality(0)


def test_segments_of_codes():
    codes = long([[0, 2001, 2001], [1002, 2003, 0]])
    ids, classes = segments(codes)
    assert ids.tolist() == [[1, 3, 3], [2, 4, 1]] and classes.tolist() == [0, 1, 2, 2]
    ids, classes = segments(codes, void=0)
    assert ids.tolist() == [[0, 2, 2], [1, 3, 0]] and classes.tolist() == [1, 2, 2]
    ids, classes = segments(long([[-1, 7], [15, -1]]), void=-1, factor=10)
    assert ids.tolist() == [[0, 1], [2, 0]] and classes.tolist() == [0, 1]
    ids, classes = segments(torch.full((2, 2), 255), void=255)
    assert not ids.any() and len(classes) == 0
    for given, told in (
        (dict(codes=codes - 1), r"codes\[0, 0\]=-1"), (dict(codes=codes[0]), "codes is"),
        (dict(codes=codes, factor=0), "factor"), (dict(codes=codes, void=0.5), "void"),
    ):
        with pytest.raises(ValueError, match=told):
            segments(**given)


def test_scenes_of_emojiworld():
    """The truth is perfect; of a scene without its objects only the ground is found."""
    scenes = EmojiWorld(size=48).scenes(4, seed=0)
    codes = scenes.panoptic()
    measure, blind = (PanopticQuality(1 + int(codes.max()) // 1000) for _ in range(2))
    for code, instance in zip(codes, scenes.instance, strict=True):
        ids, classes = segments(code)
        measure.update(ids, classes, ids, classes)
        blind.update(*segments(torch.where(instance > 0, -1, code), void=-1), ids, classes)
    kinds = len((codes // 1000).unique())
    assert measure.mean() == (1, 1, 1, kinds)
    assert blind.mean().pq == pytest.approx(1 / kinds) and blind.fp.sum() == 0


# ---------------------------------------------------------------- mIoU
TRUTH = long([[0, 0, 0, 0, 0, 1, 1, 1, 1, 255]])
PRED = long([[0, 0, 0, 1, 0, 1, 1, 1, 1, 0]])


def iou(pred, truth, num_classes=3, **options):
    measure = MeanIoU(num_classes, **options)
    measure.update(pred, truth)
    return measure


def test_miou_by_hand():
    """Classes 0 and 1: 4 / 5 and 4 / 5. Class 2 is not there; the last pixel is not counted."""
    measure = iou(PRED, TRUTH)
    torch.testing.assert_close(measure.per_class(), torch.tensor([0.8, 0.8, math.nan]),
                               equal_nan=True)
    assert measure.mean() == pytest.approx(0.8)
    assert measure.mean([1, 2]) == pytest.approx(0.8)
    wrong = iou(torch.where(PRED == 1, 2, PRED), TRUTH)       # 2 is only predicted: 0, and counts
    assert wrong.per_class().tolist() == pytest.approx([0.8, 0, 0])
    assert wrong.mean() == pytest.approx(0.8 / 3)


def test_an_unlabelled_prediction_is_wrong():
    measure = iou(torch.where(PRED == 1, 255, PRED), TRUTH)
    assert measure.per_class().nan_to_num(-1).tolist() == pytest.approx([0.8, 0, -1])
    assert measure.mean() == pytest.approx(0.4)


def test_an_ignored_class_is_in_no_mean():
    """0 is a background: five true pixels fall away, a 0 predicted on a 1 is a miss."""
    measure = iou(long([[0, 1, 2, 1, 0]]), long([[0, 0, 2, 1, 1]]), ignore_index=0)
    assert measure.per_class().nan_to_num(-1).tolist() == pytest.approx([-1, 0.5, 1])
    assert measure.mean() == pytest.approx(0.75)
    every = iou(long([[0, 1, 2, 1, 0]]), long([[0, 0, 2, 1, 1]]), ignore_index=None)
    assert every.per_class().tolist() == pytest.approx([1 / 3, 1 / 3, 1])


def test_pixels_of_the_set_are_pooled():
    """A class that fills one picture and is a dot in another: the dot weighs as a dot."""
    truth = torch.zeros(2, 8, 8, dtype=torch.int64)
    truth[0], truth[1, 0, 0] = 1, 1
    pred = truth.clone()
    pred[1, 0, 0] = 0
    together, apart = iou(pred, truth, 2), MeanIoU(2)
    for k in (1, 0):
        apart.update(pred[k], truth[k])
    assert together.mean() == apart.mean() == pytest.approx((64 / 65 + 63 / 64) / 2)
    of_pictures = OfPictures(num_classes=2, input_format="index")
    of_pictures.update(pred, truth)
    # of the three pairs (picture, class) that occur, one is 0
    assert of_pictures.compute().item() == pytest.approx((1 + 0 + 63 / 64) / 3)


def test_class_maps_read_as_one_hot():
    """torchmetrics 1.9.0 without input_format="index": 0.15 and 1.08 though no pixel is right."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 4, (2, 8, 8), generator=generator)
    pred = (truth + 1) % 4
    assert iou(pred, truth, 4).mean() == 0
    found = []
    for kind in (OfPictures, DiceScore):
        measure = kind(num_classes=4)
        measure.update(pred, truth)
        found.append(measure.compute().item())
        told = kind(num_classes=4, input_format="index")
        told.update(pred, truth)
        assert told.compute().item() == 0
    assert found == pytest.approx([0.147, 1.078], abs=0.01)


def test_harmonic():
    measure = iou(long([0, 0, 1, 1, 2, 2]), long([0, 0, 1, 2, 2, 2]))
    seen, unseen = (1 + 0.5) / 2, 2 / 3
    want = 2 * seen * unseen / (seen + unseen)
    assert measure.harmonic([0, 1], [2]) == pytest.approx((seen, unseen, want))
    assert measure.harmonic([2], [0, 1]).harmonic == pytest.approx(want)
    nothing = iou(long([1, 0, 0]), long([0, 1, 2]))
    assert nothing.harmonic([0, 1], [2]) == (0, 0, 0)
    seen_only = iou(long([0, 0, 1, 1]), long([0, 0, 1, 2]))
    assert seen_only.harmonic([0, 1], [2]).harmonic == 0            # the mean would be 3 / 8


@pytest.mark.parametrize("given, told", [
    (([0, 1], [1, 2]), r"share the classes \[1\]"),
    (([0, 1], []), r"classes=\[\]"),
    (([0, 1], [3]), r"classes=\[3\]"),
    (([0, 0], [1]), r"classes=\[0, 0\]"),
    (([0], [2]), r"classes=\[2\]: none of them occurs"),
])
def test_splits_that_are_none(given, told):
    with pytest.raises(ValueError, match=told):
        iou(PRED, TRUTH).harmonic(*given)


@pytest.mark.parametrize("pred, truth, told", [
    (PRED.float(), TRUTH, "pred is torch.float32"),
    (PRED, TRUTH.bool(), "truth is torch.bool"),
    (PRED, TRUTH[0], "both need the same shape"),
    (PRED + 2, TRUTH, "pred.*=3"),
    (PRED, torch.where(TRUTH == 1, 3, TRUTH), "truth.*=3"),
    (PRED - 1, TRUTH, "pred.*=-1"),
])
def test_bad_class_maps(pred, truth, told):
    measure = MeanIoU(3)
    with pytest.raises(ValueError, match=told):
        measure.update(pred, truth)
    with pytest.raises(ValueError, match="no labelled pixel"):
        measure.mean()


def test_nothing_but_ignored_pixels():
    with pytest.raises(ValueError, match="no labelled pixel"):
        iou(PRED, torch.full_like(TRUTH, 255)).mean()
    for given in (dict(num_classes=0), dict(num_classes=3, ignore_index=0.5)):
        with pytest.raises(ValueError, match=list(given)[-1]):
            MeanIoU(**given)


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_of_torch_change_nothing(setting):
    case = CASES["random 2"]
    want = iou(PRED, TRUTH).mean(), counted(case).mean()
    with setting():
        assert (iou(PRED, TRUTH).mean(), counted(case).mean()) == want


def test_imports_without_the_extras():
    """torchmetrics and scipy belong to the course; PQ needs neither."""
    code = """
import sys
sys.modules["torchmetrics"] = sys.modules["scipy"] = None
import torch
from vtlib.segmentation import MeanIoU, PanopticQuality, assign
ids, classes = torch.ones(2, 2, dtype=torch.int64), torch.tensor([0])
measure = PanopticQuality(1)
measure.update(ids, classes, ids, classes)
assert measure.mean().pq == 1
for call in (lambda: MeanIoU(2), lambda: assign(torch.zeros(2, 2))):
    try:
        call()
    except ImportError as error:
        assert "vtlib[course]" in str(error)
    else:
        raise SystemExit("it ran")
"""
    fresh(code)
