"""Labels of three tasks from panoptic ones; three answers: a partition, joined stuff, scores."""

import pytest
import torch

from vtlib.segmentation.oneformer_tasks import (
    instances,
    panoptic_segments,
    semantic_scores,
    task_targets,
)

THINGS = {2, 3}
SEGMENTS = [(5, 0, False), (6, 2, False), (7, 2, False), (8, 3, True), (9, 1, False), (4, 1, False)]


@pytest.fixture
def panoptic():
    """Sky, a pair of cats, a crowd of dogs; segment 9 has no pixel; grass last."""
    scene = torch.full((6, 8), 5)
    scene[1:3, 1:3], scene[1:3, 4:7], scene[3:5, :2], scene[5] = 6, 7, 8, 4
    return scene


def test_targets_of_three_tasks(panoptic):
    semantic, instance, everything = (
        task_targets(panoptic, SEGMENTS, task, THINGS)
        for task in ("semantic", "instance", "panoptic")
    )
    assert semantic.classes.tolist() == [0, 2, 1] and instance.classes.tolist() == [2, 2]
    assert everything.classes.tolist() == [0, 2, 2, 1]
    assert semantic.masks[1].sum() == 10                       # both cats
    cats = (panoptic == 6) | (panoptic == 7)
    assert torch.equal(semantic.masks[1], cats)
    assert torch.equal(everything.masks[1:3], instance.masks)
    assert torch.equal(everything.masks.any(0), panoptic != 8)        # all but the crowd
    assert everything.masks.sum(0).max() == 1
    assert torch.equal(instance.label, torch.where(cats, 2, 255))
    assert semantic.label[3, 0] == 255 and torch.equal(semantic.label, everything.label)
    assert len(set(semantic.classes.tolist())) == len(semantic.classes)


def test_a_scene_without_things_has_no_instances(panoptic):
    found = task_targets(panoptic, SEGMENTS, "instance", {4})
    assert found.masks.shape == (0, 6, 8) and found.classes.shape == (0,)
    assert (found.label == 255).all()


def test_targets_do_not_touch_the_annotation(panoptic):
    before = panoptic.clone()
    task_targets(panoptic, SEGMENTS, "semantic", THINGS)
    assert torch.equal(panoptic, before)


@pytest.mark.parametrize("change, message", [
    (dict(panoptic=torch.zeros(4, 4)), "panoptic is torch.float32"),
    (dict(panoptic=torch.zeros(1, 4, 4, dtype=torch.long)), "panoptic is torch.int64"),
    (dict(segments=[]), "segments is empty"),
    (dict(segments=[(5, 255, False)]), "class 255 must lie in"),
    (dict(segments=[(5, -1, False)]), "class -1 must lie in"),
    (dict(task="depth"), "task='depth'"),
])
def test_wrong_annotations(panoptic, change, message):
    arguments = dict(panoptic=panoptic, segments=SEGMENTS, task="semantic", things=THINGS) | change
    with pytest.raises(ValueError, match=message):
        task_targets(**arguments)


# ------------------------------------------------------------------------------------ the answers
def logits(batch=3, queries=9, classes=4, seed=0):
    drawn = torch.Generator().manual_seed(seed)
    return (
        3 * torch.randn(batch, queries, classes + 1, generator=drawn),
        3 * torch.randn(batch, queries, 7, 10, generator=drawn),
    )


def panoptic_by_loop(class_logits, mask_logits, things, threshold, overlap):
    """One picture, query by query: (ids, rows)."""
    count = class_logits.shape[1] - 1
    scores, labels = class_logits.softmax(-1).max(-1)
    masks = mask_logits.sigmoid()
    kept = [n for n in range(len(labels)) if labels[n] != count and scores[n] > threshold]
    ids, rows, stuff = torch.zeros(mask_logits.shape[1:], dtype=torch.long), [], {}
    if not kept:
        return ids, rows
    winner = torch.stack([scores[n] * masks[n] for n in kept]).argmax(0)
    for k, n in enumerate(kept):
        won, own, label = winner == k, masks[n] >= 0.5, int(labels[n])
        if not (won & own).any() or int(won.sum()) / int(own.sum()) < overlap:
            continue
        if label not in things and label in stuff:
            ids[won & own] = stuff[label]
            continue
        rows.append((len(rows) + 1, label, label in things))
        ids[won & own] = len(rows)
        if label not in things:
            stuff[label] = len(rows)
    return ids, rows


@pytest.mark.parametrize("threshold, overlap", [(0.0, 0.0), (0.5, 0.0), (0.4, 0.3), (0.5, 0.8)])
@pytest.mark.parametrize("seed", range(3))
def test_panoptic_against_a_loop(threshold, overlap, seed):
    given = logits(seed=seed)
    got = panoptic_segments(*given, THINGS, threshold, overlap)
    for i in range(3):
        ids, rows = panoptic_by_loop(given[0][i], given[1][i], THINGS, threshold, overlap)
        assert torch.equal(got.ids[i], ids) and got.rows(i) == rows


