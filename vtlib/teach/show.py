"""Figures, pictures and tables: one look, one output per call, and words for those who cannot see the picture."""

import base64
import html
import io
import logging
import sys
from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from IPython import get_ipython
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image

# Okabe & Ito, "Color Universal Design" (2008); the colours that read best on white come first.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442"]
CMAP = "cividis"  # sequential: one direction of luminance, made for colour-blind readers (Nunez et al. 2018)
CMAP_DIV = "PuOr"  # diverging: purple - white - orange, safe with red-green blindness (ColorBrewer)
MAX_DPI = 110

STYLE = {
    "figure.dpi": 90,
    "savefig.dpi": 90,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "axes.titlelocation": "left",
    "axes.titlepad": 5,
    "axes.titley": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": matplotlib.cycler(color=PALETTE),
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "image.cmap": CMAP,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.unicode_minus": True,
}


def use_style() -> None:
    """Give matplotlib the look of the course (also for figures made with pyplot)."""
    matplotlib.rcParams.update(STYLE)
    logging.getLogger("matplotlib.font_manager").setLevel(
        logging.ERROR
    )  # fonts that are not there are none of a learner's business


def figure(ncols: int = 1, nrows: int = 1, size: tuple[float, float] | None = None, **kw):
    """A figure in the style of the course, without pyplot: (fig, axes).

    size: (width, height) of the whole figure in inches, by default 3.2 x 2.8 a panel. axes: one Axes for a single panel, an
    array of them for a row or a column, (nrows, ncols) otherwise. layout: None leaves room for ticks, labels and a title;
    "pictures" is for panels without ticks, and leaves room for a title only (size by default 2.4 x 2.65 a panel: a square
    and a line); both are fixed, so that drawing is fast. "constrained" fits the margins to long labels at about twice the
    time. Other keywords go to `Figure.subplots` (sharey=True, width_ratios=...).
    """
    for name, value in (("ncols", ncols), ("nrows", nrows)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: needs a whole number of at least 1")
    layout = kw.pop("layout", None)
    pictures = layout == "pictures"
    panel = (2.4, 2.65) if pictures else (3.2, 2.8)
    width, height = size if size is not None else (panel[0] * ncols, panel[1] * nrows)
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(width, height), layout=None if pictures else layout)
        FigureCanvasAgg(fig)
        axes = fig.subplots(nrows, ncols, **kw)
        for ax in fig.axes:
            ax.locator_params(nbins=6)  # few ticks: small panels stay legible, and each tick costs a millisecond
    if pictures:
        panel_w, panel_h = width / ncols - 0.1, height / nrows - 0.27
        fig.subplots_adjust(
            0.05 / width, 0.04 / height, 1 - 0.05 / width, 1 - 0.23 / height, wspace=0.1 / panel_w, hspace=0.27 / panel_h
        )
    elif layout is None:  # margins in inches: room for a y label, tick labels and a title
        left, right, bottom, top = 0.55 / width, 1 - 0.12 / width, 0.45 / height, 1 - 0.3 / height
        panel_w, panel_h = (width - 0.67) / ncols, (height - 0.75) / nrows
        fig.subplots_adjust(
            left, bottom, right, top, wspace=min(0.65 / max(panel_w - 0.65, 0.3), 1), hspace=min(0.6 / max(panel_h - 0.6, 0.3), 1)
        )
    return fig, axes


# ----------------------------------------------------------------------------------------------------------------- outputs


def png(fig: Figure, dpi: float = 85, level: int = 6) -> bytes:
    """The figure as the bytes of a PNG file (drawn once, with Agg); closes the figure.

    dpi: at most 110, so that notebooks stay small. level: zlib's, from 1 (fast) to 9 (small).
    """
    if not isinstance(fig, Figure):
        raise TypeError(f"fig: got {type(fig).__name__}, needs a matplotlib Figure")
    if not 0 < dpi <= MAX_DPI:
        raise ValueError(f"dpi={dpi}: needs more than 0 and at most {MAX_DPI}")
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(fig)
    fig.set_dpi(dpi)
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    pixels = np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=level)
    return file.getvalue()


def _require_alt(alt) -> str:
    if not isinstance(alt, str) or len(alt.strip()) < 20:
        raise ValueError(f"alt={alt!r}: needs a sentence of at least 20 characters that says what there is to see")
    return alt.strip()


