"""Videos: pictograms that move over a photograph that a camera pans and zooms across, with true trajectories, flow and occlusion."""

import functools
import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from vtlib.data import backgrounds, pictograms, render
from vtlib.data.assets import as_device
from vtlib.data.scenes import uniform


@dataclass
class Video:
    """B videos of T frames with up to K objects. Fields of unused slots are -1 (indices) or 0. Slot order is painting order.

    A pixel's flow is where the surface seen there goes: pixel centre + flow is its place in the next frame.
    """

    frames: Tensor  # (B, T, 3, H, W) float32 in [0, 1]
    valid: Tensor  # (B, K) bool
    pictogram: Tensor  # (B, K) long, index into `classes`
    category: Tensor  # (B, K) long
    subcategory: Tensor  # (B, K) long
    artist: Tensor  # (B, K) long, index into `artists`
    trajectory: Tensor  # (B, T, K, 2) float: centre, x and y in pixels
    side: Tensor  # (B, T, K) float: side of the drawing in pixels
    angle: Tensor  # (B, T, K) float: degrees, counter-clockwise on the screen
    instance: Tensor  # (B, T, H, W) long: 0 background, slot + 1
    area: Tensor  # (B, T, K) long: pixels of the whole object inside the frame
    flow: Tensor  # (B, T - 1, 2, H, W) float: forward, x and y in pixels
    occluded: Tensor  # (B, T - 1, H, W) bool: what is seen here is out of the frame or behind something in the next frame
    camera: Tensor  # (B, T, 3) float: zoom, and the place (x, y in pixels) on the first frame's scale that the middle shows
    photo: Tensor  # (B,) long, index into `photos`
    classes: list[str]
    artists: tuple[str, ...]
    photos: list[str]

    @functools.cached_property
    def masks(self) -> Tensor:
        """(B, T, K, H, W) bool: the visible pixels of each object."""
        slots = torch.arange(1, self.valid.shape[1] + 1, device=self.instance.device)
        return self.instance[:, :, None] == slots[:, None, None]

    @functools.cached_property
    def visible(self) -> Tensor:
        """(B, T, K) bool: some of the object is seen in that frame."""
        return self.masks.flatten(3).any(-1)

    @functools.cached_property
    def visibility(self) -> Tensor:
        """(B, T, K) float: visible pixels / pixels of the whole object inside the frame."""
        return self.masks.flatten(3).sum(-1) / self.area.clamp(min=1)


