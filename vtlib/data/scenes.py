"""Scenes: several pictograms on a background, with everything about them known exactly."""

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import pictograms
from ._random import unit
from .render import turned

if TYPE_CHECKING:
    from .questions import Question

PANOPTIC = 1000
"""`panoptic` labels are 1000 * semantic + instance."""


@dataclass
class Scenes:
    """B pictures with up to K objects each. Fields of unused slots are -1 (indices) or 0.

    Slots are in painting order: slot 0 is farthest. `valid` is False in unused slots. Pixel
    coordinates: x to the right, y down, centre of the first pixel at (0.5, 0.5). An object is seen
    where it is the topmost with alpha >= 0.5.
    """

    images: Tensor  # (B, 3, H, W) float32 in [0, 1]
    valid: Tensor  # (B, K) bool
    pictogram: Tensor  # (B, K) long, index into `classes`
    category: Tensor  # (B, K) long, index into pictograms.categories()
    subcategory: Tensor  # (B, K) long, index into pictograms.subcategories()
    artist: Tensor  # (B, K) long, index into `artists`
    centre: Tensor  # (B, K, 2) float32, x and y in pixels
    scale: Tensor  # (B, K) float32, side of the drawing as a fraction of min(H, W)
    angle: Tensor  # (B, K) float32, degrees, counter-clockwise on the screen
    depth: Tensor  # (B, K) long, 0 is nearest
    instance: Tensor  # (B, H, W) long: 0 background, slot + 1 where that object is seen
    area: Tensor  # (B, K) long: pixels with alpha >= 0.5 in the picture, hidden ones included
    photo: Tensor  # (B,) long, index into `photos`; -1 when the background is none
    classes: list[str]
    artists: tuple[str, ...]
    photos: list[str]
    table: Tensor  # (len(classes),) long: index of each class in pictograms.table()
    sign: Tensor | None = None  # (B, H, W) bool: pixels of the sign; background to `instance`
    words: list[str | None] = field(default_factory=list)  # what each picture's sign says

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return tuple(self.images.shape[-2:])

    @functools.cached_property
    def masks(self) -> Tensor:
        """(B, K, H, W) bool: the visible pixels of each object."""
        slots = torch.arange(1, self.valid.shape[1] + 1, device=self.instance.device)
        return self.instance[:, None] == slots[:, None, None]

    @functools.cached_property
    def boxes(self) -> Tensor:
        """(B, K, 4) float32: x0, y0, x1, y1 around the visible pixels, x1 and y1 just outside.

        Zeros when nothing is visible.
        """
        spans = []
        for axis in (-2, -1):  # columns, then rows
            seen = self.masks.any(axis)
            first = seen.int().argmax(-1)
            last = seen.shape[-1] - seen.flip(-1).int().argmax(-1)
            spans.append((first, last))
        (x0, x1), (y0, y1) = spans
        corners = torch.stack([x0, y0, x1, y1], -1).float()
        return corners * self.masks.flatten(2).any(-1, keepdim=True)

    @functools.cached_property
    def visible(self) -> Tensor:
        """(B, K) float32: visible pixels / pixels of the whole object inside the picture."""
        return self.masks.flatten(2).sum(-1).float() / self.area.clamp(min=1).float()

    def ids(self, level: str) -> Tensor:
        """(B, K) long: each object's class at "pictogram", "category" or "subcategory".

        -1 in unused slots.
        """
        return getattr(self, pictograms.check_level(level))

    def semantic(self, level: str = "category") -> Tensor:
        """(B, H, W) long: 0 background, else 1 + class at `level`."""
        ground = torch.zeros_like(self.valid[:, :1], dtype=torch.long)
        lookup = torch.cat([ground, self.ids(level) + 1], 1)
        return lookup.gather(1, self.instance.flatten(1)).view_as(self.instance)

    def panoptic(self, level: str = "category") -> Tensor:
        """(B, H, W) long: 1000 * semantic + instance; 0 is the background."""
        return self.semantic(level) * PANOPTIC + self.instance

    def captions(self) -> list[str]:
        """One sentence a picture: what is where, from left to right."""
        from .questions import captions

        return captions(self)

    def questions(self, n: int, seed: int, kinds: Any = None) -> "list[list[Question]]":
        """Questions with answers: see `vtlib.data.questions.questions`.

        Args:
            n: at most so many a picture.
            seed: decides.
            kinds: of `vtlib.data.KINDS`; None: all.
        """
        from .questions import questions

        return questions(self, n, seed, kinds)


def layout(
    valid: Tensor,
    side: Tensor,
    angle: Tensor,
    size: tuple[int, int],
    tries: int,
    generator: torch.Generator,
) -> Tensor:
    """Centres (B, K, 2) inside the picture, so that objects overlap little.

    Each object takes, of `tries` random places, the one that overlaps least with earlier ones. The
    overlap of a pair is how much of the smaller disc's radius is covered, squared:
        max(0, (r_i + r_j - distance) / min(r_i, r_j))^2

    Args:
        valid: (B, K) bool.
        side: (B, K), pixels.
        angle: (B, K), degrees.
        size: (H, W).
        tries: places to choose from.
        generator: decides.
    """
    batch, slots = valid.shape
    height, width = size
    half = (turned(side, angle) / 2).clamp(max=min(size) / 2)
    room = torch.tensor([width, height], dtype=torch.float32, device="cpu") - 2 * half[..., None]
    places = unit((tries, batch, slots, 2), generator) * room + half[..., None]
    radius = side * 0.45
    centre = places[0].clone()
    every = torch.arange(batch, device="cpu")
    for k in range(1, slots if tries > 1 else 1):
        offset = places[:, :, k, None] - centre[None, :, :k]
        distance = offset.square().sum(-1).sqrt()                                          # t b k
        reach = radius[:, k, None] + radius[:, :k]
        smaller = torch.minimum(radius[:, k, None], radius[:, :k]).clamp(min=1e-6)
        cost = ((reach - distance) / smaller).clamp(min=0).square() * valid[:, :k]
        best = cost.sum(-1).argmin(0)
        centre[:, k] = places[best, every, k]
    return centre
