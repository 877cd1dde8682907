"""The image-text encoder that the repository ships, and the pictures with captions it learned from.

    encoder = image_text_emoji()
    seen = pictures(world("test"), 64, seed=1)
    encoder(seen.images, seen.captions)                                  (64, 64)
    encoder.text_vectors(["red apple", "cactus"])                        (2, 64)

It knows the pictograms of some sub-categories and those of EASY and SILENT. NEW ones were kept from
it, each made of words that others taught it: it saw blue books and orange hearts, and no orange
book.
"""

import random
from typing import NamedTuple

import torch
from torch import Tensor

from .. import checkpoints, data
from ..data import pictograms
from ..data.questions import article
from ..nn.checks import check_int
from .image_text import ImageText, emoji_encoder, split_words

SUBCATEGORIES = (
    "food-fruit", "food-vegetable", "animal-bird", "animal-marine", "animal-bug", "plant-flower",
    "musical-instrument", "geometric",
)
COLOURS = ("pink", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white")
MORE = (*(f"{colour} heart" for colour in COLOURS), "closed book", "open book", "green book",
        "blue book", "orange book")
SILENT = ("penguin", "crab", "honeybee", "owl", "banana", "strawberry", "birthday cake", "bus",
          "airplane", "sailboat", "balloon", "christmas tree")
NEW = (
    "green heart", "blue heart", "purple heart", "large red circle", "large yellow circle",
    "large blue square", "large green square", "large blue diamond", "orange book", "green apple",
)
"""Pictograms it has never seen, made of words it knows."""
SIZE, OBJECTS, SCALE = 64, (1, 2), (0.35, 0.75)
GENERAL = 0.15
"""Share of objects that captions call by their sub-category, "food fruit"."""


def trained() -> list[str]:
    """Names of the pictograms that it was trained on."""
    table = pictograms.table()
    chosen = [row["name"] for row in table if row["subcategory"] in SUBCATEGORIES]
    names = dict.fromkeys([*data.EASY, *SILENT, *MORE, *chosen])
    return [name for name in names if name not in NEW]


def vocabulary() -> list[str]:
    """The words of their names and sub-categories, and of captions, sorted."""
    rows = [pictograms.table()[pictograms.pictogram(name)] for name in trained()]
    texts = [row["name"] for row in rows] + [kind(row) for row in rows] + ["a an and"]
    return sorted({word for text in texts for word in split_words(text)})


def kind(row: dict) -> str:
    """A pictogram's sub-category as captions say it, "food fruit"."""
    return " ".join(split_words(row["subcategory"]))


def world(split: str = "train", names: list[str] | None = None, size: int = SIZE):
    """An EmojiWorld of those pictograms by one artist; splits differ in their backgrounds.

    Args:
        split: "train" or "test".
        names: of pictograms; None: `trained()`.
        size: of the pictures.
    """
    return data.EmojiWorld(size, split, pictograms=names or trained())


class Pictures(NamedTuple):
    """images (B, 3, S, S) and a caption each, "a red apple and a food fruit"."""

    images: Tensor
    captions: list[str]
    scenes: data.Scenes


def pictures(source: data.EmojiWorld, batch: int, seed: int, general: float = GENERAL) -> Pictures:
    """Pictures of one or two pictograms with captions, from left to right.

    Args:
        source: `world(...)`.
        batch: how many.
        seed: of the draw.
        general: probability that an object is called by its sub-category.
    """
    scenes = source.scenes(
        check_int(batch, "batch", 1), seed, objects=OBJECTS, scale=SCALE, rotation=20, repeat=0,
        occlusion="none",
    )
    rng = random.Random(seed)
    table, rows = pictograms.table(), scenes.table.tolist()
    captions = []
    for valid, which, centre in zip(
        scenes.valid.tolist(), scenes.pictogram.tolist(), scenes.centre.tolist(), strict=True
    ):
        there = [(centre[k][0], which[k]) for k in range(len(valid)) if valid[k]]
        known = [table[rows[pictogram]] for _, pictogram in sorted(there)]
        names = [kind(row) if rng.random() < general else row["name"] for row in known]
        captions.append(" and ".join(article(name) for name in names))
    return Pictures(scenes.images, captions, scenes)


def image_text_emoji(device: torch.device | str | None = None) -> ImageText:
    """The shipped `ImageText`: patches of 8 pixels, 64 joint channels, images in [0, 1].

    `checkpoints.info("image_text_emoji")["score"]` says what it can do (data/README.md).
    """
    return checkpoints.load("image_text_emoji", emoji_encoder, device)
