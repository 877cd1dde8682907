"""How far a pixel sees: windows and contexts drawn over pictures, and the attention of a crop."""

from collections.abc import Sequence

import ipywidgets
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from vtlib.segmentation.vwformer import context_windows
from vtlib.segmentation.vwformer_cost import multiply_adds
from vtlib.teach.figures import PALETTE, figure
from vtlib.teach.pictures import box, image, overlay
from vtlib.teach.widgets import Panel, panel

WINDOWS, CHANNELS = 8, 64
COLOURS = torch.tensor(
    [[0.16, 0.16, 0.16], [0.90, 0.62, 0.0], [0.34, 0.71, 0.91], [0.0, 0.62, 0.45],
     [0.94, 0.89, 0.26], [0.0, 0.45, 0.70], [0.84, 0.37, 0.0], [0.80, 0.47, 0.65],
     [0.60, 0.60, 0.60], [1.0, 1.0, 1.0]]
)
"""One colour a class, that of the background first (Okabe and Ito)."""


def colour_cells(size: int) -> Tensor:
    """(3, size, size) with a colour of its own for each cell."""
    line = torch.linspace(0.15, 1.0, size)
    return torch.stack([line[:, None].expand(size, size), line.expand(size, size),
                        0.5 * line.flip(0)[:, None].expand(size, size)])


def painted(labels: Tensor) -> Tensor:
    """Classes of pixels (H, W) long, 0 ... 9 -> a picture (3, H, W)."""
    return COLOURS[labels.cpu()].permute(2, 0, 1)


def _frame(ax, first: Tensor, side: Tensor, colour: str) -> None:
    """A square whose first pixel is (row, column)."""
    middle = (first[0] + side / 2 - 0.5, first[1] + side / 2 - 0.5)
    box(ax, middle, side, color=colour, width=2.0)


