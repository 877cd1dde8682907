"""Footage for video super-resolution: frames with exact flow in both directions.

- The shipped video by split, small and at its own resolution (no flow).
- Photographs that a camera pans, zooms and turns across by exactly known sub-pixel motion.
- Pictograms moving over photographs (EmojiWorld).

    footage = panned(batch=4, frames=7, size=96, seed=0, split="test")
    frames = footage.frames
    backward, forward = footage.flows(scale=4)              # of the clip at a quarter of its size

Train and test photographs are apart: "test" are the test backgrounds of EmojiWorld, "train" all
others, also those that are no background.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn.checks import check_int, check_list, check_number, describe, is_several
from . import assets
from ._arguments import (
    as_device,
    bounds,
    image_size,
    one_of,
)
from ._kept import Kept
from ._random import below, seeded, uniform, unit
from ._threads import one_thread
from .backgrounds import names as background_names
from .emojiworld import EmojiWorld
from .pictograms import check_split
from .video import Camera, Paths, Video, fold, pixel_middles, video_flow

CLIP = {"train": slice(0, 24), "test": slice(28, 48), "all": slice(0, 48)}
"""Four frames lie between "train" and "test"."""
FASTEST = 1e4
SOURCES = Kept(128 * 2**20)
"""Photographs at the sizes that were asked for so far."""


@dataclass
class Footage:
    """B clips of T frames.

    A pixel's flow is where what is seen there lies in the other frame: pixel + flow, x and y in
    pixels.
    """

    frames: Tensor  # (B, T, 3, H, W) float32 in [0, 1]
    backward: Tensor  # (B, T - 1, 2, H, W) float32: [:, i] leads from frame i to frame i + 1
    forward: Tensor  # (B, T - 1, 2, H, W) float32: [:, i] leads from frame i + 1 to frame i
    names: list[str]  # of each clip, the photograph

    def flows(self, scale: int = 1) -> tuple[Tensor, Tensor]:
        """(backward, forward) of the clips reduced `scale` times, (B, T - 1, 2, H/scale, W/scale).

        Block means, in the smaller pixels.
        """
        scale = check_int(scale, "scale", 1)
        height, width = self.frames.shape[-2:]
        if height % scale or width % scale:
            raise ValueError(f"scale={scale} does not divide the frames' {height} x {width} pixels")
        both = (self.backward, self.forward)
        small = [F.avg_pool2d(flow.flatten(0, 1), scale).div(scale) for flow in both]
        shape = self.backward.shape[:2]
        return small[0].unflatten(0, shape), small[1].unflatten(0, shape)


def split_names(split: str) -> list[str]:
    """Photographs of "train", "test" or "all". No photograph is in both."""
    if check_split(split) == "test":
        return background_names("test")
    apart = background_names("test") if split == "train" else []
    return [row["name"] for row in assets.photo_table() if row["name"] not in apart]


def clip_frames(split: str = "all", multiple: int = 16, device: Any = None) -> Tensor:
    """Frames of the shipped clip (assets.clip), (T, 3, H, W) float32 in [0, 1].

    Args:
        split: "train" is its first 24, "test" its last 20, "all" 48.
        multiple: the middle is cut out so that H and W are multiples of it: 96 x 192 for 16 (x4 on
            tokens of 4 pixels).
        device: where they are; None: the CPU.
    """
    check_split(split)
    multiple = check_int(multiple, "multiple", 1)
    frames = assets.clip(device)[0][CLIP[split]]
    whole = frames.shape[-2:]
    height, width = (side // multiple * multiple for side in whole)
    if not height or not width:
        raise ValueError(f"multiple={multiple}: the clip has {whole[0]} x {whole[1]} pixels")
    top, left = (whole[0] - height) // 2, (whole[1] - width) // 2
    return frames[..., top : top + height, left : left + width].contiguous()


def shot_frames(split: str = "test", device: Any = None) -> Tensor:
    """Real video at its own resolution (assets.shots), 25 frames a second, float32 in [0, 1].

    "train" is its first shot, (32, 3, 192, 256), "test" its second, (24, 3, 192, 256), of other
    towers.
    """
    return assets.shots(device)[one_of(split, "split", ("train", "test")) == "test"]


def _source(name: str, shrink: float) -> Tensor:
    """A photograph, (3, h, w), made `shrink` times smaller with antialiasing; to be read only."""

    def make() -> Tensor:
        photo = assets.photo(name)
        if shrink == 1:
            return photo
        size = [round(side / shrink) for side in photo.shape[-2:]]
        return F.interpolate(
            photo[None], size=size, mode="bicubic", align_corners=False, antialias=True
        )[0].clamp(0, 1)

    return SOURCES.get((name, shrink), make)


@dataclass
class View:
    """A camera over a flat picture: pixel p, seen from the middle, shows matrix p + shift."""

    matrix: Tensor  # (B, T, 2, 2) float64
    shift: Tensor  # (B, T, 2) float64, in pixels of the picture

    @classmethod
    def similarity(cls, place: Tensor, zoom: Tensor, angle: Tensor) -> "View":
        """Of a camera that only moves, zooms and turns.

        Args:
            place: (B, T, 2), where it looks, x and y in pixels of the picture.
            zoom: (B, T), above 1: closer.
            angle: (B, T), its turn in degrees.
        """
        theta = angle.mul(math.pi / 180)
        cos, sin = theta.cos() / zoom, theta.sin() / zoom
        rows = [torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)]
        return cls(torch.stack(rows, -2), place)

    def flow(self, here: slice, there: slice, pixels: Tensor) -> Tensor:
        """Exact flow (B, T - 1, 2, H, W) float64 from frames `here` to frames `there`.

        Args:
            here: T - 1 frames.
            there: as many.
            pixels: (H, W, 2), seen from the middle.
        """
        turned = torch.einsum("btij,hwj->bthwi", self.matrix[:, here], pixels)
        seen = turned + self.shift[:, here, None, None]
        offset = seen - self.shift[:, there, None, None]
        back = torch.linalg.inv(self.matrix[:, there])
        goal = torch.einsum("btij,bthwj->bthwi", back, offset)
        return (goal - pixels).movedim(-1, 2)

    def frames(self, b: int, picture: Tensor, room: Tensor, pixels: Tensor) -> Tensor:
        """(T, 3, H, W): what camera b sees of a picture, sampled bicubically.

        Args:
            b: which camera.
            picture: (3, h, w).
            room: (2,) its width and height.
            pixels: (H, W, 2), seen from the middle.
        """
        at = torch.einsum("tij,hwj->thwi", self.matrix[b], pixels) + self.shift[b][:, None, None]
        at = (at / room * 2 - 1).float()
        pictures = picture.expand(len(at), -1, -1, -1)
        return F.grid_sample(
            pictures, at, mode="bicubic", padding_mode="reflection", align_corners=False
        )


@dataclass
class Motion:
    """What is drawn for each of B clips of `panned`."""

    which: list[int]  # index into the photographs
    mirrored: list[bool]
    factor: list[float]  # how much smaller the photograph is made
    step: Tensor  # (B, 2) float64: the camera's, x and y in pixels a frame
    growth: Tensor  # (B, 1) float64: of the logarithm of its zoom a frame
    spin: Tensor  # (B, 1) float64: degrees a frame
    start: Tensor  # (B, 2) float64 in [0, 1): where it begins, of the room there is


def draw_motion(generator, batch, count, speed, zoom, turn, shrink, velocity) -> Motion:
    """Random choices of `panned`.

    Args:
        generator: decides.
        batch: B.
        count: how many photographs there are.
        speed: pixels a frame, (least, most).
        zoom: growth of the zoom's logarithm a frame, at most, either way.
        turn: degrees a frame, at most, either way.
        shrink: how much smaller a photograph is made first, a float or (least, most).
        velocity: instead of speed one (x, y) in pixels a frame, or None; nothing is mirrored then.
    """
    which = below(count, (batch,), generator).tolist()
    mirrored = [False] * batch
    if velocity is None:
        mirrored = (unit((batch,), generator) < 0.5).tolist()
    if isinstance(shrink, float):
        factor = [shrink] * batch
    else:
        factor = [round(f, 1) for f in uniform((batch,), shrink, generator).tolist()]
    heading = uniform((batch,), (0, 2 * math.pi), generator).double()
    pace = uniform((batch,), speed, generator).double()
    step = torch.stack([heading.cos() * pace, heading.sin() * pace], -1)
    if velocity is not None:
        step = torch.tensor([velocity] * batch, dtype=torch.float32, device="cpu").double()
    growth = uniform((batch, 1), (-zoom, zoom), generator).double()
    spin = uniform((batch, 1), (-turn, turn), generator).double()
    start = unit((batch, 2), generator).double()
    return Motion(which, mirrored, factor, step, growth, spin, start)


@one_thread()
def panned(
    batch: int,
    frames: int,
    size: Any,
    seed: int,
    split: str = "train",
    speed: Any = (0.5, 4.0),
    zoom: float = 0.0,
    turn: float = 0.0,
    shrink: Any = (1.0, 1.5),
    names: Any = None,
    velocity: Any = None,
    device: Any = None,
) -> Footage:
    """Photographs that a camera moves across, `Footage` with exact flow.

    Paths turn back at the photograph's border. Each frame is sampled bicubically, so that motion by
    whole pixels at shrink 1 copies pixels.

    Args:
        batch: B.
        frames: T.
        size: of the frames, an int or (H, W).
        seed: decides.
        split: whose photographs, "train", "test" or "all".
        speed: pixels a frame, (least, most), in any direction.
        zoom: growth a frame, at most, either way.
        turn: degrees a frame, at most, either way.
        shrink: how much smaller the photograph is made first, (least, most) or one number; a larger
            one is sharper.
        names: which photographs to draw from (default: all of the split).
        velocity: instead of speed one (x, y), the motion of the *camera* in pixels a frame; the
            picture moves the other way.
        device: where the result is; None: the CPU.

    ValueError when a frame does not fit into a photograph.
    """
    batch, frames = check_int(batch, "batch", 1), check_int(frames, "frames", 1)
    size, device = image_size(size), as_device(device)
    pool = _pool(split, names)
    speed = bounds(speed, "speed", 0, FASTEST)
    zoom, turn = check_number(zoom, "zoom", 0, 10), check_number(turn, "turn", 0, 360)
    shrink, velocity = _shrink(shrink), _velocity(velocity)
    motion = draw_motion(seeded(seed), batch, len(pool), speed, zoom, turn, shrink, velocity)
    chosen = [pool[k] for k in motion.which]
    sources = [_source(name, f) for name, f in zip(chosen, motion.factor, strict=True)]
    room = torch.tensor([[s.shape[2], s.shape[1]] for s in sources], device="cpu").double()
    time = torch.arange(frames, dtype=torch.float64, device="cpu") - (frames - 1) / 2
    magnify, angle = torch.exp(motion.growth * time), motion.spin * time                      # b t
    half = [math.hypot(*size) / 2] * 2 if turn else [size[1] / 2, size[0] / 2]
    reach = torch.tensor(half, dtype=torch.float32, device="cpu").double()
    reach = reach / magnify.amin(1, keepdim=True)                                             # b 2
    given = f"size={size}: with zoom={zoom}, turn={turn}, shrink={shrink}"
    check_room(reach, room, chosen, given)
    place = _path(motion, reach, room, frames, whole=not (zoom or turn))
    view = View.similarity(place, magnify, angle)
    middle = torch.tensor([size[1] / 2, size[0] / 2], dtype=torch.float64, device="cpu")
    pixels = pixel_middles(*size, "cpu").double() - middle                                  # h w 2
    images = []
    for b, source in enumerate(sources):
        source = source.flip(-1) if motion.mirrored[b] else source
        images.append(view.frames(b, source, room[b], pixels))
    early, late = slice(0, frames - 1), slice(1, frames)
    pairs = ((early, late), (late, early))
    flows = [view.flow(*pair, pixels).float().to(device) for pair in pairs]
    return Footage(torch.stack(images).clamp_(0, 1).to(device), *flows, chosen)


def _path(motion: Motion, reach: Tensor, room: Tensor, frames: int, whole: bool) -> Tensor:
    """(B, T, 2) float64: where the camera's middle is, in pixels of the photographs.

    Args:
        motion: of the B cameras.
        reach: (B, 2) how far a frame extends from its middle.
        room: (B, 2) width and height of the photographs.
        frames: T.
        whole: begin at whole pixels: motion by whole pixels then copies pixels.
    """
    offset = motion.start * (room - 2 * reach)
    begin = reach + (offset.floor() if whole else offset)
    time = torch.arange(frames, dtype=torch.float64, device="cpu")[:, None]
    straight = begin[:, None] + motion.step[:, None] * time
    return fold(straight, reach[:, None], (room - reach)[:, None])


def check_room(reach: Tensor, room: Tensor, names: list[str], given: str) -> None:
    """Raise where a frame does not fit into its photograph.

    Args:
        reach: (B, 2) how far a frame extends from its middle.
        room: (B, 2) width and height of the photographs.
        names: of the photographs.
        given: what was asked for.
    """
    for name, extent, (width, height) in zip(names, reach, room.tolist(), strict=True):
        if 2 * extent[0] > width or 2 * extent[1] > height:
            there = f"{name!r} ({int(height)} x {int(width)} pixels)"
            raise ValueError(f"{given} a frame does not fit into {there}")


def _pool(split: str, names: Any) -> list[str]:
    """The photographs to draw from."""
    there = split_names(split)
    if names is None:
        return there
    names = assets.check_photos(names)
    if not names:
        raise ValueError("names is empty: needs at least one photograph")
    return names


def _shrink(shrink: Any) -> float | tuple[float, float]:
    """One number or (least, most)."""
    low, high = bounds(shrink, "shrink", 0.05, 100)
    return (low, high) if is_several(shrink) else low


def _velocity(velocity: Any) -> list[float] | None:
    """(x, y) or None."""
    if velocity is None:
        return None
    pair = check_list(velocity, "velocity", "(x, y) in pixels a frame")
    if len(pair) != 2:
        raise ValueError(f"velocity={velocity!r}: needs (x, y) in pixels a frame")
    return [check_number(value, "velocity", -FASTEST, FASTEST) for value in pair]


def pictograms(world, batch: int, frames: int, seed: int, **options: Any) -> Footage:
    """Videos of an EmojiWorld as `Footage`: flow both ways.

    Args:
        world: an EmojiWorld.
        batch: B.
        frames: T.
        seed: decides.
        options: those of `EmojiWorld.video`.
    """
    if not isinstance(world, EmojiWorld):
        raise ValueError(f"world is {describe(world)} but needs to be an EmojiWorld")
    video = world.video(batch, frames, seed, **options)
    names = [video.photos[k] for k in video.photo.tolist()]
    return Footage(video.frames, video.flow, reverse_flow(video), names)


@one_thread()
def reverse_flow(video) -> Tensor:
    """True flow of an EmojiWorld video from each frame to the one before it, (B, T - 1, 2, H, W).

    [:, i] leads from frame i + 1 to frame i.
    """
    if not isinstance(video, Video):
        raise ValueError(f"video is {describe(video)} but needs to be a Video")
    backwards = (f.flip(1) for f in (video.trajectory, video.side, video.angle, video.camera))
    centre, side, angle, camera = backwards
    used = torch.where(side > 0, side, torch.ones_like(side))        # unused slots have no size
    paths = Paths(centre, used, angle)
    flow, _ = video_flow(video.instance.flip(1), paths, Camera(camera[..., 1:], camera[..., :1]))
    return flow.flip(1)
