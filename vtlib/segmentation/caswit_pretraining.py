"""CASWiT's pre-training: reconstruct a crop of which 75 % is hidden, with the context's centre
hidden too, since it holds a copy of the crop. The paper is in `caswit.py`; masks, decoder and loss
are those of SimMIM (Xie et al., CVPR 2022, arXiv 2111.09886), which it names.

    ceil(ratio * units) units of 32 pixels        mask_units
    hidden patches are one learnt token           MaskedPretraining.forward
    the centre of the context, hidden             MaskedPretraining.hidden_context
    1 x 1 convolution and pixel shuffle           PixelDecoder
    sum |x - x'| on hidden pixels / their number / 3    masked_l1

Inferred: the size of the units, a learnt token of its own for each branch.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import repeat
from torch import Tensor, nn

from ..nn import check_images, check_int, check_ints, check_multiple, check_number
from ..nn.checks import check_flag, check_generator, describe
from .caswit import CASWiT
from .caswit_context import footprint


def mask_units(
    batch: int, grid: Sequence[int], ratio: float, generator: torch.Generator
) -> Tensor:
    """(batch, h, w) bool on the generator's device: True for ceil(ratio h w) units of each picture.

    Args:
        batch: number of pictures.
        grid: (h, w), units along the sides.
        ratio: of the units that are hidden, 0 ... 1.
        generator: of the random choice.
    """
    batch, (h, w) = check_int(batch, "batch", 1), check_ints(grid, "grid", 1, length=2)
    ratio = check_number(ratio, "ratio", 0, 1)
    check_generator(generator)
    device = generator.device
    order = torch.rand(batch, h * w, generator=generator, device=device).argsort(dim=1)
    hidden = torch.arange(h * w, device=device) < math.ceil(ratio * h * w)
    return torch.zeros_like(order, dtype=torch.bool).scatter(
        1, order, hidden.expand(batch, -1)
    ).reshape(batch, h, w)


class PixelDecoder(nn.Module):
    """A map (B, C, h, w) -> images (B, 3, h stride, w stride). Names as in SimMIM: `decoder.0`.

    Args:
        in_dim: C.
        stride: pixels that a place of the map stands for.
        out_chans: channels of the images.
    """

    def __init__(self, in_dim: int, stride: int = 32, out_chans: int = 3) -> None:
        super().__init__()
        stride, out_chans = check_int(stride, "stride", 1), check_int(out_chans, "out_chans", 1)
        self.in_dim = check_int(in_dim, "in_dim", 1)
        self.decoder = nn.Sequential(
            nn.Conv2d(self.in_dim, stride**2 * out_chans, 1), nn.PixelShuffle(stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.in_dim, "x")
        return self.decoder(x)


def masked_l1(images: Tensor, rebuilt: Tensor, hidden: Tensor) -> Tensor:
    """Mean absolute error of the hidden pixels: sum |x - x'| / hidden pixels / channels, a scalar.

    Args:
        images: (B, C, H, W).
        rebuilt: the same shape.
        hidden: (B, h, w) bool, on a grid that divides the image; True = hidden.

    0 where nothing is hidden; visible pixels play no part.
    """
    check_images(images, None)
    check_images(rebuilt, None, "rebuilt")
    if images.shape != rebuilt.shape:
        raise ValueError(f"rebuilt {tuple(rebuilt.shape)} and images {tuple(images.shape)} differ")
    height, width = images.shape[-2:]
    _check_hidden(hidden, len(images), (height, width))
    up, across = height // hidden.shape[1], width // hidden.shape[2]
    pixels = repeat(hidden, "b h w -> b 1 (h p) (w q)", p=up, q=across)
    error = (images - rebuilt).abs().masked_fill(~pixels, 0.0).sum()
    return error / (pixels.sum() + 1e-5) / images.shape[1]


def _check_hidden(hidden: Tensor, batch: int, size: tuple[int, int]) -> None:
    if not isinstance(hidden, Tensor) or hidden.dtype != torch.bool or hidden.dim() != 3:
        raise ValueError(f"hidden is {describe(hidden)} but needs to be torch.bool (B, h, w)")
    if hidden.shape[0] != batch or 0 in hidden.shape:
        raise ValueError(f"hidden is {tuple(hidden.shape)} but there are {batch} images")
    if size[0] % hidden.shape[1] or size[1] % hidden.shape[2]:
        raise ValueError(f"hidden {tuple(hidden.shape)} is a grid that does not divide {size}")


class Rebuilt(NamedTuple):
    """What pre-training gives."""

    loss: Tensor  # scalar
    images: Tensor  # (B, 3, h, w)


class MaskedPretraining(nn.Module):
    """A CASWiT, the learnt tokens of hidden patches, and a decoder of one layer.

    After it `net` is what is fine-tuned: the same encoders and fusion.

    Args:
        net: the model; its decoder and auxiliary head take no part.
        mask_unit: side of a hidden square, in pixels.
        ratio: of the crop that is hidden.
        mask_centre: whether the crop's copy in the context is hidden; without that the answer can
            be copied from there.
    """

    def __init__(
        self, net: CASWiT, mask_unit: int = 32, ratio: float = 0.75, mask_centre: bool = True
    ) -> None:
        super().__init__()
        if not isinstance(net, CASWiT):
            raise ValueError(f"net is {describe(net)} but needs to be a CASWiT")
        self.patch = net.hr.patch_embed.patch_size
        self.mask_unit = check_int(mask_unit, "mask_unit", 1)
        check_multiple((self.mask_unit,) * 2, self.patch, "mask_unit")
        self.ratio = check_number(ratio, "ratio", 0, 1)
        self.mask_centre = check_flag(mask_centre, "mask_centre")
        self.net, dims = net, net.hr.dims
        self.crop_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(dims[0]), std=0.02))
        self.context_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(dims[0]), std=0.02))
        self.stride = self.patch * 2 ** (len(dims) - 1)
        self.pixels = PixelDecoder(dims[-1], self.stride)

    def draw(self, crop: Tensor, generator: torch.Generator) -> Tensor:
        """Units to hide in a crop (B, 3, h, w): (B, h/unit, w/unit) bool, on the crop's device."""
        check_images(crop, name="crop")
        check_multiple(crop.shape[-2:], self.mask_unit, "crop size")
        grid = [side // self.mask_unit for side in crop.shape[-2:]]
        return mask_units(len(crop), grid, self.ratio, generator).to(crop.device)

    def hidden_context(self, crop: Tensor, context: Tensor) -> Tensor:
        """(h'/4, w'/4) bool: patches of the context that show a part of the crop."""
        check_images(crop, name="crop")
        check_images(context, name="context")
        sizes = crop.shape[-2:], context.shape[-2:]
        inside = []
        for (first, end), side in zip(footprint(*sizes, self.net.factor), sizes[1], strict=True):
            begins = torch.arange(0, side, self.patch, device=context.device)
            inside.append((begins < end) & (begins + self.patch > first))
        return inside[0][:, None] & inside[1]

    def forward(self, crop: Tensor, context: Tensor, hidden: Tensor) -> Rebuilt:
        """Hide, encode both, reconstruct the crop's own pixels.

        Args:
            crop: (B, 3, h, w), multiples of 32 (the last stage's stride).
            context: (B, 3, h', w'), see `caswit_context.cut`.
            hidden: (B, units, units) bool, see `draw`.
        """
        check_images(crop, name="crop")
        check_multiple(crop.shape[-2:], self.stride, "crop size")
        _check_hidden(hidden, len(crop), tuple(crop.shape[-2:]))
        h = self.net.embed(crop, self.net.hr, "crop")
        around = self.net.embed(context, self.net.lr, "context")
        if any(n % m for n, m in zip(h.shape[1:3], hidden.shape[1:], strict=True)):
            raise ValueError(f"hidden {tuple(hidden.shape)} cuts through patches of {self.patch}")
        up, across = (n // m for n, m in zip(h.shape[1:3], hidden.shape[1:], strict=True))
        at = repeat(hidden, "b h w -> b (h p) (w q) 1", p=up, q=across)
        h = torch.where(at, self.crop_token.to(h.dtype), h)
        if self.mask_centre:
            centre = self.hidden_context(crop, context)[None, :, :, None]
            around = torch.where(centre, self.context_token.to(around.dtype), around)
        images = self.pixels(self.net.encode(h, around).features[-1])
        return Rebuilt(masked_l1(crop, images, hidden), images)