def fold(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Reflect a straight path at both ends of [low, high]."""
    span = (high - low).clamp(min=1e-6)
    t = torch.remainder((x - low) / span, 2)
    return low + span * torch.minimum(t, 2 - t)


def turn(offset: Tensor, degrees: Tensor) -> Tensor:
    """Turn offsets (..., 2) counter-clockwise on the screen (y points down)."""
    theta = degrees * (math.pi / 180)
    cos, sin = theta.cos(), theta.sin()
    x, y = offset.unbind(-1)
    return torch.stack([cos * x + sin * y, cos * y - sin * x], -1)


def forward_flow(instance: Tensor, start: Tensor, end: Tensor, ratio: Tensor, spin: Tensor) -> tuple[Tensor, Tensor]:
    """Flow and occlusion from one frame to the next for surfaces that move by similarities.

    instance (B, T, H, W); start, end (B, T - 1, K + 1, 2) a point of each surface (0: background) in both frames; ratio and spin
    (B, T - 1, K + 1): growth and turn. A pixel centre p of surface i goes to end_i + ratio_i Turn(spin_i) (p - start_i).
    """
    height, width = instance.shape[-2:]
    device = instance.device
    now, then = instance[:, :-1], instance[:, 1:]
    owner = now.flatten(2)  # b t (h w)

    def of(field):
        return field.gather(2, owner if field.dim() == 3 else owner[..., None].expand(-1, -1, -1, 2))

    y, x = torch.meshgrid(torch.arange(height, device=device) + 0.5, torch.arange(width, device=device) + 0.5, indexing="ij")
    pixel = torch.stack([x, y], -1).view(1, 1, -1, 2)
    goal = of(end) + of(ratio)[..., None] * turn(pixel - of(start), of(spin))
    flow = rearrange(goal - pixel, "b t (h w) c -> b t c h w", h=height)
    column, row = goal.floor().long().unbind(-1)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    target = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    same = then.flatten(2).gather(2, target) == owner
    return flow, ~(inside & same).view_as(now)


def make_video(world, batch, frames, seed, objects, scale, speed, spin, pan, zoom, device) -> Video:
    """See EmojiWorld.video."""
    device = as_device(device)
    generator = torch.Generator().manual_seed(seed)
    (height, width), short, many = world.size, min(world.size), objects[1]
    count = torch.randint(objects[0], many + 1, (batch, 1), generator=generator)
    valid = torch.arange(many) < count
    which = world.draw((batch, many), "pictogram", generator)
    artist = torch.randint(len(world.artists), (batch, many), generator=generator)
    side = (uniform((batch, many), scale, generator) * short).sort(1, descending=True).values
    time = torch.arange(frames, dtype=torch.float32)[:, None]  # t 1

    # the camera: zoom_t and the shift of its middle, in pixels of the first frame; both go steadily from 0 to their end
    heading = uniform((batch, 1), (0, 2 * math.pi), generator)
    direction = torch.cat([heading.cos(), heading.sin()], 1)[:, None]
    span = torch.tensor([width, height], dtype=torch.float32)
    drift = direction * min(pan * max(frames - 1, 1) * short, 0.35 * short) / max(frames - 1, 1) * time  # b t 2
    total = uniform((batch, 1, 1), (-1, 1), generator) * min(zoom * max(frames - 1, 1), 0.35)
    magnify = torch.exp(total / max(frames - 1, 1) * time)  # b t 1
    middle = span / 2

    # objects in the first frame's coordinates: straight paths reflected at the borders, breathing, turning
    reach = (side / 2)[..., None].clamp(max=short / 2)
    low, high = reach, span - reach
    start = low + torch.rand(batch, many, 2, generator=generator) * (high - low)
    heading = uniform((batch, many), (0, 2 * math.pi), generator)
    pace = uniform((batch, many, 1), (0.4, 1.0), generator) * speed * short
    velocity = torch.stack([heading.cos(), heading.sin()], -1) * pace
    path = fold(start[:, None] + velocity[:, None] * time[:, :, None], low[:, None], high[:, None])  # b t k 2
    phase, turnrate = uniform((batch, many), (0, 2 * math.pi), generator), uniform((batch, many), (-spin, spin), generator)
    sides = side[:, None] * (1 + 0.12 * torch.sin(phase[:, None] + 0.15 * time))  # b t k
    angles = uniform((batch, 1, many), (-20, 20), generator) + turnrate[:, None] * time

    # ... and as the camera sees them
    centre = magnify[..., None] * (path - middle - drift[:, :, None]) + middle
    sides = sides * magnify
    which_photo = torch.randint(len(world.photos), (batch,), generator=generator)

    to = lambda *tensors: [t.to(device) for t in tensors]  # noqa: E731
    valid, which, artist, centre, sides, angles = to(valid, which, artist, centre, sides, angles)
    drift, magnify, middle, span, which_photo = to(drift, magnify, middle, span, which_photo)
    image = film(world, which_photo, drift, magnify, span)
    table = world.table.to(device)
    at, time_at, slot = valid[:, None].expand(-1, frames, -1).nonzero(as_tuple=True)
    pick = (at, time_at, slot)
    source = render.gather(table[which[at, slot]], artist[at, slot], world.artists)
    image, instance, whole = render.paint(image, source, centre[pick], sides[pick], angles[pick], at * frames + time_at, slot)
    instance = instance.view(batch, frames, height, width)
    area = torch.zeros(batch, frames, many, dtype=torch.long, device=device)
    area[pick] = whole

    shift = magnify[:, 1:] * (drift[:, :-1] - drift[:, 1:])  # of the background's middle
    here = torch.cat([middle.expand(batch, frames - 1, 1, 2), centre[:, :-1]], 2)
    there = torch.cat([(middle + shift)[:, :, None], centre[:, 1:]], 2)
    ratio = torch.cat([magnify[:, 1:] / magnify[:, :-1], sides[:, 1:] / sides[:, :-1]], 2)
    spins = torch.cat([torch.zeros(batch, frames - 1, 1, device=device), angles[:, 1:] - angles[:, :-1]], 2)
    flow, occluded = forward_flow(instance, here, there, ratio, spins)

    empty, live = ~valid, valid[:, None]
    levels = {
        level: pictograms.level_ids(level).to(device)[table[which]].masked_fill(empty, -1)
        for level in ("category", "subcategory")
    }
    return Video(
        frames=image.view(batch, frames, 3, height, width).div_(255).clamp_(0, 1),
        valid=valid,
        pictogram=which.masked_fill(empty, -1),
        artist=artist.masked_fill(empty, -1),
        trajectory=centre * live[..., None],
        side=sides * live,
        angle=angles * live,
        instance=instance,
        area=area,
        flow=flow,
        occluded=occluded,
        camera=torch.cat([magnify, middle + drift], -1),
        photo=which_photo,
        classes=world.classes,
        artists=world.artists,
        photos=world.photos,
        **levels,
    )


def film(world, which: Tensor, drift: Tensor, magnify: Tensor, span: Tensor) -> Tensor:
    """The background of every frame: (B T, 3, H, W) in [0, 255]."""
    (height, width), device = world.size, which.device
    photos = backgrounds.bank(world.split, world.size, backgrounds.ZOOMS[-1], device)[which].float()
    offset = drift / (span / 2)  # b t 2, in half pictures
    view = 1 / magnify  # b t 1
    # the largest part of the photograph for which every frame stays inside
    need = (offset.abs() + view).amax((1, 2), keepdim=True)
    part = (1 / need).clamp(max=0.9)
    x = (torch.arange(width, device=device) * 2 + 1) / width - 1
    y = (torch.arange(height, device=device) * 2 + 1) / height - 1
    grid = torch.empty(*view.shape[:2], height, width, 2, device=device)
    grid[..., 0] = (part * (offset[..., :1] + view * x))[:, :, None, :]
    grid[..., 1] = (part * (offset[..., 1:] + view * y))[:, :, :, None]
    out = torch.nn.functional.grid_sample(photos, grid.flatten(1, 2), padding_mode="border", align_corners=False)
    return rearrange(out, "b c (t h) w -> (b t) c h w", h=height).contiguous()
