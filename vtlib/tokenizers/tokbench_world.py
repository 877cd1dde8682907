"""What TokBench looks at, out of EmojiWorld: words on plates, and faces that are pictograms.

    words = refine(word_pictures(200, seed=0), TemplateReader())
    faces, identity = face_pictures(100, seed=0)
    score_text(codec, words, TemplateReader(), edges)
    score_faces(codec, faces, face_embedding(), edges, size=96)

A smiley's name stands for a person: the renderer knows where its eyes and its mouth are, whatever
its size and turn. The embedding is the course's own ViT. It was trained to tell 48 pictograms
apart, none of them a smiley, and what it makes of the middle of an aligned face tells them apart
too, once what all faces share is taken off: of 247 faces from 12 to 104 px in pictures of 128 px
that have a namesake among them, 93 % have it as their nearest (by the ViT's [CLS]: 48 %); where
each of two artists drew half of them, 77 %.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

from ..data import EmojiWorld, pictograms
from ..nn.checks import check_device, check_images
from ..vit import ViT, vit_emoji
from .tokbench import Faces, Words, align

FACES = (
    "face-smiling", "face-affection", "face-tongue", "face-neutral-skeptical", "face-sleepy",
    "face-unwell", "face-glasses", "face-concerned",
)  # fmt: skip
"""Sub-categories of faces that nothing hides: no hand before the mouth, no costume."""
FRAME = ((0.35, 0.42), (0.65, 0.42), (0.5, 0.55), (0.38, 0.7), (0.62, 0.7))
"""Eyes, nose and corners of the mouth as fractions of a drawing's side, from its left and top."""
SEEN = 0.95
"""A face counts when at least so much of it is visible."""
SIDE = 96
"""Pixels of an aligned face, the ViT's own size."""
BLOCKS, ROWS, COLUMNS = 4, slice(3, 10), slice(3, 9)
"""The embedding reads these patches (of 12 x 12) after so many blocks."""


@functools.cache
def face_names() -> tuple[str, ...]:
    """The 92 pictograms that are bare faces."""
    rows = pictograms.table()
    return tuple(row["name"] for row in rows if row["subcategory"] in FACES)


def word_pictures(
    batch: int,
    seed: int,
    size: Any = 128,
    height: Any = (6, 22),
    words: Any = None,
    split: str = "test",
    background: Any = "photo",
) -> Words:
    """Pictures with one word each on a plate, as `EmojiWorld.text` draws them.

    Args:
        batch: B.
        seed: decides.
        size: of the pictures, an int or (H, W).
        height: line height in pixels, a number or (smallest, largest).
        words: a list to draw from; None: those of `vtlib.data.text`.
        split: whose photographs are behind.
        background: as in `EmojiWorld.classify`.
    """
    world = EmojiWorld(size, split)
    pictures = world.text(batch, seed, words=words, height=height, background=background)
    return Words(pictures.images, pictures.words, pictures.boxes)


def face_pictures(
    batch: int,
    seed: int,
    size: Any = 128,
    scale: Any = (0.1, 0.9),
    objects: Any = (1, 3),
    rotation: float = 25,
    artist: str = "noto",
    split: str = "test",
) -> tuple[Faces, Tensor]:
    """Pictures with faces that hardly hide each other, and who each is: (N,) in `face_names`.

    Args:
        batch: B.
        seed: decides.
        size: of the pictures, an int or (H, W).
        scale: side of a face as a fraction of the shorter side: a number or (smallest, largest).
        objects: how many a picture, an int or (fewest, most).
        rotation: at most that many degrees either way.
        artist: "noto", "twemoji" or "both": two drawings of one person.
        split: whose photographs are behind.
    """
    world = EmojiWorld(size, split, artist, list(face_names()))
    scenes = world.scenes(batch, seed, objects, scale, rotation, repeat=0, occlusion="none")
    picture, slot = (scenes.valid & (scenes.visible >= SEEN)).nonzero(as_tuple=True)
    at = (picture, slot)
    side = scenes.scale[at] * min(scenes.size)
    points = key_points(scenes.centre[at], side, scenes.angle[at])
    return Faces(scenes.images, scenes.boxes[at], points, picture), scenes.pictogram[at]


def key_points(centre: Tensor, side: Tensor, angle: Tensor) -> Tensor:
    """(N, 5, 2): where `FRAME` is in the picture.

    Args:
        centre: (N, 2) of the drawings, x and y in pixels.
        side: (N,) in pixels.
        angle: (N,) in degrees, counter-clockwise on the screen.
    """
    offset = (centre.new_tensor(FRAME) - 0.5) * side[:, None, None]                  # n 5 2
    theta = angle[:, None] * (math.pi / 180)
    cos, sin = theta.cos(), theta.sin()
    x = cos * offset[..., 0] + sin * offset[..., 1]
    y = cos * offset[..., 1] - sin * offset[..., 0]
    return torch.stack([x, y], dim=-1) + centre[:, None]


class FaceEmbedding(nn.Module):
    """Aligned faces (N, 3, 96, 96) in [0, 1] -> (N, 42 * 128), the mean face taken off.

    Args:
        vit: with `feature_map`, for 96 pixels.
        known: aligned faces whose mean is what all faces share.
    """

    def __init__(self, vit: ViT, known: Tensor) -> None:
        super().__init__()
        self.vit = vit
        with torch.no_grad():
            self.register_buffer("mean", self.features(known).mean(0))

    def features(self, faces: Tensor) -> Tensor:
        """What the middle patches hold: (N, 42 * 128)."""
        check_images(faces, name="faces")
        if faces.shape[-2:] != (SIDE, SIDE):
            got = f"{faces.shape[-2]} x {faces.shape[-1]}"
            raise ValueError(f"faces are {got} pixels: needs {SIDE} x {SIDE}, align(..., {SIDE})")
        return self.vit.feature_map(faces, BLOCKS)[:, :, ROWS, COLUMNS].flatten(1)

    def forward(self, faces: Tensor) -> Tensor:
        return self.features(faces) - self.mean


def face_embedding(device: torch.device | str | None = None) -> FaceEmbedding:
    """The course's embedding of faces, in eval mode.

    Its mean is that of a hundred faces of a fixed seed. device: where it goes; None: the CPU.
    """
    faces, _ = face_pictures(64, seed=2024, scale=(0.3, 0.9), split="train")
    known = align(faces.images[faces.picture], faces.points, SIDE)
    vit, _ = vit_emoji()
    return FaceEmbedding(vit, known).eval().requires_grad_(False).to(check_device(device))
