"""Tokens and their addresses: framed in a film, as coloured rows of numbers, as bars of cosines."""

from collections.abc import Mapping, Sequence

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from vtlib.nn.checks import check_int
from vtlib.teach.figures import PALETTE, STYLE, figure
from vtlib.teach.pictures import box, image, pixels_of
from vtlib.teach.plots import bars

CHOSEN = PALETTE[1]
GAP = 8
"""Pixels between the pictures of `picture_strip`: two tokens."""


def picture_strip(ax, pictures: Sequence[Tensor], titles: Sequence[str]) -> list[int]:
    """Pictures side by side on one Axes, which draws much faster than an Axes each.

    Returns the column where each picture begins.

    Args:
        ax: matplotlib Axes.
        pictures: (3, h, w) each, of one size.
        titles: one a picture.
    """
    image(ax, side_by_side(pictures))
    step = pictures[0].shape[-1] + GAP
    starts = [k * step for k in range(len(pictures))]
    for start, title in zip(starts, titles, strict=True):
        ax.text(start - 0.5, -2, title, fontsize=9, va="bottom")
    return starts


def side_by_side(pictures: Sequence[Tensor]) -> Tensor:
    """Pictures (3, h, w) of one size as one (3, h, W), `GAP` white columns between them."""
    wide = [F.pad(pixels_of(picture, "pictures"), (0, GAP), value=1.0) for picture in pictures]
    return torch.cat(wide, dim=-1)[..., :-GAP]


def token_box(
    ax, place: Sequence[float], color: str = "white", side: float = 6, stride: int = 4,
    width: float = 2.0,
) -> None:
    """Frame a token in the picture on `ax`.

    Args:
        ax: matplotlib Axes.
        place: (x, y) of the token, in tokens.
        color: of the frame.
        side: of the frame, in pixels.
        stride: pixels of a token's side.
        width: of the line, in points.
    """
    x, y = (float(number) for number in place)
    middle = (stride - 1) / 2
    box(ax, (stride * y + middle, stride * x + middle), side, color=color, width=width)


def film_strip(
    frames: Sequence, titles: Sequence[str], boxes: Sequence[Mapping[str, Sequence[float]]],
    title: str | None = None, size: float = 1.6,
) -> Figure:
    """Frames side by side, tokens framed in them.

    Args:
        frames: pictures (3, h, w), up to six.
        titles: one a frame.
        boxes: for each frame {colour: (x, y) in tokens}; larger frames come first.
        title: the message of the figure.
        size: width of a frame in inches.
    """
    if not len(frames) == len(titles) == len(boxes):
        raise ValueError(
            f"got {len(frames)} frames, {len(titles)} titles and {len(boxes)} boxes: needs one of"
            " each for a frame"
        )
    height = size * pixels_of(frames[0]).shape[-2] / pixels_of(frames[0]).shape[-1]
    room = 0.5 if title else 0.25
    shape = (size * len(frames), height + room)
    fig, axes = figure(len(frames), size=shape, layout="pictures", squeeze=False)
    for ax, frame, text, marked in zip(axes[0], frames, titles, boxes, strict=True):
        image(ax, frame, text)
        for k, (color, place) in enumerate(marked.items()):
            token_box(ax, place, color, side=7 - 3 * k)
    if title:
        fig.suptitle(title, fontsize=9, x=0.01, ha="left")
        fig.subplots_adjust(top=1 - 0.45 / shape[1])
    return fig


