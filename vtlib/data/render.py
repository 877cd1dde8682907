"""Draw many sprites into many images at once: bilinear sampling of premultiplied, antialiased drawings, then alpha-over.

Coordinates: pixel (row y, column x) covers [x, x+1) x [y, y+1), its centre is (x + 0.5, y + 0.5). A sprite has a centre (x, y), a side
(pixels), and an angle (degrees, counter-clockwise as seen on the screen).
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vtlib.data.assets import drawings

SIDE = 64
# four sizes of a drawing in one picture, each with a border of one empty pixel: (size, top, left)
LEVELS = ((64, 1, 1), (32, 1, 66), (16, 34, 66), (8, 51, 66))
ATLAS = (66, 99)
ALPHA = 0.5
"""A pixel belongs to an object when the object's alpha there is at least this."""


@functools.cache
def atlas(artist: str, device: torch.device) -> Tensor:
    """(1911, 4, 66, 99) uint8: each drawing at 64, 32, 16 and 8 pixels (box averages), colour multiplied by alpha."""
    rgba = drawings(artist)
    out = torch.zeros(len(rgba), 4, *ATLAS, dtype=torch.uint8)
    for part, chunk in zip(out.split(128), rgba.split(128)):
        x = chunk.permute(0, 3, 1, 2).float()
        x[:, :3] *= x[:, 3:] / 255
        for size, top, left in LEVELS:
            part[..., top : top + size, left : left + size] = x.round().to(torch.uint8)
            x = F.avg_pool2d(x, 2)
    return out.to(device)


def gather(pictogram: Tensor, artist: Tensor, artists: tuple[str, ...]) -> Tensor:
    """Atlases of N objects: pictogram (N,) table indices, artist (N,) indices into `artists` -> (N, 4, 66, 99) uint8."""
    device = pictogram.device
    if len(artists) == 1:
        return atlas(artists[0], device).index_select(0, pictogram)
    out = torch.empty(len(pictogram), 4, *ATLAS, dtype=torch.uint8, device=device)
    for i, name in enumerate(artists):
        here = (artist == i).nonzero()[:, 0]
        out[here] = atlas(name, device).index_select(0, pictogram[here])
    return out


def sprites(source: Tensor, centre: Tensor, side: Tensor, angle: Tensor, size: tuple[int, int]) -> Tensor:
    """Draw each of N objects alone into a picture of `size`.

    source (N, 4, 66, 99) uint8 atlases; centre (N, 2) as x, y; side (N,); angle (N,) degrees -> (N, 4, H, W) float32 in [0, 255],
    premultiplied. The size in the atlas nearest to the drawn one (in log scale) is sampled bilinearly: no aliasing below, no
    avoidable blur above.
    """
    n, (height, width), device = len(source), size, source.device
    level = torch.log2(SIDE / side).round().clamp(0, len(LEVELS) - 1).long()
    texels, top, left = torch.tensor(LEVELS, device=device, dtype=torch.float32)[level].unbind(1)
    theta = angle * (math.pi / 180)
    cos, sin = torch.cos(theta) * texels / side, torch.sin(theta) * texels / side
    x = torch.arange(width, device=device) + 0.5 - centre[:, :1]  # n w
    y = torch.arange(height, device=device) + 0.5 - centre[:, 1:]  # n h
    half = (texels / 2)[:, None, None]
    # a turn by +angle on the screen (y points down) maps offset (x, y) to (cos x - sin y, sin x + cos y) in the drawing
    u = (cos[:, None] * x)[:, None, :] - (sin[:, None] * y)[:, :, None]  # n h w, texels from the drawing's middle
    v = (sin[:, None] * x)[:, None, :] + (cos[:, None] * y)[:, :, None]
    grid = torch.empty(n, height, width, 2, device=device)
    edge = half + 0.5  # the border's middle: everything outside samples emptiness
    grid[..., 0] = torch.clamp(u, -edge, edge).add_(half + left[:, None, None]).mul_(2 / ATLAS[1]).sub_(1)
    grid[..., 1] = torch.clamp(v, -edge, edge).add_(half + top[:, None, None]).mul_(2 / ATLAS[0]).sub_(1)
    return F.grid_sample(source.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def paint(
    image: Tensor,
    source: Tensor,
    centre: Tensor,
    side: Tensor,
    angle: Tensor,
    batch: Tensor,
    slot: Tensor,
    fill: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Paint N objects over B pictures (in place), slot 0 first (so the highest slot is nearest), and note who owns each pixel.

    image (B, 3, H, W) in [0, 255]; source, centre, side, angle as in `sprites`; batch and slot (N,) say where each belongs.
    fill: (B, 3, H, W) in [0, 255]: the objects show this instead of their own colours (camouflage).
    Returns the pictures (B, 3, H, W), the owners (B, H, W) long (0 background, slot + 1 where the topmost alpha >= 0.5) and the pixels
    of each whole object inside the picture (N,) long.
        image = layer_rgb + (1 - layer_alpha) image
    """
    (many, _, height, width), device = image.shape, image.device
    owner = torch.zeros(many, 1, height, width, dtype=torch.long, device=device)
    area = torch.zeros(len(batch), dtype=torch.long, device=device)
    theta = angle * (math.pi / 180)
    reach = side * (theta.cos().abs() + theta.sin().abs())
    for k in range(int(slot.max()) + 1 if len(slot) else 0):
        here = (slot == k).nonzero()[:, 0]
        # each object is drawn in a window that is just large enough for this slot's largest
        room = math.ceil(float(reach[here].max())) + 2
        box = (min(room, height), min(room, width))
        limit = torch.tensor([width - box[1], height - box[0]], device=device)
        origin = (centre[here] - torch.tensor(box[::-1], device=device) / 2).round().long().clamp(min=0).minimum(limit)
        layer = sprites(source.index_select(0, here), centre[here] - origin, side[here], angle[here], box)
        at = (batch[here], origin[:, 1], origin[:, 0])
        patches = windows(image, box)
        below = patches[at]  # n 3 h w
        alpha = layer[:, 3:] / 255
        colour = layer[:, :3] if fill is None else windows(fill, box)[at] * alpha
        patches[at] = below.mul_(1 - alpha).add_(colour)
        solid = layer[:, 3:] >= 255 * ALPHA
        area[here] = solid.flatten(1).sum(1)
        owners = windows(owner, box)
        owners[at] = owners[at].masked_fill_(solid, k + 1)
    owner = owner[:, 0]
    return image, owner, area


def windows(image: Tensor, box: tuple[int, int]) -> Tensor:
    """All windows of a (B, C, H, W) tensor as a view (B, H - h + 1, W - w + 1, C, h, w) of the same memory.

    Indexing it with (batch, top, left) gathers one window for each; assigning scatters them (each picture at most once a call).
    """
    b, c, y, x = image.stride()
    many, channels, height, width = image.shape
    shape = (many, height - box[0] + 1, width - box[1] + 1, channels, *box)
    return image.as_strided(shape, (b, y, x, c, y, x))
