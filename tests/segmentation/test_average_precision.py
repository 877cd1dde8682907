"""AP: cases worked by hand, a slow count of its own, and what bad input says."""

import pytest
import torch

from vtlib.segmentation import AveragePrecision

pytest.importorskip("pycocotools")
THRESHOLDS = [0.5 + 0.05 * step for step in range(10)]


def bars(*lengths, width=20):
    """One mask a row: the first `length` pixels of row i."""
    masks = torch.zeros(len(lengths), len(lengths), width, dtype=torch.bool)
    for row, length in enumerate(lengths):
        masks[row, row, :length] = True
    return masks


def ap(masks, scores, classes, truth, truth_classes, num_classes=1):
    measure = AveragePrecision(num_classes)
    measure.update(
        masks, torch.tensor(scores), torch.tensor(classes, dtype=torch.int64),
        truth, torch.tensor(truth_classes, dtype=torch.int64),
    )
    return measure


@pytest.mark.parametrize("count", [1, 2, 10])
def test_perfect_answers_score_one(count):
    """With pycocotools and ids from 0 these are 0.0, 0.252 and 0.811."""
    masks = bars(*[5] * count)
    found = ap(masks, [0.5] * count, [0] * count, masks, [0] * count).mean()
    assert found.ap == pytest.approx(1) and found.ap50 == pytest.approx(1)


def test_thresholds_by_hand():
    """IoU 14 / 20 = 0.7: right at 0.50 ... 0.65 and 0.70, wrong above: five of ten."""
    found = ap(bars(14), [0.9], [0], bars(20), [0]).mean()
    assert found.ap == pytest.approx(0.5) and found.ap50 == pytest.approx(1) and found.ap75 == 0


def test_order_of_scores_decides():
    """One right of two. A surer wrong one halves the precision at every recall; a less sure one
    costs nothing."""
    truth, masks = bars(10, 0)[:1], torch.stack([bars(10, 0)[0], bars(0, 10)[1]])
    first = ap(masks, [0.9, 0.1], [0, 0], truth, [0]).mean()
    last = ap(masks, [0.1, 0.9], [0, 0], truth, [0]).mean()
    assert first.ap == pytest.approx(1) and last.ap == pytest.approx(0.5)


def test_one_object_is_found_once():
    """Two objects, the first found twice: recall stops at one half: 51 of 101 recalls."""
    truth = bars(10, 10)
    found = ap(truth[[0, 0]], [0.9, 0.8], [0, 0], truth, [0, 0]).mean()
    assert found.ap == pytest.approx(51 / 101)


def test_classes():
    """Right mask, wrong class; and what is predicted of a class without truth costs nothing."""
    truth = bars(10, 10)
    table = ap(truth, [0.9, 0.8], [0, 2], truth, [0, 1], num_classes=4)
    assert table.per_class()[:2, 0].tolist() == pytest.approx([1, 0])
    assert table.per_class()[2:].isnan().all()
    assert table.mean().ap == pytest.approx(0.5) and table.mean().num_classes == 2
    assert table.mean([0]).ap == pytest.approx(1)
    with pytest.raises(ValueError, match="none of them has a true object"):
        table.mean([2, 3])


def test_nothing_found_is_zero():
    truth = bars(10)
    assert ap(truth[:0], [], [], truth, [0]).mean() == (0, 0, 0, 1)


def test_a_picture_without_objects():
    """Its predictions are wrong, and surer than the right one of the other picture."""
    measure = ap(bars(10), [0.5], [0], bars(10), [0])
    measure.update(bars(4), torch.tensor([0.9]), torch.tensor([0]), bars(10)[:0],
                   torch.zeros(0, dtype=torch.int64))
    assert measure.mean().ap == pytest.approx(0.5)
    assert measure.mean() == measure.mean()


def test_max_detections():
    truth = bars(10, 10)
    measure = AveragePrecision(1, max_detections=1)
    classes = torch.zeros(2, dtype=torch.int64)
    measure.update(truth, torch.tensor([0.9, 0.8]), classes, truth, classes)
    assert measure.mean().ap == pytest.approx(51 / 101)


def slow_ap(pictures, number):
    """AP of one class, counted with loops over thresholds, pictures and predictions."""
    values = []
    for threshold in THRESHOLDS:
        answers, total = [], 0
        for masks, scores, classes, truth, truth_classes in pictures:
            mine, true = masks[classes == number], truth[truth_classes == number]
            total += len(true)
            free = list(range(len(true)))
            sure = scores[classes == number]
            for index in sure.argsort(descending=True, stable=True).tolist():
                ious = {
                    t: float((mine[index] & true[t]).sum() / (mine[index] | true[t]).sum())
                    for t in free
                }
                best = max(ious, key=ious.get, default=None)
                right = best is not None and ious[best] >= threshold - 1e-9
                if right:
                    free.remove(best)
                answers.append((float(sure[index]), right))
        answers.sort(key=lambda answer: -answer[0])
        right, points = 0, []
        for place, (_, good) in enumerate(answers, 1):
            right += good
            points.append((right / total, right / place))
        values.append(sum(
            max((p for r, p in points if r >= step / 100 - 1e-12), default=0)
            for step in range(101)
        ) / 101)
    return sum(values) / 10


def test_random_maps_agree_with_a_slow_count():
    random = torch.Generator().manual_seed(0)
    measure, pictures = AveragePrecision(2), []
    for _ in range(6):
        truth = torch.rand(4, 6, 6, generator=random) < 0.5
        masks = torch.cat([truth ^ (torch.rand(4, 6, 6, generator=random) < 0.12), truth[:2]])
        picture = (
            masks, torch.rand(6, generator=random), torch.randint(2, (6,), generator=random),
            truth, torch.randint(2, (4,), generator=random),
        )
        measure.update(*picture)
        pictures.append(picture)
    expected = [slow_ap(pictures, number) for number in (0, 1)]
    assert 0.05 < min(expected) < 0.95
    assert measure.per_class()[:, 0].tolist() == pytest.approx(expected, abs=1e-6)


def test_bad_input():
    truth, one = bars(10), torch.tensor([0])
    good = dict(masks=truth, scores=torch.tensor([0.5]), classes=one, truth_masks=truth,
                truth_classes=one)
    bad = [
        ("masks is", dict(masks=truth.float())),
        ("truth_masks is", dict(truth_masks=truth[0])),
        ("classes", dict(classes=one.float())),
        ("classes", dict(classes=one + 1)),
        ("truth_classes", dict(truth_classes=one - 1)),
        ("1 masks but 2 classes", dict(classes=torch.tensor([0, 0]))),
        ("same H and W", dict(masks=truth[:, :, :5])),
        ("finite", dict(scores=torch.tensor([float("nan")]))),
        ("finite", dict(scores=torch.tensor([0.5, 0.5]))),
        ("no pixel of its objects", dict(truth_masks=truth & False)),
    ]
    for message, change in bad:
        with pytest.raises(ValueError, match=message):
            AveragePrecision(1).update(**(good | change))
    with pytest.raises(ValueError, match="num_classes"):
        AveragePrecision(0)
    with pytest.raises(ValueError, match="max_detections"):
        AveragePrecision(1, max_detections=0)
    with pytest.raises(ValueError, match="no picture"):
        AveragePrecision(1).mean()
