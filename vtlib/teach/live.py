"""A curve that grows while a model trains, and stays as one figure afterwards; and the plain training loop under it."""

import math
import time
import uuid
from collections.abc import Callable

import torch

from vtlib.teach.show import PALETTE, _require_alt, figure, picture_html, png, publish


class LiveCurve:
    """`with LiveCurve(300, "The loss falls", "cross-entropy", alt="...") as live: ... live.update(step, train=loss)`.

    total: the number of steps (end of the x axis). Redraws at most every `every` seconds in one output that is updated in
    place; when the block ends (also by an exception) the whole curve stands there with its alt text, to which the last values
    are added. `live.history` is {name: ([steps], [values])}.
    """

    def __init__(self, total: int, title: str, ylabel: str, alt: str, xlabel: str = "step", size=(5.2, 2.9), every: float = 0.7):
        if total < 1:
            raise ValueError(f"total={total}: needs at least 1 step")
        self.total, self.title, self.ylabel, self.xlabel = total, title, ylabel, xlabel
        self.alt, self.size, self.every = _require_alt(alt), size, every
        self.history: dict[str, tuple[list, list]] = {}
        self._id, self._shown, self._last = uuid.uuid4().hex, False, -math.inf

    def update(self, step: int, **values) -> None:
        """Add one point per named series (numbers or 0-d tensors); a name that is left out gets no point."""
        for name, value in values.items():
            steps, points = self.history.setdefault(name, ([], []))
            steps.append(step)
            points.append(float(value))
        if time.monotonic() - self._last >= self.every:
            self._publish()
            self._last = time.monotonic()  # after drawing: a slow machine spends its time on training

    def figure(self):
        """The curve so far as a matplotlib Figure, each series labelled at its end."""
        fig, ax = figure(size=self.size)
        ends = []
        for i, (name, (steps, points)) in enumerate(self.history.items()):
            color = PALETTE[i % len(PALETTE)]
            ax.plot(steps, points, color=color, marker="o" if len(points) == 1 else None, markersize=3)
            finite = [(s, p) for s, p in zip(steps, points) if math.isfinite(p)]
            if finite:
                ends.append((finite[-1][1], finite[-1][0], name, color))
        last = max([self.total] + [s[-1] for s, _ in self.history.values() if s])
        ax.set(title=self.title, ylabel=self.ylabel, xlabel=self.xlabel, xlim=(0, last))
        low, high = ax.get_ylim()
        least = 0.075 * (high - low)  # labels keep this distance from each other
        place = -math.inf
        for value, step, name, color in sorted(ends):
            place = max(value, place + least)
            ax.annotate(
                f"{name} {value:.3g}",
                (last, place),
                xytext=(4, 0),
                textcoords="offset points",
                color=color,
                va="center",
                fontsize=8,
                annotation_clip=False,
            )
        longest = max((len(f"{name} {value:.3g}") for value, _, name, _ in ends), default=0)
        fig.subplots_adjust(right=1 - (0.12 + 0.075 * longest) / self.size[0])
        return fig

    def _publish(self, final: bool = False) -> None:
        ends = [f"{name} {points[-1]:.3g}" for name, (_, points) in self.history.items() if points]
        alt = f"{self.alt} Last values: {', '.join(ends)}." if ends else self.alt
        bundle = {"text/html": picture_html(png(self.figure(), level=9 if final else 1), alt), "text/plain": alt}
        publish(bundle, display_id=self._id, update=self._shown)
        self._shown = True

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        if self.history:
            self._publish(final=True)


def train(model: torch.nn.Module, loss: Callable, steps: int, rate: float, decay: float = 0.01, each: Callable | None = None):
    """The plain loop, for when training is not the lesson: AdamW on `loss(step)`, rate rising for 15 % of the steps, then falling to 0.

    loss: called with the step, draws its own batch, returns a scalar. each: called as each(step, value) after every step. decay:
    weight decay. Returns the list of losses; the model is left in eval mode.
    """
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=rate, weight_decay=decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.15)
    losses = []
    for step in range(steps):
        value = loss(step)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        losses.append(value.item())
        if each is not None:
            each(step, losses[-1])
    model.eval()
    return losses
