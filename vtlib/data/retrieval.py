"""Retrieval: the same pictogram by two artists and at several scales, as one person is seen by two
cameras at several distances."""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import pictograms
from ._random import seeded, uniform
from .assets import ARTISTS
from .scenes import layout


@dataclass
class Retrieval:
    """N identities x 2 cameras (artists) x S scales, in this order, flattened to M pictures."""

    images: Tensor  # (M, 3, H, W) float32 in [0, 1]
    identity: Tensor  # (M,) long: 0 ... N - 1
    camera: Tensor  # (M,) long: 0 noto, 1 twemoji
    scale: Tensor  # (M,) float32: side of the drawing as a fraction of min(H, W)
    pictogram: Tensor  # (N,) long, index into `classes`
    classes: list[str]

    @property
    def query(self) -> Tensor:
        """(M,) bool: the first camera's pictures, at all scales; the others are the gallery."""
        return self.camera == 0


def make_retrieval(
    world, identities, seed, scales, rotation, background, device
) -> Retrieval:
    """What EmojiWorld.retrieval does once it has checked its numbers.

    Args:
        world: an EmojiWorld.
        identities: how many pictograms; ValueError if fewer of this world look different.
        seed: decides.
        scales: sides of the drawing as fractions of the picture's shorter side, a list.
        rotation: at most that many degrees either way.
        background: as in EmojiWorld.classify.
        device: where the result is; None: the CPU.
    """
    generator = seeded(seed)
    chosen = different(world.table, generator)
    if identities > len(chosen):
        there = f"this world has {len(chosen)} pictograms that look different"
        raise ValueError(f"identities={identities}: {there}")
    chosen = chosen[:identities]
    each = 2 * len(scales)
    identity = torch.arange(identities, device="cpu").repeat_interleave(each)
    camera = torch.arange(2, device="cpu").repeat_interleave(len(scales)).repeat(identities)
    scale = torch.tensor(scales, dtype=torch.float32, device="cpu").repeat(2 * identities)
    side = (scale * min(world.size))[:, None]
    angle = uniform(side.shape, (-rotation, rotation), generator)
    valid = torch.ones_like(side, dtype=torch.bool)
    centre = layout(valid, side, angle, world.size, 1, generator)
    drawn = (valid, chosen[identity][:, None], side, angle, centre)
    artist = camera[:, None]
    scenes = world._render(
        *drawn, background, generator, device, artist=artist, artists=ARTISTS
    )
    put = scenes.images.device
    fields = (field.to(put) for field in (identity, camera, scale, chosen))
    return Retrieval(scenes.images, *fields, list(world.classes))


def different(table: Tensor, generator: torch.Generator) -> Tensor:
    """Indices into `table`, shuffled: of pictograms that look the same, one."""
    looks = pictograms.twins()[table].tolist()
    first: dict[int, int] = {}
    for i in torch.randperm(len(looks), generator=generator, device="cpu").tolist():
        first.setdefault(looks[i], i)
    return torch.tensor(list(first.values()), device="cpu")
