"""Levels and masks as pictures: numbers in cells, tokens of a level as a map, who sees whom."""

from collections.abc import Mapping, Sequence

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vtlib.teach.figures import CMAP_DIV, PALETTE, STYLE, figure
from vtlib.teach.pictures import image, lines

SEEN, UNSEEN, ASKED = PALETTE[5], "#E4E4E4", "#000000"
"""Colours: of a token that may be looked at, of one that may not, of the one that looks."""


# ----------------------------------------------------------------------------------------- levels
@matplotlib.rc_context(STYLE)
def number_maps(maps: Mapping[str, Tensor], title: str, most: float = 8) -> Figure:
    """Small maps of numbers side by side, each number written in its cell: orange above 0, purple
    below, white at 0.

    Args:
        maps: {title: (h, w)}, each drawn in a square of one size.
        title: the message.
        most: the number with the strongest colour.
    """
    fig, _ = figure(len(maps), size=(1.75 * len(maps), 2.25), layout="pictures")
    for ax, (name, values) in zip(fig.axes, maps.items(), strict=True):
        h, w = values.shape
        ax.imshow(-values.numpy(), cmap=CMAP_DIV, vmin=-1.4 * most, vmax=1.4 * most,
                  extent=(0, 1, 1, 0), aspect="equal")
        for row in range(h):
            for column in range(w):
                number = round(values[row, column].item(), 2)
                where = (column + 0.5) / w, (row + 0.5) / h
                ax.text(*where, f"{number + 0.0:g}", ha="center", va="center", fontsize=8)
        ax.set_title(name)
        ax.set_axis_off()
    fig.suptitle(title, fontsize=9.5, x=0.02, ha="left")
    fig.subplots_adjust(left=0.01, right=0.99, top=0.8, bottom=0.02)
    return fig


def enlarged(level: Tensor, size: tuple[int, int]) -> Tensor:
    """A level (B, C, h, w) on a larger grid: each cell repeated."""
    return F.interpolate(level, size=size, mode="nearest")


# ------------------------------------------------------------------------------------------ masks
@matplotlib.rc_context(STYLE)
def mask_figure(masks: Mapping[str, tuple[Tensor, Sequence[str], Sequence[int]]]) -> Figure:
    """Masks side by side: a row looks at the blue columns.

    Args:
        masks: {title: (mask (L, L) bool, names of the blocks, tokens of each)}.
    """
    fig, axes = figure(len(masks), size=(4.3 * len(masks), 4.2), layout="constrained")
    axes = [axes] if len(masks) == 1 else list(axes)
    for ax, (title, (mask, names, counts)) in zip(axes, masks.items(), strict=True):
        draw_mask(ax, mask, names, counts)
        ax.set(title=title, xlabel="key: who is looked at", ylabel="query: who looks")
    return fig


def draw_mask(ax: Axes, mask: Tensor, names: Sequence[str], counts: Sequence[int]) -> None:
    """One of the masks of `mask_figure`.

    Args:
        ax: where.
        mask: (L, L) bool.
        names: of the blocks.
        counts: tokens of each.
    """
    colours = torch.tensor([matplotlib.colors.to_rgb(c) for c in (UNSEEN, SEEN)])
    ax.imshow(colours[mask.long().cpu()].numpy(), interpolation="nearest")
    ends = torch.tensor(counts).cumsum(0).tolist()
    for end in ends[:-1]:
        ax.axhline(end - 0.5, color="white", linewidth=0.8)
        ax.axvline(end - 0.5, color="white", linewidth=0.8)
    middles = [end - count / 2 - 0.5 for end, count in zip(ends, counts, strict=True)]
    shown = [k for k, count in enumerate(counts) if count >= 0.045 * len(mask)]
    places, words = [middles[k] for k in shown], [names[k] for k in shown]
    ax.set_xticks(places, words, rotation=60, ha="right", rotation_mode="anchor")
    ax.set_yticks(places, words)
    ax.tick_params(length=2)


def draw_cells(ax: Axes, colours: Tensor, side: int, title: str) -> None:
    """A scale as a square of cells with white lines between.

    Args:
        ax: where.
        colours: (side * side, 3).
        side: cells a side.
        title: above it.
    """
    image(ax, colours.T.reshape(3, side, side), title)
    lines(ax, 1, width=1)