def test_panoptic_is_a_partition():
    got = panoptic_segments(*logits(), THINGS, 0.2, 0.1)
    for i in range(3):
        rows = got.rows(i)
        numbers = [number for number, _, _ in rows]
        assert numbers == list(range(1, len(rows) + 1))
        assert set(got.ids[i].unique().tolist()) - {0} == set(numbers)
        masks = torch.stack([got.ids[i] == number for number in (0, *numbers)])
        assert (masks.sum(0) == 1).all()
        stuff = [label for _, label, thing in rows if not thing]
        assert len(stuff) == len(set(stuff))                     # one segment for a class of stuff


def scene(labels, boxes, score=8.0, classes=4):
    """Sure queries with rectangular masks (1, N, 6, 8)."""
    given = torch.zeros(1, len(labels), classes + 1)
    masks = torch.full((1, len(labels), 6, 8), -8.0)
    for n, (label, (top, bottom, left, right)) in enumerate(zip(labels, boxes, strict=True)):
        given[0, n, label] = score - n * 0.1
        masks[0, n, top:bottom, left:right] = 8.0
    return given, masks


def test_stuff_is_joined_and_things_are_not():
    boxes = [(0, 3, 0, 4), (0, 3, 4, 8), (3, 6, 0, 4), (3, 6, 4, 8)]
    got = panoptic_segments(*scene([0, 0, 2, 2], boxes), THINGS)
    assert got.rows(0) == [(1, 0, False), (2, 2, True), (3, 2, True)]
    assert got.segment[0].tolist() == [1, 1, 2, 3]
    assert (got.ids[0, :3] == 1).all()


def test_a_covered_query_is_dropped():
    boxes = [(0, 6, 0, 5), (0, 6, 0, 8)]                   # the second keeps 3 of its 8 columns
    given = scene([2, 3], boxes)
    assert panoptic_segments(*given, THINGS).rows(0) == [(1, 2, True)]
    assert len(panoptic_segments(*given, THINGS, overlap=3 / 8).rows(0)) == 2
    assert len(panoptic_segments(*given, THINGS, overlap=0.38).rows(0)) == 1


def test_no_object_and_unsure_queries_draw_nothing():
    box = [(0, 6, 0, 8)]
    assert panoptic_segments(*scene([4], box), THINGS).ids.eq(0).all()
    assert panoptic_segments(*scene([2], box, score=1.0), THINGS).ids.eq(0).all()
    assert panoptic_segments(*scene([2], box, score=1.0), THINGS, 0.3).ids.eq(1).all()


def test_semantic_scores_are_sums_over_queries():
    classes, masks = logits(2)
    want = torch.zeros(2, 4, 7, 10)
    for n in range(9):
        share = classes[:, n].softmax(-1)[:, :4]
        want += share[:, :, None, None] * masks[:, n].sigmoid()[:, None]
    torch.testing.assert_close(semantic_scores(classes, masks), want)


def test_instances_against_a_loop():
    classes, masks = logits(2)
    got = instances(classes, masks, THINGS, 11)
    for i in range(2):
        pairs = []
        for n in range(9):
            inside = masks[i, n] > 0
            quality = float(masks[i, n].sigmoid()[inside].sum() / (inside.sum() + 1e-6))
            for k in range(4):
                p = float(classes[i, n].softmax(-1)[k])
                pairs.append((p, p * quality, k, n))
        best = sorted(sorted(pairs, reverse=True)[:11], key=lambda pair: -pair[1])
        torch.testing.assert_close(got.scores[i], torch.tensor([pair[1] for pair in best]))
        assert got.classes[i].tolist() == [pair[2] for pair in best]
        assert torch.equal(got.masks[i], torch.stack([masks[i, pair[3]] > 0 for pair in best]))
        assert got.things[i].tolist() == [pair[2] in THINGS for pair in best]


def test_permuted_queries_give_the_same_picture():
    classes, masks = logits()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    want = panoptic_segments(classes, masks, THINGS, 0.2, 0.1)
    got = panoptic_segments(classes[:, order], masks[:, order], THINGS, 0.2, 0.1)
    assert torch.equal(got.ids > 0, want.ids > 0)
    for i in range(3):
        assert sorted(r[1:] for r in got.rows(i)) == sorted(r[1:] for r in want.rows(i))


def test_wrong_logits():
    classes, masks = logits()
    with pytest.raises(ValueError, match="class_logits and mask_logits"):
        semantic_scores(classes[:, 1:], masks)
    with pytest.raises(ValueError, match="mask_logits has shape"):
        panoptic_segments(classes, masks[0], THINGS)
    with pytest.raises(ValueError, match=r"things=\[7\] must lie in 0 ... 3"):
        panoptic_segments(classes, masks, {7})
    with pytest.raises(ValueError, match="num_best=37 but there are 36 pairs"):
        instances(classes, masks, THINGS, 37)
    with pytest.raises(ValueError, match="threshold"):
        panoptic_segments(classes, masks, THINGS, 1.5)
