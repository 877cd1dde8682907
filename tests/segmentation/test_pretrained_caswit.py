"""The shipped CASWiT: it loads, says how it was made, and needs the right context."""

import pytest
import torch

from vtlib import checkpoints, data
from vtlib.data import EmojiWorld
from vtlib.segmentation import cut, cut_labels, slide
from vtlib.segmentation.pretrained import caswit_emoji

NAME = "caswit_emoji"


@pytest.fixture(scope="module")
def net():
    return caswit_emoji()


@torch.no_grad()
def test_the_right_context_tells_the_biome(net):
    made = EmojiWorld(32, "test", "both").biomes(512, 512, 5)
    crops, contexts, labels = [], [], []
    for top in range(96, 353, 64):
        for left in range(96, 353, 64):
            crop, context = cut(made.image[None], (top, left), (64, 64), 4)
            crops.append(crop)
            contexts.append(context)
            labels.append(cut_labels(made.labels[None], (top, left), (64, 64), 4)[0])
    crops, contexts, labels = (torch.cat(t) for t in (crops, contexts, labels))

    def right(context):
        logits, thing = net(crops, context).logits, labels > 0
        return (logits[:, 1:].argmax(1) + 1 == labels)[thing].float().mean()

    own, other, none = right(contexts), right(contexts.flip(0)), right(None)
    assert own > 0.8 and own > other + 0.1 and own > none + 0.05
    found = net(crops, contexts).logits.argmax(1) > 0
    both, either = (found & (labels > 0)).sum(), (found | (labels > 0)).sum()
    assert both / either > 0.7


@torch.no_grad()
def test_a_large_picture_crop_by_crop(net):
    made = EmojiWorld(32, "test", "both").biomes(128, 192, 6)
    guess = slide(net, made.image[None], (64, 64), 4).argmax(1)[0]
    assert guess.shape == made.labels.shape
    assert ((guess > 0) == (made.labels > 0)).float().mean() > 0.9


def test_the_file_and_what_it_is_compared_with():
    how = checkpoints.info(NAME)
    assert data.checkpoint(NAME).stat().st_size < 1.5e6
    assert how["command"].startswith("OMP_NUM_THREADS=1 python train/caswit.py stages")
    score = how["score"]
    assert score["own context"]["biome"] > score["another picture's context"]["biome"] + 0.15
    assert score["own context"]["mIoU"] > score["context branch alone"]["mIoU"] + 0.3
    late, noaux = (checkpoints.seeds(f"{NAME}_{k}")[0]["score"] for k in ("late", "noaux"))
    assert late.keys() == score.keys() and noaux.keys() < score.keys()
    made = checkpoints.seeds(f"{NAME}_pretraining")[0]["score"]
    leak, own = made["own, centre visible"], made["own"]
    assert leak["L1, own"] < own["L1, own"] - 0.02             # the loss falls,
    assert leak["probe mIoU"] < own["probe mIoU"] + 0.01       # what is learnt gains nothing
