"""The shipped Split Matching: small, told how it was made, and it names what had no label."""

import pytest
import torch

from vtlib import checkpoints, data
from vtlib.segmentation import MeanIoU, feature_scenes
from vtlib.segmentation.pretrained import split_matching

NAME = "split_matching_scenes"


@pytest.fixture(scope="module")
def shown():
    """New scenes, their predictions, and what is known of the classes."""
    how, model = checkpoints.info(NAME), split_matching()
    text = torch.tensor(how["text"])
    drawn = torch.Generator().manual_seed(77)
    scenes = feature_scenes(60, drawn, text, noise=how["noise"])
    with torch.no_grad():
        return how, model, scenes, model(scenes.features)[-1]


def test_unseen_classes_are_found_by_name(shown):
    how, model, scenes, prediction = shown
    measure = MeanIoU(8)
    measure.update(model.scores(prediction, scenes.text).argmax(1), scenes.labels)
    found = measure.harmonic(how["seen"], how["unseen"])
    assert found.seen > 0.9 and found.unseen > 0.8
    assert found.harmonic == pytest.approx(how["score"]["split"]["harmonic"], abs=0.05)


def test_seen_queries_find_seen_classes_and_candidates_the_others(shown):
    how, model, scenes, prediction = shown
    masks = prediction.mask_logits.clone()
    masks[:, 8:] = -99                                               # without the candidates
    own = prediction._replace(mask_logits=masks)
    unseen = torch.isin(scenes.labels, torch.tensor(how["unseen"]))
    largest = model.scores(own, scenes.text).amax(1)
    assert largest[~unseen].mean() > 0.8 > 0.3 > largest[unseen].mean()


def test_scores_tell_the_rivals(shown):
    score = shown[0]["score"]
    split, ordinary = score["split"], score["one matching"]
    assert split["unseen"] > ordinary["unseen"] + 0.5 and split["seen"] > ordinary["seen"]
    assert score["random embeddings"]["unseen"] < split["unseen"] - 0.3
    masks = score["best IoU of pseudo masks"]
    assert masks["3 4 6"] > max(masks[s] for s in "346")


def test_checkpoint_is_small(shown):
    assert data.checkpoint(NAME).stat().st_size < 0.7e6
    assert shown[0]["command"].startswith("OMP_NUM_THREADS=1 python train/split_matching.py")
    assert all(p.device.type == "meta" for p in split_matching(device="meta").parameters())
