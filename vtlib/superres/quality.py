"""PSNR and SSIM as super-resolution papers report them: on the luma of cut pictures.

SSIM itself is torchmetrics'. Papers round the result to 8 bits first
(`images.mul(255).round().clamp(0, 255).div(255)`), cut as many border pixels as the scale (images)
or none (video), measure each picture and average the decibels. The mean of decibels is not the
decibel of the mean error.
"""

import importlib
from types import ModuleType

import torch
from torch import Tensor

from ..nn import check_flag, check_float, check_int
from ..tokens.precision import full_precision

LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)


def luma(images: Tensor) -> Tensor:
    """Y of YCbCr, ITU-R BT.601 in the studio range 16..235 of 255.

    Y = (16 + 65.481 R + 128.553 G + 24.966 B) / 255; images (*, 3, H, W) in [0, 1] ->
    (*, 1, H, W) in [16/255, 235/255]. This range, not 0..255, is what papers use (MATLAB's
    rgb2ycbcr): it makes the PSNR 20 log10(255/219) = 1.3 dB better than the full range would.
    ValueError unless there are 3 channels of floats.
    """
    check_float(images, "images")
    if images.dim() < 3 or images.shape[-3] != 3:
        raise ValueError(f"images have shape {tuple(images.shape)}: needs (*, 3, H, W)")
    r, g, b = images.unbind(-3)
    return (16 / 255 + LUMA[0] * r + LUMA[1] * g + LUMA[2] * b).unsqueeze(-3)


def psnr(got: Tensor, want: Tensor, crop: int = 0, y: bool = True) -> Tensor:
    """10 log10(1 / mean squared error) in dB of each picture; inf for equal ones.

    Args:
        got: (*, C, H, W) floats in [0, 1].
        want: of the same shape.
        crop: so many pixels of each border are left out.
        y: on the luma (needs C = 3), else on all channels together.

    Returns (*). ValueError for shapes that differ, pictures of integers, or a crop that leaves
    nothing.
    """
    got, want, lead = _prepare(got, want, crop, y)
    error = (got - want).square().mean((1, 2, 3))
    return (-10 * error.log10()).reshape(lead)


def ssim(got: Tensor, want: Tensor, crop: int = 0, y: bool = True) -> Tensor:
    """Structural similarity (Wang et al. 2004) of each picture, at most 1.

    Gaussian window of 11 x 11 pixels, sigma 1.5, only where the window lies inside.

    Args:
        got: as in `psnr`.
        want: as in `psnr`.
        crop: as in `psnr`.
        y: as in `psnr`.

    Returns and raises as `psnr`; ValueError also for pictures smaller than the window after the
    crop.
    """
    got, want, lead = _prepare(got, want, crop, y)
    if min(got.shape[-2:]) < 11:
        raise ValueError(
            f"pictures are {got.shape[-2]} x {got.shape[-1]} after crop={crop}: "
            f"the window needs at least 11 x 11"
        )
    measure = _torchmetrics().structural_similarity_index_measure
    if not len(got):
        return got.mean((1, 2, 3)).reshape(lead)
    how = dict(data_range=1.0, sigma=1.5, reduction="none", return_full_image=True)
    with full_precision(got.device):
        _, image = measure(got, want, **how)
    inside = image[..., 5:-5, 5:-5]           # torchmetrics' own mean includes mirrored borders
    return inside.mean((1, 2, 3)).reshape(lead)


def _prepare(
    got: Tensor, want: Tensor, crop: int, y: bool
) -> tuple[Tensor, Tensor, torch.Size]:
    """Both cut, in single precision at least, with y as luma: (N, C, H, W) twice; the shape *."""
    check_float(got, "got")
    check_float(want, "want")
    if got.shape != want.shape or got.dim() < 3 or got.shape[-3] == 0:
        raise ValueError(
            f"got has shape {tuple(got.shape)} and want {tuple(want.shape)}: "
            f"both need the same (*, C, H, W)"
        )
    h, w = got.shape[-2:]
    crop, y = check_int(crop, "crop", 0), check_flag(y, "y")
    if 2 * crop >= min(h, w):
        raise ValueError(f"crop={crop} leaves nothing of {h} x {w} pixels")
    exact = torch.promote_types(torch.promote_types(got.dtype, want.dtype), torch.float32)
    got, want = (t[..., crop:h - crop, crop:w - crop].to(exact) for t in (got, want))
    if y:
        got, want = luma(got), luma(want)
    lead, single = got.shape[:-3], got.shape[-3:]
    return got.reshape(-1, *single), want.reshape(-1, *single), lead


def _torchmetrics() -> ModuleType:
    try:                                           # here: vtlib imports without the extras
        return importlib.import_module("torchmetrics.functional.image")
    except ImportError as error:
        raise ImportError("ssim needs torchmetrics: pip install 'vtlib[course]'") from error
