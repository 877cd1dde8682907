"""The scenes of the small OneFormer, its targets, and the shipped weights."""

import pytest
import torch

from vtlib import checkpoints
from vtlib.segmentation import oneformer_small as small
from vtlib.segmentation.pretrained import oneformer_emoji


@pytest.fixture(scope="module")
def scenes():
    return small.pictures(small.world("test"), 6, seed=5)


def test_targets_of_three_tasks(scenes):
    codes = scenes.codes()
    semantic, instance, panoptic = (
        small.targets(codes, [task] * 6) for task in ("semantic", "instance", "panoptic")
    )
    for i in range(6):
        assert len(panoptic[i].classes) == len(codes[i].unique())
        assert torch.equal(panoptic[i].masks.sum(0), torch.ones(96, 96, dtype=torch.long))
        assert len(semantic[i].classes) == len((codes[i] // 1000).unique())
        assert set(instance[i].classes.tolist()) <= set(small.THINGS)
    coarse = small.targets(codes, ["panoptic"] * 6, small.STRIDE)[0].masks
    assert coarse.shape[1:] == (24, 24)
    torch.testing.assert_close(coarse.sum(0), torch.ones(24, 24))


def test_words_know_every_text():
    words = small.words()
    texts = [f"a photo with a {name}" for name in small.NAMES] + ["a semantic photo"]
    ids = words(texts)
    assert ids.shape == (9, small.LENGTH) and not (ids == 1).any()
    assert len(ids.unique(dim=0)) == 9


def test_answer_is_segment(scenes):
    torch.manual_seed(0)
    model, images = small.small().eval(), scenes.scenes.images[:2]
    with torch.no_grad():
        for task, options in (("semantic", {}), ("instance", {"num_best": 5}), ("panoptic", {})):
            want = model.segment(images, task, small.THINGS, **options)
            got = small.answer(model(images, task).last, task, (96, 96), **options)
            pairs = [(got, want)] if torch.is_tensor(want) else zip(got, want, strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


@torch.no_grad()
def test_the_sentence_decides(scenes):
    """Shipped weights on unseen backgrounds: stuff is said under "panoptic", not under
    "instance"; most pixels have their class."""
    model = oneformer_emoji()
    images, codes = scenes.scenes.images, scenes.codes()
    found = model.segment(images, "semantic", small.THINGS).argmax(1)
    assert (found == codes // 1000).float().mean() > 0.8
    stuff = {}
    for task in ("instance", "panoptic"):
        answer = small.answer(model(images, task).last, "panoptic", (96, 96))
        stuff[task] = sum(not thing for i in range(6) for _, _, thing in answer.rows(i))
    assert stuff["panoptic"] >= 8 and stuff["instance"] <= 1


def test_header():
    info = checkpoints.info("oneformer_emoji")
    said = info["score"]["sentence"]
    assert said["instance"]["stuff"] < 0.1 * said["panoptic"]["stuff"]
    assert checkpoints.path("oneformer_emoji").stat().st_size < 1.6e6
