"""Pictures on axes: images, heat maps, patches and token maps.

What is drawn is read on the CPU in float32, wherever it lies and whatever its floating dtype;
torch's global defaults change nothing.
"""

import math
from collections.abc import Iterable, Sequence

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from vtlib.nn.checks import check_flag, check_int, check_number
from vtlib.teach.figures import CMAP, PALETTE, STYLE

LARGEST = torch.finfo(torch.float32).max

# ------------------------------------------------------------------------------------ what is drawn


def values_of(values, name: str) -> Tensor:
    """A tensor, array or list of numbers as a tensor on the CPU, outside any graph.

    ValueError for the meta device, for complex numbers and for what is no array.
    """
    if isinstance(values, Tensor):
        if values.is_meta:
            raise ValueError(f"{name} is on the meta device, where there are no values to draw")
        tensor = values.detach().cpu()
    else:
        if isinstance(values, np.ndarray):  # torch knows no steps backwards and one order of bytes
            native = values.dtype.newbyteorder("=")
            values = values.astype(native, order="C", copy=False)
        try:
            tensor = torch.as_tensor(values, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            kind = type(values).__name__
            raise ValueError(f"{name} is a {kind} but needs to be a tensor or an array") from error
    if tensor.is_complex():
        raise ValueError(f"{name} is {tensor.dtype} but needs real numbers")
    return tensor


def pixels_of(image, name: str = "image") -> Tensor:
    """Any picture that can be drawn -> (3, H, W) float32 in [0, 1] on the CPU.

    image: (3, H, W), (1, H, W) or (H, W): floats in [0, 1] (what lies outside is clamped, NaN is
    black), bytes (uint8, 255 is white) or a mask (bool). ValueError for other integers, which may
    mean either.
    """
    image = values_of(image, name)
    if image.ndim == 2:
        image = image[None]
    if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
        shape = tuple(image.shape)
        raise ValueError(f"{name}: got shape {shape}, needs (3, H, W), (1, H, W) or (H, W)")
    if image.dtype == torch.uint8:
        image = image.float() / 255
    elif not image.dtype.is_floating_point and image.dtype != torch.bool:
        raise ValueError(
            f"{name} is {image.dtype} but needs floats in [0, 1] ({name}.float()), or uint8 for"
            " the bytes of a picture"
        )
    return torch.nan_to_num(image.float()).clamp(0, 1).expand(3, -1, -1)


def _for_matplotlib(image) -> np.ndarray:
    """(H, W, 3)"""
    return pixels_of(image).permute(1, 2, 0).numpy()


def check_axes(ax) -> None:
    """ValueError unless `ax` is one Axes of matplotlib: what `figure` gives for several is none."""
    if not isinstance(ax, Axes):
        raise ValueError(f"ax is a {type(ax).__name__}: needs one matplotlib Axes, such as axes[0]")


def _finish(ax, title: str | None) -> None:
    ax.set_axis_off()
    if title is not None:
        ax.set_title(title)


# ------------------------------------------------------------------------------------------ images


def image(ax, image, title: str | None = None):
    """Draw one image on `ax`, without ticks; returns matplotlib's AxesImage.

    Args:
        ax: matplotlib Axes.
        image: (3, H, W) in [0, 1], or one channel, or uint8 (see `pixels_of`).
        title: a line above it.
    """
    check_axes(ax)
    drawn = ax.imshow(_for_matplotlib(image))
    _finish(ax, title)
    return drawn


def grid(
    images,
    titles: Sequence[str] | None = None,
    cols: int | None = None,
    size: float = 1.25,
    title: str | None = None,
) -> Figure:
    """Images side by side -> Figure, with one Axes, so that 64 pictures draw as fast as one.

    ValueError for no image, for images of several sizes, for too few titles.

    Args:
        images: (B, 3, H, W) in [0, 1], or a list of images.
        titles: one per image, written above it (newlines allowed).
        cols: pictures in a row, by default at most 8.
        size: width of a picture in inches.
        title: the message of the whole figure.
    """
    if not isinstance(images, Iterable) or getattr(images, "ndim", None) == 0:
        raise ValueError(f"images is a {type(images).__name__}: needs (B, 3, H, W) or a list")
    pictures = [_for_matplotlib(x) for x in images]
    size = check_number(size, "size", 0.1, 100)
    _check_grid(pictures, titles)
    cols = 8 if cols is None else check_int(cols, "cols", 1)
    cols = min(cols, len(pictures))
    rows = math.ceil(len(pictures) / cols)
    h, w, _ = pictures[0].shape
    inch = w / size  # pixels of the image per inch of paper
    gap = 0.06 * inch
    lines = 0 if titles is None else max(str(text).count("\n") + 1 for text in titles)
    above = gap + 0.14 * lines * inch  # room for the titles, in pixels of the image
    wide, tall = cols * (w + gap) - gap, rows * (h + above)
    with matplotlib.rc_context(STYLE):
        fig, ax = _sheet(wide / inch, tall / inch, title)
        for i, pixels in enumerate(pictures):
            row, column = divmod(i, cols)
            x, y = column * (w + gap), row * (h + above) + above
            ax.imshow(pixels, extent=(x, x + w, y + h, y))
            if titles is not None:
                where = {"va": "bottom", "ha": "left"}
                ax.text(x, y - 0.03 * inch, str(titles[i]), fontsize=8, linespacing=1.05, **where)
        ax.set(xlim=(0, wide), ylim=(tall, 0), aspect="equal")
        ax.set_axis_off()
    return fig


@matplotlib.rc_context(STYLE)
def picture_row(
    images,
    titles: Sequence[str] | None = None,
    heat: Sequence | None = None,
    patch: int | Sequence | None = None,
    cols: int | None = None,
    size: float = 1.9,
    title: str | None = None,
    **look,
) -> Figure:
    """Pictures of any sizes, each with its title, its heat map and the borders of its patches ->
    Figure, one Axes a picture (`fig.axes`, to mark something in one of them).

        teach.show(teach.picture_row([photo, photo], ["the photograph", "where [CLS] looks"],
                                     heat=[None, attention], patch=[16, None]), alt="...")

    `grid` draws many pictures of one size faster. ValueError for no image, for titles, heat maps or
    patches that are not one an image.

    Args:
        images: a list, each (3, H, W) in [0, 1], or one channel, or uint8 (see `pixels_of`).
        titles: one an image, written above it (newlines allowed).
        heat: one (h, w) an image, laid over it (see `overlay`), or None.
        patch: the side of the patches whose borders are drawn, for all or one an image, or None.
        cols: pictures in a row, by default all up to five.
        size: width of a picture in inches.
        title: the message of the whole figure.
        look: of the heat maps, as for `overlay` (vmin, vmax, alpha, cmap); mode is "nearest" here,
            a flat square a token.
    """
    if not isinstance(images, Iterable) or getattr(images, "ndim", None) == 0:
        raise ValueError(f"images is a {type(images).__name__}: needs (B, 3, H, W) or a list")
    images = list(images)
    if not images:
        raise ValueError("images: got none, needs at least one (B, 3, H, W)")
    count = len(images)
    titles = _one_each(titles, "titles", count)
    heat, patch = _one_each(heat, "heat", count), _one_each(patch, "patch", count)
    size = check_number(size, "size", 0.1, 100)
    cols = min(count, 5 if cols is None else check_int(cols, "cols", 1))
    pixels = [pixels_of(picture, f"images[{i}]") for i, picture in enumerate(images)]
    fig, places = _places(pixels, titles, cols, size, title)
    for i, place in enumerate(places):
        ax = fig.add_axes(place)
        if heat[i] is None:
            image(ax, pixels[i], titles[i])
        else:
            overlay(ax, pixels[i], heat[i], title=titles[i], **{"mode": "nearest"} | look)
        if patch[i] is not None:
            lines(ax, patch[i])
    return fig


def _one_each(values, name: str, count: int) -> list:
    """A list of `count` values: those given, or the same one (an integer, None) for all."""
    if values is None or isinstance(values, int):
        return [values] * count
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise ValueError(f"{name}={values!r}: needs a list with one for each image")
    if len(values) != count:
        raise ValueError(f"{name}: got {len(values)} for {count} images")
    return list(values)


def _places(pixels: list[Tensor], titles: list, cols: int, size: float, title: str | None):
    """A figure with room for all pictures, and for each its [left, bottom, width, height] there."""
    texts = max(0 if text is None else str(text).count("\n") + 1 for text in titles)
    above, gap, head = 0.17 * texts + 0.04, 0.1, 0.28 if title else 0.0
    tall = size * max(picture.shape[1] / picture.shape[2] for picture in pixels)
    rows = math.ceil(len(pixels) / cols)
    width = cols * (size + gap) - gap + 0.08
    height = rows * (tall + above + gap) - gap + head + 0.08
    fig = Figure(figsize=(width, height))
    FigureCanvasAgg(fig)
    if title:
        fig.text(0.04 / width, 1 - 0.06 / height, title, fontsize=9.5, va="top", ha="left")
    places = []
    for i in range(len(pixels)):
        row, column = divmod(i, cols)
        left = 0.04 + column * (size + gap)
        top = height - 0.04 - head - above - row * (tall + above + gap)
        places.append([left / width, (top - tall) / height, size / width, tall / height])
    return fig, places


def _check_grid(pictures: list[np.ndarray], titles) -> None:
    if not pictures:
        raise ValueError("images: got none, needs at least one (B, 3, H, W)")
    sizes = sorted({picture.shape[:2] for picture in pictures})
    if len(sizes) > 1:
        raise ValueError(f"images: got shapes {sizes}, needs all of one height and width")
    if titles is None:
        return
    if isinstance(titles, str) or not hasattr(titles, "__getitem__"):
        raise ValueError(f"titles={titles!r}: needs a list with one for each image")
    if len(titles) != len(pictures):
        raise ValueError(f"titles: got {len(titles)} for {len(pictures)} images")


def _sheet(width: float, height: float, title: str | None):
    """A figure around one Axes of this size in inches, with a title over it."""
    head = 0.3 if title else 0.02
    paper = width + 0.08, height + head + 0.04
    fig = Figure(figsize=paper)
    FigureCanvasAgg(fig)
    left, bottom = 0.04 / paper[0], 0.04 / paper[1]
    ax = fig.add_axes([left, bottom, width / paper[0], height / paper[1]])
    if title:
        fig.text(left, 1 - 0.06 / paper[1], title, fontsize=9.5, va="top", ha="left")
    return fig, ax


# --------------------------------------------------------------------------------------- heat maps


def overlay(
    ax,
    image,
    heat,
    alpha: float = 0.6,
    cmap: str = CMAP,
    mode: str = "bilinear",
    vmin: float | None = None,
    vmax: float | None = None,
    title: str | None = None,
):
    """An image with a heat map over it; returns the AxesImage of the heat map (for a colour bar).

    ValueError for a heat map that is not (h, w) or beyond float32, for an unknown mode, and for
    ends that are no numbers or not in order (equal ones are fine where the heat map is constant).

    Args:
        ax: matplotlib Axes.
        image: (3, H, W) in [0, 1], or one channel, or uint8 (see `pixels_of`).
        heat: (h, w), numbers of float32's range, resized to (H, W); NaN shows the bare image.
        alpha: how much the map covers, from 0 to 1.
        cmap: matplotlib's name of the colour map.
        mode: "bilinear" (smooth) or "nearest" (one flat square per token).
        vmin: the value at the lower end of the colour map, by default the least of `heat`.
        vmax: the value at the upper end, by default the largest.
        title: a line above it.
    """
    check_axes(ax)
    alpha, pixels = check_number(alpha, "alpha", 0, 1), _for_matplotlib(image)
    heat = _single(values_of(heat, "heat"))
    if heat.ndim != 2 or 0 in heat.shape:
        raise ValueError(f"heat: got shape {tuple(heat.shape)}, needs (h, w)")
    if mode not in ("bilinear", "nearest"):
        raise ValueError(f"mode={mode!r}: needs 'bilinear' or 'nearest'")
    valid = torch.isfinite(heat)
    low, high = _ends(heat[valid], vmin, vmax)
    filled = heat.masked_fill(~valid, low)
    size = pixels.shape[:2]
    align = False if mode == "bilinear" else None
    large = F.interpolate(filled[None, None], size=size, mode=mode, align_corners=align)[0, 0]
    seen = F.interpolate(valid[None, None].float(), size=size, mode="nearest")[0, 0]
    ax.imshow(pixels)
    top = high if high > low else low + 1
    cover = (alpha * seen).numpy()
    drawn = ax.imshow(large.numpy(), cmap=cmap, vmin=low, vmax=top, alpha=cover)
    _finish(ax, title)
    return drawn


def _single(heat: Tensor) -> Tensor:
    """In float32. ValueError where that makes an infinity of a number."""
    single = heat.float()
    lost = single.isinf() & heat.isfinite()
    if lost.any():
        worst = heat[lost][0].item()
        raise ValueError(f"heat has {worst:g} but needs numbers within {LARGEST:.3g} (float32)")
    return single


def _ends(known: Tensor, vmin, vmax) -> tuple[float, float]:
    """The values at both ends of the colour map: those asked for, else those of the heat map, known
    (n,)."""
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    constant = low == high or not len(known)
    if vmin is not None:
        low = check_number(vmin, "vmin", -LARGEST, LARGEST)
    if vmax is not None:
        high = check_number(vmax, "vmax", -LARGEST, LARGEST)
    asked = vmin is not None and vmax is not None
    if (low >= high and not constant) or (low > high and asked):
        lower = "vmin" if vmin is not None else "the least of heat"
        upper = "vmax" if vmax is not None else "the largest of heat"
        raise ValueError(f"{lower}={low:g}, {upper}={high:g}: needs vmin below vmax")
    return low, high


# -------------------------------------------------------------------------- marks, patches, tokens


def box(
    ax,
    middle: tuple[float, float],
    side: float,
    color: str = "white",
    width: float = 1.6,
) -> None:
    """Draw the outline of a square over the image already on `ax`.

    Args:
        ax: matplotlib Axes.
        middle: (row, column), in pixels of the image.
        side: in pixels of the image.
        color: of the line.
        width: of the line, in points.
    """
    check_axes(ax)
    if not isinstance(middle, (tuple, list)) and getattr(middle, "shape", None) != (2,):
        raise ValueError(f"middle={middle!r}: needs (row, column)")
    y, x = (check_number(at, "middle") for at in middle)
    r = check_number(side, "side", 0) / 2
    rows, columns = [y - r, y - r, y + r, y + r, y - r], [x - r, x + r, x + r, x - r, x - r]
    ax.plot(columns, rows, color=color, linewidth=width)


def _pale(color: str) -> list[float]:
    """A colour "#rrggbb" on which black text reads."""
    return [0.45 + 0.55 * part for part in to_rgb(color)]


# for -3, -2, -1, then for the keys 0 to 6
TILES = [[0.94] * 3, [0.0] * 3, [0.75] * 3, *map(_pale, PALETTE[:6]), [1.0] * 3]


def tiles(ax, keys, title: str | None = None, numbers: bool = False):
    """A map of whole numbers (h, w) as coloured squares; returns matplotlib's AxesImage.

    ValueError for keys that are no whole numbers (h, w), or below -3.

    Args:
        ax: matplotlib Axes.
        keys: (h, w). Equal keys 0, 1, 2, ... share a colour of the palette (pale, so that black
            text reads on it; 6 is white). Below 0: -1 is grey (padding), -2 black (the token that
            was picked), -3 nearly white (nothing).
        title: a line above it.
        numbers: write on each square that is not padding its number, row by row.
    """
    keys, numbers = values_of(keys, "keys"), check_flag(numbers, "numbers")
    if keys.ndim != 2 or 0 in keys.shape or keys.is_floating_point():
        shape = tuple(keys.shape)
        raise ValueError(f"keys: got shape {shape} of {keys.dtype}, needs whole numbers (h, w)")
    keys = keys.long()
    if keys.min() < -3:
        raise ValueError(f"keys: got {int(keys.min())}, needs at least -3")
    colours = torch.tensor(TILES, dtype=torch.float32, device="cpu")
    tint = colours[torch.where(keys < 0, keys, keys % 7) + 3]                                # h w 3
    drawn = image(ax, tint.permute(2, 0, 1), title)
    if numbers:
        size = 7 if len(keys) < 8 else 5.5
        for token, (y, x) in enumerate((keys != -1).nonzero().tolist()):
            ax.text(x, y, str(token), ha="center", va="center", fontsize=size)
    return drawn


def lines(ax, patch: int | tuple[int, int], color: str = "white", width: float = 0.8) -> None:
    """Draw the borders of patches over the image already on `ax`.

    ValueError when there is no image yet, and for patches that are no integers of at least 1.

    Args:
        ax: matplotlib Axes.
        patch: the side of a patch in pixels, or (height, width).
        color: of the lines.
        width: of the lines, in points.
    """
    check_axes(ax)
    if not ax.images:
        raise ValueError("ax: holds no image yet; draw one first, then the lines of its patches")
    pair = patch if isinstance(patch, (tuple, list)) else (patch, patch)
    if len(pair) != 2:
        raise ValueError(f"patch={patch!r}: needs an integer, or a pair (height, width)")
    ph, pw = (check_int(side, "patch", 1) for side in pair)
    h, w = ax.images[0].get_array().shape[:2]
    upright = [[(x - 0.5, -0.5), (x - 0.5, h - 0.5)] for x in range(pw, w, pw)]
    level = [[(-0.5, y - 0.5), (w - 0.5, y - 0.5)] for y in range(ph, h, ph)]
    borders = LineCollection(upright + level, colors=color, linewidths=width, alpha=0.8)
    ax.add_collection(borders, autolim=False)


# ------------------------------------------------------------------------------------------- seeds


def seeds(
    ax,
    groups: Sequence[str],
    series: dict[str, Sequence[Sequence[float]]],
    marks: str = "oDs^v",
) -> None:
    """One dot a run, so that the spread is seen.

    The groups stand side by side on the x axis, the series of a group next to each other, each
    with its colour and mark. ValueError for a series that has not one list of values a group.

    Args:
        ax: matplotlib Axes.
        groups: their names.
        series: {label: for each group its values, one a seed}.
        marks: matplotlib's, one a series.
    """
    check_axes(ax)
    if not isinstance(series, dict):
        raise ValueError(f"series is a {type(series).__name__}: needs a dict of lists by label")
    if isinstance(groups, str) or not hasattr(groups, "__len__"):
        raise ValueError(f"groups={groups!r}: needs a list of names")
    step = min(0.2, 0.7 / max(1, len(series)))
    for k, (label, values) in enumerate(series.items()):
        if len(values) != len(groups):
            raise ValueError(
                f"series[{label!r}] has values for {len(values)} groups but there are {len(groups)}"
            )
        shift = step * (k - (len(series) - 1) / 2)
        at = [j + shift for j, runs in enumerate(values) for _ in runs]
        dots = [float(value) for runs in values for value in runs]
        look = {"color": PALETTE[k % len(PALETTE)], "markersize": 5, "label": label}
        ax.plot(at, dots, marks[k % len(marks)], **look)
    ax.set_xlim(-0.5, len(groups) - 0.5)
    ax.set_xticks(range(len(groups)), groups)
