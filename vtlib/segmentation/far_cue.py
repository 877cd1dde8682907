"""A task that only distance makes hard: an object takes the colour of a cue that may lie far away.

A map of zeros holds one object and one cue, a pixel each. The cue has one of K colours, the object
has none; the right answer at the object's pixel is the cue's colour. A net that cannot see as far
as the cue can only guess, so accuracy over distance says how far it sees.

`ScaleNet` answers with one scale of VWFormer and nothing else.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..nn.checks import check_generator, check_images, check_index, check_int
from .conv_module import ConvModule
from .vwformer import (
    PADDINGS,
    VWA,
    choice,
    embed_densely,
    folded_contexts,
    merge_windows,
    query_windows,
)


class Cues(NamedTuple):
    """B maps with an object and a cue each."""

    maps: Tensor  # (B, K + 2, h, w): K colours, "cue", "object"
    colour: Tensor  # (B,) long
    place: Tensor  # (B, 2) long: row and column of the object
    distance: Tensor  # (B,) long: Chebyshev distance of the cue


def far_cues(
    batch: int, generator: torch.Generator, size: int = 16, num_colours: int = 4
) -> Cues:
    """Random maps: a distance d is drawn with a chance in proportion to 1 / d, then the places.

    So each of 1, 2-3, 4-7, 8-15 is about equally likely, and a net that sees little has something
    to learn from.

    Args:
        batch: B.
        generator: decides.
        size: side of the map.
        num_colours: K.
    """
    batch, size = check_int(batch, "batch", 1), check_int(size, "size", 2)
    num_colours = check_int(num_colours, "num_colours", 1)
    check_generator(generator)
    line = torch.arange(size, device="cpu")
    apart = (line[:, None] - line).abs()                                             # s s
    apart = torch.maximum(apart[:, None, :, None], apart[None, :, None, :])          # y x v u
    apart = apart.flatten()
    count = apart.bincount()
    weight = torch.where(apart > 0, 1.0 / (apart * count[apart]), 0.0)
    drawn = torch.multinomial(weight.double(), batch, replacement=True, generator=generator)
    own, cue = drawn // size**2, drawn % size**2
    colour = torch.randint(num_colours, (batch,), generator=generator)
    rows = torch.arange(batch, device="cpu")
    flat = torch.zeros(batch, num_colours + 2, size * size, device="cpu")
    flat[rows, colour, cue] = 1.0
    flat[rows, num_colours, cue] = 1.0
    flat[rows, num_colours + 1, own] = 1.0
    place = torch.stack([own // size, own % size], dim=1)
    return Cues(flat.unflatten(2, (size, size)), colour, place, apart[drawn])


def at_place(scores: Tensor, place: Tensor) -> Tensor:
    """(B, K, h, w) and (B, 2) -> the scores at each map's place, (B, K)."""
    check_images(scores, None, "scores")
    check_index(place, "place", "(B, 2)", (len(scores), 2))
    return scores[torch.arange(len(place), device=place.device), :, place[:, 0], place[:, 1]]


class ScaleNet(nn.Module):
    """One scale of VWFormer between two pixel-wise layers: maps (B, D, h, w) -> (B, K, h, w).

    Args:
        in_channels: D.
        num_classes: K.
        ratio: R; 1 is local window attention.
        channels: C, a multiple of R^2.
        num_windows: on each side of the map.
        padding: "copy_shift" or "zeros".
    """

    def __init__(
        self,
        in_channels: int = 6,
        num_classes: int = 4,
        ratio: int = 2,
        channels: int = 64,
        num_windows: int = 8,
        padding: str = "copy_shift",
    ) -> None:
        super().__init__()
        self.num_windows = check_int(num_windows, "num_windows", 1)
        self.ratio = check_int(ratio, "ratio", 1, self.num_windows)
        channels = check_int(channels, "channels", 1)
        if channels % self.ratio**2:
            raise ValueError(f"channels={channels}: needs a multiple of R^2={self.ratio**2}")
        num_classes = check_int(num_classes, "num_classes", 1)
        self.padding = choice(padding, "padding", PADDINGS)
        self.stem = ConvModule(in_channels, channels)
        self.ds = ConvModule(channels, channels // self.ratio**2, self.ratio)
        self.attn = VWA(channels)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)
        nn.init.ones_(self.attn.conv_out.get_parameter("bn.weight"))

    def forward(self, maps: Tensor, return_attn: bool = False):
        """Scores; with return_attn also the weights (B * 64, 1, P^2, P^2)."""
        x = self.stem(maps)
        small = embed_densely(x, self.ds, self.ratio)
        context = folded_contexts(small, self.ratio, self.num_windows, self.padding)
        query = query_windows(x, self.num_windows)
        out, attn = self.attn(query, context, return_attn=True)
        scores = self.conv_seg(x + merge_windows(out, self.num_windows))
        return (scores, attn) if return_attn else scores
