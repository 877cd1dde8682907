"""Large pictures in which only the surroundings tell what a thing is: white silhouettes, each pixel
of which belongs to the biome of the nearest marker."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from . import backgrounds, pictograms, render
from ._arguments import as_device
from ._random import below, seeded, uniform, unit

MARKERS = {
    "land": ("evergreen tree", "cactus"),
    "sea": ("spouting whale", "dolphin"),
}
"""Biomes and the pictograms that mark them."""
LINE = 4
"""Width of an outline in pixels."""
DIMMED = 0.6
"""So bright is the ground, that silhouettes and markers stand out."""
WHITE = 245.0


@dataclass
class Biomes:
    """One large picture with M markers and N silhouettes.

    `labels` is 0 where there is no silhouette (ground, markers), and else 1 + `territory`.
    """

    image: Tensor  # (3, H, W) float32 in [0, 1]
    labels: Tensor  # (H, W) long: 0, or 1 + biome
    territory: Tensor  # (H, W) long: the biome of the nearest marker
    thin: Tensor  # (H, W) bool: silhouettes of which the outline alone is drawn
    centre: Tensor  # (M, 2) long: x, y of the markers, in pixels
    biome: Tensor  # (M,) long, index into `names`
    names: tuple[str, ...]

    @property
    def classes(self) -> list[str]:
        """What the labels are called."""
        return ["ground", *self.names]


def nearest(centre: Tensor, across: int, spacing: int) -> Tensor:
    """The marker nearest to each pixel of all cells, in whole numbers; of equal ones the first.

    Markers two cells away are looked at: none that is farther off can be the nearest.

    Args:
        centre: (M, 2) long: x, y, one in each cell, row by row.
        across: cells in a row.
        spacing: side of the cells.

    Returns (rows spacing, across spacing) long.
    """
    number = torch.arange(len(centre), device=centre.device).view(-1, across)
    number = F.pad(number, (2,) * 4, value=-1)
    near = number.unfold(0, 5, 1).unfold(1, 5, 1).flatten(2)                      # rows across 25
    line = torch.arange(spacing, device=centre.device)
    out = []
    for y, row in enumerate(near):                                   # a row of cells at a time
        x0 = torch.arange(across, device=centre.device)[:, None] * spacing
        mark = centre[row.clamp(min=0)]                                             # across 25 2
        dx = (mark[..., :1] - (x0 + line)[:, None]).square()                        # across 25 w
        dy = (mark[..., 1:] - (y * spacing + line)).square()                        # across 25 h
        distance = dy[..., None] + dx[:, :, None]
        distance = distance.masked_fill((row < 0)[..., None, None], torch.iinfo(torch.long).max)
        first = distance.argmin(1)                                                  # across h w
        found = row.gather(1, first.flatten(1)).view_as(first)
        out.append(rearrange(found, "x h w -> h (x w)"))
    return torch.cat(out)


def outline(solid: Tensor, width: int) -> Tensor:
    """Pixels of (N, H, W) bool at most `width` from the outside, to eight sides."""
    side = 2 * width + 1
    outside = F.pad((~solid).float(), (width,) * 4, value=1.0)
    return solid & (F.max_pool2d(outside, side, 1) > 0)


def silhouettes(world, count: int, cell: int, generator, device) -> tuple[Tensor, Tensor]:
    """A silhouette for each of `count` cells: which pixels, and which of them are an outline.

    Args:
        world: an EmojiWorld: its pictograms.
        count: of cells.
        cell: their side in pixels.
        generator: decides.
        device: where they go.

    Returns two (count, cell, cell) bool.
    """
    which = world.draw((count,), "pictogram", generator)
    artist = below(len(world.artists), (count,), generator)
    side = uniform((count,), (0.55, 0.8), generator) * cell
    angle = uniform((count,), (-30, 30), generator)
    half = render.turned(side, angle)[:, None] / 2
    half = half.clamp(max=cell / 2)
    centre = half + unit((count, 2), generator) * (cell - 2 * half)
    drawn_thin = (unit((count,), generator) < 0.5).to(device)
    source = render.gather(world.table[which], artist, world.artists).to(device)
    at = (t.to(device) for t in (centre, side, angle))
    solid = render.sprites(source, *at, (cell, cell))[:, 3] >= 255 * render.ALPHA
    line = outline(solid, LINE) & drawn_thin[:, None, None]
    return torch.where(drawn_thin[:, None, None], line, solid), line


def markers(world, height, width, spacing, generator, device):
    """The markers as `render.Placed`, centres in the middle of a pixel, and their biomes (M,) long.

    Args:
        world: an EmojiWorld: whose artists draw them.
        height: of the picture, in pixels.
        width: likewise.
        spacing: side of the cells that hold one each, in their middle half.
        generator: decides.
        device: where they go.
    """
    down, across = -(-height // spacing), -(-width // spacing)
    count = down * across
    rows = [[pictograms.pictogram(name) for name in own] for own in MARKERS.values()]
    table = torch.tensor(rows, device="cpu")
    biome = below(len(table), (count,), generator)
    which = table[biome, below(table.shape[1], (count,), generator)]
    side = uniform((count,), (0.36, 0.44), generator) * spacing
    angle = uniform((count,), (-20, 20), generator)
    inside = uniform((count, 2), (0.25, 0.75), generator)
    artist = below(len(world.artists), (count,), generator)
    cell = torch.arange(count, device="cpu")
    corner = torch.stack([cell % across, cell // across], -1)
    centre = ((corner + inside) * spacing).long()
    end = torch.tensor([width, height], device="cpu")
    centre = torch.minimum(centre, end - 1)          # of a cell that is cut: inside the picture
    fields = (which, artist, centre.float() + 0.5, side, angle)
    slot = torch.arange(count, device=device)
    placed = (field.to(device) for field in fields)
    objects = render.Placed(world.artists, *placed, torch.zeros_like(slot), slot)
    return objects, biome.to(device)


def make_biomes(world, height, width, seed, cell, spacing, device) -> Biomes:
    """What EmojiWorld.biomes does once it has checked its numbers.

    Args:
        world: an EmojiWorld.
        height: of the picture, in pixels.
        width: likewise.
        seed: decides.
        cell: side of the cells that hold one silhouette each.
        spacing: side of the cells that hold one marker each.
        device: where the result is; None: the CPU.
    """
    device, generator = as_device(device), seeded(seed)
    tile = 2 * spacing
    down, across = -(-height // tile), -(-width // tile)
    quilt = ((tile, tile), down * across, generator, device)
    image = backgrounds.crops(world.split, *quilt)[0].mul_(DIMMED)
    image = rearrange(image, "(y x) c h w -> 1 c (y h) (x w)", x=across)[..., :height, :width]
    down, across = -(-height // cell), -(-width // cell)
    layers = silhouettes(world, down * across, cell, generator, device)
    layers = (rearrange(t, "(y x) h w -> (y h) (x w)", x=across) for t in layers)
    drawn, thin = (layer[:height, :width] for layer in layers)
    image = torch.where(drawn, WHITE, image)
    objects, biome = markers(world, height, width, spacing, generator, device)
    owner, _ = render.paint(image, objects)
    seen, centre = owner[0] == 0, (objects.centre - 0.5).long()
    territory = biome[nearest(centre, -(-width // spacing), spacing)[:height, :width]]
    return Biomes(
        image=image[0].div(255).clamp_(0, 1),
        labels=torch.where(drawn & seen, 1 + territory, 0),
        territory=territory,
        thin=thin & seen,
        centre=centre,
        biome=biome,
        names=tuple(MARKERS),
    )