def patch_sizes(
    picture: Tensor, place: tuple[int, int], pieces: Mapping[int, Tensor], side: int = 32
) -> Figure:
    """A part of a picture with nested frames around one token, and the patches pooled from them.

    Args:
        picture: (3, h, w), at least `side` on each side.
        place: (x, y) of the token, of 4 x 4 pixels.
        pieces: {size of the patch in pixels: its picture (3, 4, 4)}.
        side: of the part that is shown, in pixels.
    """
    pixels, (x, y) = pixels_of(picture, "picture"), place
    left = min(max(4 * x + 2 - side // 2, 0), pixels.shape[2] - side)
    top = min(max(4 * y + 2 - side // 2, 0), pixels.shape[1] - side)
    fig, axes = figure(1 + len(pieces), layout="pictures", size=(2.05 * (1 + len(pieces)), 2.3))
    image(axes[0], pixels[:, top : top + side, left : left + side], "a part of the frame")
    for size, color in zip(pieces, ("white", "black", CHOSEN), strict=False):
        token_box(axes[0], (x - left / 4, y - top / 4), color, side=size)
    colours = ("white", "black", "orange")
    for ax, (size, piece), color in zip(axes[1:], pieces.items(), colours, strict=False):
        done = "as it is" if size == 4 else "pooled"
        image(ax, piece, f"{size} x {size} ({color}), {done}")
    return fig


def units(picture: Tensor) -> Figure:
    """One picture in large and in small pixels, with a small pixel and a token framed in each.

    picture (3, 32, 48): large pixels. A small pixel is 4 x 4 of them, a token 4 x 4 small pixels.
    """
    pixels = pixels_of(picture, "picture")
    small = F.avg_pool2d(pixels, 4)
    fig, axes = figure(2, size=(6.4, 2.45), layout="pictures")
    image(axes[0], pixels, "large pixels: the picture we want")
    image(axes[1], small, "small pixels: the frame we are given")
    for ax, one in ((axes[0], 4), (axes[1], 1)):
        for side, color, row, column in ((1, "black", 1, 1), (4, "white", 2.5, 6.5)):
            middle = (one * (row + 0.5) - 0.5, one * (column + 0.5) - 0.5)
            box(ax, middle, one * side, color=color, width=2.2)
        note = {"fontsize": 8, "color": "black", "va": "center"}
        note["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 1.5, "alpha": 0.85}
        ax.text(one * 0.3, one * 2.4, "1 small pixel", **note)
        told = "1 token = 4 x 4 small pixels\n= 16 x 16 large pixels"
        ax.text(one * 4.6, one * 6.4, told, **note)
    return fig


def address_rows(rows: Mapping[str, Sequence[int]], title: str | None = None) -> Figure:
    """Rows of addresses as coloured squares: equal numbers have equal colours.

    Args:
        rows: {label: whole numbers, one a token}.
        title: the message of the figure.
    """
    table = [[int(number) for number in row] for row in rows.values()]
    if not table or len({len(row) for row in table}) != 1:
        raise ValueError(f"rows={dict(rows)!r}: needs rows of one length")
    wide, tall = len(table[0]), len(table)
    with matplotlib.rc_context(STYLE):
        fig, ax = figure(size=(1.9 + 0.55 * wide, 0.45 + 0.42 * tall), layout="pictures")
    for row, numbers in enumerate(table):
        for column, number in enumerate(numbers):
            tint = [0.4 + 0.6 * part for part in to_rgb(PALETTE[number % 6])]
            ax.add_patch(matplotlib.patches.Rectangle((column, row), 0.94, 0.9, color=tint))
            ax.text(column + 0.47, row + 0.45, str(number), ha="center", va="center")
    for row, label in enumerate(rows):
        ax.text(-0.15, row + 0.45, label, ha="right", va="center", fontsize=8.5)
    ax.set(xlim=(-2.9, wide), ylim=(tall, 0))
    ax.set_axis_off()
    if title:
        ax.set_title(title)
    return fig


def cosine_bars(ax, cosines: Sequence[float], keys: Sequence[int], title: str) -> None:
    """Bars of one token's cosines with what lies at its addresses; the best is orange.

    Args:
        ax: matplotlib Axes.
        cosines: one a key frame.
        keys: the key frames.
        title: a line above.
    """
    numbers = [round(float(cosine), 2) for cosine in cosines]
    best = max(range(len(numbers)), key=numbers.__getitem__)
    bars([str(key) for key in keys], {"cosine": numbers}, title, ("key frame", "cosine"),
         highlight=[str(keys[best])], ylim=(min(-0.3, *numbers), 1.15), ax=ax)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set_yticks((0, 0.5, 1))


def house_bars(
    cosines: Tensor, mask: Tensor, token: tuple[int, int], keys: Sequence[int]
) -> Figure:
    """Which key frame is most similar: to one token, to all tokens of its object, and who wins.

    Args:
        cosines: (k, h, w).
        mask: (h, w) bool: the object's tokens.
        token: (x, y), one of them.
        keys: the k key frames.
    """
    x, y = token
    fig, axes = figure(3, size=(9.0, 2.6))
    cosine_bars(axes[0], cosines[:, y, x].tolist(), keys, "the token (best: orange)")
    cosine_bars(axes[1], cosines[:, mask].mean(dim=1).tolist(), keys, "mean over the house")
    won = cosines.argmax(dim=0)[mask].bincount(minlength=len(keys)).tolist()
    bars([str(key) for key in keys], {"tokens": won}, f"choices of its {int(mask.sum())} tokens",
         ("key frame", "tokens choose it"), ax=axes[2])
    return fig


def trace_figure(
    frames: Tensor, step: tuple[Tensor, Tensor], t: int, place: tuple[int, int],
    stride: int = 3,
) -> Figure:
    """A token of frame t, its addresses in up to four key frames, and its cosine with each.

    Args:
        frames: (T, 3, h, w).
        step: (addresses (k, 2, h, w), cosines (k, h, w)) of frame t, see `traced`.
        t: the frame.
        place: (x, y) of the token.
        stride: every how many frames is a key frame.
    """
    t = check_int(t, "t", 1, len(frames) - 1)
    (where, cosine), (x, y) = step, place
    where, cosine = where[:4], cosine[:4]
    best, keys = int(cosine[:, y, x].argmax()), range(0, stride * len(where), stride)
    blank = [torch.ones_like(frames[0])] * (4 - len(keys))
    titles = [f"key frame {key}" for key in keys]
    titles[best] += ", chosen"
    fig, ax = figure(layout="pictures", size=(9.4, 1.75))
    shown = [frames[t], *frames[list(keys)], *blank]
    starts = picture_strip(ax, shown, [f"frame {t}: the token", *titles, *[""] * len(blank)])
    for k, at in enumerate([place, *where[:, :, y, x].tolist()]):
        color = CHOSEN if k == best + 1 else "white"
        token_box(ax, (at[0] + starts[k] / 4, at[1]), color)
    left = starts[-1] + frames.shape[-1] + 2 * GAP
    _bars_beside(ax, left, cosine[:, y, x].tolist(), keys, side=frames.shape[-2])
    return fig


def _bars_beside(
    ax, left: int, cosines: Sequence[float], keys: Sequence[int], side: int
) -> None:
    """`cosine_bars` in the pixels of the pictures on `ax`: without ticks, which are slow to draw.

    Args:
        ax: matplotlib Axes.
        left: the column where the bars begin.
        cosines: up to four, one a key frame.
        keys: the key frames.
        side: height of the pictures.
    """
    zero, one, step = 0.72 * side, 0.6 * side, 0.27 * side
    middles = [left + step * (k + 0.5) for k in range(len(keys))]
    best = max(range(len(keys)), key=cosines.__getitem__)
    colours = [CHOSEN if k == best else PALETTE[0] for k in range(len(keys))]
    heights = [-one * cosine for cosine in cosines]                  # upwards: rows count down
    ax.bar(middles, heights, 0.8 * step, bottom=zero, color=colours)
    ax.plot([left, left + 4 * step], [zero, zero], color="black", linewidth=0.8)
    write = {"ha": "center", "va": "bottom", "fontsize": 8}
    for middle, cosine, height, key in zip(middles, cosines, heights, keys, strict=True):
        ax.text(middle, zero + min(height, 0) - 1, f"{cosine:.2f}", **write)
        ax.text(middle, side - 0.5, str(key), **write)
    ax.text(left, -2, "cosine, by key frame", fontsize=9, va="bottom")
    ax.set(xlim=(-0.5, left + 4 * step), ylim=(side - 0.5, -0.5))
