"""Maps of frozen things for `camouflage`: a denoising U-Net, a ViT, DINOv2, and plain pixels. Each
function gives (list of maps, last map) and no gradient reaches what made them.

Features of a net are normalised to mean 0 and deviation 1 at each place, over channels, so that one
head suits all.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn import IMAGENET_MEAN, IMAGENET_STD
from ..nn.checks import check_images, check_int, check_ints

Maps = tuple[list[Tensor], Tensor]


def normed(x: Tensor) -> Tensor:
    """(B, C, h, w), each place to mean 0 and deviation 1 over its channels."""
    return F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1)


@torch.no_grad()
def denoiser_maps(net: Any, images: Tensor, text: Tensor | None = None, t: int = 0) -> Maps:
    """One pass of a `generation.diffusion.Denoiser`: the encoder at each stride, the decoder's end.

    Args:
        net: frozen.
        images: (B, 3, H, W) in [0, 1].
        text: the prompt, (B, N, text_dim); None: empty.
        t: the noise level that the net is told.
    """
    found = net.features(images, text, t)
    return [normed(x) for x in found.encoder], normed(found.decoder)


@torch.no_grad()
def vit_maps(
    vit: Any, images: Tensor, blocks: Sequence[int] = (2, 3, 4), enlarge: int = 2
) -> Maps:
    """A ViT's patch tokens after several blocks, all on one grid; the last is also the last map.

    Args:
        vit: a `vit.ViT`.
        images: (B, 3, H, W) in [0, 1].
        blocks: after how many.
        enlarge: by which the pictures are, so that patches are smaller on what they show.
    """
    check_images(images)
    blocks, enlarge = check_ints(blocks, "blocks", 1), check_int(enlarge, "enlarge", 1)
    if enlarge > 1:
        images = F.interpolate(
            images, scale_factor=float(enlarge), mode="bicubic", align_corners=False
        )
    maps = [vit.feature_map(images, number) for number in blocks]
    return maps, maps[-1]


@torch.no_grad()
def dino_maps(
    backbone: Any, images: Tensor, layers: Sequence[int] = (3, 6, 9, 12), grid: int = 16
) -> Maps:
    """Patch tokens of a real DINOv2 (`hub.real("dinov2")`) after several layers.

    Args:
        backbone: a Dinov2Model of transformers.
        images: (B, 3, H, W) in [0, 1]; resized to `grid` patches a side.
        layers: whose outputs.
        grid: patches a side.
    """
    check_images(images)
    patch = backbone.config.patch_size
    mean, std = (images.new_tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    side = check_int(grid, "grid", 1) * patch
    x = F.interpolate(images, size=(side, side), mode="bicubic", align_corners=False)
    states = backbone((x - mean) / std, output_hidden_states=True).hidden_states
    maps = [
        normed(states[layer][:, 1:].mT.unflatten(2, (grid, grid)))
        for layer in check_ints(layers, "layers", 0)
    ]
    return maps, maps[-1]


@torch.no_grad()
def pixel_maps(images: Tensor, side: int = 7, stride: int = 2) -> Maps:
    """Each second pixel's neighbourhood, (B, 3 side^2, H / 2, W / 2), about 0 and of deviation
    about 1 on faint textures: no net at all.

    Args:
        images: (B, 3, H, W) in [0, 1].
        side: of the neighbourhood, odd.
        stride: between the pixels.
    """
    check_images(images)
    height, width = (-(-s // stride) for s in images.shape[-2:])
    around = F.unfold(8 * (images - 0.5), side, padding=side // 2, stride=stride)
    maps = around.unflatten(2, (height, width))
    return [maps], maps
