"""Codes and indices as pictures: grids of numbers, points and their codes, rows of patches."""

from collections.abc import Mapping, Sequence

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vtlib.teach.figures import PALETTE, STYLE, figure
from vtlib.teach.pictures import TILES, image

SMALL = 6.5


# ----------------------------------------------------------------------------------- index grids
def coloured(indices: Tensor) -> Tensor:
    """A map of indices (h, w) as a picture (3, h, w); a colour of the palette for each index, used
    again after seven."""
    table = torch.tensor(TILES[3:], dtype=torch.float32)
    return table[indices.cpu() % len(table)].permute(2, 0, 1)


def as_numbers(picture: Tensor, indices: Tensor, back: Tensor, titles: Sequence[str]) -> Figure:
    """A picture, its tokens as the numbers they are, and the picture made of them.

    Args:
        picture: (3, H, W) in [0, 1].
        indices: (h, w) long.
        back: (3, H, W).
        titles: of the three panels.
    """
    fig, axes = figure(3, size=(9.2, 3.35), layout="pictures")
    image(axes[0], picture, titles[0])
    image(axes[1], coloured(indices), titles[1])
    for (row, column), index in zip(_places(indices), indices.flatten().tolist(), strict=True):
        axes[1].text(column, row, str(index), ha="center", va="center", fontsize=SMALL)
    image(axes[2], back.clamp(0, 1), titles[2])
    return fig


def _places(indices: Tensor) -> list[list[int]]:
    return torch.ones_like(indices).nonzero().tolist()


def code_maps(pictures: Sequence[Tensor], maps: Mapping[str, Sequence[Tensor]]) -> Figure:
    """Pictures in the first row; below it, for each kind of codes, which code each patch got.

    Args:
        pictures: (3, H, W) each.
        maps: {kind: for each picture its indices (h, w)}. Colours mean nothing across kinds.
    """
    rows, size = 1 + len(maps), (2.1 * len(pictures), 2.3 * (1 + len(maps)))
    fig, axes = figure(len(pictures), rows, size=size, layout="pictures")
    for column, picture in enumerate(pictures):
        image(axes[0, column], picture, "the photograph" if not column else None)
        for row, (kind, found) in enumerate(maps.items(), start=1):
            image(axes[row, column], _spread(found[column]), kind if not column else None)
    return fig


def _spread(indices: Tensor) -> Tensor:
    """(h, w) indices as colours of a qualitative map of twenty."""
    table = torch.tensor(matplotlib.colormaps["tab20"].colors, dtype=torch.float32)
    return table[indices.cpu() % len(table)].permute(2, 0, 1)


# -------------------------------------------------------------------------------- points and codes
@matplotlib.rc_context(STYLE)
def lloyd_rounds(x: Tensor, history: Sequence[tuple[Tensor, Tensor]], shown: Sequence[int]):
    """Points of the plane and their codes at some rounds of k-means -> Figure.

    Args:
        x: (N, 2).
        history: (indices (N,), codes (K, 2) that they were chosen among) of each round.
        shown: which rounds.
    """
    fig, axes = figure(len(shown), size=(3.1 * len(shown), 2.9), sharex=True, sharey=True)
    for ax, at in zip(axes, shown, strict=True):
        indices, codes = history[at]
        for k in range(len(codes)):
            mine, color = x[indices == k], PALETTE[k % len(PALETTE)]
            ax.plot(*mine.T.tolist(), ".", color=color, markersize=4, alpha=0.6)
            ax.plot(*codes[k].tolist(), "X", color=color, markersize=11, markeredgecolor="black")
        error = (x - codes[indices]).square().sum(1).mean()
        ax.set(title=f"round {at}: error {error:.2f}", xlabel="first number")
    axes[0].set_ylabel("second number")
    return fig


