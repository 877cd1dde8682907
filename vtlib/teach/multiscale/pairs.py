"""TokenFormer: what growth does to the scores of a layer, and where one pair speaks."""

import math
from collections.abc import Callable, Mapping, Sequence

import ipywidgets
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from torch import Tensor

from vtlib.teach.figures import CMAP, PALETTE, figure
from vtlib.teach.pictures import image, lines
from vtlib.teach.widgets import Panel, panel

EDGE, BINS, FEWEST = 5, 40, 0.1
"""Scores beyond +-EDGE are in the last bins; bars under FEWEST pairs are not drawn."""
DARK, BRIGHT = -0.2, 3
"""Weights at the ends of the colour bar; GELU gives nothing below -0.17."""


def growth_panel(regrow: Callable) -> Panel:
    """The scores of a layer before and after growth, the weights they become, and the loss.

    regrow: (pairs to append, "zero" or "random" keys, "keep" or "recompute" tau) -> scaled scores
    (tokens, pairs), the old pairs first; how far the layer's output moved; the loss.
    """
    before, _, loss_before = regrow(0, "zero", "keep")
    pairs = before.shape[1]
    fig, bars = _growth_figure()                     # drawn anew, not made anew: twice as fast
    bars["before growth"].set_data(_height(before))

    def draw(m: int, keys: str, tau: str) -> Figure:
        scores, moved, loss = regrow(m, keys, tau)
        bars["of the old pairs"].set_data(_height(scores[:, :pairs]))
        bars["of the new pairs"].set_data(_height(scores[:, pairs:]))
        bars["all weights"].set_data(_height(F.gelu(scores)))
        told = f"Output moves by {moved:.2f}, loss {loss_before:.3f} to {loss:.3f} nats"
        fig.axes[0].set_title(told)
        return fig

    m = ipywidgets.IntSlider(32, 0, 128, step=8, description="appended pairs m")
    keys = ipywidgets.ToggleButtons(options=["zero", "random"], description="new keys")
    tau = ipywidgets.ToggleButtons(options=["keep", "recompute"], description="tau")
    alt = ("Histogram of the scores in a grown layer. With zero keys and tau kept those of the old"
           " pairs lie where they lay before growth, those of the new pairs are one spike at 0, and"
           " output and loss do not move.")
    return panel(draw, alt=alt, m=m, keys=keys, tau=tau)


def _growth_figure() -> tuple[Figure, dict[str, StepPatch]]:
    """Four histograms, still empty, with their names beside them: a legend draws slowly."""
    looks = {
        "before growth": ("#777777", {"fill": True, "alpha": 0.5}),
        "of the old pairs": (PALETTE[0], {}),
        "of the new pairs": (PALETTE[1], {}),
        "all weights": ("black", {"ls": ":"}),
    }
    fig, ax = figure(size=(6, 2.8))
    edges = torch.linspace(-EDGE, EDGE, BINS + 1).numpy()
    bars = {}
    for k, (name, (color, look)) in enumerate(looks.items()):
        bars[name] = ax.stairs([-1] * BINS, edges, baseline=-9, lw=1.6, color=color, **look)
        label = f"{name}, after GELU" if name == "all weights" else f"scores {name}"
        ax.text(EDGE + 0.4, 2.5 - 0.5 * k, label, color=color)
    ax.set_xlabel("score or weight (beyond \u00b15: in the last bins)", loc="left")
    ax.set(ylabel="pairs a token", xlim=(-EDGE, 2 * EDGE), ylim=(math.log10(FEWEST), 3))
    ax.set_xticks((-4, -2, 0, 2, 4))
    ax.set_yticks((0, 1, 2), ("1", "10", "100"))
    return fig, bars


def _height(numbers: Tensor) -> np.ndarray:
    """Pairs a token in each bin, of (tokens, pairs); the logarithm by hand, as its axis is slow."""
    clamped = numbers.detach().float().cpu().clamp(-EDGE, EDGE)
    counts = torch.histc(clamped, BINS, -EDGE, EDGE) / len(numbers)
    return counts.clamp_min(FEWEST / 10).log10().numpy()


def pair_panel(pictures: Mapping[str, Tensor], weights: Sequence[Tensor]) -> Panel:
    """A picture, and the weight that one pair of a layer gets from each of its patches.

    pictures: {name: (3, H, W)}; weights: for each layer (B, 1 + h * h, pairs), [CLS] first. The
    pairs are sorted: the first differ most from patch to patch.
    """
    images = list(pictures.values())
    layers = [of_layer[:, 1:].detach().cpu() for of_layer in weights]
    spread = [of_layer.var(dim=1).mean(dim=0) for of_layer in layers]
    order = [of_pair.argsort(descending=True) for of_pair in spread]
    side = math.isqrt(layers[0].shape[1])

    def draw(picture: int, layer: int, pair: int) -> Figure:
        heat = layers[layer - 1][picture, :, order[layer - 1][pair]].view(side, side)
        fig, axes = figure(3, size=(5.9, 2.75), layout="pictures", width_ratios=(1, 1, 0.08))
        fig.subplots_adjust(right=0.92)                          # room for the bar's numbers
        image(axes[0], images[picture], f"{side} x {side} patches")
        lines(axes[0], images[picture].shape[-1] // side)
        drawn = {"cmap": CMAP, "vmin": DARK, "vmax": BRIGHT}
        axes[1].imshow(heat.numpy(), **drawn)
        axes[1].set_title(f"Layer {layer}, pair {pair}: {heat.min():.1f} to {heat.max():.1f}")
        axes[1].set_axis_off()
        ramp = torch.linspace(DARK, BRIGHT, 64)[:, None].numpy()
        axes[2].imshow(ramp, aspect="auto", origin="lower", extent=(0, 1, DARK, BRIGHT), **drawn)
        axes[2].set(xticks=(), yticks=(0, 1, 2, 3), title="weight")
        axes[2].yaxis.tick_right()
        return fig

    names = {name: k for k, name in enumerate(pictures)}
    last = layers[0].shape[-1] - 1
    controls = {
        "picture": ipywidgets.Dropdown(options=names, description="picture"),
        "layer": ipywidgets.IntSlider(1, 1, len(layers), description="layer"),
        "pair": ipywidgets.IntSlider(0, 0, last, description="pair"),
    }
    alt = ("A picture with the borders of its patches, and a map of the weight that one parameter"
           " token gets from each: the brighter a patch, the more it says there.")
    return panel(draw, alt=alt, **controls)
