"""PSNR and SSIM as super-resolution papers report them: on the luma of cut pictures. The measures themselves are torchmetrics'.

Papers round the result to 8 bits first (`images.mul(255).round().clamp(0, 255).div(255)`), cut as many border pixels as the scale (images)
or none (video), measure each picture and average the decibels. The mean of decibels is not the decibel of the mean error.
"""

import importlib

import torch

LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)


def luma(images):
    """Y of YCbCr, ITU-R BT.601 in the studio range 16..235 of 255: Y = (16 + 65.481 R + 128.553 G + 24.966 B) / 255.

    images (*, 3, H, W) in [0, 1] -> (*, 1, H, W) in [16/255, 235/255]. This range, not 0..255, is what papers use (MATLAB's rgb2ycbcr): it
    makes the PSNR 20 log10(255/219) = 1.3 dB better than the full range would. Raises ValueError unless there are 3 channels.
    """
    if images.dim() < 3 or images.shape[-3] != 3:
        raise ValueError(f"images have shape {tuple(images.shape)}: needs (*, 3, H, W)")
    r, g, b = images.unbind(-3)
    return (16 / 255 + LUMA[0] * r + LUMA[1] * g + LUMA[2] * b).unsqueeze(-3)


def psnr(got, want, crop=0, y=True):
    """10 log10(1 / mean squared error) in dB of each picture; inf for equal ones.

    got, want (*, C, H, W) in [0, 1] -> (*). crop: so many pixels of each border are left out. y: on the luma (needs C = 3), else on all
    channels together. Raises ValueError for shapes that differ or a crop that leaves nothing.
    """
    got, want, lead = _prepare(got, want, crop, y)
    error = _torchmetrics("functional.image").peak_signal_noise_ratio(got, want, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return error.reshape(lead)


def ssim(got, want, crop=0, y=True):
    """Structural similarity (Wang et al. 2004) of each picture, at most 1: Gaussian window of 11 x 11 pixels, sigma 1.5, only where the
    window lies inside. Arguments and result as in `psnr`; ValueError also for pictures smaller than the window after the crop."""
    got, want, lead = _prepare(got, want, crop, y)
    if min(got.shape[-2:]) < 11:
        raise ValueError(f"pictures are {got.shape[-2]} x {got.shape[-1]} after crop={crop}: the window needs at least 11 x 11")
    _, image = _torchmetrics("functional.image").structural_similarity_index_measure(
        got, want, data_range=1.0, sigma=1.5, reduction="none", return_full_image=True)
    return image[..., 5:-5, 5:-5].mean((1, 2, 3)).reshape(lead)                  # torchmetrics' own mean includes mirrored borders


def _prepare(got, want, crop, y):
    if got.shape != want.shape or got.dim() < 3:
        raise ValueError(f"got has shape {tuple(got.shape)} and want {tuple(want.shape)}: both need the same (*, C, H, W)")
    h, w = got.shape[-2:]
    if crop < 0 or 2 * crop >= min(h, w):
        raise ValueError(f"crop={crop} leaves nothing of {h} x {w} pixels")
    got, want = (t[..., crop:h - crop, crop:w - crop].to(torch.promote_types(t.dtype, torch.float32)) for t in (got, want))
    if y:
        got, want = luma(got), luma(want)
    return got.reshape(-1, *got.shape[-3:]), want.reshape(-1, *want.shape[-3:]), got.shape[:-3]


def _torchmetrics(module):
    try:
        return importlib.import_module(f"torchmetrics.{module}")                 # here: vtlib imports without the extras
    except ImportError as error:
        raise ImportError("psnr and ssim need torchmetrics: pip install 'vtlib[course]'") from error