@matplotlib.rc_context(STYLE)
def latent_planes(planes: Mapping[str, tuple[Tensor, Tensor, Tensor]]) -> Figure:
    """Latents of two numbers, and the codes that stand for them, side by side.

    Args:
        planes: {title: (latents (N, 2), codes (K, 2), which of them are used (K,) bool)}.
    """
    fig, axes = figure(len(planes), size=(3.3 * len(planes), 3.0), layout="constrained")
    axes = [axes] if len(planes) == 1 else list(axes)
    told = None if all(used.all() for *_, used in planes.values()) else "unused code"
    for ax, (title, (latents, codes, used)) in zip(axes, planes.items(), strict=True):
        ax.plot(*latents[:1500].T.tolist(), ".", color="#bbbbbb", markersize=3, label="latents")
        ax.plot(*codes[~used].T.tolist(), "x", color=PALETTE[1], markersize=6, label=told)
        ax.plot(*codes[used].T.tolist(), "o", color=PALETTE[0], markersize=5, label="code in use")
        ax.set(title=title, xlabel="first number", ylabel="second number")
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return fig


@matplotlib.rc_context(STYLE)
def staircase(codes: Sequence[float], target: float) -> Figure:
    """The squared error behind a choice of the nearest code, against x: flat steps that jump; an
    arrow for what the straight-through gradient does on each step.

    Args:
        codes: numbers, ascending.
        target: what the output should be.
    """
    fig, ax = figure(size=(6.4, 3.1), layout="constrained")
    borders = [(a + b) / 2 for a, b in zip(codes, codes[1:], strict=False)]
    ends = [codes[0] - 0.6, *borders, codes[-1] + 0.6]
    for k, code in enumerate(codes):
        loss, pull = (code - target) ** 2, 2 * (target - code)
        ax.plot(ends[k : k + 2], [loss, loss], color=PALETTE[0], linewidth=3)
        ax.text(code, loss + 0.07, f"code {code:g}", ha="center", va="bottom", fontsize=8)
        start = (code, loss - 0.09)
        arrow = {"arrowstyle": "-|>", "color": PALETTE[1], "linewidth": 1.6}
        ax.annotate("", (code + 0.16 * pull, loss - 0.09), start, arrowprops=arrow)
    for border in borders:
        ax.axvline(border, color="#bbbbbb", linestyle=":", linewidth=1)
    ax.axvline(target, color="black", linestyle="--", linewidth=1, label=f"target {target:g}")
    ax.set(title="Flat steps: the true slope is 0, the borrowed one points to the target",
           xlabel="x, what the encoder gives", ylabel="squared error of the code")
    ax.set_ylim(-0.3, max((code - target) ** 2 for code in codes) + 0.3)
    ax.plot([], [], color=PALETTE[0], linewidth=3, label="error, as a function of x")
    ax.plot([], [], color=PALETTE[1], label="where straight-through sends x")
    ax.legend(loc="upper right")
    return fig


# ---------------------------------------------------------------------------------- rows of patches
@matplotlib.rc_context(STYLE)
def patch_rows(rows: Mapping[str, Tensor], title: str, size: float = 0.46) -> Figure:
    """Patches side by side, a row a code, its name in front.

    Args:
        rows: {name: patches (n, 3, p, p) in [0, 1]}, of one size.
        title: the message.
        size: of a patch, in inches.
    """
    most = max(len(patches) for patches in rows.values())
    side = next(iter(rows.values())).shape[-1]
    sheet = torch.ones(3, len(rows) * (side + 1), most * (side + 1))
    for r, patches in enumerate(rows.values()):
        for c, patch in enumerate(patches):
            top, left = r * (side + 1), c * (side + 1)
            sheet[:, top : top + side, left : left + side] = patch.clamp(0, 1)
    across, high = most * size, len(rows) * size
    fig, ax = figure(size=(across + 1.55, high + 0.35))
    fig.subplots_adjust(1.5 / (across + 1.55), 0.02, 0.995, high / (high + 0.35))
    image(ax, sheet, title)
    middles = [r * (side + 1) + side / 2 for r in range(len(rows))]
    ax.set_axis_on()
    ax.set_yticks(middles, list(rows))
    ax.set_xticks([])
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return fig
