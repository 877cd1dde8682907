"""Scenes whose background is of two kinds of stuff, parted by a known curve: panoptic truth.

    parts = stuff_scenes(EmojiWorld(64, "train", pictograms=["cactus", "octopus"]), 8, seed=0)
    parts.codes()              # (B, H, W): 1000 x class + number, every pixel labelled

A background of `EmojiWorld` is one photograph, one colour or one noise. Here two of the three meet,
so that a picture has regions without a number (stuff) beside objects that can be counted (things).
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..nn.checks import check_int
from . import backgrounds
from ._arguments import as_device
from ._random import below, seeded, uniform, unit
from ._threads import one_thread
from .scenes import PANOPTIC, Scenes

if TYPE_CHECKING:
    from .emojiworld import EmojiWorld

STUFF = ("landscape", "paper", "cloud")
"""Kinds of stuff: a photograph, one light colour, smooth coloured noise."""


@dataclass
class StuffScenes:
    """B scenes and what lies behind their objects."""

    scenes: Scenes
    stuff: Tensor  # (B, H, W) long, index into `STUFF`, behind objects too

    @property
    def names(self) -> list[str]:
        """Of all classes: first the stuff, then the world's pictograms."""
        return [*STUFF, *self.scenes.classes]

    @property
    def things(self) -> set[int]:
        """Numbers of the classes that are things."""
        return set(range(len(STUFF), len(self.names)))

    def codes(self) -> Tensor:
        """(B, H, W) long: 1000 x class + number, number 0 for stuff and slot + 1 for an object."""
        objects = self.scenes.semantic("pictogram") - 1 + len(STUFF)
        objects = objects * PANOPTIC + self.scenes.instance
        return torch.where(self.scenes.instance > 0, objects, self.stuff * PANOPTIC)

    def segments(self, index: int) -> tuple[Tensor, list[tuple[int, int, bool]]]:
        """Codes (H, W) of a picture and (code, class, is a crowd) of its segments; no crowds."""
        codes = self.codes()[index]
        found = codes.unique().tolist()
        return codes, [(code, code // PANOPTIC, False) for code in found]


def parted(size: tuple[int, int], batch: int, generator: torch.Generator) -> Tensor:
    """(B, H, W) bool: one side of a wavy line through each picture.

    A pixel (x, y), centred and in units of the shorter side, is True where
    u + 0.06 sin(2 pi (f v + p)) > c, and (u, v) is (x, y) turned by an angle; angle, f in 1 ... 2,
    p and c in -0.15 ... 0.15 are random.

    Args:
        size: (H, W).
        batch: B.
        generator: decides.
    """
    height, width = size
    scale = min(size)
    y = ((torch.arange(height, device="cpu") + 0.5 - height / 2) / scale)[:, None]
    x = ((torch.arange(width, device="cpu") + 0.5 - width / 2) / scale)[None, :]
    drawn = uniform((4, batch, 1, 1), (0.0, 1.0), generator)
    angle, frequency = 2 * math.pi * drawn[0], 1 + drawn[1]
    u, v = angle.cos() * x + angle.sin() * y, angle.cos() * y - angle.sin() * x      # b h w
    wave = 0.06 * torch.sin(2 * math.pi * (frequency * v + drawn[2]))
    return u + wave > 0.3 * drawn[3] - 0.15


@one_thread()
def stuff_scenes(
    world: "EmojiWorld", batch: int, seed: int, device: Any = None, **options: Any
) -> StuffScenes:
    """Objects on two kinds of stuff.

    Args:
        world: whose pictograms are the things, and whose photographs the landscapes.
        batch: B.
        seed: decides.
        device: where the result is; None: the CPU.
        options: of `EmojiWorld.scenes`, but not its background.
    """
    batch = check_int(batch, "batch", 1)
    device, generator = as_device(device), seeded(seed)
    kinds = unit((batch, len(STUFF)), generator).argsort(1)[:, :2]                  # b 2
    first = parted(world.size, batch, generator)
    stuff = torch.where(first, kinds[:, 0, None, None], kinds[:, 1, None, None])
    where = (world.size, batch, generator, torch.device("cpu"))
    layers = [
        backgrounds.crops(world.split, *where)[0],
        backgrounds.plain(*where),
        backgrounds.noise(*where),
    ]
    stacked = torch.stack(layers, 1)                                                # b 3 c h w
    index = stuff[:, None, None].expand(-1, 1, 3, -1, -1)
    ground = stacked.gather(1, index)[:, 0].div(255).clamp(0, 1)
    own = int(below(2**31 - 1, (1,), generator)[0])
    scenes = world.scenes(batch, own, background=ground, device=device, **options)
    return StuffScenes(scenes, stuff.to(device))
