"""What objects stand on: crops of photographs, plain colours, or smooth noise."""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vtlib.data.assets import _photo, cover, photo_table
from vtlib.data.render import windows

ZOOMS = (1.1, 1.4, 1.8)  # photographs are kept this much larger than the picture, so that crops differ
LARGEST = 1024


def names(split: str) -> list[str]:
    """Photographs that serve as backgrounds in "train", "test" or "all" (none shows a face or an animal)."""
    return [row["name"] for row in photo_table() if row["split"] == split or (split == "all" and row["split"] != "none")]


@functools.lru_cache(maxsize=16)
def bank(split: str, size: tuple[int, int], zoom: float, device: torch.device) -> Tensor:
    """(2 P, 3, h, w) uint8: a split's photographs, then their mirror images, resized with antialiasing to cover `zoom` times `size`."""
    height, width = (max(s, min(math.ceil(s * zoom), LARGEST)) for s in size)
    photos = torch.stack([cover(_photo(n), height, width).mul(255).round().to(torch.uint8) for n in names(split)])
    return torch.cat([photos, photos.flip(-1)]).to(device)


def crops(split: str, size: tuple[int, int], batch: int, generator: torch.Generator, device, twice=False) -> tuple[Tensor, ...]:
    """Random crops at three zooms, mirrored half of the time: (B, 3, H, W) float32 in [0, 255] and which photograph (B,) long.

    twice: also return a second crop of each photograph, mirrored and from elsewhere.
    """
    count = len(names(split))
    which = torch.randint(2 * count, (batch,), generator=generator)
    zoom = torch.randint(len(ZOOMS), (batch,), generator=generator)
    at = torch.rand(batch, 2, generator=generator)
    views = [(which, at)]
    if twice:
        views.append(((which + count) % (2 * count), (at + 0.5) % 1))
    out = [torch.empty(batch, 3, *size, dtype=torch.uint8, device=device) for _ in views]
    for i, factor in enumerate(ZOOMS):
        here = (zoom == i).nonzero()[:, 0]
        photos = bank(split, size, factor, device)
        room = torch.tensor([photos.shape[-2] - size[0] + 1, photos.shape[-1] - size[1] + 1])
        for crop, (photo, place) in zip(out, views):
            top, left = (place[here] * room).long().to(device).unbind(1)
            crop[here.to(device)] = windows(photos, size)[photo[here].to(device), top, left]
    first, *second = (crop.float() for crop in out)
    return first, (which % count).to(device), *second


def plain(size: tuple[int, int], batch: int, generator: torch.Generator, device) -> Tensor:
    """One light colour a picture, (B, 3, H, W) in [0, 255]."""
    colour = torch.empty(batch, 3, 1, 1).uniform_(140, 250, generator=generator)
    return colour.expand(-1, -1, *size).contiguous().to(device)


def noise(size: tuple[int, int], batch: int, generator: torch.Generator, device) -> Tensor:
    """Coloured noise at four scales (each twice as fine and about half as strong), (B, 3, H, W) in [0, 255]."""
    out = torch.full((batch, 3, *size), 128.0)
    for i, cells in enumerate((3, 8, 24, 64)):
        coarse = torch.rand(batch, 3, cells, cells, generator=generator) - 0.5
        out += 150 * 0.6**i * F.interpolate(coarse, size=size, mode="bicubic", align_corners=False)
    return out.clamp_(0, 255).to(device)


def make(background, split: str, size: tuple[int, int], batch: int, generator: torch.Generator, device) -> tuple[Tensor, Tensor]:
    """Backgrounds (B, 3, H, W) in [0, 255] and the photograph of each (B,) long, -1 where it is none.

    background: "photo", "plain", "noise", or a float tensor (3, H, W) or (B, 3, H, W) in [0, 1].
    """
    if isinstance(background, Tensor):
        if background.shape[-3:] != (3, *size) or background.dim() not in (3, 4):
            raise ValueError(f"background has shape {tuple(background.shape)}: needs (3, {size[0]}, {size[1]}) or a batch of it")
        if background.dim() == 4 and len(background) not in (1, batch):
            raise ValueError(f"background holds {len(background)} pictures, but batch={batch}")
        if not background.is_floating_point() or background.min() < 0 or background.max() > 1:
            raise ValueError(f"background: needs floats in [0, 1], got {background.dtype}")
        return background.to(device).float().expand(batch, 3, *size) * 255, torch.full((batch,), -1, device=device)
    if background == "photo":
        return crops(split, size, batch, generator, device)
    if background in ("plain", "noise"):
        make_one = plain if background == "plain" else noise
        return make_one(size, batch, generator, device), torch.full((batch,), -1, device=device)
    raise ValueError(f"background={background!r}: needs 'photo', 'plain', 'noise' or a float tensor in [0, 1]")
