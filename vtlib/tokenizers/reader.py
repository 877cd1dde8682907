"""A reader that the course can ship: each letter is the template that it looks like most.

    read = TemplateReader()
    pictures = EmojiWorld(128, "test").text(64, seed=0, height=(8, 24))
    read(crops)                                 # crops of the plates -> one string a crop

It knows one typeface, DejaVu Sans Mono of `vtlib.data.text`, and that letters stand side by side,
equally wide, on a plate of known margins; how many there are it finds from the crop's sides. That
is far less than a recogniser knows (`vtlib.hub.ocr` is one), and enough to ask whether a word is
still legible: a crop goes in, no box of a letter and no ground truth. What is small it misreads
even where nothing was lost, as every reader does.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import text
from ..nn.checks import check_flag, check_float, check_list, check_number

CELL = (28, 14)
"""Rows and columns that a letter is compared in."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
PLAIN = "ABCDEFHKLMNPRTUVXYZ23479"
"""Letters and digits of which no two are nearly alike: for words whose only trouble is size."""


class TemplateReader:
    """Reads crops of words: a list of (3, h, w) in [0, 1] -> a list of strings.

    Args:
        alphabet: the characters it may answer with.
        bold: the face it knows.
        tall: height of a crop in line heights; a plate of EmojiWorld has 1.15.
        margin: margins left and right together, in line heights; a plate has 0.5.

    ValueError for an alphabet that is empty or cannot be drawn, and for what are no crops.
    """

    def __init__(
        self,
        alphabet: str = LETTERS,
        bold: bool = True,
        tall: float = text.TALL,
        margin: float = text.MARGIN,
    ) -> None:
        if not isinstance(alphabet, str) or not alphabet.strip():
            raise ValueError(f"alphabet={alphabet!r}: needs a string of characters")
        self.alphabet = "".join(dict.fromkeys(alphabet.replace(" ", "")))
        self.tall = check_number(tall, "tall", 1)
        self.margin = check_number(margin, "margin", 0)
        ink = text.coverage(list(self.alphabet), check_flag(bold, "bold"))           # n 57 29
        self.advance = ink.shape[2] / ink.shape[1]
        self.templates = normalised(F.interpolate(ink[:, None], size=CELL, mode="area")[:, 0])

    def __call__(self, crops: Sequence[Tensor]) -> list[str]:
        return [self.read(crop) for crop in check_crops(crops)]

    def read(self, crop: Tensor) -> str:
        """The word of one crop (3, h, w): of all possible numbers of letters the likeliest."""
        best, word = -math.inf, ""
        for count in self.counts(crop):
            alike, place = self.compare(crop, count)
            if alike > best:
                best, word = alike, "".join(self.alphabet[i] for i in place)
        return word

    def lines(self, height: int) -> tuple[float, float]:
        """(least, most) line height of a crop so high; a plate's height was rounded up."""
        return max(height - 1, 1) / self.tall, height / self.tall

    def counts(self, crop: Tensor) -> range:
        """How many letters the crop may hold, from its sides alone: at least one."""
        height, width = crop.shape[1:]
        least, most = self.lines(height)
        fewest = math.ceil((width - 1 - self.margin * most) / (self.advance * most))
        largest = math.floor((width - self.margin * least) / (self.advance * least))
        fewest = max(fewest, 1)
        return range(fewest, max(largest, fewest) + 1)

    def cells(self, crop: Tensor, count: int) -> Tensor:
        """The crop cut into letters, (count, 28, 14): dark is 1. The word is in its middle."""
        height, width = crop.shape[1:]
        least, most = self.lines(height)
        line = (width - 0.5) / (self.advance * count + self.margin)
        line = min(max(line, least), most)
        dark = 1 - crop.mean(0)
        wide = self.advance * line
        y = (_middles(CELL[0], dark) - 0.5) * line / height * 2                      # of -1 ... 1
        start = torch.arange(count, device=dark.device, dtype=dark.dtype) - count / 2
        x = (start[:, None] + _middles(CELL[1], dark)) * wide / width * 2            # n 14
        grid = torch.stack([
            x[:, None, :].expand(-1, CELL[0], -1), y[None, :, None].expand(count, -1, CELL[1])
        ], dim=-1)  # fmt: skip
        source = dark[None, None].expand(count, -1, -1, -1)
        return F.grid_sample(source, grid, padding_mode="border", align_corners=False)[:, 0]

    def compare(self, crop: Tensor, count: int) -> tuple[float, list[int]]:
        """(mean cosine of the letters to their templates, place of each in the alphabet)."""
        seen = normalised(self.cells(crop, count)).flatten(1)
        templates = self.templates.to(seen)
        cosine, place = (seen @ templates.flatten(1).T).max(dim=1)                   # n
        return float(cosine.mean()), place.tolist()


def normalised(cells: Tensor) -> Tensor:
    """Letters (N, h, w) with mean 0 and length 1: contrast and brightness don't count."""
    cells = cells - cells.mean((1, 2), keepdim=True)
    return cells / cells.flatten(1).norm(dim=1)[:, None, None].clamp(min=1e-6)


def check_crops(crops: Any) -> list[Tensor]:
    """A list of crops (3, h, w), floats in [0, 1], none empty. ValueError otherwise."""
    crops = check_list(crops, "crops", "a list of crops (3, h, w)")
    for i, crop in enumerate(crops):
        check_float(crop, f"crops[{i}]")
        if crop.dim() != 3 or crop.shape[0] != 3 or 0 in crop.shape:
            raise ValueError(f"crops[{i}] has shape {tuple(crop.shape)}: needs (3, h, w)")
    return crops


def _middles(count: int, like: Tensor) -> Tensor:
    """(count,): the middles of so many equal parts of 0 ... 1."""
    return (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) / count
