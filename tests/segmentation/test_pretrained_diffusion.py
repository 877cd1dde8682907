"""The shipped models of segmentation: they load, and do on unseen data what they are for."""

import pytest
import torch

from vtlib import checkpoints
from vtlib.data import TextureWorld
from vtlib.generation.diffusion import diffusion_loss
from vtlib.segmentation import pretrained


@pytest.fixture(scope="module")
def denoiser():
    return pretrained.diffusion_camouflage()


@pytest.fixture(scope="module")
def scenes():
    return TextureWorld(64, "test").scenes(16, seed=11)


@torch.no_grad()
def test_the_denoiser_knows_textures(denoiser, scenes):
    """A guess of zero has an error of about 1 for the noise, and of the picture's power."""
    for level, most in ((200, 0.2), (400, 0.15), (800, 0.25)):
        t = torch.full((16,), level)
        generator = torch.Generator().manual_seed(0)
        text = scenes.text()
        assert diffusion_loss(denoiser, scenes.images, text, generator, 0.0, t).mean() < most


@torch.no_grad()
def test_its_maps_have_the_strides_it_says(denoiser, scenes):
    maps = denoiser.features(scenes.images, scenes.text())
    assert [64 // m.shape[-1] for m in maps.encoder] == list(denoiser.strides) == [2, 4, 8, 16]
    assert [m.shape[1] for m in maps.encoder] == list(denoiser.widths)
    assert maps.decoder.shape == (16, denoiser.widths[0], 32, 32)


def test_a_linear_probe_reads_more_than_from_pixels_and_hardly_the_prompt():
    probe = checkpoints.info("diffusion_camouflage")["score"]["probe"]
    assert probe["empty, t=0"]["iou"] > probe["untrained"]["iou"] + 0.1 > probe["pixels"]["iou"]
    assert abs(probe["right, t=0"]["iou"] - probe["empty, t=0"]["iou"]) < 0.02


def test_frozen(denoiser):
    assert not denoiser.training and not any(p.requires_grad for p in denoiser.parameters())
