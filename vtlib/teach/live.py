"""A curve that grows while a model trains, and the plain training loop under it."""

import math
import time
import uuid
from collections.abc import Callable

import torch
from matplotlib.figure import Figure

from vtlib.nn.checks import check_callable, check_int, check_number
from vtlib.teach.figures import (
    PALETTE,
    figure,
    inches,
    picture_html,
    png,
    publish,
    require_alt,
)
from vtlib.teach.meter import recording_gradients


class LiveCurve:
    """A curve that grows, in one output that is updated in place.

        with LiveCurve(300, "The loss falls", "cross-entropy", alt="...") as live:
            ...
            live.update(step, train=loss)

    When the block ends (also by an exception) the whole curve stands there with its alt text, to
    which the last values are added. `live.history` is {name: ([steps], [values])}. ValueError for
    a total that is no integer of at least 1, a size that is no pair, and for an alt text that is
    too short.

    Args:
        total: the number of steps (end of the x axis).
        title: what the curve says.
        ylabel: what is drawn.
        alt: what there is to see, at least 20 characters.
        xlabel: what a step is.
        size: (width, height) in inches.
        every: seconds between two redraws at least.
    """

    def __init__(
        self,
        total: int,
        title: str,
        ylabel: str,
        alt: str,
        xlabel: str = "step",
        size: tuple[float, float] = (5.2, 2.9),
        every: float = 0.7,
    ):
        self.total = check_int(total, "total", 1)
        self.title, self.ylabel, self.xlabel = title, ylabel, xlabel
        self.alt, self.size = require_alt(alt), inches(size)
        self.every = check_number(every, "every", 0)
        self.history: dict[str, tuple[list, list]] = {}
        self._id = uuid.uuid4().hex
        self._shown = False
        self._last = -math.inf

    def update(self, step: int, **values) -> None:
        """Add one point per named series (numbers or 0-d tensors); a name left out gets none."""
        step = check_number(step, "step")
        for name, value in values.items():
            point = _point(value, name)
            steps, points = self.history.setdefault(name, ([], []))
            steps.append(step)
            points.append(point)
        if time.monotonic() - self._last >= self.every:
            self._publish()
            self._last = time.monotonic()  # after drawing: a slow machine spends its time training

    def figure(self) -> Figure:
        """The curve so far, each series labelled at its end; one that lies on an earlier one is
        dashed, so that both are seen."""
        fig, ax = figure(size=self.size)
        ends = []
        covered = _covered(list(self.history.values()))
        for i, (name, (steps, points)) in enumerate(self.history.items()):
            color = PALETTE[i % len(PALETTE)]
            look = {"marker": "o" if len(points) == 1 else None, "markersize": 3}
            ax.plot(steps, points, "--" if covered[i] else "-", color=color, **look)
            finite = [point for point in points if math.isfinite(point)]
            if finite:
                ends.append((finite[-1], f"{name} {finite[-1]:.3g}", color))
        last = max([self.total, *(steps[-1] for steps, _ in self.history.values())])
        ax.set(title=self.title, ylabel=self.ylabel, xlabel=self.xlabel, xlim=(0, last))
        _label_ends(ax, last, sorted(ends))
        longest = max((len(label) for _, label, _ in ends), default=0)
        fig.subplots_adjust(right=1 - (0.12 + 0.075 * longest) / self.size[0])
        return fig

    def _publish(self, final: bool = False) -> None:
        ends = [f"{name} {points[-1]:.3g}" for name, (_, points) in self.history.items()]
        alt = f"{self.alt} Last values: {', '.join(ends)}."
        data = png(self.figure(), level=9 if final else 1)
        bundle = {"text/html": picture_html(data, alt), "text/plain": alt}
        publish(bundle, display_id=self._id, update=self._shown)
        self._shown = True

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        if self.history:
            self._publish(final=True)


def _point(value, name: str) -> float:
    """A number, which may be NaN: a loss that diverged is worth seeing."""
    try:
        return float(value.detach() if isinstance(value, torch.Tensor) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}={value!r}: needs a number") from error


def _covered(series: list[tuple[list, list]]) -> list[bool]:
    """Whether each of the series ([steps], [values]) lies on an earlier one, within the width of a
    line (1 % of the axis)."""
    finite = [point for _, points in series for point in points if math.isfinite(point)]
    width = 0.01 * (max(finite) - min(finite)) if finite else 0.0
    return [
        any(_coincide(one, other, width) for other in series[:i]) for i, one in enumerate(series)
    ]


def _coincide(one: tuple[list, list], other: tuple[list, list], width: float) -> bool:
    """Whether two series ([steps], [values]) of several points differ by at most the width."""
    (steps, points), (steps_too, points_too) = one, other
    if len(steps) < 2 or steps != steps_too:
        return False
    return all(abs(a - b) <= width for a, b in zip(points, points_too, strict=True))


def _label_ends(ax, last: float, ends: list[tuple[float, str, str]]) -> None:
    """Write each (value, label, colour) at `last`, the lowest first; none covers another."""
    low, high = ax.get_ylim()
    least = 0.075 * (high - low)
    place = -math.inf
    for value, label, color in ends:
        place = max(value, place + least)
        offset = {"xytext": (4, 0), "textcoords": "offset points"}
        look = {"color": color, "va": "center", "fontsize": 8, "annotation_clip": False}
        ax.annotate(label, (last, place), **offset, **look)


def train(
    model: torch.nn.Module,
    loss: Callable,
    steps: int,
    rate: float,
    decay: float = 0.01,
    each: Callable | None = None,
) -> list[float]:
    """The plain loop, for when training is not the lesson; returns the list of losses.

    AdamW on `loss(step)`; the rate rises for 15 % of the steps, then falls to 0. The model is left
    in eval mode.

    Args:
        model: in any mode.
        loss: called with the step; draws its own batch, returns a scalar.
        steps: how many.
        rate: the highest learning rate.
        decay: weight decay.
        each: called as each(step, value) after every step.
    """
    steps = check_int(steps, "steps", 1)
    rate, decay = check_number(rate, "rate", 0), check_number(decay, "decay", 0)
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"model is a {type(model).__name__}: needs a torch module")
    check_callable(loss, "loss", "a function of the step")
    if each is not None:
        check_callable(each, "each", "a function (step, value), or None")
    weights = model.train().parameters()
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=decay, fused=True)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.15)
    losses = []
    with recording_gradients():
        for step in range(steps):
            value = loss(step)
            if not isinstance(value, torch.Tensor) or value.numel() != 1:
                kind = value.shape if isinstance(value, torch.Tensor) else type(value).__name__
                raise ValueError(f"loss({step}) returned {kind}: needs a tensor of one number")
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            rates.step()
            losses.append(value.item())
            if each is not None:
                each(step, losses[-1])
    model.eval()
    return losses
