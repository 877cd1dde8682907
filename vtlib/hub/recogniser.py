"""A real reader of words: the recogniser of PP-OCRv4, for TokBench and for a look at CTC.

    read = hub.ocr()                                   # needs what `make real` fetches
    read([crop])                                       # crops (3, h, w) in [0, 1] -> strings

PP-OCR (PaddleOCR, Apache-2.0) has a detector, which isn't needed where boxes are known, and this
recogniser of 2.69 M numbers, after SVTR - Scene Text Recognition with a Single Visual Model (Du et
al., IJCAI 2022, arXiv 2205.00159). A line 48 pixels high becomes a row of tokens, one for 8 columns
of pixels: convolutions, two layers of attention with 8 heads, and for each token 6,625 numbers, the
probabilities of 6,623 characters, of a blank in front of them and a space behind (CTC). A word is
what is left when neighbours that say the same are one and blanks are gone.

What is inside (`real("ppocr").look(lines)`): the maps of both layers of attention, (B, 8, T, T),
and the tokens, (B, T, 120).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.checks import check_float, check_images, check_list
from .onnx_graph import OnnxGraph
from .weights import real

HEIGHT, WIDTH, STEP = 48, 320, 32
"""A line's height in pixels, its least width, and what wider ones are a multiple of."""
BATCH = 16
"""So many lines are read at a time."""
INSIDE = ("softmax_9.tmp_0", "softmax_10.tmp_0", "transpose_51.tmp_0")
"""The nodes that `look` shows."""


class Look(NamedTuple):
    """What the recogniser computes on the way."""

    attention: tuple[Tensor, Tensor]  # (B, 8, T, T) each
    tokens: Tensor  # (B, T, 120)
    probabilities: Tensor  # (B, T, 6625)


class Recogniser(nn.Module):
    """Lines of text -> characters.

    Args:
        description: the graph and the alphabet, as `make real` wrote them.
    """

    def __init__(self, description: Mapping[str, Any]) -> None:
        super().__init__()
        self.graph = OnnxGraph(description["graph"])
        self.alphabet = ["", *description["alphabet"], " "]

    def forward(self, lines: Tensor) -> Tensor:
        """Probabilities (B, W / 8, 6625) of lines (B, 3, 48, W) in [0, 1], red first.

        What is no line but margin has to be the middle grey, 0.5. `prepare` makes lines of crops.
        """
        return self.graph(self._pixels(lines))

    def look(self, lines: Tensor) -> Look:
        """The same, and what is inside."""
        wanted = [*INSIDE, *self.graph.outputs]
        first, second, tokens, probabilities = self.graph.values(
            (self._pixels(lines),), wanted
        ).values()
        return Look((first, second), tokens, probabilities)

    def _pixels(self, lines: Tensor) -> Tensor:
        """Blue first, in [-1, 1], as it was trained."""
        check_images(lines, name="lines")
        if lines.shape[2] != HEIGHT:
            raise ValueError(f"lines are {lines.shape[2]} pixels high: needs {HEIGHT}")
        return lines.flip(1) * 2 - 1

    def decode(self, probabilities: Tensor) -> list[str]:
        """Greedy CTC: the likeliest of each token, repetitions once, without blanks.

        probabilities (B, T, 6625) -> B strings.
        """
        best = probabilities.argmax(dim=-1)                                          # b t
        fresh = torch.ones_like(best, dtype=torch.bool)
        fresh[:, 1:] = best[:, 1:] != best[:, :-1]
        shown = best.masked_fill(~fresh, 0).tolist()
        return ["".join(self.alphabet[place] for place in row) for row in shown]

    @torch.no_grad()
    def read(self, crops: Sequence[Tensor]) -> list[str]:
        """Crops (3, h, w) in [0, 1], of any sizes -> a string each; "" where nothing is read.

        What is read of one crop doesn't depend on the others. ValueError for what is no crop.
        """
        weight = next(self.parameters())
        lines = [prepare(crop).to(weight) for crop in check_list(crops, "crops", "a list of crops")]
        order = sorted(range(len(lines)), key=lambda i: lines[i].shape[2])
        said = [""] * len(lines)
        for group in _alike(order, lines):
            stack = torch.stack([lines[i] for i in group])
            for i, word in zip(group, self.decode(self(stack)), strict=True):
                said[i] = word
        return said


def prepare(crop: Tensor) -> Tensor:
    """A crop (3, h, w) as a line (3, 48, W): scaled to its height, grey behind its end.

    W is 320, or the next multiple of 32. Bilinear without antialias, as in PP-OCR.
    """
    check_float(crop, "crop")
    if crop.dim() != 3 or crop.shape[0] != 3 or 0 in crop.shape:
        raise ValueError(f"crop has shape {tuple(crop.shape)}: needs (3, h, w)")
    wide = math.ceil(HEIGHT * crop.shape[2] / crop.shape[1])
    line = F.interpolate(crop[None], size=(HEIGHT, wide), mode="bilinear", align_corners=False)[0]
    room = max(WIDTH, -(-wide // STEP) * STEP)
    return F.pad(line, (0, room - wide), value=0.5)


def _alike(order: list[int], lines: list[Tensor]) -> list[list[int]]:
    """Groups of lines of one width, none larger than a batch."""
    groups: list[list[int]] = []
    for i in order:
        last = groups[-1] if groups else []
        if last and len(last) < BATCH and lines[last[0]].shape == lines[i].shape:
            last.append(i)
        else:
            groups.append([i])
    return groups


def ocr(device: torch.device | str | None = None) -> Callable[[Sequence[Tensor]], list[str]]:
    """A reader: a list of crops (3, h, w) in [0, 1] -> a list of strings.

    device: where the net goes; None: the CPU. FileNotFoundError, in one line, without the weights.
    """
    return real("ppocr", device).read
