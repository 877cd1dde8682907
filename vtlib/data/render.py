"""Draw many sprites into many images at once.

Bilinear sampling of premultiplied, antialiased drawings, then alpha-over. Pixel (row y, column x)
covers [x, x+1) x [y, y+1), its centre is (x + 0.5, y + 0.5). A sprite has a centre (x, y), a side
(pixels), and an angle (degrees, counter-clockwise as seen on the screen).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ._kept import Kept
from .assets import drawing

SIDE = 64
# four sizes of a drawing in one picture, each with a border of one empty pixel: (size, top, left)
LEVELS = ((64, 1, 1), (32, 1, 66), (16, 34, 66), (8, 51, 66))
ATLAS = (66, 99)
ALPHA = 0.5
"""A pixel belongs to an object when the object's alpha there is at least this."""

PIECE = 2**17
"""So many pixels of windows are painted together on a CPU: what fits into its cache."""

ATLASES = Kept(64 * 2**20)
"""Atlases made so far, 26 KB each: room for 2,500 of the 3,822."""


def make_atlas(artist: str, index: int) -> np.ndarray:
    """One drawing at 64, 32, 16 and 8 pixels: (4, 66, 99) uint8.

    Each size holds means of 2 x 2 pixels of the one before, colour multiplied by alpha.
    """
    rgba = drawing(artist, index)
    x = np.ascontiguousarray(rgba.transpose(2, 0, 1)).astype(np.float32)
    x[:3] *= x[3] / 255
    out = np.zeros((4, *ATLAS), np.uint8)
    for size, top, left in LEVELS:
        out[:, top : top + size, left : left + size] = np.rint(x)
        upper, lower = x[:, ::2], x[:, 1::2]
        x = upper[..., ::2] + upper[..., 1::2]
        x += lower[..., ::2]
        x += lower[..., 1::2]
        x /= 4
    return out


def gather(pictogram: Tensor, artist: Tensor, artists: tuple[str, ...]) -> Tensor:
    """Atlases of N objects, (N, 4, 66, 99) uint8; only drawings that are asked for are unpacked.

    Args:
        pictogram: (N,) indices into `pictograms.table()`.
        artist: (N,) indices into `artists`.
        artists: their names.
    """
    out = np.empty((len(pictogram), 4, *ATLAS), np.uint8)
    index, drawn_by = pictogram.tolist(), artist.tolist()
    # neighbours lie in one stream, so each stream is unpacked once
    for n in sorted(range(len(index)), key=lambda n: (drawn_by[n], index[n])):
        key = (artists[drawn_by[n]], index[n])
        out[n] = ATLASES.get(key, lambda key=key: make_atlas(*key))
    return torch.from_numpy(out).to(pictogram.device)


@dataclass
class Placed:
    """N objects, and where each is drawn."""

    artists: tuple[str, ...]
    pictogram: Tensor  # (N,) long, index into `pictograms.table()`
    artist: Tensor  # (N,) long, index into `artists`
    centre: Tensor  # (N, 2) float32: x, y in pixels
    side: Tensor  # (N,) float32: pixels
    angle: Tensor  # (N,) float32: degrees
    batch: Tensor  # (N,) long: in which picture
    slot: Tensor  # (N,) long: how near; slot 0 is painted first

    def pick(self, index: Tensor) -> "Placed":
        """Some of them, in this order."""
        names = ("pictogram", "artist", "centre", "side", "angle", "batch", "slot")
        fields = (getattr(self, name).index_select(0, index) for name in names)
        return Placed(self.artists, *fields)


def turned(side: Tensor, angle: Tensor) -> Tensor:
    """Width (= height) of a turned square: side (|cos| + |sin|); angle in degrees."""
    theta = angle * (math.pi / 180)
    return side * (theta.cos().abs() + theta.sin().abs())


