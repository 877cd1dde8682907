"""The shipped segmenter: what its header says, and that an hourglass costs it little."""

import pytest
import torch

from vtlib import checkpoints
from vtlib.hub import hourglass
from vtlib.segmentation import Expedit, MeanIoU, Pooling
from vtlib.segmentation.linear_segmenter import linear_scenes, linear_world
from vtlib.segmentation.pretrained import segmenter_emoji
from vtlib.vit import vit_emoji


@pytest.fixture(scope="module")
def model():
    return segmenter_emoji()


def test_the_header_tells_of_every_place_and_way():
    how = checkpoints.info("segmenter_emoji")
    score = how["score"]
    whole = score["all tokens"]["all"]
    assert whole > 0.4 and set(how["tau"]) == {"1", "2", "3", "4", "5"}
    for after in how["tau"]:
        row = score[after]
        for side in (8, 10):
            expedit, pooled = row[f"expedit {side}"], row[f"pooling {side}"]
            assert expedit["all"] > whole - 0.02
            assert expedit["all"] > pooled["all"] + 0.02
            assert expedit["border"] > pooled["border"] + 0.05
    rounds = [score["3"][f"expedit 8{text}"]["all"] for text in (", 0 rounds", ", 1 rounds", "")]
    assert rounds[2] > rounds[1] > rounds[0]
    assert rounds[1] - rounds[0] > rounds[2] - rounds[1]          # mostly in the first round


def test_what_was_frozen_is_vit_emojis(model):
    first = vit_emoji()[0]
    for mine, theirs in zip(model.blocks[:4].parameters(), first.blocks[:4].parameters(),
                            strict=True):
        assert torch.equal(mine, theirs)
    assert not torch.equal(model.blocks[4].mlp.fc1.weight, first.blocks[4].mlp.fc1.weight)


@torch.no_grad()
def test_masks_survive_the_hourglass_and_not_the_pooling(model):
    images, truth = linear_scenes(linear_world("test"), 24, 3)
    tau = checkpoints.info("segmenter_emoji")["tau"]["2"]
    found = {}
    ways = {"all": None, "expedit": Expedit((8, 8), tau=tau, k=10, normalise="sum"),
            "pooling": Pooling((8, 8))}
    for name, way in ways.items():
        if way is None:
            logits = model(images)
        else:
            with hourglass(model, way, after=2):
                logits = model(images)
        measure = MeanIoU(13)
        measure.update(logits.argmax(1), truth)
        found[name] = measure.mean()
    assert found["all"] > 0.3, found
    assert found["expedit"] > found["all"] - 0.04 > found["pooling"], found
