"""The inductive protocol: what the training may know, and the small world of dense features."""

import pytest
import torch

from vtlib.segmentation.measures import MeanIoU
from vtlib.segmentation.zero_shot import annotate, feature_scenes, seen_targets
from vtlib.tokens.cosine import unit

LABELS = torch.tensor([[[0, 2, 2], [1, 1, 255]], [[1, 1, 1], [1, 1, 255]]])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def text(classes=5, dim=8):
    return torch.randn(classes, dim, generator=seeded(9))


def test_only_seen_classes_are_left():
    got = annotate(LABELS, [2, 0], 3)
    want = [[[1, 0, 0], [255, 255, 255]], [[255] * 3, [255] * 3]]
    assert got.dtype == torch.int64 and got.tolist() == want
    background = annotate(LABELS[:, :, :2], [1, 2], 3, ignore=0)
    assert background.tolist() == [[[255, 1], [0, 0]], [[0, 0], [0, 0]]]


def test_what_is_unseen_leaves_no_trace():
    """Whatever class the hidden pixels have, or none: the annotation is the same."""
    hidden = LABELS == 1
    swapped = torch.where(hidden, 3, LABELS)
    nothing = torch.where(hidden, 255, LABELS)
    first = annotate(LABELS, [0, 2], 4)
    assert torch.equal(first, annotate(swapped, [0, 2], 4))
    assert torch.equal(first, annotate(nothing, [0, 2], 4))


def test_masks_of_what_is_there():
    first, second = seen_targets(annotate(LABELS, [2, 0], 3), 2)
    assert first.labels.tolist() == [0, 1]
    assert torch.equal(first.masks, torch.stack([LABELS[0] == 2, LABELS[0] == 0]))
    assert second.labels.shape == (0,) and second.masks.shape == (0, 2, 3)


def test_scenes_have_their_regions_and_noise():
    scenes = feature_scenes(16, seeded(), text(), size=10, regions=3, noise=0.5)
    assert scenes.features.shape == (16, 10, 10, 8) and scenes.labels.shape == (16, 10, 10)
    assert all(1 <= len(each.unique()) <= 3 for each in scenes.labels)
    assert max(len(each.unique()) for each in scenes.labels) == 3
    noise = scenes.features - unit(text())[scenes.labels]
    assert abs(noise.norm(dim=-1).square().mean().sqrt() - 0.5) < 0.02
    clean = feature_scenes(4, seeded(), text(), noise=0)
    torch.testing.assert_close(clean.features, clean.text[clean.labels])


def test_the_generator_decides():
    first, again, other = (feature_scenes(2, seeded(s), text()) for s in (3, 3, 4))
    assert torch.equal(first.features, again.features)
    assert not torch.equal(first.features, other.features)


def test_names_of_clean_features_score_one():
    scenes = feature_scenes(32, seeded(), text(), noise=0)
    measure = MeanIoU(5)
    measure.update((scenes.features @ scenes.text.T).argmax(-1), scenes.labels)
    assert measure.harmonic((0, 1, 2), (3, 4)) == (1, 1, 1)


@pytest.mark.parametrize("call, said", [
    (lambda: annotate(LABELS.float(), [0], 3), "labels"),
    (lambda: annotate(LABELS.int(), [0], 3), "labels"),
    (lambda: annotate(LABELS[0], [0], 3), "labels"),
    (lambda: annotate(LABELS, [0], 2), r"labels\[0, 0, 1\]=2"),
    (lambda: annotate(LABELS - 1, [0], 3, ignore=254), r"labels\[0, 0, 0\]=-1"),
    (lambda: annotate(LABELS, [], 3), r"seen=\[\]"),
    (lambda: annotate(LABELS, [0, 0], 3), "seen"),
    (lambda: annotate(LABELS, [3], 3), "seen"),
    (lambda: annotate(LABELS, [0.5], 3), "seen"),
    (lambda: seen_targets(LABELS, 2), r"annotation\[0, 0, 1\]=2"),
    (lambda: seen_targets(LABELS.float(), 3), "annotation"),
    (lambda: feature_scenes(2, None, text()), "generator"),
    (lambda: feature_scenes(2, seeded(), text(2)), "regions"),
    (lambda: feature_scenes(2, seeded(), text()[0]), "text"),
    (lambda: feature_scenes(2, seeded(), text(), noise=-1), "noise"),
    (lambda: feature_scenes(0, seeded(), text()), "batch"),
])
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=said):
        call()
