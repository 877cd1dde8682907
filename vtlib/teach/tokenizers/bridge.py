"""Latents and their levels: what the notebook on TokenBridge draws."""

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vtlib.teach.figures import PALETTE, figure

SHADES = ("#CFE3F2", "#F3F8FC")
"""Of neighbouring bins."""


def gaussian(n: Tensor) -> Tensor:
    """The density of N(0, 1)."""
    return torch.exp(-n.square() / 2) / (2 * torch.pi) ** 0.5


def bins_figure(edges: Sequence[Tensor], means: Sequence[Tensor], titles: Sequence[str]) -> Figure:
    """N(0, 1) cut into bins, the value of each a dot; a panel for each way to cut.

    Args:
        edges: (B + 1,) each.
        means: (B,) each.
        titles: one a panel.
    """
    fig, axes = figure(len(edges), size=(3.2 * len(edges), 2.3), sharey=True)
    for ax, cut, value, title in zip(axes, edges, means, titles, strict=True):
        n = torch.linspace(-3.4, 3.4, 400, dtype=torch.float64)
        ax.plot(n, gaussian(n), color="black", linewidth=1)
        for k, (low, high) in enumerate(zip(cut[:-1], cut[1:], strict=True)):
            part = torch.linspace(float(low), float(high), 60, dtype=torch.float64)
            ax.fill_between(part, gaussian(part), color=SHADES[k % 2], linewidth=0)
        ax.vlines(cut, 0, gaussian(cut), color="#777777", linewidth=0.7)
        ax.plot(value, torch.zeros_like(value), "o", color=PALETTE[1], markersize=4, clip_on=False)
        ax.set(title=title, xlabel="n (deviations)", ylim=(0, 0.45))
    axes[0].set_ylabel("density")
    return fig


def densities(latents: Tensor, title: str, columns: int = 41) -> Figure:
    """The histogram of each channel as a line, with N(0, 1) in black.

    Args:
        latents: (..., C).
        title: the message.
        columns: of each histogram, from -4 to 4.
    """
    fig, ax = figure(size=(5.4, 2.6))
    middle = torch.linspace(-4, 4, columns)
    step = float(middle[1] - middle[0])
    for c, values in enumerate(latents.flatten(0, -2).T):
        share = torch.histc(values, columns, -4 - step / 2, 4 + step / 2) / (len(values) * step)
        ax.plot(middle, share, color=PALETTE[c % 6], linewidth=0.9,
                label="one channel each" if c == 0 else None)
    ax.plot(middle, gaussian(middle), color="black", linewidth=2.2, linestyle="--",
            label="N(0, 1)")
    ax.set(title=title, xlabel="value of a latent", ylabel="density")
    ax.legend()
    return fig


def joint(latents: Sequence[Tensor], pair: tuple[int, int], titles: Sequence[str]) -> Figure:
    """Two channels against each other: one dot a position, one panel for each set of latents.

    Args:
        latents: (..., C) each.
        pair: the channels.
        titles: one a panel.
    """
    fig, axes = figure(len(latents), size=(2.9 * len(latents), 2.7), sharey=True)
    for ax, values, title in zip(axes, latents, titles, strict=True):
        x, y = values.flatten(0, -2)[:3000, pair].T
        ax.plot(x, y, ".", color=PALETTE[0], markersize=1.6, alpha=0.5)
        ax.set(title=title, xlabel=f"channel {pair[0]}", xlim=(-4, 4), ylim=(-4, 4))
    axes[0].set_ylabel(f"channel {pair[1]}")
    return fig


def lloyd(values: Tensor, start: Tensor, rounds: int = 60) -> Tensor:
    """Levels (B,) of small squared error for values (N,): Lloyd's algorithm, which is k-means in
    one dimension. The error never grows.

    Args:
        values: (N,).
        start: (B,), ascending.
        rounds: how many.
    """
    found = start
    for _ in range(rounds):
        where = torch.bucketize(values, (found[1:] + found[:-1]) / 2)
        hits = where.bincount(minlength=len(found))
        sums = torch.zeros_like(found).index_add(0, where, values)
        found = torch.where(hits > 0, sums / hits.clamp(min=1), found)
    return found


def draw_levels(ax: Axes, latents: Tensor, values: Tensor, title: str) -> None:
    """The histogram of one channel, its values as dots, and the edges between their cells.

    Args:
        ax: to draw on.
        latents: (N,).
        values: (B,), ascending.
        title: over it.
    """
    share = torch.histc(latents, 60, -6, 6) / len(latents)
    ax.fill_between(torch.linspace(-5.9, 5.9, 60), share, step="mid", color="#CFE3F2")
    top = float(share.max()) * 1.1
    if len(values) <= 32:
        ax.vlines((values[1:] + values[:-1]) / 2, 0, top, color="#777777", linewidth=0.5)
    ax.plot(values, torch.zeros_like(values), "o", color=PALETTE[1], markersize=3.5, clip_on=False)
    ax.set(title=title, xlabel="value of the latent", ylabel="share", ylim=(0, top), xlim=(-6, 6))
