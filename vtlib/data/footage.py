"""Real footage for video super-resolution: the shipped video by split, small and at its own resolution, and
photographs that a camera pans, zooms and turns across by exactly
known sub-pixel motion, with their true flow. Pictograms moving over photographs (EmojiWorld) come in the same form, with flow both ways.

    footage = panned(batch=4, frames=7, size=96, seed=0, split="test")
    frames, (backward, forward) = footage.frames, footage.flows(scale=4)         # flows of the clip at a quarter of its size

Train and test photographs are apart: "test" are the test backgrounds of EmojiWorld; "train" all others, also those that are no background.
"""

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vtlib.data import assets
from vtlib.data.backgrounds import names as background_names
from vtlib.data.scenes import uniform
from vtlib.data.video import fold, forward_flow

SPLITS = ("train", "test", "all")
CLIP = {"train": slice(0, 24), "test": slice(28, 48), "all": slice(0, 48)}  # four frames lie between the two


@dataclass
class Footage:
    """B clips of T frames. A pixel's flow is where what is seen there lies in the other frame: pixel + flow, x and y in pixels."""

    frames: Tensor  # (B, T, 3, H, W) float32 in [0, 1]
    backward: Tensor  # (B, T - 1, 2, H, W): [:, i] leads from frame i to frame i + 1
    forward: Tensor  # (B, T - 1, 2, H, W): [:, i] leads from frame i + 1 to frame i
    names: list[str]  # of each clip, the photograph

    def flows(self, scale: int = 1) -> tuple[Tensor, Tensor]:
        """(backward, forward) of the same clips reduced `scale` times: block means, in the smaller pixels. (B, T - 1, 2, H/scale, W/scale)."""
        if self.frames.shape[-2] % scale or self.frames.shape[-1] % scale:
            raise ValueError(f"scale={scale} does not divide the frames' {self.frames.shape[-2]} x {self.frames.shape[-1]} pixels")
        return tuple(F.avg_pool2d(f.flatten(0, 1), scale).div(scale).unflatten(0, f.shape[:2]) for f in (self.backward, self.forward))


def split_names(split: str) -> list[str]:
    """Photographs of "train", "test" or "all". No photograph is in both."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: needs one of {', '.join(SPLITS)}")
    test = background_names("test")
    every = [row["name"] for row in assets.photo_table()]
    return {"test": test, "all": every, "train": [n for n in every if n not in test]}[split]


def clip_frames(split: str = "all", multiple: int = 16, device=None) -> Tensor:
    """Frames of the shipped clip (assets.clip), (T, 3, H, W) float32 in [0, 1]: "train" its first 24, "test" its last 20, "all" 48.

    The middle is cut out so that H and W are multiples of `multiple`: 96 x 192 for 16 (x4 on tokens of 4 pixels).
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: needs one of {', '.join(SPLITS)}")
    frames = assets.clip(device)[0][CLIP[split]]
    height, width = (s // multiple * multiple for s in frames.shape[-2:])
    if multiple < 1 or not height or not width:
        raise ValueError(f"multiple={multiple}: the clip has {frames.shape[-2]} x {frames.shape[-1]} pixels")
    top, left = (frames.shape[-2] - height) // 2, (frames.shape[-1] - width) // 2
    return frames[..., top : top + height, left : left + width].contiguous()


def shot_frames(split: str = "test", device=None) -> Tensor:
    """Real video at its own resolution (assets.shots), (T, 3, 192, 256) float32 in [0, 1], 25 frames a second: "train" is its first shot, 32 frames,
    "test" its second, 24 frames of other towers."""
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r}: needs train or test")
    return assets.shots(device)[split == "test"]


@functools.lru_cache(maxsize=64)
def _source(name: str, shrink: float) -> Tensor:
    """A photograph, (3, h, w), made `shrink` times smaller with antialiasing."""
    photo = assets.photographs(names=[name])[name]
    if shrink == 1:
        return photo
    size = [round(s / shrink) for s in photo.shape[-2:]]
    return F.interpolate(photo[None], size=size, mode="bicubic", align_corners=False, antialias=True)[0].clamp(0, 1)


