"""The shipped models of notebook 01: they load, say how they were made, and name pictograms on
backgrounds they never saw."""

import pytest
import torch

from vtlib import checkpoints, data
from vtlib.multiscale import pretrained
from vtlib.multiscale.pyramid import PyramidViT
from vtlib.teach import flops

FLOORS = {"vit": 60, "vit_pyramid": 56, "crossvit": 45, "crossformer": 46}
"""Percent right, objects of 30 to 90 %; chance is 8."""


@pytest.fixture(scope="module")
def held_out():
    world = data.EmojiWorld(pretrained.SIZE, "test", pictograms=list(pretrained.CLASSES))
    return world.classify(250, seed=77, scale=(0.3, 0.9), clutter=1)


@pytest.mark.parametrize("name", pretrained.SHIPPED)
def test_names_pictograms_on_new_backgrounds(name, held_out):
    images, labels = held_out
    with torch.no_grad():
        said = pretrained.emoji(name)(images).argmax(dim=1)
    assert 100 * (said == labels).float().mean().item() > FLOORS[name]
    assert data.checkpoint(pretrained.stem(name)).stat().st_size < 1.5e6


@pytest.mark.parametrize("size, scale", [
    ("small", (0.15, 0.3)), ("medium", (0.3, 0.55)), ("large", (0.55, 0.9)),
])
def test_shipped_models_score_by_size_as_stored(size, scale):
    """300 pictures against the 1,000 of the training script."""
    world = data.EmojiWorld(pretrained.SIZE, "test", pictograms=list(pretrained.CLASSES))
    images, labels = world.classify(300, seed=20, scale=scale, clutter=1)
    for name in pretrained.SHIPPED:
        with torch.no_grad():
            said = pretrained.emoji(name)(images).argmax(dim=1)
        stored = checkpoints.seeds(pretrained.stem(name))[0]["score"][size]
        assert (said == labels).float().mean().item() == pytest.approx(stored, abs=0.08)


def test_scores_tell_how_each_model_was_made():
    for name in pretrained.MODELS:
        for seed, row in checkpoints.seeds(pretrained.stem(name)).items():
            assert row["command"] == f"python train/multiscale.py {name} --seed {seed}"
            assert row["steps"] > 0 and row["minutes"] > 0
            assert set(row["score"]) == {"small", "medium", "large"}
            assert ("branches" in row) == name.startswith("crossvit")


@pytest.mark.parametrize("name", pretrained.MODELS)
def test_every_config_builds(name):
    images = torch.rand(1, 3, pretrained.SIZE, pretrained.SIZE)
    assert pretrained.build(*pretrained.config(name))(images).shape == (1, 12)


def test_models_cost_about_the_same():
    image = torch.rand(1, 3, pretrained.SIZE, pretrained.SIZE)
    models = [pretrained.build(*pretrained.config(name)) for name in pretrained.SHIPPED]
    cost = [flops(model, image) for model in models]
    assert max(cost) < 1.1 * min(cost)


def test_bad_names_and_sizes():
    with pytest.raises(ValueError, match="kind='vit': needs one of ViT, "):
        pretrained.build("vit", {})
    with pytest.raises(ValueError, match="name=\\['vit'\\]: needs one of vit, "):
        pretrained.emoji(["vit"])
    with pytest.raises(ValueError, match="name='vitt': needs one of vit, "):
        pretrained.emoji("vitt")
    with pytest.raises(ValueError, match="mixed_crossvit_all.*no such checkpoint"):
        pretrained.emoji("crossvit_all")
    with pytest.raises(ValueError, match="3 channels|channels"):
        pretrained.build(*pretrained.config("vit"))(torch.rand(1, 1, 48, 48))
    with pytest.raises(ValueError, match="multiples of 16"):
        PyramidViT(40, patch_size=8, embed_dim=8, num_heads=2, num_layers=1)
    with pytest.raises(ValueError, match="learned positions only"):
        PyramidViT(32, patch_size=8, embed_dim=8, num_heads=2, num_layers=1, pos="sincos")
    model = PyramidViT(32, patch_size=8, embed_dim=8, num_heads=2, num_layers=1)
    with pytest.raises(ValueError, match="patches high and wide"):
        model(torch.rand(1, 3, 48, 48))


def test_pyramid_sees_the_image_and_its_averages():
    sizes = dict(patch_size=8, embed_dim=8, num_heads=2, num_layers=1, num_classes=3)
    model = PyramidViT(32, **sizes).eval()
    images = torch.rand(2, 3, 32, 32)
    x, _ = model.embed(images)
    assert x.shape == (2, 1 + 16 + 4, 8)
    pooled = torch.nn.functional.avg_pool2d(images, 2)
    torch.testing.assert_close(x[:, 17:], model.patch_embed(pooled) + model.pos_embed[:, 17:])
    assert model(images).shape == (2, 3)
