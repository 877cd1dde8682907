"""What the notebook on judging tokenizers draws and measures beside its lesson.

    judging.readings(crops, written, read, titles)      # what was read, wrong letters in boxes
    judging.ranking(table, title)                       # a row a codec, a panel a measure
    judging.rates(lines, marks, levels, ...)            # quality against bits a pixel
    judging.reading_panel(grid, ...).show()             # the widget
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets
import matplotlib
import torch
import torch.nn.functional as F
from einops import rearrange
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from vtlib.nn.checks import check_images, check_int, check_list, check_number
from vtlib.teach.figures import PALETTE, STYLE, figure
from vtlib.teach.jpeg import jpeg, jpeg_at
from vtlib.teach.pictures import image
from vtlib.teach.plots import LEVELS, MARKS
from vtlib.teach.widgets import Panel, panel
from vtlib.tokenizers.measures import psnr
from vtlib.tokenizers.tokbench import Words, edit_similarity
from vtlib.tokenizers.tokbench_world import word_pictures

WRONG, RIGHT = PALETTE[1], "#000000"
MISSING = "_"
"""Stands for a letter that was not read."""


# ------------------------------------------------------------------------------------------ codecs
def blurred(images: Tensor, sigma: float) -> Tensor:
    """Images (B, 3, H, W) under a Gaussian of so many pixels."""
    check_images(images)
    sigma = check_number(sigma, "sigma", above=0)
    reach = max(1, math.ceil(3 * sigma))
    at = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    line = (-(at**2) / (2 * sigma**2)).exp()
    line = (line / line.sum()).expand(3, 1, 1, -1)
    x = F.pad(images, (reach,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(x, line, groups=3), line.transpose(2, 3), groups=3)


def at_decibels(ruin: Callable, images: Tensor, decibels: float, most: float) -> Tensor:
    """`ruin(images, strength)`, with the strength between 0 and `most` that has this PSNR.

    Args:
        ruin: images, strength -> images; the stronger, the lower the PSNR.
        images: (1, 3, H, W).
        decibels: the PSNR that is wanted.
        most: the largest strength.
    """
    low, high = 0.0, check_number(most, "most", above=0)
    for _ in range(24):
        middle = (low + high) / 2
        if psnr(ruin(images, middle), images).item() > decibels:
            low = middle
        else:
            high = middle
    return ruin(images, (low + high) / 2).clamp(0, 1)


def tiled(codec: Callable, side: int = 64) -> Callable[[Tensor], Tensor]:
    """A codec of pictures of one side as one of larger pictures: tile by tile.

    Args:
        codec: images (B, 3, side, side) -> images, or something with such `images`.
        side: of a tile; the pictures' sides are multiples of it.
    """
    side = check_int(side, "side", 1)

    def whole(images: Tensor) -> Tensor:
        check_images(images)
        rows, columns = images.shape[-2] // side, images.shape[-1] // side
        cut = rearrange(images, "b c (h p) (w q) -> (b h w) c p q", p=side, q=side)
        made = [codec(part) for part in cut.split(64)]
        made = torch.cat([getattr(part, "images", part) for part in made])
        return rearrange(made, "(b h w) c p q -> b c (h p) (w q)", h=rows, w=columns)

    return whole


class JPEG:
    """JPEG of pictures that are made smaller first, and enlarged (bicubic) behind it.

    `bits`: mean of the pictures of the last call, without JPEG's header.

    Args:
        factor: how many times smaller.
        quality: Pillow's; or
        budget: bits a picture, to which the best quality is found.
    """

    def __init__(
        self, factor: int = 1, quality: int | None = None, budget: float | None = None
    ) -> None:
        if (quality is None) == (budget is None):
            raise ValueError(f"quality={quality}, budget={budget}: needs one of the two")
        self.factor = check_int(factor, "factor", 1)
        self.quality, self.budget, self.bits = quality, budget, math.nan

    def __call__(self, images: Tensor) -> Tensor:
        small = F.avg_pool2d(images, self.factor)
        if self.budget is None:
            made, bits = jpeg(small, self.quality)
        else:
            made, bits, _ = jpeg_at(small, self.budget)
        self.bits = bits.double().mean().item()
        if self.factor == 1:
            return made
        size = images.shape[-2:]
        large = F.interpolate(made, size=size, mode="bicubic", align_corners=False)
        return large.clamp(0, 1)


def file_bits(image: Tensor, quality: int) -> tuple[int, int]:
    """Bits of a picture (1, 3, H, W) as a JPEG file, and those of its waves alone."""
    pixels = image[0].mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=check_int(quality, "quality", 1, 95))
    return 8 * len(file.getvalue()), int(jpeg(image, quality)[1])


# ---------------------------------------------------------------------------------- what was read
def word_grid(words: Sequence[str], heights: Sequence[int], seed: int = 40) -> Words:
    """Signs of 128 px: word w at height h is number h * W + w, on the w-th photograph.

    Args:
        words: W words.
        heights: of the font, in pixels.
        seed: decides.
    """
    drawn = [
        word_pictures(1, seed + w, height=height, words=[word])
        for height in heights
        for w, word in enumerate(words)
    ]
    images, boxes = (torch.cat([getattr(one, name) for one in drawn]) for name in
                     ("images", "boxes"))  # fmt: skip
    return Words(images, [one.words[0] for one in drawn], boxes)


def letters(written: str, read: str) -> list[tuple[str, bool]]:
    """What was read, letter by letter, and whether it is right; "_" where one is missing.

    By the fewest edits; of several ways one.
    """
    rows = len(written) + 1
    cost = [[i + j if not i * j else 0 for j in range(len(read) + 1)] for i in range(rows)]
    for i, a in enumerate(written, start=1):
        for j, b in enumerate(read, start=1):
            swap = cost[i - 1][j - 1] + (a != b)
            cost[i][j] = min(swap, cost[i - 1][j] + 1, cost[i][j - 1] + 1)
    i, j, out = len(written), len(read), []
    while i or j:
        same = bool(i and j) and written[i - 1] == read[j - 1]
        if i and j and cost[i][j] == cost[i - 1][j - 1] + (not same):
            out.append((read[j - 1], same))
            i, j = i - 1, j - 1
        elif j and cost[i][j] == cost[i][j - 1] + 1:
            out.append((read[j - 1], False))
            j -= 1
        else:
            out.append((MISSING, False))
            i -= 1
    return out[::-1]


LETTERS_FONT = {"family": ["monospace"], "fontsize": 11, "ha": "center", "va": "center"}


def write_letters(ax: Any, written: str, read: str, y: float = -0.13) -> list:
    """A word below `ax`, its wrong letters orange and in a box; returns the texts.

    Args:
        ax: matplotlib Axes.
        written: the truth.
        read: what a reader said.
        y: where, in the axes' height.
    """
    told, texts = letters(written, read) or [("nothing", False)], []
    step = 0.085
    start = 0.5 - step * (len(told) - 1) / 2
    for k, (letter, right) in enumerate(told):
        look = {"color": RIGHT} if right else {"color": WRONG, "weight": "bold"}
        x, where = start + k * step, {"transform": ax.transAxes}
        if not right:
            look["bbox"] = {"boxstyle": "square,pad=0.12", "edgecolor": WRONG, "facecolor": "none"}
        texts.append(ax.text(x, y, letter, **LETTERS_FONT | look | where))
    return texts


@matplotlib.rc_context(STYLE)
def readings(
    crops: Sequence[Tensor],
    written: Sequence[str],
    read: Sequence[str],
    titles: Sequence[str],
    cols: int = 4,
    title: str | None = None,
) -> Figure:
    """Plates, and below each what was read, wrong letters orange and in a box -> Figure.

    Args:
        crops: N pictures (3, h, w).
        written: N words.
        read: N words.
        titles: N, above the plates.
        cols: plates in a row.
        title: of the whole figure.
    """
    count = len(check_list(crops, "crops"))
    cols = min(check_int(cols, "cols", 1), count)
    rows, head = math.ceil(count / cols), 0.3 if title else 0.0
    width, height = 2.1 * cols, 1.25 * rows + head
    fig = figure(size=(width, height))[0]
    fig.clear()
    if title:
        fig.text(0.05 / width, 1 - 0.07 / height, title, fontsize=9.5, va="top", ha="left")
    for k in range(count):
        row, column = divmod(k, cols)
        left = (0.1 + 2.1 * column) / width
        bottom = 1 - (head + 1.25 * row + 0.9) / height
        ax = fig.add_axes([left, bottom, 1.9 / width, 0.62 / height])
        image(ax, crops[k])
        ax.set_title(titles[k], fontsize=8.5)
        beside = fig.add_axes([left, bottom - 0.3 / height, 1.9 / width, 0.25 / height])
        beside.set_axis_off()
        write_letters(beside, written[k], read[k], y=0.5)
    return fig


# ------------------------------------------------------------------------------------------- plots
@matplotlib.rc_context(STYLE)
def ranking(
    table: Mapping[str, Mapping[str, float]], better: Mapping[str, str], title: str
) -> Figure:
    """A row for each codec, a panel for each measure, best codec by the first measure on top.

    Args:
        table: {codec: {measure: value}}, the same measures for all.
        better: {measure: "higher" or "lower"}, in the panels' order.
        title: the message.
    """
    measures = list(better)
    sign = -1 if better[measures[0]] == "higher" else 1
    names = sorted(table, key=lambda name: sign * table[name][measures[0]])
    tall = 0.24 * len(names) + 1.05
    fig, axes = figure(len(measures), size=(1.3 + 2.3 * len(measures), tall), sharey=True)
    fig.subplots_adjust(left=0.17, right=0.98, top=1 - 0.62 / tall, bottom=0.12 / tall + 0.06,
                        wspace=0.12)  # fmt: skip
    fig.text(0.01, 1 - 0.06 / tall, title, fontsize=9.5, va="top", ha="left")
    for ax, measure in zip(axes, measures, strict=True):
        values = [table[name][measure] for name in names]
        places = list(range(len(names)))
        ax.hlines(places, 0, values, color="#bbbbbb", linewidth=1)
        by = torch.tensor(values) * (1 if better[measure] == "higher" else -1)
        best = int(by.nan_to_num(-math.inf).argmax())
        for k, value in enumerate(values):
            look = {"color": PALETTE[1], "marker": "D"} if k == best else {"color": PALETTE[0]}
            ax.plot([value], [k], **{"marker": "o", "markersize": 5} | look)
        ax.set(title=f"{measure}\n({better[measure]} is better)")
        ax.set_yticks(places, names)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.tick_params(length=0)
    return fig


@matplotlib.rc_context(STYLE)
def rates(
    ax: Any,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    marks: Mapping[str, tuple[float, float]],
    levels: Mapping[str, float],
    title: str,
    labels: tuple[str, str],
) -> None:
    """Quality against bits a pixel, on `ax`: lines of a codec's qualities, a mark a tokenizer.

    Args:
        ax: matplotlib Axes.
        lines: {name: (bits a pixel, quality)}.
        marks: {name: (bits a pixel, quality)}.
        levels: {name: quality} of what has no number of bits.
        title: the message.
        labels: (of x, of y).
    """
    for k, (name, (x, y)) in enumerate(lines.items()):
        ax.plot(x, y, ["-", "--", "-."][k % 3], marker=".", color=PALETTE[k], label=name)
    colors, edge = PALETTE[2:], {"markeredgecolor": "black", "markeredgewidth": 0.5}
    for k, (name, (x, y)) in enumerate(marks.items()):
        look = {"color": colors[k % len(colors)], "marker": MARKS[1 + k % 7], "markersize": 7}
        ax.plot([x], [y], linestyle="", label=name, **look | edge)
    for k, (name, y) in enumerate(levels.items()):
        look = {"color": ["#777777", "black"][k % 2], "linestyle": LEVELS[k % len(LEVELS)]}
        ax.axhline(y, linewidth=1.2, label=name, **look)
    ax.set(title=title, xlabel=labels[0], ylabel=labels[1], xscale="log")
    ticks = [0.03, 0.06, 0.1, 0.2, 0.4, 0.8]
    low, high = ax.get_xlim()
    shown = [tick for tick in ticks if low <= tick <= high]
    ax.set_xticks(shown, [f"{tick:g}" for tick in shown])
    ax.xaxis.minorticks_off()


# ------------------------------------------------------------------------------------------ widget
class ReadingFigure:
    """The widget's picture: what stays is drawn once; `at(...)` moves the rest.

    Args:
        heights: of the font, in pixels.
    """

    def __init__(self, heights: Sequence[int]) -> None:
        self.heights = list(heights)
        self.fig, self.axes = figure(3, size=(9.6, 2.75), width_ratios=(1, 1, 1.5))
        self.fig.subplots_adjust(left=0.01, right=0.99, bottom=0.17, top=0.86, wspace=0.12)
        blank = torch.ones(3, 40, 120)
        self.plates = [image(ax, blank) for ax in self.axes[:2]]
        self.axes[2].set_position([0.6, 0.17, 0.385, 0.69])
        plot = self.axes[2]
        self.bars = plot.bar(range(len(heights)), [1.0] * len(heights), 0.6, color="#bcd9ea",
                             label="T-NED")  # fmt: skip
        look = {"color": PALETTE[1], "label": "T-ACC", "clip_on": False, "zorder": 5}
        self.exact = plot.plot(range(len(heights)), [1.0] * len(heights), "D", **look)[0]
        self.here = plot.axvline(0, color="#777777", linewidth=1, linestyle=":")
        plot.set_xticks(range(len(heights)), [f"{height} px" for height in heights])
        plot.set(xlabel="line height (dotted: the word on the left)", ylim=(0, 1.05))
        plot.legend(loc="upper left", ncols=2)
        self.texts: list = []

    def at(
        self, plates: Sequence[Tensor], words: tuple[str, str, str], place: int,
        exact: Sequence[float], near: Sequence[float], titles: tuple[str, str, str],
    ) -> Figure:
        """The figure for one word.

        Args:
            plates: the original's and the reconstruction's crop (3, h, w), of one size.
            words: written, read on the original, read on the reconstruction.
            place: of the height.
            exact: T-ACC of each height.
            near: T-NED of each height.
            titles: of the three panels.
        """
        for text in self.texts:
            text.remove()
        self.texts = []
        for k, plate in enumerate(plates):
            self.plates[k].set_data(plate.permute(1, 2, 0).clamp(0, 1).numpy())
            height, width = plate.shape[1:]
            self.plates[k].set_extent((0, width, height, 0))
            self.axes[k].set(xlim=(0, width), ylim=(height, 0))
            self.axes[k].set_title(titles[k])
            self.texts += write_letters(self.axes[k], words[0], words[1 + k], y=-0.2)
        for bar, value in zip(self.bars, near, strict=True):
            bar.set_height(value)
        self.exact.set_ydata(exact)
        self.here.set_xdata([place, place])
        self.axes[2].set_title(titles[2])
        return self.fig


def by_height(written: Sequence[str], read: Sequence[str], count: int) -> tuple[list, list]:
    """(T-ACC, T-NED) of each of `count` heights; the words of one height stand side by side."""
    exact = torch.tensor([float(a == b) for a, b in zip(written, read, strict=True)])
    near = torch.tensor([edit_similarity(a, b) for a, b in zip(written, read, strict=True)])
    return tuple(x.view(count, -1).mean(1).tolist() for x in (exact, near))


def reading_panel(
    words: Sequence[str],
    heights: Sequence[int],
    plates: Mapping[str, Sequence[Tensor]],
    read: Mapping[str, Mapping[str, Sequence[str]]],
    decibels: Mapping[str, float],
    start: Mapping[str, Any],
    alt: str,
) -> Panel:
    """The widget "what does it still say": controls word, height, codec and, of several, reader.

    Args:
        words: W words; word w at height h is number h * W + w below.
        heights: of the font.
        plates: {codec: crops (3, h, w)}, the original first.
        read: {reader: {codec: words read}}, the original first.
        decibels: {codec: PSNR of the pictures}.
        start: values of the controls of the first picture.
        alt: what that picture shows.
    """
    drawn, (source, *codecs) = ReadingFigure(heights), plates
    written = [word for _ in heights for word in words]

    first = next(iter(read))

    def draw(word, height, codec, reader=first):
        place = list(heights).index(height)
        k = place * len(words) + list(words).index(word)
        said = read[reader]
        exact, near = by_height(written, said[codec], len(heights))
        pair = [plates[name][k] for name in (source, codec)]
        told = f"{codec}: {decibels[codec]:.1f} dB"
        return drawn.at(
            plates=pair, words=(word, said[source][k], said[codec][k]), place=place,
            exact=exact, near=near, titles=("original", told, f"{codec}, read by {reader}"),
        )  # fmt: skip

    menu = ipywidgets.Dropdown
    controls = {
        "word": menu(options=list(words), value=start["word"], description="word"),
        "height": ipywidgets.SelectionSlider(
            options=list(heights), value=start["height"], description="line height (px)"
        ),
        "codec": menu(options=codecs, value=start["codec"], description="codec"),
    }
    if len(read) > 1:
        names = list(read)
        value = start.get("reader", names[0])
        value = value if value in names else names[0]
        controls["reader"] = menu(options=names, value=value, description="reader")
    return panel(draw, alt=alt, **controls)