def similarity(place: Tensor, zoom: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Camera -> matrix (..., 2, 2) and shift (..., 2): a pixel p, seen from the frame's middle, shows the photograph's matrix p + shift."""
    cos, sin = angle.mul(math.pi / 180).cos() / zoom, angle.mul(math.pi / 180).sin() / zoom
    return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2), place


def flow_between(matrix: Tensor, shift: Tensor, here: slice, there: slice, pixels: Tensor) -> Tensor:
    """Exact flow (B, T - 1, 2, H, W) from frames `here` to frames `there` of one rigid picture; pixels (H, W, 2), seen from the middle."""
    seen = torch.einsum("btij,hwj->bthwi", matrix[:, here], pixels) + shift[:, here, None, None]
    goal = torch.einsum("btij,bthwj->bthwi", torch.linalg.inv(matrix[:, there]), seen - shift[:, there, None, None])
    return (goal - pixels).movedim(-1, 2)


def panned(batch: int, frames: int, size, seed: int, split: str = "train", speed=(0.5, 4.0), zoom: float = 0.0, turn: float = 0.0,
           shrink=(1.0, 1.5), names=None, velocity=None, device=None) -> Footage:
    """Photographs that a camera moves across, `Footage` with exact flow.

    size: an int or (H, W), of the frames. speed: pixels a frame, (least, most), in any direction; velocity: instead one (x, y), the motion of
    the *camera* in pixels a frame (the picture moves the other way). zoom: growth a frame, at most, either way. turn: degrees a frame, at
    most, either way. shrink: how much smaller the photograph is made first, (least, most) or one number: larger is sharper. names: which
    photographs to draw from (default: all of the split). Paths turn back at the photograph's border. Each frame is sampled bicubically, so that
    motion by whole pixels at shrink 1 copies pixels. Deterministic from `seed`. ValueError when a frame does not fit into a photograph.
    """
    height, width = assets.image_size(size)
    pool = split_names(split) if names is None else list(names)
    for what, value in (("batch", batch), ("frames", frames)):
        if value < 1:
            raise ValueError(f"{what}={value} must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(len(pool), (batch,), generator=generator).tolist()
    mirrored = torch.rand(batch, generator=generator) < 0.5 if velocity is None else torch.zeros(batch, dtype=torch.bool)
    factor = [shrink] * batch if isinstance(shrink, (int, float)) else [round(s, 1) for s in uniform((batch,), shrink, generator).tolist()]
    time = torch.arange(frames, dtype=torch.float64)
    heading, pace = uniform((batch,), (0, 2 * math.pi), generator).double(), uniform((batch,), speed, generator).double()
    step = torch.stack([heading.cos() * pace, heading.sin() * pace], -1) if velocity is None else torch.tensor([velocity] * batch).double()
    growth, spin = uniform((batch, 1), (-zoom, zoom), generator).double(), uniform((batch, 1), (-turn, turn), generator).double()
    start = torch.rand(batch, 2, generator=generator).double()

    magnify = torch.exp(growth * (time - (frames - 1) / 2))                      # b t
    angle = spin * (time - (frames - 1) / 2)
    corner = math.hypot(height, width) / 2 if turn else None
    reach = torch.tensor([corner or width / 2, corner or height / 2]).double() / magnify.amin(1, keepdim=True)    # b 2
    sources = [_source(pool[k], f) for k, f in zip(which, factor)]
    room = torch.tensor([[s.shape[-1], s.shape[-2]] for s in sources]).double()
    for name, r, space in zip((pool[k] for k in which), reach, room):
        if (2 * r > space).any():
            raise ValueError(f"size={(height, width)}: with zoom={zoom}, turn={turn}, shrink={shrink} a frame does not fit into {name!r} "
                             f"({int(space[1])} x {int(space[0])} pixels)")
    offset = start * (room - 2 * reach)
    begin = reach + (offset if zoom or turn else offset.floor())                 # from whole pixels: motion by whole pixels then copies pixels
    path = fold(begin[:, None] + step[:, None] * time[:, None], reach[:, None], (room - reach)[:, None])          # b t 2
    matrix, shift = similarity(path, magnify, angle)

    y, x = torch.meshgrid(torch.arange(height).double() + 0.5 - height / 2, torch.arange(width).double() + 0.5 - width / 2, indexing="ij")
    pixels = torch.stack([x, y], -1)                                             # h w 2
    images = []
    for b, source in enumerate(sources):
        source = source.flip(-1) if mirrored[b] else source
        at = torch.einsum("tij,hwj->thwi", matrix[b], pixels) + shift[b][:, None, None]
        at = (at / room[b] * 2 - 1).float()
        images.append(F.grid_sample(source.expand(frames, -1, -1, -1), at, mode="bicubic", padding_mode="reflection", align_corners=False))
    early, late = slice(0, frames - 1), slice(1, frames)
    flows = [flow_between(matrix, shift, *pair, pixels).float().to(device) for pair in ((early, late), (late, early))]
    return Footage(torch.stack(images).clamp_(0, 1).to(device), *flows, [pool[k] for k in which])


def pictograms(world, batch: int, frames: int, seed: int, **options) -> Footage:
    """Videos of an EmojiWorld as `Footage`: flow both ways. options: those of `EmojiWorld.video`."""
    video = world.video(batch, frames, seed, **options)
    return Footage(video.frames, video.flow, reverse_flow(video), [video.photos[k] for k in video.photo.tolist()])


def reverse_flow(video) -> Tensor:
    """True flow of an EmojiWorld video from each frame to the one before it, (B, T - 1, 2, H, W): [:, i] leads from frame i + 1 to frame i."""
    b, t = video.frames.shape[:2]
    height, width = video.frames.shape[-2:]
    magnify, place = video.camera[..., :1].flip(1), video.camera[..., 1:].flip(1)                                 # the video run backwards
    centre, sides, angles = (f.flip(1) for f in (video.trajectory, video.side, video.angle))
    middle = torch.tensor([width, height], device=place.device).float() / 2
    shift = magnify[:, 1:] * (place[:, :-1] - place[:, 1:])
    here = torch.cat([middle.expand(b, t - 1, 1, 2), centre[:, :-1]], 2)
    there = torch.cat([(middle + shift)[:, :, None], centre[:, 1:]], 2)
    used = torch.where(sides > 0, sides, torch.ones_like(sides))                 # unused slots have no size
    ratio = torch.cat([magnify[:, 1:] / magnify[:, :-1], used[:, 1:] / used[:, :-1]], 2)
    spin = torch.cat([torch.zeros(b, t - 1, 1, device=place.device), angles[:, 1:] - angles[:, :-1]], 2)
    return forward_flow(video.instance.flip(1), here, there, ratio, spin)[0].flip(1)
