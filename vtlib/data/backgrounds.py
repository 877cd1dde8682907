"""What objects stand on: crops of photographs, plain colours, or smooth noise."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn.checks import check_finite, check_flag, check_float
from ._kept import Kept
from ._random import below, uniform, unit
from .assets import cover, photo, photo_table
from .pictograms import check_split

ZOOMS = (1.1, 1.4, 1.8)  # photographs are kept this much larger than the picture, so crops differ
LARGEST = 1024
KINDS = ("photo", "plain", "noise")
VIEWS = Kept(64 * 2**20)
"""Photographs at the sizes that were asked for so far."""


def names(split: str) -> list[str]:
    """Backgrounds of "train", "test" or "all": photographs without a face or an animal."""
    wanted = ("train", "test") if check_split(split) == "all" else (split,)
    return [row["name"] for row in photo_table() if row["split"] in wanted]


def view(name: str, size: tuple[int, int], zoom: float) -> np.ndarray:
    """(3, h, w) uint8: a photograph resized with antialiasing to cover `zoom` times `size`.

    Args:
        name: the photograph.
        size: (H, W) of the pictures.
        zoom: one of `ZOOMS`; no side gets longer than 1,024 pixels unless the picture's is.
    """
    height, width = (max(s, min(math.ceil(s * zoom), LARGEST)) for s in size)

    def make() -> np.ndarray:
        return cover(photo(name), height, width).mul(255).round().to(torch.uint8).numpy()

    return VIEWS.get((name, height, width), make)


def crops(
    split: str,
    size: tuple[int, int],
    batch: int,
    generator: torch.Generator,
    device: torch.device,
    twice: bool = False,
) -> tuple[Tensor, ...]:
    """Random crops at three zooms, mirrored half of the time.

    Args:
        split: "train", "test" or "all".
        size: (H, W).
        batch: B, how many.
        generator: decides.
        device: where they go.
        twice: also return a second crop of each photograph, mirrored and from elsewhere.

    Returns (B, 3, H, W) float32 in [0, 255] and which photograph (B,) long, an index into `names`.
    """
    pool = names(split)
    count = len(pool)
    which = below(2 * count, (batch,), generator)            # the second half: mirror images
    zoom = below(len(ZOOMS), (batch,), generator)
    at = unit((batch, 2), generator)
    views = [(which, at)]
    if check_flag(twice, "twice"):
        views.append(((which + count) % (2 * count), (at + 0.5) % 1))
    out = [cut(pool, size, zoom, *chosen).to(device).float() for chosen in views]
    return out[0], (which % count).to(device), *out[1:]


def cut(
    pool: list[str], size: tuple[int, int], zoom: Tensor, which: Tensor, at: Tensor
) -> Tensor:
    """One crop each, (B, 3, H, W) uint8.

    Args:
        pool: P photographs.
        size: (H, W).
        zoom: (B,) index into `ZOOMS`.
        which: (B,) index into `pool`; from P on its mirror image.
        at: (B, 2) in [0, 1), how far down and to the right.
    """
    height, width = size
    chosen = list(zip((which % len(pool)).tolist(), zoom.tolist(), strict=True))
    # by photograph: each is unpacked once
    photos = {(k, z): view(pool[k], size, ZOOMS[z]) for k, z in sorted(set(chosen))}
    room = torch.tensor([photos[key].shape[1:] for key in chosen], device="cpu")
    room = room - torch.tensor(size, device="cpu") + 1
    corner = (at * room).long().tolist()
    mirrored = (which >= len(pool)).tolist()
    out = np.empty((len(chosen), 3, height, width), np.uint8)
    for b, (top, left) in enumerate(corner):
        source = photos[chosen[b]]
        source = source[..., ::-1] if mirrored[b] else source
        out[b] = source[:, top : top + height, left : left + width]
    return torch.from_numpy(out)


def plain(
    size: tuple[int, int], batch: int, generator: torch.Generator, device: torch.device
) -> Tensor:
    """One light colour a picture, (B, 3, H, W) in [0, 255].

    Args:
        size: (H, W).
        batch: B.
        generator: decides.
        device: where they go.
    """
    colour = uniform((batch, 3, 1, 1), (140, 250), generator)
    return colour.expand(-1, -1, *size).contiguous().to(device)


def noise(
    size: tuple[int, int], batch: int, generator: torch.Generator, device: torch.device
) -> Tensor:
    """Coloured noise at four scales, each twice as fine and about half as strong.

    Args:
        size: (H, W).
        batch: B.
        generator: decides.
        device: where they go.

    Returns (B, 3, H, W) in [0, 255].
    """
    out = torch.full((batch, 3, *size), 128.0, dtype=torch.float32, device="cpu")
    for i, cells in enumerate((3, 8, 24, 64)):
        coarse = unit((batch, 3, cells, cells), generator) - 0.5
        fine = F.interpolate(coarse, size=size, mode="bicubic", align_corners=False)
        out += 150 * 0.6**i * fine
    return out.clamp_(0, 255).to(device)


def make(
    background: Any,
    split: str,
    size: tuple[int, int],
    batch: int,
    generator: torch.Generator,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Backgrounds (B, 3, H, W) in [0, 255] and the photograph of each (B,) long, -1 without one.

    Args:
        background: "photo", "plain", "noise", or a float tensor (3, H, W) or (B, 3, H, W) with
            values in [0, 1].
        split: whose photographs.
        size: (H, W).
        batch: B.
        generator: decides.
        device: where they go.
    """
    if isinstance(background, str) and background == "photo":
        return crops(split, size, batch, generator, device)
    none = torch.full((batch,), -1, device=device)
    if isinstance(background, str) and background in KINDS:
        make_one = plain if background == "plain" else noise
        return make_one(size, batch, generator, device), none
    check_background(background, size, batch)
    given = background.detach().to(device=device, dtype=torch.float32)
    return given.expand(batch, 3, *size) * 255, none


def check_background(background: Any, size: tuple[int, int], batch: int) -> None:
    """Raise unless `background` is a float tensor (3, H, W) or (B, 3, H, W) in [0, 1].

    Args:
        background: what was given.
        size: (H, W).
        batch: B.
    """
    if background is None or isinstance(background, str):
        kinds = ", ".join(map(repr, KINDS))
        raise ValueError(f"background={background!r}: needs {kinds} or a float tensor in [0, 1]")
    check_float(background, "background")
    shape = tuple(background.shape)
    if shape[-3:] != (3, *size) or len(shape) not in (3, 4):
        needs = f"(3, {size[0]}, {size[1]}) or a batch of it"
        raise ValueError(f"background has shape {shape}: needs {needs}")
    if len(shape) == 4 and shape[0] not in (1, batch):
        raise ValueError(f"background holds {shape[0]} pictures, but batch={batch}")
    check_finite(background, "background")
    low, high = (float(value) for value in background.detach().aminmax())
    if low < 0 or high > 1:
        raise ValueError(f"background goes from {low} to {high}: needs floats in [0, 1]")
