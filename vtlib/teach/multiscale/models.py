"""Several models on one test-bed: right answers by the size of the object, fusions, guesses."""

from collections.abc import Mapping, Sequence

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import nn

from vtlib.data import EmojiWorld
from vtlib.teach.figures import PALETTE, figure, show
from vtlib.teach.pictures import image, seeds
from vtlib.teach.widgets import Panel, panel


def show_by_size(scores: Mapping[str, Sequence[Mapping[str, float]]], title: str) -> None:
    """Percent right by the size of the object, one dot a seed.

    scores: {model: for each seed {size: percent}}; title: the message.
    """
    sizes = list(next(iter(scores.values()))[0])
    series, said = {}, []
    for name, runs in scores.items():
        series[name] = [[run[size] for run in runs] for size in sizes]
        ends = ", ".join("/".join(f"{dot:.0f}" for dot in dots) for dots in series[name])
        said.append(f"{name} {ends}")
    fig, ax = figure(size=(5.6, 3.2))
    seeds(ax, sizes, series)
    ax.set(title=title, xlabel="size of the object", ylabel="right (%)", ylim=(0, 100))
    ax.legend(loc="upper left")
    show(fig, alt=f"Percent right for {', '.join(sizes)} objects, one number a seed:"
                  f" {'; '.join(said)}.")


def show_fusions(scores: Mapping[str, Sequence[float]]) -> None:
    """Mean percent right of each fusion, one dot a seed: {fusion: one number a seed}."""
    fig, ax = figure(size=(5.6, 2.9))
    seeds(ax, list(scores), {"one seed": [list(runs) for runs in scores.values()]})
    ax.set(title="Seeds differ as much as fusions do", xlabel="fusion", ylim=(30, 60))
    ax.set_ylabel("right, mean of three sizes (%)")
    pairs = [
        f"{name} {' and '.join(f'{dot:.1f}' for dot in runs)}" for name, runs in scores.items()
    ]
    show(fig, alt=f"Percent right, one dot a seed: {'; '.join(pairs)}.")


def guess_panel(models: Mapping[str, nn.Module], world: EmojiWorld) -> Panel:
    """A picture of one object, and the three likeliest names that each model has for it.

    models: {name: images (B, 3, H, W) -> logits}; world: where the pictures come from.
    """
    device = next(next(iter(models.values())).parameters()).device

    @torch.no_grad()
    def draw(size: float, scene: int) -> Figure:
        options = {"scale": (size, size), "clutter": 1, "device": device}
        pictures, answer = world.classify(1, seed=scene, **options)
        fig, (left, right) = figure(2, size=(7.2, 3.2), width_ratios=(1, 1.5))
        fig.subplots_adjust(left=0.02, wspace=0.4)               # room for the models' names
        pixels = size * pictures.shape[-1]
        image(left, pictures[0].cpu(), f"{world.classes[answer[0]]}, {pixels:.0f} pixels")
        for k, model in enumerate(models.values()):
            _draw_guesses(right, model(pictures)[0], 4 * k, int(answer[0]), world.classes)
        right.set(title="The right answer is orange", xlabel="probability", xticks=(0, 0.5, 1))
        right.set(xlim=(0, 1.45), ylim=(4 * len(models) - 1, -1))
        right.spines["bottom"].set_bounds(0, 1)                  # beyond it stand the names
        right.set_yticks([4 * k + 1 for k in range(len(models))], list(models))
        return fig

    slider = {"min": 0.1, "max": 0.95, "step": 0.05, "description": "object size"}
    controls = {
        "size": ipywidgets.FloatSlider(0.5, **slider),
        "scene": ipywidgets.IntSlider(3, min=0, max=30, description="picture"),
    }
    alt = ("Left: a picture with one object to name. Right: the three most probable classes of"
           f" {', '.join(models)} as bars; the right class is orange.")
    return panel(draw, alt=alt, **controls)


def _draw_guesses(ax, logits, top: int, answer: int, classes: Sequence[str]) -> None:
    """Three bars from the row `top` on; that of the answer is orange."""
    probabilities, found = logits.softmax(dim=0).topk(3)
    for j, (value, c) in enumerate(zip(probabilities.tolist(), found.tolist(), strict=True)):
        ax.barh(top + j, value, color=PALETTE[1] if c == answer else PALETTE[5])
        ax.text(value + 0.02, top + j, f"{classes[c]} {value:.2f}", va="center", fontsize=8)
