"""Plots with numbers on their axes: curves, bars, and what quality costs.

Each gives a Figure for `show`, which asks for the alt text, or draws on an Axes of yours.
"""

import math
from collections.abc import Sequence

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vtlib.nn.checks import check_list, is_several
from vtlib.teach.figures import PALETTE, STYLE, figure
from vtlib.teach.pictures import check_axes, values_of

MARKS = "oDs^vPX*"
DASHES = ["-", "--", "-.", ":"]
LEVELS = [":", "--", "-."]
FEW = 20
"""Points up to which each is marked, so that lines differ by more than their colour."""
CLOSE = 0.055
"""The least share of an axis between two ticks that are written out."""


# ------------------------------------------------------------------------------------------- curves
@matplotlib.rc_context(STYLE)
def curves(
    x: Sequence,
    series: dict,
    title: str,
    labels: tuple[str, str],
    log: str = "",
    level: dict | None = None,
    at: dict | None = None,
    ylim: tuple | None = None,
    legend: str = "best",
    looks: dict | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Curves over a common x, each with its colour and its mark or dash -> Figure.

        teach.show(teach.curves(keeps, {"[CLS]": by_cls, "random": by_seed}, log="x",
                                title="Which tokens stay matters", labels=("kept", "accuracy"),
                                level={"chance": 1 / 12}), alt="...")

    A curve of several runs (seeds) is their mean, with a dot a run. Ticks stand at the points where
    these are few. ValueError for series of another length than x, for numbers that are none.

    Args:
        x: numbers, or words for points at equal distances.
        series: {name: values}, one value a point; or a list of runs with one a point each.
        title: the message, in a sentence.
        labels: (of x, of y), with units.
        log: "x", "y" or "xy" for axes that are logarithmic.
        level: {name: y} of lines to compare with, such as a baseline or chance.
        at: {name: x} of places to mark on the x axis, such as the size of a patch.
        ylim: (bottom, top); None in place of one leaves it to matplotlib.
        legend: where the names stand: "best", another place of matplotlib's, or "outside".
        looks: {name: {"color": ..., "marker": ...}} for what looks alike in several figures.
        ax: an Axes to draw on, by default that of a new figure.
    """
    across = check_list(x, "x")
    words = all(isinstance(value, str) for value in across)
    places = list(range(len(across))) if words else _runs(across, "x", len(across))[0].tolist()
    known = {name: _runs(v, f"series[{name!r}]", len(across)) for name, v in _named(series)}
    ax = _axes(ax)
    _scales(ax, log)
    marked, named = len(places) <= FEW, len(known) > 1 or bool(level)
    for k, (name, runs) in enumerate(known.items()):
        look = {"linestyle": DASHES[0] if marked else DASHES[k % len(DASHES)], "markersize": 4.5}
        look |= _look(k, name, looks)
        if len(runs) > 1:
            for run in runs:
                ax.plot(places, run, **look | {"linestyle": "", "markersize": 4})
            look["markevery"] = []              # the marks are the runs'; the legend shows one
        look |= {} if marked else {"marker": "None"}
        ax.plot(places, runs.mean(dim=0), label=name if named else None, **look)
    _reference(ax, level, at)
    _ticks(ax, places, across if words else [f"{value:g}" for value in places])
    return _finish(ax, title, labels, ylim, legend)


def _look(k: int, name: str, looks: dict | None) -> dict:
    """Colour and mark of the k-th series: those for its name, or else the palette's next."""
    if looks is not None and not isinstance(looks, dict):
        raise ValueError(f"looks is a {type(looks).__name__}: needs a dict by name")
    own = (looks or {}).get(name, {})
    return {"color": PALETTE[k % len(PALETTE)], "marker": MARKS[k % len(MARKS)]} | own


def _runs(values, name: str, length: int) -> torch.Tensor:
    """(runs, length) float64. ValueError for what is none."""
    several = isinstance(values, (list, tuple)) and values and is_several(values[0])
    runs = [_numbers(run, name) for run in (values if several else [values])]
    shapes = [tuple(run.shape) for run in runs]
    if shapes[0][-1:] != (length,) or len(set(shapes)) > 1 or runs[0].ndim > 2:
        raise ValueError(f"{name}: got shape {shapes[0]}, needs ({length},) or runs of ({length},)")
    return torch.stack(runs).reshape(-1, length)


def _numbers(values, name: str) -> torch.Tensor:
    """float64 on the CPU, whatever torch's defaults. ValueError for what holds no numbers."""
    if isinstance(values, (list, tuple)):
        try:
            return torch.tensor([float(v) for v in values], dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{name}={values!r:.80}: needs numbers") from error
    return values_of(values, name).double()


def _named(series, name: str = "series") -> list[tuple]:
    if not isinstance(series, dict) or not series:
        raise ValueError(f"{name} is a {type(series).__name__}: needs a dict by name, not empty")
    return list(series.items())


def _axes(ax) -> Axes:
    """That one, or the Axes of a new figure whose margins fit long labels."""
    if ax is None:
        return figure(size=(5.2, 3.0), layout="constrained")[1]
    check_axes(ax)
    return ax


def _scales(ax: Axes, log) -> None:
    if log not in ("", "x", "y", "xy"):
        raise ValueError(f"log={log!r}: needs '', 'x', 'y' or 'xy'")
    scale = {f"{axis}scale": "log" for axis in log}
    ax.set(**scale)


def _reference(ax: Axes, level: dict | None, at: dict | None) -> None:
    """Black lines across, named in the legend; grey upright ones with the name beside them."""
    for k, (name, y) in enumerate((level or {}).items()):
        dash = LEVELS[k % len(LEVELS)]
        ax.axhline(float(y), color="black", linewidth=1, linestyle=dash, label=name)
    for name, x in (at or {}).items():
        ax.axvline(float(x), color="#777777", linewidth=1)
        where = {"transform": ax.get_xaxis_transform(), "rotation": 90, "va": "top", "ha": "right"}
        ax.text(float(x), 0.98, name, fontsize=8, color="#555555", **where)


def _ticks(ax: Axes, places: list[float], texts: list[str]) -> None:
    """Ticks at the points, unless they stand too close for that."""
    scaled = [math.log(max(p, 1e-300)) if ax.get_xscale() == "log" else p for p in places]
    scaled = sorted(scaled)
    gaps = [b - a for a, b in zip(scaled, scaled[1:], strict=False)]
    if gaps and min(gaps) >= CLOSE * (scaled[-1] - scaled[0]):
        ax.set_xticks(places, texts)
        ax.xaxis.minorticks_off()


def _finish(ax: Axes, title: str, labels, ylim, legend: str) -> Figure:
    if not isinstance(labels, (tuple, list)) or len(labels) != 2:
        raise ValueError(f"labels={labels!r}: needs (the label of x, the label of y)")
    ax.set(title=title, xlabel=labels[0], ylabel=labels[1])
    if ylim is not None:
        ax.set_ylim(*ylim)
    if ax.get_legend_handles_labels()[1]:
        outside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
        ax.legend(**(outside if legend == "outside" else {"loc": legend}))
    return ax.figure


# --------------------------------------------------------------------------------------------- bars
@matplotlib.rc_context(STYLE)
def bars(
    groups: Sequence[str],
    series: dict,
    title: str,
    labels: tuple[str, str],
    level: dict | None = None,
    highlight: Sequence[str] = (),
    ylim: tuple | None = None,
    legend: str = "best",
    looks: dict | None = None,
    written: str = ".3g",
    ax: Axes | None = None,
) -> Figure:
    """A bar a group and series, its value above it -> Figure.

    A bar of several runs (seeds) is their mean, with a dot a run. ValueError for a series that has
    not one value, or list of runs, a group.

    Args:
        groups: their names.
        series: {name: for each group its value, or the list of its runs}.
        title: the message, in a sentence.
        labels: (of x, of y), with units.
        level: {name: y} of lines to compare with, such as chance.
        highlight: groups that get the second colour, where there is one series only.
        ylim: (bottom, top); None in place of one leaves it to matplotlib.
        legend: where the names stand: "best", another place of matplotlib's, or "outside".
        looks: {name of a series: {"color": ...}}, as for `curves`.
        written: how the values are, in Python's format, such as "+.2f".
        ax: an Axes to draw on, by default that of a new figure.
    """
    groups = check_list(groups, "groups")
    unknown = [name for name in highlight if name not in groups]
    if unknown:
        raise ValueError(f"highlight: {unknown[0]!r} is none of groups={groups}")
    known = {name: _grouped(v, f"series[{name!r}]", groups) for name, v in _named(series)}
    ax, width = _axes(ax), 0.8 / len(series)
    for k, (name, runs) in enumerate(known.items()):
        at = [j + width * (k - (len(known) - 1) / 2) for j in range(len(groups))]
        own = _look(k, name, looks)["color"]
        colours = [PALETTE[1] if group in highlight else own for group in groups]
        means = [sum(values) / len(values) for values in runs]
        label = name if len(known) > 1 else None
        ax.bar(at, means, 0.92 * width, color=colours, label=label)
        for place, values, mean in zip(at, runs, means, strict=True):
            _label_bar(ax, place, values, f"{mean:{written}}")
    _reference(ax, level, None)
    ax.margins(y=0.12)
    ax.set_xticks(range(len(groups)), [str(group) for group in groups])
    return _finish(ax, title, labels, ylim, legend)


def _label_bar(ax: Axes, place: float, values: list[float], text: str) -> None:
    """The height of a bar, beyond its end and the dots of its runs."""
    away = 5 if len(values) > 1 else 3
    if len(values) > 1:
        look = {"color": "black", "markersize": 3.5, "markerfacecolor": "white"}
        ax.plot([place] * len(values), values, "o", **look)
    up = sum(values) >= 0
    where = {"ha": "center", "va": "bottom" if up else "top", "textcoords": "offset points"}
    end = (place, max(values) if up else min(values))
    ax.annotate(text, end, (0, away if up else -away), fontsize=8, **where)


def _grouped(values, name: str, groups: Sequence) -> list[list[float]]:
    """A list of runs for each group."""
    values = check_list(values, name)
    if len(values) != len(groups):
        raise ValueError(f"{name} has {len(values)} values but there are {len(groups)} groups")
    runs = [_numbers(v if is_several(v) else [v], name).reshape(-1).tolist() for v in values]
    if not all(runs):
        raise ValueError(f"{name} has a group without a value, needs one or more for each")
    return runs


# ------------------------------------------------------------------------------------ quality, cost
@matplotlib.rc_context(STYLE)
def trade_off(
    points: dict,
    title: str,
    labels: tuple[str, str],
    log: str = "x",
    level: dict | None = None,
    ylim: tuple | None = None,
    legend: str = "outside",
    looks: dict | None = None,
    ax: Axes | None = None,
) -> Figure:
    """A mark a method, at its cost and its quality -> Figure: the plot of "Side by side".

    ValueError for a point that is no pair.

    Args:
        points: {name: (cost, quality)}; quality may be a list, one a run.
        title: the message, in a sentence.
        labels: (of the cost, of the quality), with units.
        log: "x", "y" or "xy" for axes that are logarithmic, "" for none.
        level: {name: y} of lines to compare with.
        ylim: (bottom, top); None in place of one leaves it to matplotlib.
        legend: where the names stand: "outside", "best" or another place of matplotlib's.
        looks: {name: {"color": ..., "marker": ...}}, as for `curves`.
        ax: an Axes to draw on, by default that of a new figure.
    """
    pairs = {}
    for name, pair in _named(points, "points"):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(f"points[{name!r}]={pair!r}: needs (cost, quality)")
        quality = pair[1] if is_several(pair[1]) else [pair[1]]
        label = f"points[{name!r}]"
        pairs[name] = _numbers([pair[0]], label).item(), _numbers(quality, label).tolist()
    ax = _axes(ax)
    _scales(ax, log)
    for k, (name, (cost, quality)) in enumerate(pairs.items()):
        line = "-" if len(quality) > 1 else ""      # one run is a mark, and so is its legend
        look = _look(k, name, looks) | {"linestyle": line, "markersize": 7, "linewidth": 1}
        ax.plot([cost] * len(quality), quality, label=name, **look)
    _reference(ax, level, None)
    return _finish(ax, title, labels, ylim, legend)
