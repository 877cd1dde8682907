"""CrossViT: two grids on one picture, what the one query looks at, what a fusion costs."""

import math
from collections.abc import Callable, Mapping, Sequence

import ipywidgets
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from vtlib.nn.checks import check_images, check_ints
from vtlib.teach.figures import PALETTE, figure, show
from vtlib.teach.pictures import image, lines, overlay, seeds
from vtlib.teach.widgets import Panel, panel

SMALL, LARGE = "white", PALETTE[4]
"""Colours of the borders of S's and of L's patches."""


def show_grids(photo: Tensor, sizes: Sequence[int], patches: Sequence[int]) -> None:
    """A photograph as both branches cut it, and a corner with both grids on one picture.

    Args:
        photo: (3, S, S), S = sizes[0].
        sizes: side of the picture in each branch.
        patches: side of a patch in each branch.
    """
    check_images(photo[None], 3)
    sizes, patches = (
        check_ints(sizes, "sizes", 1, length=2), check_ints(patches, "patches", 1, length=2)
    )
    counts = [size // side for size, side in zip(sizes, patches, strict=True)]
    fig, axes = figure(3, layout="pictures")
    for k, name in enumerate(("S", "L")):
        resized = F.interpolate(photo[None], (sizes[k], sizes[k]), mode="bicubic")[0]
        image(axes[k], resized, f"{name}: {counts[k]} x {counts[k]} patches")
        lines(axes[k], patches[k], color=(SMALL, LARGE)[k])
    image(axes[2], photo, "A corner: nothing lines up")
    wide = patches[1] * sizes[0] / sizes[1]                      # L's patch in the pixels of S
    for side, colour in ((patches[0], SMALL), (wide, LARGE)):
        at = [side * k - 0.5 for k in range(1, 8)]
        axes[2].vlines(at, -0.5, 90, color=colour, lw=1.2)
        axes[2].hlines(at, -0.5, 90, color=colour, lw=1.2)
    axes[2].set(xlim=(-0.5, 80), ylim=(80, -0.5))
    show(fig, alt=f"A photograph cut into {counts[0]} x {counts[0]} small patches and into"
                  f" {counts[1]} x {counts[1]} large ones, and a corner with both grids (small"
                  " white, large orange): their borders do not line up.")


def show_answers(scores: Mapping[str, Sequence[Mapping[str, float]]], chance: float) -> None:
    """Right answers of both branches' classifiers, one dot a seed, for each way to fuse them.

    Args:
        scores: {fusion: for each seed {"S, pattern": share, "L, pattern": ..., "S, shape": ...}}.
        chance: the share that guessing gets.
    """
    fig, axes = figure(2, size=(6.8, 2.8), sharey=True)
    titles = {"pattern": "Pattern: L needs the news", "shape": "Shape: both can see it"}
    said = []
    for ax, (asked, title) in zip(axes, titles.items(), strict=True):
        series = {
            f"{branch}'s classifier": [
                [run[f"{branch}, {asked}"] for run in runs] for runs in scores.values()
            ]
            for branch in "SL"
        }
        seeds(ax, list(scores), series)
        ax.axhline(chance, color="grey", lw=0.8, ls=":")
        ax.set(title=title, ylim=(0, 1.05))
    axes[0].set_ylabel("right (share; dotted: chance)")
    axes[1].legend(loc="lower right")
    for name, runs in scores.items():
        shares = " and ".join(f"{run['L, pattern']:.2f}" for run in runs)
        said.append(f"{name} {shares}")
    show(fig, alt="Share of right answers, one dot a seed. The pattern, as L's classifier names it:"
                  f" {'; '.join(said)}. The shape: about equal for all.")


def visit_panel(pictures: Mapping[str, Tensor], attention: Sequence) -> Panel:
    """Where the one query of a branch looks, for each picture, direction, encoder and head.

    pictures: {name: (3, 48, 48)}; attention: for each encoder two weights (B, heads, 1, 1 + N), as
    a `CrossViT` with patches of 6 and 12 pixels returns them.
    """
    images, heads = list(pictures.values()), attention[0][0].shape[1]

    def draw(picture: int, branch: int, encoder: int, head: int) -> Figure:
        weights = attention[encoder - 1][branch][picture, head - 1, 0].detach().cpu()     # 1+n
        side = math.isqrt(len(weights) - 1)
        fig, axes = figure(2, size=(5.6, 2.95), layout="pictures")
        image(axes[0], images[picture], "S: 8 x 8, L: 4 x 4 patches")
        lines(axes[0], 6)
        lines(axes[0], 12, color=LARGE, width=1.6)
        title = f"{'SL'[branch]}'s [CLS] reads {'LS'[branch]} ({weights[0]:.0%} on itself)"
        heat = weights[1:].view(side, side)
        overlay(axes[1], images[picture], heat, mode="nearest", title=title)
        return fig

    names = {name: i for i, name in enumerate(pictures)}
    directions = {"S's [CLS] reads L": 0, "L's [CLS] reads S": 1}
    controls = {
        "picture": ipywidgets.Dropdown(options=names, description="picture"),
        "branch": ipywidgets.ToggleButtons(options=directions, description="query"),
        "encoder": ipywidgets.IntSlider(1, 1, len(attention), description="encoder"),
        "head": ipywidgets.IntSlider(1, 1, heads, description="head"),
    }
    alt = ("Left, a picture with the borders of small (white) and large (orange) patches. Right,"
           " the weights of S's [CLS] on L's patches as brightness.")
    return panel(draw, alt=alt, **controls)


def fusion_cost_panel(costs: Mapping[str, Callable[[int, int], float]]) -> Panel:
    """FLOPs of one fusion against the side of the image, for patches of 12 and 16 pixels.

    costs: {name: a function of the numbers of small and large patches}, the dearest first.
    """
    sides = range(96, 961, 48)
    counts = [((side // 12) ** 2, (side // 16) ** 2) for side in sides]
    # the logarithm by hand: a log axis draws slowly
    curves = {
        name: [math.log10(cost(*pair) / 1e6) for pair in counts] for name, cost in costs.items()
    }

    def draw(size: int) -> Figure:
        at = sides.index(size)
        fig, ax = figure(size=(5, 2.7))
        fig.subplots_adjust(left=0.17)
        for (name, curve), mark in zip(curves.items(), ("--", "-", ":"), strict=False):
            ax.plot(sides, curve, mark)
            ax.text(980, curve[-1], name, va="center")
            ax.plot(size, curve[at], "o", color="black")
        first, *_, last = costs.values()
        times = first(*counts[at]) / last(*counts[at])
        dearest = next(iter(costs))
        small, large = counts[at]
        ax.set_title(f"{small} + {large} patches: {dearest} costs {times:.0f} x")
        ax.set(xlabel="image side (pixels), P = 12 and 16", ylabel="FLOPs of one fusion")
        ax.set(xlim=(0, 1300), xticks=(240, 480, 960))
        ax.set_yticks(range(1, 6), ["10 M", "100 M", "1 G", "10 G", "100 G"])
        return fig

    size = ipywidgets.IntSlider(240, 96, 960, step=48, description="image side")
    alt = "FLOPs of one fusion against the image side, logarithmic: the gap of the curves grows."
    return panel(draw, alt=alt, size=size)
