"""JPEG, the tokenizer of 1992, as the baseline of every tokenizer: pictures at a number of bits.

Counted are the bits between JPEG's header and its end: the tables in the header are the same for
every picture of a quality (those of the standard, scaled), as a tokenizer's codebook is.
"""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..nn.checks import check_images, check_int, check_number

WORST, BEST = 1, 95
"""Qualities that are tried."""
SCAN = b"\xff\xda"
"""Where the pixels begin, in a file of one scan."""
END = 2
"""Bytes of the mark at the end."""


def jpeg(images: Tensor, quality: int) -> tuple[Tensor, Tensor]:
    """Pictures as they come out of a JPEG file: (B, 3, H, W) in [0, 1], and bits a picture (B,).

    Args:
        images: (B, 3, H, W) in [0, 1].
        quality: Pillow's, from 1 to 95.
    """
    check_images(images)
    quality = check_int(quality, "quality", WORST, BEST)
    decoded, bits = zip(*(_one(image, quality) for image in _bytes(images)), strict=True)
    return torch.stack(decoded).to(images), torch.tensor(bits, device=images.device)


def jpeg_at(images: Tensor, bits: float) -> tuple[Tensor, Tensor, Tensor]:
    """The same at the best quality that takes at most so many bits, found for each picture.

    Returns images, bits (B,) and quality (B,). A picture for which even quality 1 is too much has
    more bits than were asked for.

    Args:
        images: (B, 3, H, W) in [0, 1].
        bits: a picture's budget.
    """
    check_images(images)
    bits = check_number(bits, "bits", above=0)
    found = [_best(image, bits) for image in _bytes(images)]
    decoded, used, qualities = zip(*found, strict=True)
    both = (torch.tensor(numbers, device=images.device) for numbers in (used, qualities))
    return torch.stack(decoded).to(images), *both


def _bytes(images: Tensor) -> np.ndarray:
    """(B, H, W, 3) uint8."""
    whole = images.detach().float().mul(255).round().clamp(0, 255).byte()
    return whole.permute(0, 2, 3, 1).cpu().numpy()


def _one(pixels: np.ndarray, quality: int) -> tuple[Tensor, int]:
    """One picture (H, W, 3), decoded (3, H, W), and its bits."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    data = file.getvalue()
    start = data.index(SCAN) + len(SCAN)
    start += int.from_bytes(data[start : start + 2], "big")            # the scan's own header
    decoded = np.asarray(Image.open(file))
    return torch.from_numpy(decoded.copy()).permute(2, 0, 1) / 255, 8 * (len(data) - start - END)


def _best(pixels: np.ndarray, bits: float) -> tuple[Tensor, int, int]:
    """By halving: the bits rise with the quality, all but a few steps."""
    low, high = WORST, BEST
    while low < high:
        middle = (low + high + 1) // 2
        if _one(pixels, middle)[1] <= bits:
            low = middle
        else:
            high = middle - 1
    return *_one(pixels, low), low