def window_panel(pictures: Sequence[Tensor], start: dict | None = None) -> Panel:
    """The widget "a window and its context": an 8 x 8 grid of windows over a picture.

    Left: the picture, the query window in yellow, the square around it in blue. Right: the pixels
    that the context really holds, and what it costs on a map of 64 channels with as many pixels.

    Args:
        pictures: (3, H, W) each, square, of one size that is a multiple of 8.
        start: values of the controls at first.
    """
    side = pictures[0].shape[-1]
    window = side // WINDOWS

    def draw(picture, row, column, ratio, padding) -> Figure:
        at = (row * window, column * window)
        seen = context_windows(pictures[picture][None], ratio, padding=padding)
        context = seen[row * WINDOWS + column]
        fig, (left, right) = figure(2, layout="pictures", size=(8.4, 4.4))
        image(left, pictures[picture], f"query window {window} x {window} px, R = {ratio}")
        first = [place - (ratio - 1) * window // 2 for place in at]
        margin = (ratio - 1) * window // 2 + 1
        _frame(left, at, window, "#F0E442")
        _frame(left, first, ratio * window, PALETTE[0])
        left.set_xlim(-0.5 - margin, side - 0.5 + margin)
        left.set_ylim(side - 0.5 + margin, -0.5 - margin)
        left.set_facecolor("#dddddd")
        cost = _costs(side, ratio)
        ones = context_windows(torch.ones(1, 1, side, side), ratio, padding=padding)
        black = 1 - ones[row * WINDOWS + column].mean().item()
        text = f"{window**2} tokens, {CHANNELS} channels ({CHANNELS // ratio**2} a pixel)"
        image(right, context, f"{text}\n{black:.0%} zeros, {cost['vwa']:.0f} M multiply-adds "
              f"(plain {cost['naive']:.0f} M)")
        fig.subplots_adjust(top=0.88)
        return fig

    given = dict(picture=0, row=0, column=0, ratio=4, padding="zeros") | (start or {})
    slider, dropdown = ipywidgets.IntSlider, ipywidgets.Dropdown
    return panel(
        draw,
        alt="Left a scene with a query window framed in yellow and the square around it in blue, "
        "which sticks out of the picture. Right the pixels that its context holds.",
        picture=slider(given["picture"], 0, len(pictures) - 1, description="picture"),
        row=slider(given["row"], 0, WINDOWS - 1, description="row of the window"),
        column=slider(given["column"], 0, WINDOWS - 1, description="column"),
        ratio=dropdown(options=[1, 2, 4, 8], value=given["ratio"], description="R"),
        padding=dropdown(
            options=[("zeros", "zeros"), ("copy-shift", "copy_shift")], value=given["padding"],
            description="padding",
        ),
    )


def _costs(side: int, ratio: int) -> dict[str, float]:
    """Millions of multiply-adds of one scale, plain and by VWFormer."""
    ways = ("naive", "vwa")
    return {way: multiply_adds(CHANNELS, (side, side), ratio, way=way) / 1e6 for way in ways}


def context_panel(net, crops: Tensor, contexts: Tensor, names: Sequence[str]) -> Panel:
    """The widget "what a pixel asks its surroundings": cross-attention of a CASWiT.

    Left: the crop, a pixel marked. Middle: the context, the crop framed, and how that pixel's
    token weighs it at a stage, mean of the heads. Right: the classes found in the crop.

    Args:
        net: a CASWiT, in eval mode.
        crops: (B, 3, h, w).
        contexts: (B, 3, h', w'), of each crop.
        names: of the classes.
    """
    shuffled = _shuffled(contexts)
    given = {"its own": contexts, "another crop's": contexts.roll(1, 0), "shuffled": shuffled}
    runs = {}
    with torch.no_grad():
        for name, context in given.items():
            out = net(crops, context, return_maps=True)
            maps = [weights.mean(1) for weights, _ in out.maps]                 # B N M
            opened = [gate.mean(-1) for _, gate in out.maps]                    # B N
            runs[name] = (out.logits.argmax(1), maps, opened)
    stages, side = len(runs["its own"][1]), crops.shape[-1]

    def draw(picture, row, column, stage, context) -> Figure:
        labels, maps, opened = runs[context]
        weights, gate = maps[stage - 1][picture], opened[stage - 1][picture]
        count = round(len(weights) ** 0.5)
        token = row * count // side * count + column * count // side
        around = round(weights.shape[1] ** 0.5)
        heat = weights[token].unflatten(0, (around, around))
        fig, (left, middle, right) = figure(3, layout="pictures", size=(8.4, 3.1))
        image(left, crops[picture], f"crop, gate {gate[token]:.2f}")
        unit = side // count
        place = (row // unit * unit + (unit - 1) / 2, column // unit * unit + (unit - 1) / 2)
        box(left, place, unit, color="#F0E442", width=1.8)
        overlay(middle, given[context][picture], heat, title=f"context ({context}), stage {stage}")
        box(middle, ((contexts.shape[-1] - 1) / 2,) * 2, side / net.factor, color="#F0E442")
        image(right, painted(labels[picture]), _shares(labels[picture], names))
        return fig

    slider, dropdown = ipywidgets.IntSlider, ipywidgets.Dropdown
    return panel(
        draw,
        alt="Left a crop with one token framed. Middle the shrunk window around the crop, brighter "
        "where that token looks. Right the classes found in the crop, one colour each.",
        picture=slider(0, 0, len(crops) - 1, description="picture"),
        row=slider(side // 2, 0, side - 4, 4, description="row"),
        column=slider(side // 2, 0, side - 4, 4, description="column"),
        stage=slider(1, 1, stages, description="stage"),
        context=dropdown(options=list(given), description="context"),
    )


def _shares(labels: Tensor, names: Sequence[str]) -> str:
    counts = labels.flatten().bincount(minlength=len(names))
    shares = (counts / labels.numel()).tolist()
    parts = [f"{name} {share:.0%}" for name, share in zip(names, shares, strict=True)]
    return ", ".join(parts)


def _shuffled(contexts: Tensor, side: int = 16) -> Tensor:
    """The same squares of pixels in another order, the same for all."""
    squares = F.pixel_unshuffle(contexts, side)                  # keeps what is inside a square
    order = torch.randperm(squares.shape[-1] * squares.shape[-2],
                           generator=torch.Generator().manual_seed(0))
    mixed = squares.flatten(2)[:, :, order.to(squares.device)].view_as(squares)
    return F.pixel_shuffle(mixed, side)