def picture_html(data: bytes, alt: str) -> str:
    """`<img>` with the PNG inside and the alt text, and the same sentence under it."""
    text, image = html.escape(alt, quote=True), base64.b64encode(data).decode()
    return f'<img alt="{text}" src="data:image/png;base64,{image}" style="max-width:100%">\n<p>{text}</p>'


def publish(bundle: dict, display_id: str | None = None, update: bool = False) -> None:
    """Send one output with several representations to the notebook; outside IPython print the plain text."""
    if get_ipython() is None:
        if not update:
            print(bundle["text/plain"])
        return
    from IPython.display import display

    if display_id is None:
        display(bundle, raw=True)
    else:
        display(bundle, raw=True, display_id=display_id, update=update)


def show(fig, alt: str, dpi: float = 100) -> None:
    """Publish a figure as one output: an HTML image with alt text and the same sentence under it. Closes the figure.

    fig: matplotlib Figure (or the bytes of a PNG). alt: what there is to see, at least 20 characters (ValueError otherwise).
    """
    alt = _require_alt(alt)
    data = fig if isinstance(fig, bytes) else png(fig, dpi, level=9)
    publish({"text/html": picture_html(data, alt), "text/plain": alt})


def _cell(value) -> str:
    value = value.item() if isinstance(value, (np.generic, torch.Tensor)) and np.ndim(value) == 0 else value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def _is_numeric(text: str) -> bool:
    try:
        float(text.replace(",", "").rstrip("%x"))
    except ValueError:
        return False
    return True


def table(header: Sequence, rows: Sequence[Sequence], caption: str | None = None) -> None:
    """Publish a small table, as HTML (the first cell of a row is its heading) and as plain text.

    header: names of the columns; rows: as many cells each (ValueError otherwise). Floats are written with 4 significant digits,
    booleans as yes / no, None as an empty cell; format numbers yourself where that is not it.
    """
    header = [_cell(h) for h in header]
    cells = [[_cell(value) for value in row] for row in rows]
    for i, row in enumerate(cells):
        if len(row) != len(header):
            raise ValueError(f"rows[{i}] has {len(row)} cells but the header has {len(header)} columns")
    numeric = [bool(cells) and all(_is_numeric(row[j]) for row in cells if row[j]) for j in range(len(header))]
    side = ["right" if n else "left" for n in numeric]

    def line(row, tag, scopes):
        return (
            "<tr>"
            + "".join(
                f'<{t}{f" scope={chr(34)}{s}{chr(34)}" if s else ""} style="text-align:{a}">{html.escape(text)}</{t}>'
                for text, t, s, a in zip(row, tag, scopes, side)
            )
            + "</tr>"
        )

    n = len(header)
    body = "".join(line(row, ["th"] + ["td"] * (n - 1), ["row"] + [None] * (n - 1)) for row in cells)
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    markup = f"<table>{title}<thead>{line(header, ['th'] * n, ['col'] * n)}</thead><tbody>{body}</tbody></table>"
    widths = [max(len(row[j]) for row in [header, *cells]) for j in range(n)]
    text = [
        "  ".join(t.rjust(w) if num else t.ljust(w) for t, w, num in zip(row, widths, numeric)).rstrip()
        for row in [header, *cells]
    ]
    text.insert(1, "  ".join("-" * w for w in widths))
    publish({"text/html": markup, "text/plain": "\n".join(([caption] if caption else []) + text)})


def claims(rows: Sequence[Sequence]) -> None:
    """Publish the table that ends a paper's section; each row: (claim, paper's number, ours, same direction?, why it may differ).

    The fourth cell is a bool (written yes / no) or words.
    """
    for i, row in enumerate(rows):
        if len(row) != 5:
            raise ValueError(
                f"rows[{i}] has {len(row)} cells, needs 5: claim, paper's number, ours, same direction, why it may differ"
            )
    table(["claim", "paper's number", "ours", "same direction?", "why it may differ"], rows)


# ---------------------------------------------------------------------------------------------------------------- pictures


