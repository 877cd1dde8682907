"""Lists of maps from a denoiser, a ViT, DINOv2 and pixels: sizes, norms, no gradient."""

from typing import NamedTuple

import pytest
import torch

from vtlib.segmentation.camouflage_inputs import (
    denoiser_maps,
    dino_maps,
    normed,
    pixel_maps,
    vit_maps,
)
from vtlib.vit import ViT

IMAGES = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


class Features(NamedTuple):
    encoder: list
    decoder: torch.Tensor


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 2, 2)

    def features(self, images, text, t):
        ramp = torch.arange(4.0)[:, None, None]
        x = self.conv(images) + (0 if text is None else text.mean()) * ramp
        return Features([x, x[..., ::2, ::2]], x + t * ramp)


def test_normed():
    x = normed(3 * torch.randn(2, 16, 3, 4, generator=torch.Generator().manual_seed(1)) + 5)
    torch.testing.assert_close(x.mean(1), torch.zeros(2, 3, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.var(1, correction=0), torch.ones(2, 3, 4), atol=1e-3, rtol=0)


def test_denoiser_reads_the_prompt_and_gets_no_gradient():
    torch.manual_seed(0)
    net, text = Net(), torch.ones(2, 3, 5)
    (fine, coarse), last = denoiser_maps(net, IMAGES, text, 2)
    assert fine.shape == last.shape == (2, 4, 16, 24) and coarse.shape == (2, 4, 8, 12)
    assert not (fine.requires_grad or coarse.requires_grad or last.requires_grad)
    (silent, _), _ = denoiser_maps(net, IMAGES, None, 2)
    assert not torch.allclose(silent, fine)


def test_vit():
    torch.manual_seed(0)
    vit = ViT(img_size=32, patch_size=8, num_classes=2, embed_dim=16, num_layers=3, num_heads=2)
    maps, last = vit_maps(vit, IMAGES[..., :32], (1, 2, 3))
    assert [tuple(x.shape) for x in maps] == [(2, 16, 8, 8)] * 3 and last is maps[2]
    assert not last.requires_grad
    assert vit_maps(vit, IMAGES[..., :32], (3,), 1)[1].shape == (2, 16, 4, 4)
    with pytest.raises(ValueError, match="enlarge"):
        vit_maps(vit, IMAGES, enlarge=0)


def test_dino():
    pytest.importorskip("transformers")
    from tests.hub.tiny import make_dinov2

    backbone = make_dinov2()
    depth = backbone.config.num_hidden_layers
    maps, last = dino_maps(backbone, IMAGES, (1, depth), 3)
    width = backbone.config.hidden_size
    assert [tuple(x.shape) for x in maps] == [(2, width, 3, 3)] * 2 and last is maps[1]
    assert not last.requires_grad


def test_pixels():
    (maps,), last = pixel_maps(IMAGES, 3, 4)
    assert maps is last and maps.shape == (2, 27, 8, 12)
    centre = maps.unflatten(1, (3, 3, 3))[:, :, 1, 1]
    torch.testing.assert_close(centre, 8 * (IMAGES[..., ::4, ::4] - 0.5))
    assert pixel_maps(IMAGES[..., :31, :45], 3, 4)[1].shape == (2, 27, 8, 12)
