"""Camouflage: silhouettes of pictograms filled with texture of the very photograph they stand on."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vtlib.data import backgrounds
from vtlib.data.assets import as_device
from vtlib.data.scenes import layout, uniform


def coarse(image: Tensor) -> Tensor:
    """What is left of (B, 3, H, W) after averaging down to a twelfth of its size and smoothing back up."""
    size = tuple(image.shape[-2:])
    small = F.interpolate(image, size=[max(2, s // 12) for s in size], mode="area")
    return F.interpolate(small, size=size, mode="bilinear", align_corners=False)


def make_camouflage(world, batch, seed, objects, scale, rotation, blend, background, device):
    """See EmojiWorld.camouflage.

    fill = detail(other crop) + blend coarse(here) + (1 - blend) coarse(other crop),  detail(x) = x - coarse(x)
    """
    device = as_device(device)
    generator = torch.Generator().manual_seed(seed)
    many = objects[1]
    valid = torch.arange(many) < torch.randint(objects[0], many + 1, (batch, 1), generator=generator)
    which = world.draw((batch, many), "pictogram", generator)
    side = (uniform((batch, many), scale, generator) * min(world.size)).sort(1, descending=True).values
    angle = uniform(side.shape, (-rotation, rotation), generator)
    centre = layout(valid, side, angle, world.size, 12, generator)
    if background == "photo":
        here, photo, other = backgrounds.crops(world.split, world.size, batch, generator, device, twice=True)
    elif background == "noise":
        here, other = (backgrounds.noise(world.size, batch, generator, device) for _ in range(2))
        photo = torch.full((batch,), -1, device=device)
    else:
        raise ValueError(f"background={background!r}: camouflage needs 'photo' or 'noise'")
    low, high = coarse(here), coarse(other)
    fill = (other - high + blend * low + (1 - blend) * high).clamp_(0, 255)
    return world._render(valid, which, side, angle, centre, (here, photo), generator, device, fill=fill)
