"""Videos: pictograms that move over a photograph that a camera pans and zooms across, with true
trajectories, flow and occlusion."""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from . import backgrounds, pictograms, render
from ._arguments import as_device
from ._random import below, seeded, uniform, unit

MOST = 0.35
"""The camera's way over the shorter side, and the logarithm of its zoom, in the whole video."""


@dataclass
class Video:
    """B videos of T frames with up to K objects. Fields of unused slots are -1 (indices) or 0.

    Slot order is painting order. A pixel's flow is where the surface seen there goes: pixel centre
    + flow is its place in the next frame. A pixel is occluded if what is seen there is out of the
    frame, or behind something, in the next frame.
    """

    frames: Tensor  # (B, T, 3, H, W) float32 in [0, 1]
    valid: Tensor  # (B, K) bool
    pictogram: Tensor  # (B, K) long, index into `classes`
    category: Tensor  # (B, K) long
    subcategory: Tensor  # (B, K) long
    artist: Tensor  # (B, K) long, index into `artists`
    trajectory: Tensor  # (B, T, K, 2) float32: centre, x and y in pixels
    side: Tensor  # (B, T, K) float32: side of the drawing in pixels
    angle: Tensor  # (B, T, K) float32: degrees, counter-clockwise on the screen
    instance: Tensor  # (B, T, H, W) long: 0 background, slot + 1
    area: Tensor  # (B, T, K) long: pixels of the whole object inside the frame
    flow: Tensor  # (B, T - 1, 2, H, W) float32: forward, x and y in pixels
    occluded: Tensor  # (B, T - 1, H, W) bool
    camera: Tensor  # (B, T, 3) float32: zoom; the place (x, y in the first frame's pixels) it shows
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
        """(B, T, K) float32: visible pixels / pixels of the whole object inside the frame."""
        return self.masks.flatten(3).sum(-1).float() / self.area.clamp(min=1).float()


