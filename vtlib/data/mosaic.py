"""Ultra-high-resolution pictures: thousands of pictograms of very different sizes in one."""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from . import backgrounds, pictograms, render
from ._arguments import as_device
from ._random import below, seeded, uniform, unit

LARGE = 4
"""A large cell's side in cells."""
AT_ONCE = 256
"""Cells that are painted together, to bound the memory."""


@dataclass
class Mosaic:
    """One large picture with N objects."""

    image: Tensor  # (3, H, W) float32 in [0, 1]
    pictogram: Tensor  # (N,) long, index into `classes`
    category: Tensor  # (N,) long
    artist: Tensor  # (N,) long, index into `artists`
    centre: Tensor  # (N, 2) float32: x, y in pixels
    side: Tensor  # (N,) float32: pixels
    angle: Tensor  # (N,) float32: degrees
    boxes: Tensor  # (N, 4) float32: x0, y0, x1, y1 around the visible pixels
    instance: Tensor  # (H, W) long: 0 background, object + 1
    classes: list[str]
    artists: tuple[str, ...]


@dataclass
class Layer:
    """N objects in cells of one size, at most one in each."""

    cell: Tensor  # (N,) long: which cell, row by row
    side_of_cell: int
    which: Tensor  # (N,) long, index into the world's classes
    artist: Tensor  # (N,) long
    side: Tensor  # (N,) float32: pixels
    angle: Tensor  # (N,) float32: degrees
    inside: Tensor  # (N, 2) float32: x, y in the cell

    def centre(self, across: int) -> Tensor:
        """(N, 2) float32: x, y in the picture of so many cells across."""
        corner = torch.stack([self.cell % across, self.cell // across], -1)
        return corner * self.side_of_cell + self.inside


def scatter(world, cells: int, side_of_cell: int, chance: float, generator, device) -> Layer:
    """Objects for a part of the cells: see EmojiWorld.mosaic.

    Args:
        world: an EmojiWorld.
        cells: how many there are.
        side_of_cell: in pixels.
        chance: that a cell has one.
        generator: decides.
        device: where they go.
    """
    cell = (unit((cells,), generator) < chance).nonzero()[:, 0]
    shape = (len(cell),)
    which = world.draw(shape, "pictogram", generator)
    artist = below(len(world.artists), shape, generator)
    side = uniform(shape, (0.2, 0.75), generator) * side_of_cell
    angle = uniform(shape, (-30, 30), generator)
    half = render.turned(side, angle)[:, None] / 2
    inside = half + unit((*shape, 2), generator) * (side_of_cell - 2 * half)
    fields = (which, artist, side, angle, inside)
    return Layer(cell.to(device), side_of_cell, *(field.to(device) for field in fields))


def paint_layer(
    world, layer: Layer, image: Tensor, instance: Tensor, first: int
) -> Tensor:
    """The picture with one layer on it; `instance` is changed in place.

    Args:
        world: an EmojiWorld.
        layer: the objects.
        image: (1, 3, H, W) in [0, 255].
        instance: (H, W) long.
        first: the number of the layer's first object.
    """
    side, table = layer.side_of_cell, world.table.to(image.device)
    across = image.shape[-1] // side
    cells = rearrange(image, "1 c (y h) (x w) -> (y x) c h w", h=side, w=side).contiguous()
    tiles = rearrange(instance, "(y h) (x w) -> y x h w", h=side, w=side)
    every = torch.arange(len(layer.cell), device=image.device)
    for mine in every.split(AT_ONCE):
        cell = layer.cell[mine]
        drawn = (table[layer.which[mine]], layer.artist[mine])
        placed = (layer.inside[mine], layer.side[mine], layer.angle[mine])
        at = torch.arange(len(mine), device=image.device)
        objects = render.Placed(world.artists, *drawn, *placed, at, torch.zeros_like(at))
        spot = cells[cell]
        owner, _ = render.paint(spot, objects)
        cells[cell] = spot
        y, x = cell // across, cell % across
        number = (first + mine)[:, None, None]
        tiles[y, x] = torch.where(owner > 0, number, tiles[y, x])
    return rearrange(cells, "(y x) c h w -> 1 c (y h) (x w)", x=across)


def make_mosaic(world, height, width, seed, cell, fill, device) -> Mosaic:
    """What EmojiWorld.mosaic does once it has checked its numbers.

    Args:
        world: an EmojiWorld.
        height: of the picture, in pixels.
        width: likewise.
        seed: decides.
        cell: side of a cell in pixels.
        fill: the fraction of cells that hold an object.
        device: where the result is; None: the CPU.
    """
    device, generator = as_device(device), seeded(seed)
    large = LARGE * cell
    down, across = -(-height // large), -(-width // large)
    quilt = ((large, large), down * across, generator, device)
    image = backgrounds.crops(world.split, *quilt)[0]
    image = rearrange(image, "(y x) c h w -> 1 c (y h) (x w)", x=across)
    instance = torch.zeros(image.shape[2:], dtype=torch.long, device=device)
    layers, centres, count = [], [], 0
    for side, chance in ((large, fill * 0.3), (cell, fill)):
        columns = image.shape[3] // side
        cells = image.shape[2] // side * columns
        layer = scatter(world, cells, side, chance, generator, device)
        image = paint_layer(world, layer, image, instance, count + 1)
        layers.append(layer)
        centres.append(layer.centre(columns))
        count += len(layer.cell)
    instance = instance[:height, :width].contiguous()
    kept, instance = renumber(instance, count)
    names = ("which", "artist", "side", "angle")
    fields = (torch.cat([getattr(layer, name) for layer in layers])[kept] for name in names)
    which, artist, side, angle = fields
    table = world.table.to(device)
    return Mosaic(
        image=image[0, :, :height, :width].div(255).clamp_(0, 1),
        pictogram=which,
        category=pictograms.level_ids("category").to(device)[table[which]],
        artist=artist,
        centre=torch.cat(centres)[kept],
        side=side,
        angle=angle,
        boxes=spans(instance, len(kept)),
        instance=instance,
        classes=list(world.classes),
        artists=world.artists,
    )


def renumber(instance: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Objects of which something is seen, and `instance` in their numbers.

    Args:
        instance: (H, W) long: 0 or 1 ... count.
        count: of objects.
    """
    seen = instance.flatten().bincount(minlength=count + 1)[1:] > 0
    kept = seen.nonzero()[:, 0]
    number = torch.zeros(count + 1, dtype=torch.long, device=instance.device)
    number[kept + 1] = torch.arange(1, len(kept) + 1, device=instance.device)
    return kept, number[instance]


def spans(instance: Tensor, count: int) -> Tensor:
    """(count, 4) float32 boxes x0, y0, x1, y1 of objects 1 ... count in (H, W)."""
    y, x = (instance > 0).nonzero(as_tuple=True)
    owner = instance[y, x] - 1
    out = []
    for at, reduce in ((x, "amin"), (y, "amin"), (x + 1, "amax"), (y + 1, "amax")):
        corner = torch.zeros(count, dtype=torch.long, device=instance.device)
        out.append(corner.scatter_reduce_(0, owner, at, reduce, include_self=False))
    return torch.stack(out, -1).float()