def sprites(
    source: Tensor, centre: Tensor, side: Tensor, angle: Tensor, size: tuple[int, int]
) -> Tensor:
    """Draw each of N objects alone: (N, 4, H, W) float32 in [0, 255], premultiplied.

    The size in the atlas nearest to the drawn one (in log scale) is sampled bilinearly: no aliasing
    below, no avoidable blur above.

    Args:
        source: (N, 4, 66, 99) uint8 atlases.
        centre: (N, 2) as x, y in pixels.
        side: (N,) in pixels.
        angle: (N,) in degrees.
        size: (H, W).
    """
    n, (height, width), device = len(source), size, source.device
    level = torch.log2(SIDE / side).round().clamp(0, len(LEVELS) - 1).long()
    known = torch.tensor(LEVELS, device=device, dtype=torch.float32)
    texels, top, left = known[level].unbind(1)
    theta = angle * (math.pi / 180)
    cos, sin = torch.cos(theta) * texels / side, torch.sin(theta) * texels / side
    x = middles(width, device) - centre[:, :1]                                               # n w
    y = middles(height, device) - centre[:, 1:]                                              # n h
    half = (texels / 2)[:, None, None]
    # a turn by +angle on the screen (y points down) maps offset (x, y) to
    # (cos x - sin y, sin x + cos y) in the drawing, in texels from its middle
    u = (cos[:, None] * x)[:, None, :] - (sin[:, None] * y)[:, :, None]                    # n h w
    v = (sin[:, None] * x)[:, None, :] + (cos[:, None] * y)[:, :, None]
    grid = torch.empty(n, height, width, 2, device=device, dtype=torch.float32)
    edge = half + 0.5                         # the border's middle: all outside samples emptiness
    for axis, offset, first, span in ((0, u, left, ATLAS[1]), (1, v, top, ATLAS[0])):
        inside = torch.clamp(offset, -edge, edge).add_(half + first[:, None, None])
        grid[..., axis] = inside.mul_(2 / span).sub_(1)
    return F.grid_sample(
        source.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )


def middles(count: int, device: torch.device) -> Tensor:
    """(count,) float32: the middles of so many pixels, 0.5, 1.5, ..."""
    return torch.arange(count, device=device, dtype=torch.float32) + 0.5


def paint(image: Tensor, objects: Placed, fill: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Paint objects over B pictures, in place, and note who owns each pixel.

        image = layer_rgb + (1 - layer_alpha) image

    Args:
        image: (B, 3, H, W) float32 in [0, 255].
        objects: the highest slot is painted last, so it is nearest; one object a slot and picture.
        fill: (B, 3, H, W) in [0, 255]: objects show this instead of their own colours (camouflage).

    Returns the owners (B, H, W) long, 0 where the background shows and slot + 1 where that object's
    alpha >= 0.5 is topmost, and the pixels of each whole object inside the picture (N,) long.
    """
    (many, _, height, width), device = image.shape, image.device
    owner = torch.zeros(many, 1, height, width, dtype=torch.long, device=device)
    area = torch.zeros(len(objects.slot), dtype=torch.long, device=device)
    reach = turned(objects.side, objects.angle)
    for k in range(int(objects.slot.max()) + 1 if len(objects.slot) else 0):
        here = (objects.slot == k).nonzero()[:, 0]
        # each object is drawn in a window that is just large enough for this slot's largest
        room = math.ceil(float(reach[here].max())) + 2
        box = (min(room, height), min(room, width))
        together = max(1, PIECE // (box[0] * box[1])) if device.type == "cpu" else len(here)
        for piece in here.split(together):
            area[piece] = paint_slot(image, owner, objects.pick(piece), box, k, fill)
    return owner[:, 0], area


def paint_slot(
    image: Tensor, owner: Tensor, objects: Placed, box: tuple[int, int], slot: int, fill
) -> Tensor:
    """Paint objects of one slot, in place; returns the pixels of each whole object (N,) long.

    Args:
        image: as in `paint`.
        owner: (B, 1, H, W) long, who owns each pixel so far.
        objects: N, in different pictures.
        box: (h, w) of the window that each is drawn in.
        slot: theirs.
        fill: as in `paint`.
    """
    (height, width), device = image.shape[2:], image.device
    limit = torch.tensor([width - box[1], height - box[0]], device=device)
    half = torch.tensor([box[1] / 2, box[0] / 2], device=device, dtype=torch.float32)
    origin = (objects.centre - half).round().long().clamp(min=0).minimum(limit)
    source = gather(objects.pictogram, objects.artist, objects.artists)
    layer = sprites(source, objects.centre - origin, objects.side, objects.angle, box)
    at = (objects.batch, origin[:, 1], origin[:, 0])
    alpha = layer[:, 3:] / 255
    colour = layer[:, :3] if fill is None else windows(fill, box)[at] * alpha
    patches, owners = windows(image, box), windows(owner, box)
    patches[at] = patches[at].mul_(1 - alpha).add_(colour)
    solid = layer[:, 3:] >= 255 * ALPHA
    owners[at] = owners[at].masked_fill_(solid, slot + 1)
    return solid.flatten(1).sum(1)


def windows(image: Tensor, box: tuple[int, int]) -> Tensor:
    """All windows of a (B, C, H, W) tensor as a view (B, H - h + 1, W - w + 1, C, h, w).

    Indexing it with (batch, top, left) gathers one window for each; assigning scatters them (each
    picture at most once a call).
    """
    b, c, y, x = image.stride()
    many, channels, height, width = image.shape
    shape = (many, height - box[0] + 1, width - box[1] + 1, channels, *box)
    return image.as_strided(shape, (b, y, x, c, y, x))
