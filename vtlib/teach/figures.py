"""Figures: one look, one output per call, and words for those who cannot see the picture."""

import base64
import html
import io
import logging
import sys

import matplotlib
import numpy as np
from IPython import get_ipython
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from vtlib.nn.checks import check_flag, check_int, check_number

# Okabe & Ito, "Color Universal Design" (2008); the colours that read best on white come first
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442"]
# sequential: one direction of luminance, made for colour-blind readers (Nunez et al. 2018)
CMAP = "cividis"
# diverging: purple - white - orange, safe with red-green blindness (ColorBrewer)
CMAP_DIV = "PuOr"
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
    # fonts that are not there are none of a learner's business
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


# ---------------------------------------------------------------------------------------- figures


def figure(
    ncols: int = 1,
    nrows: int = 1,
    size: tuple[float, float] | None = None,
    layout: str | None = None,
    **kw,
):
    """A figure in the style of the course, without pyplot: (fig, axes).

    axes: one Axes for a single panel, an array of them for a row or a column, (nrows, ncols)
    otherwise. ValueError for numbers of panels that are no integers of at least 1, and a size that
    is no pair.

    Args:
        ncols: panels side by side.
        nrows: panels above each other.
        size: (width, height) of the whole figure in inches; by default 3.2 x 2.8 a panel.
        layout: None leaves room for ticks, labels and a title; "pictures" is for panels without
            ticks, and leaves room for a title only (by default 2.4 x 2.65 a panel: a square and a
            line). Both are fixed, so that drawing is fast; "constrained" fits the margins to long
            labels at about twice the time.
        kw: for `Figure.subplots` (sharey=True, width_ratios=...).
    """
    ncols, nrows = check_int(ncols, "ncols", 1), check_int(nrows, "nrows", 1)
    pictures = layout == "pictures"
    panel = (2.4, 2.65) if pictures else (3.2, 2.8)
    width, height = (panel[0] * ncols, panel[1] * nrows) if size is None else inches(size)
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(width, height), layout=None if pictures else layout)
        FigureCanvasAgg(fig)
        axes = fig.subplots(nrows, ncols, **kw)
        for ax in fig.axes:  # few ticks: small panels stay legible, and each costs a millisecond
            ax.locator_params(nbins=6)
    if pictures:
        fig.subplots_adjust(**_picture_margins(width / ncols, height / nrows, width, height))
    elif layout is None:
        fig.subplots_adjust(**_margins(ncols, nrows, width, height))
    return fig, axes


def inches(size) -> tuple[float, float]:
    """(width, height) of a figure. ValueError for what is no pair of numbers from 0.8 to 100."""
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ValueError(f"size={size!r}: needs (width, height) in inches")
    width, height = (check_number(side, "size", 0.8, 100) for side in size)
    return width, height


def _margins(ncols: int, nrows: int, width: float, height: float) -> dict[str, float]:
    """Room for a y label, tick labels and a title, in inches, as `subplots_adjust` wants it."""
    panel_w, panel_h = (width - 0.67) / ncols, (height - 0.75) / nrows
    return {
        "left": 0.55 / width,
        "right": 1 - 0.12 / width,
        "bottom": 0.45 / height,
        "top": 1 - 0.3 / height,
        "wspace": min(0.65 / max(panel_w - 0.65, 0.3), 1),
        "hspace": min(0.6 / max(panel_h - 0.6, 0.3), 1),
    }


def _picture_margins(panel_w: float, panel_h: float, width: float, height: float):
    """Room for a title above each panel, and nothing else."""
    return {
        "left": 0.05 / width,
        "right": 1 - 0.05 / width,
        "bottom": 0.04 / height,
        "top": 1 - 0.23 / height,
        "wspace": 0.1 / max(panel_w - 0.1, 0.05),
        "hspace": 0.27 / max(panel_h - 0.27, 0.05),
    }


# ---------------------------------------------------------------------------------------- outputs


def png(fig: Figure, dpi: float = 85, level: int = 6) -> bytes:
    """The figure as the bytes of a PNG file (drawn once, with Agg); closes the figure.

    ValueError for what is no Figure, for a dpi or level out of bounds.

    Args:
        fig: a matplotlib Figure.
        dpi: at most 110, so that notebooks stay small.
        level: zlib's, from 1 (fast) to 9 (small).
    """
    if not isinstance(fig, Figure):
        raise ValueError(f"fig: got {type(fig).__name__}, needs a matplotlib Figure")
    dpi, level = check_number(dpi, "dpi", 10, MAX_DPI), check_int(level, "level", 0, 9)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(fig)
    fig.set_dpi(dpi)
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    pixels = np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=level)
    return file.getvalue()


def require_alt(alt) -> str:
    """`alt` without outer blanks; ValueError unless it is a sentence."""
    if not isinstance(alt, str) or len(alt.strip()) < 20:
        raise ValueError(
            f"alt={alt!r}: needs a sentence of at least 20 characters that says what there is"
            " to see"
        )
    return alt.strip()


def image_html(data: bytes, alt: str) -> str:
    """`<img>` with the PNG inside and the alt text."""
    text, source = html.escape(alt, quote=True), base64.b64encode(data).decode()
    return f'<img alt="{text}" src="data:image/png;base64,{source}" style="max-width:100%">'


def picture_html(data: bytes, alt: str) -> str:
    """`image_html`, and the same sentence under it."""
    return f"{image_html(data, alt)}\n<p>{html.escape(alt, quote=True)}</p>"


def publish(bundle: dict, display_id: str | None = None, update: bool = False) -> None:
    """Send one output with several representations to the notebook.

    Outside IPython it prints the plain text, of the first of an output's updates only.

    Args:
        bundle: {MIME type: data}, "text/plain" among them.
        display_id: a name, for an output that will be updated.
        update: whether this replaces the output of that name.
    """
    update = check_flag(update, "update")
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
    """Publish a figure as one output: an HTML image with alt text and the same sentence under it.

    Closes the figure. ValueError for an alt text that is too short.

    Args:
        fig: a matplotlib Figure, or the bytes of a PNG.
        alt: what there is to see, at least 20 characters.
        dpi: at most 110.
    """
    alt = require_alt(alt)
    data = fig if isinstance(fig, bytes) else png(fig, dpi, level=9)
    publish({"text/html": picture_html(data, alt), "text/plain": alt})