def _pixels(image) -> np.ndarray:
    """(3 or 1, H, W) or (H, W) tensor in [0, 1] (or uint8) -> (H, W, 3) float array; NaN becomes 0."""
    image = torch.as_tensor(image).detach().cpu()
    if image.ndim == 2:
        image = image[None]
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"image: got shape {tuple(image.shape)}, needs (3, H, W), (1, H, W) or (H, W)")
    image = image.float() / 255 if image.dtype == torch.uint8 else torch.nan_to_num(image.float())
    return image.clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0).numpy()


def image(ax, image, title: str | None = None):
    """Draw one image (3, H, W) in [0, 1] on `ax`, without ticks; returns matplotlib's AxesImage."""
    drawn = ax.imshow(_pixels(image))
    ax.set_axis_off()
    if title is not None:
        ax.set_title(title)
    return drawn


def grid(
    images, titles: Sequence[str] | None = None, cols: int | None = None, size: float = 1.25, title: str | None = None
) -> Figure:
    """Images (B, 3, H, W) in [0, 1] side by side -> Figure (with one Axes, so that 64 pictures draw as fast as one).

    titles: one per image, written above it (newlines allowed). cols: pictures in a row, by default at most 8. size: width of a
    picture in inches. title: the message of the whole figure.
    """
    pictures = [_pixels(x) for x in images]
    if not pictures:
        raise ValueError("images: got none, needs at least one (B, 3, H, W)")
    if len({p.shape for p in pictures}) > 1:
        raise ValueError(f"images: got shapes {sorted({p.shape[:2] for p in pictures})}, needs all of one height and width")
    if titles is not None and len(titles) != len(pictures):
        raise ValueError(f"titles: got {len(titles)} for {len(pictures)} images")
    if cols is not None and cols < 1:
        raise ValueError(f"cols={cols}: needs at least 1")
    cols = min(cols or 8, len(pictures))
    rows = -(-len(pictures) // cols)
    h, w, _ = pictures[0].shape
    lines = max((str(t).count("\n") + 1 for t in titles), default=1) if titles is not None else 0
    inch = w / size  # pixels of the image per inch of paper
    gap = 0.06 * inch
    top = gap + 0.14 * lines * inch  # room for the titles, in pixels of the image
    total_w, total_h = cols * (w + gap) - gap, rows * (h + top)
    head = 0.3 if title else 0.02
    width, height = total_w / inch + 0.08, total_h / inch + head + 0.04
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(width, height))
        FigureCanvasAgg(fig)
        ax = fig.add_axes([0.04 / width, 0.04 / height, total_w / inch / width, total_h / inch / height])
        for i, pixels in enumerate(pictures):
            x, y = (i % cols) * (w + gap), (i // cols) * (h + top) + top
            ax.imshow(pixels, extent=(x, x + w, y + h, y))
            if titles is not None:
                ax.text(x, y - 0.03 * inch, str(titles[i]), fontsize=8, va="bottom", ha="left", linespacing=1.05)
        ax.set(xlim=(0, total_w), ylim=(total_h, 0), aspect="equal")
        ax.set_axis_off()
        if title:
            fig.text(0.04 / width, 1 - 0.06 / height, title, fontsize=9.5, va="top", ha="left")
    return fig


def overlay(
    ax, image, heat, alpha: float = 0.6, cmap: str = CMAP, mode: str = "bilinear", vmin=None, vmax=None, title: str | None = None
):
    """An image with a heat map over it; returns the AxesImage of the heat map (for a colour bar).

    image: (3, H, W) in [0, 1]. heat: (h, w), resized to (H, W) with `mode` "bilinear" (smooth) or "nearest" (one flat square
    per token). vmin, vmax: the values at the ends of the colour map, by default those of `heat`. NaN in `heat` shows the bare
    image.
    """
    pixels = _pixels(image)
    heat = torch.as_tensor(heat).detach().float().cpu()
    if heat.ndim != 2:
        raise ValueError(f"heat: got shape {tuple(heat.shape)}, needs (h, w)")
    if mode not in ("bilinear", "nearest"):
        raise ValueError(f"mode={mode!r}: needs 'bilinear' or 'nearest'")
    valid = torch.isfinite(heat)
    low = float(heat[valid].min()) if valid.any() else 0.0
    high = float(heat[valid].max()) if valid.any() else 1.0
    low, high = low if vmin is None else vmin, high if vmax is None else vmax
    filled = torch.where(valid, heat, torch.tensor(low))
    align = {"align_corners": False} if mode == "bilinear" else {}
    large = F.interpolate(filled[None, None], size=pixels.shape[:2], mode=mode, **align)[0, 0]
    shown = F.interpolate(valid[None, None].float(), size=pixels.shape[:2], mode="nearest")[0, 0]
    ax.imshow(pixels)
    drawn = ax.imshow(large.numpy(), cmap=cmap, vmin=low, vmax=high if high > low else low + 1, alpha=(alpha * shown).numpy())
    ax.set_axis_off()
    if title is not None:
        ax.set_title(title)
    return drawn


def box(ax, middle: tuple[float, float], side: float, color: str = "white", width: float = 1.6) -> None:
    """Draw the outline of a square over the image already on `ax`: middle (row, column) and side, in pixels of the image."""
    (y, x), r = middle, side / 2
    ax.plot([x - r, x + r, x + r, x - r, x - r], [y - r, y - r, y + r, y + r, y - r], color=color, linewidth=width)


def tiles(ax, keys, title: str | None = None, numbers: bool = False):
    """A map of whole numbers (h, w) as coloured squares; returns matplotlib's AxesImage.

    Equal keys 0, 1, 2, ... share a colour of the palette (pale, so that black text reads on it; 6 is white). Below 0: -1 is grey
    (padding), -2 black (the token that was picked), -3 nearly white (nothing). numbers: write on each square that is not
    padding its number, row by row.
    """
    keys = torch.as_tensor(keys).cpu()
    if keys.ndim != 2 or keys.is_floating_point():
        raise ValueError(f"keys: got shape {tuple(keys.shape)} of {keys.dtype}, needs whole numbers (h, w)")
    if keys.min() < -3:
        raise ValueError(f"keys: got {int(keys.min())}, needs at least -3")
    pale = [[0.45 + 0.55 * int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)] for color in PALETTE[:6]] + [[1.0] * 3]
    special = [[0.94] * 3, [0.0] * 3, [0.75] * 3]  # -3, -2, -1
    tint = torch.tensor(special + pale)[torch.where(keys < 0, keys, keys % 7) + 3]  # h w 3
    drawn = image(ax, tint.permute(2, 0, 1), title)
    if numbers:
        for token, (y, x) in enumerate((keys != -1).nonzero().tolist()):
            ax.text(x, y, str(token), ha="center", va="center", fontsize=7 if len(keys) < 8 else 5.5)
    return drawn


