"""The shipped upsamplers keep to what data/README.md says of them: closer to the ViT's own features
of larger pictures than bilinear enlargement."""

import pytest
import torch
import torch.nn.functional as F

from vtlib import checkpoints
from vtlib.data import EmojiWorld
from vtlib.superres import uplift
from vtlib.superres.pretrained import uplift_emoji
from vtlib.vit import vit_emoji


@pytest.fixture(scope="module")
def scale():
    """(pictures, their features) at 24, 48, 96 px; held-out pictograms and backgrounds."""
    world = EmojiWorld(96, "test", artist="both")
    images = world.scenes(16, 990_777, objects=(1, 2), scale=(0.3, 0.9)).images
    vit = vit_emoji()[0]
    copies = uplift.pyramid(images, 2)
    with torch.no_grad():
        return copies, [vit.feature_map(copy, 4) for copy in copies]


def error(got, want):
    spread = want - want.mean((0, 2, 3), keepdim=True)
    return ((got - want).square().mean() / spread.square().mean()).item()


def climb(model, scale):
    copies, truth = scale
    with torch.no_grad():
        if model is None:
            outs = [F.interpolate(truth[2], scale_factor=2**t, mode="bilinear") for t in (1, 2)]
        elif isinstance(model, uplift.UPLiFT):
            outs = model(copies[2], truth[2], iterations=2, return_steps=True)
        else:
            outs = [model(copies[2], truth[2], truth[2 - t].shape[-2:]) for t in (1, 2)]
    return outs, [error(out, truth[1 - t]) for t, out in enumerate(outs)]


@pytest.mark.parametrize("variant", [None, "onestep", "cross", "free"])
def test_closer_than_bilinear(scale, variant):
    (outs, errors), (_, bilinear) = (
        climb(model, scale) for model in (uplift_emoji(variant), None)
    )
    closer = [e < b - 0.02 for e, b in zip(errors, bilinear, strict=True)]
    assert all(closer), (variant, errors, bilinear)
    low, high = scale[1][2].amin((-2, -1), keepdim=True), scale[1][2].amax((-2, -1), keepdim=True)
    outside = ((outs[1] < low - 1e-4) | (outs[1] > high + 1e-4)).float().mean()
    assert outside > 0.02 if variant == "free" else outside == 0


def test_what_is_stored():
    for variant in ("", "_onestep", "_free", "_cross"):
        said = checkpoints.info("uplift_emoji" + variant)
        assert said["seed"] == 0 and list(checkpoints.seeds("uplift_emoji" + variant)) == [0, 1]
        assert said["command"].startswith("python train/uplift.py")
        assert {"config", "seed", "score"} <= set(said)
    assert checkpoints.info("uplift_emoji")["score"]["mIoU of a linear probe"] > 0.35
    weights = sum(p.numel() for p in uplift_emoji().parameters())
    assert 150_000 < weights < 400_000


def test_unknown_variant():
    with pytest.raises(ValueError, match="variant='none' must be"):
        uplift_emoji("none")