def fold(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Reflect a straight path at both ends of [low, high].

    Args:
        x: where it would be.
        low: the smaller end, broadcastable to x.
        high: the larger end, likewise.
    """
    span = (high - low).clamp(min=1e-6)
    t = torch.remainder((x - low) / span, 2)
    return low + span * torch.minimum(t, 2 - t)


def turn(offset: Tensor, degrees: Tensor) -> Tensor:
    """Turn offsets (..., 2) counter-clockwise on the screen (y points down)."""
    theta = degrees * (math.pi / 180)
    cos, sin = theta.cos(), theta.sin()
    x, y = offset.unbind(-1)
    return torch.stack([cos * x + sin * y, cos * y - sin * x], -1)


def forward_flow(
    instance: Tensor, start: Tensor, end: Tensor, ratio: Tensor, spin: Tensor
) -> tuple[Tensor, Tensor]:
    """Flow and occlusion from each frame to the next for surfaces that move by similarities.

    A pixel centre p of surface i goes to end_i + ratio_i Turn(spin_i) (p - start_i). Surface 0 is
    the background.

    Args:
        instance: (B, T, H, W) long, which surface is seen.
        start: (B, T - 1, K + 1, 2), a point of each surface, x and y in pixels.
        end: of the same shape, that point in the next frame.
        ratio: (B, T - 1, K + 1) growth.
        spin: (B, T - 1, K + 1) turn in degrees.

    Returns (B, T - 1, 2, H, W) float32 and (B, T - 1, H, W) bool.
    """
    height, width = instance.shape[-2:]
    now, then = instance[:, :-1], instance[:, 1:]
    owner = now.flatten(2)  # b t (h w)

    def of(values: Tensor) -> Tensor:
        if values.dim() == 3:
            return values.gather(2, owner)
        return values.gather(2, owner[..., None].expand(-1, -1, -1, 2))

    pixel = pixel_middles(height, width, instance.device).view(1, 1, -1, 2)
    goal = of(end) + of(ratio)[..., None] * turn(pixel - of(start), of(spin))
    flow = rearrange(goal - pixel, "b t (h w) c -> b t c h w", h=height)
    column, row = goal.floor().long().unbind(-1)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    target = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    same = then.flatten(2).gather(2, target) == owner
    return flow, ~(inside & same).view_as(now)


def pixel_middles(height: int, width: int, device: torch.device) -> Tensor:
    """(H, W, 2) float32: x and y of the middle of each pixel.

    Args:
        height: H.
        width: W.
        device: where they are.
    """
    rows, columns = render.middles(height, device), render.middles(width, device)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], -1)


@dataclass
class Camera:
    """Where the camera looks in each frame, in pixels of the first frame."""

    drift: Tensor  # (B, T, 2) float32: how far its middle is from the first frame's
    magnify: Tensor  # (B, T, 1) float32

    def to(self, device: torch.device) -> "Camera":
        return Camera(self.drift.to(device), self.magnify.to(device))


@dataclass
class Paths:
    """Where the camera sees each object in each frame."""

    centre: Tensor  # (B, T, K, 2) float32: x, y in pixels
    side: Tensor  # (B, T, K) float32: pixels
    angle: Tensor  # (B, T, K) float32: degrees


def make_video(
    world, batch, frames, seed, objects, scale, speed, spin, pan, zoom, device
) -> Video:
    """What EmojiWorld.video does once it has checked its numbers.

    Args:
        world: an EmojiWorld.
        batch: B.
        frames: T.
        seed: decides.
        objects: (fewest, most) a clip.
        scale: side of a drawing as a fraction of the frame's shorter side, (smallest, largest).
        speed: at most that fraction of the shorter side a frame.
        spin: at most that many degrees a frame.
        pan: the camera's step as a fraction of the shorter side a frame.
        zoom: the camera's growth a frame, at most, either way.
        device: where the result is; None: the CPU.
    """
    device, generator = as_device(device), seeded(seed)
    few, many = objects
    valid = torch.arange(many, device="cpu") < below(many + 1, (batch, 1), generator, start=few)
    which = world.draw((batch, many), "pictogram", generator)
    artist = below(len(world.artists), (batch, many), generator)
    side = uniform((batch, many), scale, generator) * min(world.size)
    side = side.sort(1, descending=True).values
    camera = move_camera(world.size, batch, frames, pan, zoom, generator)
    paths = move_objects(side, camera, world.size, speed, spin, generator)
    photo = below(len(world.photos), (batch,), generator).to(device)
    camera = camera.to(device)
    fields = (valid, which, artist, paths.centre, paths.side, paths.angle)
    valid, which, artist, *paths = (field.to(device) for field in fields)
    paths = Paths(*paths)
    image, instance, area = draw(world, valid, which, artist, paths, camera, photo)
    flow, occluded = video_flow(instance, paths, camera)
    empty, live, table = ~valid, valid[:, None], world.table.to(device)
    middle = torch.tensor(world.size[::-1], dtype=torch.float32, device=device) / 2
    return Video(
        frames=image.div_(255).clamp_(0, 1),
        valid=valid,
        pictogram=which.masked_fill(empty, -1),
        category=pictograms.classes_at("category", table[which], empty),
        subcategory=pictograms.classes_at("subcategory", table[which], empty),
        artist=artist.masked_fill(empty, -1),
        trajectory=paths.centre * live[..., None],
        side=paths.side * live,
        angle=paths.angle * live,
        instance=instance,
        area=area,
        flow=flow,
        occluded=occluded,
        camera=torch.cat([camera.magnify, middle + camera.drift], -1),
        photo=photo,
        classes=list(world.classes),
        artists=world.artists,
        photos=list(world.photos),
    )


def move_camera(size, batch, frames, pan, zoom, generator) -> Camera:
    """A camera that pans and zooms steadily from nothing to its end.

    Args:
        size: (H, W) of the frames.
        batch: B.
        frames: T.
        pan: its step as a fraction of the shorter side a frame, cut to `MOST` in all.
        zoom: growth of the zoom's logarithm a frame, at most, either way, cut to `MOST` in all.
        generator: decides.
    """
    steps, short = max(frames - 1, 1), min(size)
    time = torch.arange(frames, dtype=torch.float32, device="cpu")[:, None]                   # t 1
    heading = uniform((batch, 1), (0, 2 * math.pi), generator)
    direction = torch.cat([heading.cos(), heading.sin()], 1)[:, None]
    drift = direction * min(pan * steps * short, MOST * short) / steps * time               # b t 2
    total = uniform((batch, 1, 1), (-1, 1), generator) * min(zoom * steps, MOST)
    return Camera(drift, torch.exp(total / steps * time))


def move_objects(side: Tensor, camera: Camera, size, speed, spin, generator) -> Paths:
    """Straight paths that turn back at the first frame's borders, as the camera sees them.

    On their way objects breathe and turn.

    Args:
        side: (B, K), of the drawings in pixels.
        camera: who looks.
        size: (H, W) of the frames.
        speed: 0.4 to 1 times that fraction of the shorter side a frame.
        spin: at most that many degrees a frame, either way.
        generator: decides.
    """
    (batch, many), short = side.shape, min(size)
    frames = camera.drift.shape[1]
    time = torch.arange(frames, dtype=torch.float32, device="cpu")[:, None]                   # t 1
    span = torch.tensor(size[::-1], dtype=torch.float32, device="cpu")
    low = (side / 2)[..., None].clamp(max=short / 2)
    high = span - low
    start = low + unit((batch, many, 2), generator) * (high - low)
    heading = uniform((batch, many), (0, 2 * math.pi), generator)
    pace = uniform((batch, many, 1), (0.4, 1.0), generator) * speed * short
    velocity = torch.stack([heading.cos(), heading.sin()], -1) * pace
    straight = start[:, None] + velocity[:, None] * time[:, :, None]
    path = fold(straight, low[:, None], high[:, None])                                    # b t k 2
    phase = uniform((batch, many), (0, 2 * math.pi), generator)
    rate = uniform((batch, many), (-spin, spin), generator)
    sides = side[:, None] * (1 + 0.12 * torch.sin(phase[:, None] + 0.15 * time))            # b t k
    angles = uniform((batch, 1, many), (-20, 20), generator) + rate[:, None] * time
    middle = span / 2
    centre = camera.magnify[..., None] * (path - middle - camera.drift[:, :, None]) + middle
    return Paths(centre, sides * camera.magnify, angles)


def draw(
    world, valid: Tensor, which: Tensor, artist: Tensor, paths: Paths, camera: Camera, photo: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Frames (B, T, 3, H, W) in [0, 255], instance (B, T, H, W) and area (B, T, K).

    Args:
        world: an EmojiWorld.
        valid: (B, K) bool, which slots hold an object.
        which: (B, K) long, index into the world's classes.
        artist: (B, K) long, index into the world's artists.
        paths: of the objects.
        camera: where it looks.
        photo: (B,) index into the world's photographs.
    """
    batch, frames, many = paths.side.shape
    image = film(world, photo, camera)
    there = valid[:, None].expand(-1, frames, -1).nonzero(as_tuple=True)
    at, time, slot = there
    table = world.table.to(which.device)
    drawn = (table[which[at, slot]], artist[at, slot])
    placed = (paths.centre[there], paths.side[there], paths.angle[there])
    objects = render.Placed(world.artists, *drawn, *placed, at * frames + time, slot)
    instance, whole = render.paint(image, objects)
    area = torch.zeros(batch, frames, many, dtype=torch.long, device=which.device)
    area[there] = whole
    return image.unflatten(0, (batch, frames)), instance.unflatten(0, (batch, frames)), area


def video_flow(instance: Tensor, paths: Paths, camera: Camera) -> tuple[Tensor, Tensor]:
    """Flow and occlusion of a video: see `forward_flow`.

    Args:
        instance: (B, T, H, W).
        paths: of the objects.
        camera: its motion is the background's.
    """
    batch, frames, height, width = instance.shape
    centre, side, angle = paths.centre, paths.side, paths.angle
    drift, magnify = camera.drift, camera.magnify
    middle = torch.tensor([width, height], dtype=torch.float32, device=centre.device) / 2
    shift = magnify[:, 1:] * (drift[:, :-1] - drift[:, 1:])         # of the background's middle
    here = torch.cat([middle.expand(batch, frames - 1, 1, 2), centre[:, :-1]], 2)
    there = torch.cat([(middle + shift)[:, :, None], centre[:, 1:]], 2)
    ratio = torch.cat([magnify[:, 1:] / magnify[:, :-1], side[:, 1:] / side[:, :-1]], 2)
    still = torch.zeros_like(magnify[:, 1:])
    spin = torch.cat([still, angle[:, 1:] - angle[:, :-1]], 2)
    return forward_flow(instance, here, there, ratio, spin)


def film(world, which: Tensor, camera: Camera) -> Tensor:
    """The background of every frame: (B T, 3, H, W) in [0, 255].

    Args:
        world: an EmojiWorld.
        which: (B,) index into its photographs.
        camera: where it looks.
    """
    (height, width), device = world.size, which.device
    zoom = backgrounds.ZOOMS[-1]
    photos = [backgrounds.view(world.photos[k], world.size, zoom) for k in which.tolist()]
    photos = torch.from_numpy(np.stack(photos)).to(device).float()
    span = torch.tensor([width, height], dtype=torch.float32, device=device)
    offset = camera.drift / (span / 2)                              # b t 2, in half pictures
    view = 1 / camera.magnify                                       # b t 1
    # the largest part of the photograph for which every frame stays inside
    need = (offset.abs() + view).amax((1, 2), keepdim=True)
    part = (1 / need).clamp(max=0.9)
    x = (torch.arange(width, device=device).float() * 2 + 1) / width - 1
    y = (torch.arange(height, device=device).float() * 2 + 1) / height - 1
    grid = torch.empty(*view.shape[:2], height, width, 2, device=device, dtype=torch.float32)
    grid[..., 0] = (part * (offset[..., :1] + view * x))[:, :, None, :]
    grid[..., 1] = (part * (offset[..., 1:] + view * y))[:, :, :, None]
    out = torch.nn.functional.grid_sample(
        photos, grid.flatten(1, 2), padding_mode="border", align_corners=False
    )
    return rearrange(out, "b c (t h) w -> (b t) c h w", h=height).contiguous()
