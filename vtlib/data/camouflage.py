"""Camouflage: silhouettes of pictograms filled with texture of the photograph they stand on."""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import backgrounds
from ._arguments import as_device
from ._random import below, seeded, uniform
from .scenes import Scenes, layout

COARSE = 12


def coarse(image: Tensor) -> Tensor:
    """(B, 3, H, W) averaged down to a twelfth of its size and smoothed back up."""
    size = tuple(image.shape[-2:])
    small = F.interpolate(image, size=[max(2, s // COARSE) for s in size], mode="area")
    return F.interpolate(small, size=size, mode="bilinear", align_corners=False)


def make_camouflage(
    world, batch, seed, objects, scale, rotation, blend, background, device
) -> Scenes:
    """What EmojiWorld.camouflage does once it has checked its numbers.

        fill = detail(other crop) + blend coarse(here) + (1 - blend) coarse(other crop),
        detail(x) = x - coarse(x)

    Args:
        world: an EmojiWorld.
        batch: B.
        seed: decides.
        objects: (fewest, most) a picture.
        scale: side of a drawing as a fraction of the picture's shorter side, (smallest, largest).
        rotation: at most that many degrees either way.
        blend: as above, in 0 ... 1.
        background: "photo" or "noise"; ValueError for others.
        device: where the result is; None: the CPU.
    """
    device = as_device(device)
    if not isinstance(background, str) or background not in ("photo", "noise"):
        raise ValueError(f"background={background!r}: camouflage needs 'photo' or 'noise'")
    generator = seeded(seed)
    few, many = objects
    valid = torch.arange(many, device="cpu") < below(many + 1, (batch, 1), generator, start=few)
    which = world.draw((batch, many), "pictogram", generator)
    side = uniform((batch, many), scale, generator) * min(world.size)
    side = side.sort(1, descending=True).values
    angle = uniform(side.shape, (-rotation, rotation), generator)
    centre = layout(valid, side, angle, world.size, 12, generator)
    wanted = (world.size, batch, generator, device)
    if background == "photo":
        here, photo, other = backgrounds.crops(world.split, *wanted, twice=True)
    else:
        here, other = (backgrounds.noise(*wanted) for _ in range(2))
        photo = torch.full((batch,), -1, device=device)
    low, high = coarse(here), coarse(other)
    fill = (other - high + blend * low + (1 - blend) * high).clamp_(0, 255)
    ground = (here, photo)
    return world._render(
        valid, which, side, angle, centre, ground, generator, device, fill=fill
    )
