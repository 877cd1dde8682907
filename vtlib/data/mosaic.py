"""Ultra-high-resolution pictures: thousands of pictograms of very different sizes in one picture."""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from vtlib.data import backgrounds, pictograms, render
from vtlib.data.assets import as_device
from vtlib.data.scenes import extent, uniform


@dataclass
class Mosaic:
    """One large picture with N objects."""

    image: Tensor  # (3, H, W) float32 in [0, 1]
    pictogram: Tensor  # (N,) long, index into `classes`
    category: Tensor  # (N,) long
    artist: Tensor  # (N,) long, index into `artists`
    centre: Tensor  # (N, 2) float: x, y in pixels
    side: Tensor  # (N,) float: pixels
    angle: Tensor  # (N,) float: degrees
    boxes: Tensor  # (N, 4) float: x0, y0, x1, y1 around the visible pixels
    instance: Tensor  # (H, W) long: 0 background, object + 1
    classes: list[str]
    artists: tuple[str, ...]


def ground(world, cells: tuple[int, int], side: int, generator, device) -> Tensor:
    """A quilt of photographs: (rows * columns, 3, side, side) in [0, 255]."""
    return backgrounds.crops(world.split, (side, side), cells[0] * cells[1], generator, device)[0]


def make_mosaic(world, height: int, width: int, seed: int, cell: int, fill: float, device) -> Mosaic:
    """See EmojiWorld.mosaic."""
    device = as_device(device)
    generator = torch.Generator().manual_seed(seed)
    large = 4 * cell
    down, across = -(-height // large), -(-width // large)
    rows, columns = down * large, across * large
    image = rearrange(ground(world, (down, across), large, generator, device), "(y x) c h w -> 1 c (y h) (x w)", x=across)
    instance = torch.zeros(rows, columns, dtype=torch.long, device=device)
    fields = []
    for side_of_cell, chance in ((large, fill * 0.3), (cell, fill)):
        across = columns // side_of_cell
        cells = (rows // side_of_cell) * across
        there = (torch.rand(cells, generator=generator) < chance).nonzero()[:, 0]
        count = len(there)
        which = world.draw((count,), "pictogram", generator)
        artist = torch.randint(len(world.artists), (count,), generator=generator)
        side = uniform((count,), (0.2, 0.75), generator) * side_of_cell
        angle = uniform((count,), (-30, 30), generator)
        half = extent(side, angle)
        inside = half[:, None] + torch.rand(count, 2, generator=generator) * (side_of_cell - 2 * half[:, None])
        which, artist, side, angle, inside, there = (t.to(device) for t in (which, artist, side, angle, inside, there))
        picture = rearrange(image, "1 c (y h) (x w) -> (y x) c h w", h=side_of_cell, w=side_of_cell).contiguous()
        start = sum(len(f[0]) for f in fields)
        number = torch.zeros(cells, dtype=torch.long, device=device)
        number[there] = torch.arange(start + 1, start + 1 + count, device=device)
        for part in there.split(256):  # sets of cells, to bound the memory
            mine = number[part] - start - 1
            source = render.gather(world.table.to(device)[which[mine]], artist[mine], world.artists)
            at = torch.arange(len(part), device=device)
            spot, owner, _ = render.paint(picture[part], source, inside[mine], side[mine], angle[mine], at, torch.zeros_like(at))
            picture[part] = spot
            tiles = rearrange(instance, "(y h) (x w) -> y x h w", h=side_of_cell, w=side_of_cell)
            y, x = part // across, part % across
            tiles[y, x] = torch.where(owner > 0, number[part][:, None, None], tiles[y, x])
        image = rearrange(picture, "(y x) c h w -> 1 c (y h) (x w)", x=across)
        corner = torch.stack([there % across, there // across], -1) * side_of_cell
        fields.append((which, artist, corner + inside, side, angle))
    which, artist, centre, side, angle = (torch.cat(f) for f in zip(*fields))
    image, instance = image[0, :, :height, :width], instance[:height, :width].contiguous()
    seen = instance.flatten().bincount(minlength=len(which) + 1)[1:] > 0
    kept = seen.nonzero()[:, 0]  # objects of which something is inside the picture and visible
    renumber = torch.zeros(len(which) + 1, dtype=torch.long, device=device)
    renumber[kept + 1] = torch.arange(1, len(kept) + 1, device=device)
    instance = renumber[instance]
    which = which[kept]
    category = pictograms.level_ids("category").to(device)[world.table.to(device)[which]]
    image = image.div(255).clamp_(0, 1)
    fields = (artist[kept], centre[kept], side[kept], angle[kept], spans(instance, len(kept)), instance)
    return Mosaic(image, which, category, *fields, world.classes, world.artists)


def spans(instance: Tensor, count: int) -> Tensor:
    """(count, 4) float boxes x0, y0, x1, y1 of objects 1 ... count in (H, W)."""
    y, x = (instance > 0).nonzero(as_tuple=True)
    owner = instance[y, x] - 1
    out = []
    for at, reduce in ((x, "amin"), (y, "amin"), (x + 1, "amax"), (y + 1, "amax")):
        out.append(
            torch.zeros(count, dtype=torch.long, device=instance.device).scatter_reduce_(0, owner, at, reduce, include_self=False)
        )
    return torch.stack(out, -1).float()
