"""Retrieval: the same pictogram by two artists and at several scales, as one person is seen by two cameras at several distances."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vtlib.data import pictograms
from vtlib.data.assets import ARTISTS
from vtlib.data.scenes import layout, uniform


@dataclass
class Retrieval:
    """N identities x 2 cameras (artists) x S scales, in this order, flattened to M pictures."""

    images: Tensor  # (M, 3, H, W) float32 in [0, 1]
    identity: Tensor  # (M,) long: 0 ... N - 1
    camera: Tensor  # (M,) long: 0 noto, 1 twemoji
    scale: Tensor  # (M,) float: side of the drawing as a fraction of min(H, W)
    pictogram: Tensor  # (N,) long, index into `classes`
    classes: list[str]

    @property
    def query(self) -> Tensor:
        """(M,) bool: the first camera's pictures, at all scales; the others are the gallery."""
        return self.camera == 0


def make_retrieval(world, identities: int, seed: int, scales, rotation, background, device) -> Retrieval:
    """See EmojiWorld.retrieval."""
    generator = torch.Generator().manual_seed(seed)
    looks = pictograms.twins()[world.table]
    order = torch.randperm(len(looks), generator=generator)
    first = {}  # of pictograms that look the same, one
    for i in order.tolist():
        first.setdefault(int(looks[i]), i)
    if identities > len(first):
        raise ValueError(f"identities={identities}: this world has {len(first)} pictograms that look different")
    chosen = torch.tensor(list(first.values())[:identities])
    scale = torch.tensor(scales, dtype=torch.float32)
    identity = torch.arange(identities).repeat_interleave(2 * len(scales))
    camera = torch.arange(2).repeat_interleave(len(scales)).repeat(identities)
    size = scale.repeat(2 * identities)
    side = (size * min(world.size))[:, None]
    angle = uniform(side.shape, (-rotation, rotation), generator)
    valid = torch.ones_like(side, dtype=torch.bool)
    centre = layout(valid, side, angle, world.size, 1, generator)
    which = chosen[identity][:, None]
    scenes = world._render(
        valid, which, side, angle, centre, background, generator, device, artist=camera[:, None], artists=ARTISTS
    )
    put = scenes.images.device
    return Retrieval(scenes.images, identity.to(put), camera.to(put), size.to(put), chosen.to(put), world.classes)
