"""Groups of like tokens over a picture, and windows that overlap."""

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vtlib.nn.checks import check_int
from vtlib.teach.figures import PALETTE, figure
from vtlib.teach.pictures import box, image, values_of

GOLDEN = 0.381966
"""Steps of this much around a circle never come close to an earlier one."""


def group_map(belong: Tensor, count: int) -> Tensor:
    """Group numbers of a square picture (n * n,), in raster order -> its colours (3, n, n).

    Groups with neighbouring numbers are far apart in hue. ValueError for a map that is no square.

    Args:
        belong: numbers from 0 to count - 1.
        count: how many groups there are, so that a number has one colour in all pictures.
    """
    count = check_int(count, "count", 1)
    belong = values_of(belong, "belong").long()
    side = round(belong.numel() ** 0.5)
    if belong.ndim != 1 or side**2 != belong.numel():
        raise ValueError(f"belong has shape {tuple(belong.shape)}: needs (n * n,), row by row")
    hue = torch.arange(count) * GOLDEN % 1
    thirds = torch.tensor([0, 1 / 3, 2 / 3])
    wheel = 0.55 + 0.45 * torch.cos(2 * torch.pi * (hue[:, None] + thirds))
    wheel = wheel * (0.6 + 0.4 * (torch.arange(count) % 3 / 2))[:, None]
    return wheel[belong].T.reshape(3, side, side)


def marked(
    ax: Axes, picture: Tensor, title: str, own: Sequence = (), ahead: Sequence = (),
    window: tuple | None = None, legend: bool = False,
) -> None:
    """A picture on which tokens, one a pixel, are marked.

    Args:
        ax: matplotlib Axes.
        picture: (3, h, w).
        title: a line above it.
        own: positions in raster order, as white circles.
        ahead: likewise, as black squares.
        window: (row, column, side) of a square outline.
        legend: whether circles and squares are named, as piece and look-ahead.
    """
    image(ax, picture, title)
    looks = (
        (own, "o", "white", "black", 4.5, "own piece"),
        (ahead, "s", "black", "white", 3.5, "look-ahead"),
    )
    for places, mark, colour, edge, size, name in looks:
        if len(places):
            at = values_of(places, "positions").long()
            y, x = at // picture.shape[-1], at % picture.shape[-1]
            ax.plot(
                x, y, mark, color=colour, markeredgecolor=edge, markersize=size, label=name
            )
    if window is not None:
        box(ax, window[:2], window[2], color="white", width=2.2)
    if legend:
        ax.legend(loc="lower right", frameon=True, facecolor="lightgrey", framealpha=1)


def coverage(counts: Tensor, white: Tensor) -> Figure:
    """How many windows cover each pixel, and what an average makes of a white picture -> Figure.

    Where it is white no more, the number is set in bold and framed.

    Args:
        counts: (h, w), whole numbers.
        white: (h, w), the white picture after its windows were put back.
    """
    fig, axes = figure(2, layout="pictures", size=(7.2, 2.9))
    axes[0].imshow(counts.cpu().numpy(), cmap="cividis", alpha=0.45)    # pale: black text reads
    wrong = (white != 1).cpu()
    for y, numbers in enumerate(counts.tolist()):
        for x, number in enumerate(numbers):
            look = {"weight": "bold"} if wrong[y, x] else {}
            axes[0].text(x, y, number, ha="center", va="center", fontsize=6.5, **look)
    if wrong.any():
        top, bottom, left, right = _ends(wrong)
        columns, rows = [left, right, right, left, left], [top, top, bottom, bottom, top]
        axes[0].plot(columns, rows, color=PALETTE[1], linewidth=1.6)
    axes[0].set(title="how many windows cover a pixel", xticks=[], yticks=[])
    image(axes[1], white.expand(3, -1, -1), "a white picture, halved at every seam")
    h, w = white.shape
    edge = [-0.5, w - 0.5, w - 0.5, -0.5, -0.5], [-0.5, -0.5, h - 0.5, h - 0.5, -0.5]
    axes[1].plot(*edge, color="black", linewidth=1)
    return fig


def _ends(here: Tensor) -> tuple[float, float, float, float]:
    """Top, bottom, left and right edge of the pixels of a map (h, w) that are True."""
    rows, columns = here.any(1).nonzero(), here.any(0).nonzero()
    sides = rows.min() - 0.5, rows.max() + 0.5, columns.min() - 0.5, columns.max() + 0.5
    top, bottom, left, right = (side.item() for side in sides)
    return top, bottom, left, right
