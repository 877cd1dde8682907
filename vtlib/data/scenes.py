"""Scenes: several pictograms on a background, with everything about them known exactly."""

import functools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vtlib.data import pictograms
from vtlib.data.questions import Question, captions, questions

PANOPTIC = 1000
"""`panoptic` labels are 1000 * semantic + instance."""


@dataclass
class Scenes:
    """B pictures with up to K objects each. Fields of unused slots are -1 (indices) or 0, and `valid` is False there.

    Slots are in painting order: slot 0 is farthest. Pixel coordinates: x to the right, y down, centre of the first pixel at (0.5, 0.5).
    """

    images: Tensor  # (B, 3, H, W) float32 in [0, 1]
    valid: Tensor  # (B, K) bool
    pictogram: Tensor  # (B, K) long, index into `classes`
    category: Tensor  # (B, K) long, index into pictograms.categories()
    subcategory: Tensor  # (B, K) long, index into pictograms.subcategories()
    artist: Tensor  # (B, K) long, index into `artists`
    centre: Tensor  # (B, K, 2) float, x and y in pixels
    scale: Tensor  # (B, K) float, side of the drawing as a fraction of min(H, W)
    angle: Tensor  # (B, K) float, degrees, counter-clockwise on the screen
    depth: Tensor  # (B, K) long, 0 is nearest
    instance: Tensor  # (B, H, W) long: 0 background, slot + 1 where that object is the topmost with alpha >= 0.5
    area: Tensor  # (B, K) long: pixels with alpha >= 0.5 inside the picture, hidden ones included
    photo: Tensor  # (B,) long, index into `photos`; -1 when the background is none
    classes: list[str]
    artists: tuple[str, ...]
    photos: list[str]
    table: Tensor  # (len(classes),) long: index of each class in pictograms.table()
    sign: Tensor | None = None  # (B, H, W) bool: pixels of the sign; they count as background in `instance`
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
        """(B, K, 4) float: x0, y0, x1, y1 around the visible pixels (x1, y1 just outside); zeros when nothing is visible."""
        spans = []
        for axis in (-2, -1):  # columns, then rows
            seen = self.masks.any(axis)
            first = seen.int().argmax(-1)
            last = seen.shape[-1] - seen.flip(-1).int().argmax(-1)
            spans.append((first, last))
        (x0, x1), (y0, y1) = spans
        return torch.stack([x0, y0, x1, y1], -1).float() * self.masks.flatten(2).any(-1, keepdim=True)

    @functools.cached_property
    def visible(self) -> Tensor:
        """(B, K) float: visible pixels / pixels of the whole object inside the picture."""
        return self.masks.flatten(2).sum(-1) / self.area.clamp(min=1)

    def ids(self, level: str) -> Tensor:
        """(B, K) long: each object's class at "pictogram", "category" or "subcategory" (-1 in unused slots)."""
        if level not in pictograms.LEVELS:
            raise ValueError(f"level={level!r}: needs one of {', '.join(pictograms.LEVELS)}")
        return getattr(self, level)

    def semantic(self, level: str = "category") -> Tensor:
        """(B, H, W) long: 0 background, else 1 + class at `level`."""
        lookup = torch.cat([torch.zeros_like(self.valid[:, :1], dtype=torch.long), self.ids(level) + 1], 1)
        return lookup.gather(1, self.instance.flatten(1)).view_as(self.instance)

    def panoptic(self, level: str = "category") -> Tensor:
        """(B, H, W) long: 1000 * semantic + instance; 0 is the background."""
        return self.semantic(level) * PANOPTIC + self.instance

    def captions(self) -> list[str]:
        """One sentence a picture: what is where, from left to right."""
        return captions(self)

    def questions(self, n: int, seed: int, kinds=None) -> list[list[Question]]:
        """At most n questions with answers a picture; see `vtlib.data.questions.questions`."""
        return questions(self, n, seed, kinds)


def uniform(shape, bounds, generator) -> Tensor:
    return torch.empty(shape).uniform_(*bounds, generator=generator)


def extent(side: Tensor, angle: Tensor) -> Tensor:
    """Half the width (= half the height) of a turned square: side / 2 (|cos| + |sin|)."""
    theta = angle * (math.pi / 180)
    return side / 2 * (theta.cos().abs() + theta.sin().abs())


def layout(valid: Tensor, side: Tensor, angle: Tensor, size: tuple[int, int], tries: int, generator) -> Tensor:
    """Centres (B, K, 2) inside the picture: each object takes, of `tries` random places, the one that overlaps least with earlier ones.

    Overlap of a pair: how much of the smaller disc's radius is covered, (r_i + r_j - distance) / min(r_i, r_j), at least 0; squared.
    """
    batch, slots = valid.shape
    height, width = size
    half = extent(side, angle).clamp(max=min(size) / 2)
    room = torch.tensor([width, height], dtype=torch.float32) - 2 * half[..., None]
    places = torch.rand(tries, batch, slots, 2, generator=generator) * room + half[..., None]
    radius = side * 0.45
    centre = places[0].clone()
    for k in range(1, slots if tries > 1 else 1):
        distance = (places[:, :, k, None] - centre[None, :, :k]).square().sum(-1).sqrt()  # t b k
        reach = radius[:, k, None] + radius[:, :k]
        smaller = torch.minimum(radius[:, k, None], radius[:, :k]).clamp(min=1e-6)
        cost = ((reach - distance) / smaller).clamp(min=0).square() * valid[:, :k]
        best = cost.sum(-1).argmin(0)
        centre[:, k] = places[best, torch.arange(batch), k]
    return centre