def seeds(ax, groups: Sequence[str], series: dict[str, Sequence[Sequence[float]]], marks: str = "oDs^v") -> None:
    """One dot a run, so that the spread is seen: `series` is {label: for each group its values, one a seed}.

    The groups stand side by side on the x axis, the series of a group next to each other, each with its colour and mark.
    """
    step = min(0.2, 0.7 / len(series))
    for k, (label, values) in enumerate(series.items()):
        if len(values) != len(groups):
            raise ValueError(f"series[{label!r}] has values for {len(values)} groups but there are {len(groups)}")
        at = [j + step * (k - (len(series) - 1) / 2) for j, runs in enumerate(values) for _ in runs]
        dots = [value for runs in values for value in runs]
        ax.plot(at, dots, marks[k % len(marks)], color=PALETTE[k % len(PALETTE)], markersize=5, label=label)
    ax.set_xlim(-0.5, len(groups) - 0.5)
    ax.set_xticks(range(len(groups)), groups)


def lines(ax, patch: int | tuple[int, int], color: str = "white", width: float = 0.8) -> None:
    """Draw the borders of patches of `patch` pixels (or (height, width)) over the image already on `ax`."""
    if not ax.images:
        raise ValueError("ax: holds no image yet; draw one first, then the lines of its patches")
    ph, pw = (patch, patch) if isinstance(patch, int) else patch
    if min(ph, pw) < 1:
        raise ValueError(f"patch={patch}: needs at least 1 pixel")
    h, w = ax.images[0].get_array().shape[:2]
    segments = [[(x - 0.5, -0.5), (x - 0.5, h - 0.5)] for x in range(pw, w, pw)]
    segments += [[(-0.5, y - 0.5), (w - 0.5, y - 0.5)] for y in range(ph, h, ph)]
    ax.add_collection(LineCollection(segments, colors=color, linewidths=width, alpha=0.8), autolim=False)
