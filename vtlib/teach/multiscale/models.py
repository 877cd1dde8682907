"""Several models on one test-bed: right answers by the size of the object, fusions, guesses."""

from collections.abc import Mapping, Sequence

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from vtlib.data import EmojiWorld
from vtlib.teach.figures import PALETTE, figure, show
from vtlib.teach.pictures import seeds
from vtlib.teach.tables import table
from vtlib.teach.widgets import Panel, panel

SCENES = range(31)
"""Seeds of the pictures of `guess_panel`."""


def show_by_size(
    scores: Mapping[str, Sequence[Mapping[str, float]]], title: str, chance: float
) -> None:
    """Percent right by the size of the object, one dot a seed.

    Args:
        scores: {model: for each seed {size: percent}}.
        title: the message.
        chance: the percentage that guessing gets.
    """
    sizes = list(next(iter(scores.values()))[0])
    series, said = {}, []
    for name, runs in scores.items():
        series[name] = [[run[size] for run in runs] for size in sizes]
        ends = ", ".join("/".join(f"{dot:.0f}" for dot in dots) for dots in series[name])
        said.append(f"{name} {ends}")
    fig, ax = figure(size=(5.6, 3.2))
    seeds(ax, sizes, series)
    ax.axhline(chance, color="grey", lw=0.8, ls=":")
    ax.set(title=title, xlabel="size of the object", ylim=(0, 100))
    ax.set_ylabel("right (%; dotted: chance)")
    ax.legend(loc="upper left")
    show(fig, alt=f"Percent right for {', '.join(sizes)} objects, one number a seed:"
                  f" {'; '.join(said)}. Guessing gets {chance:.0f}.")


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


@torch.no_grad()
def lost_and_sure(models: Mapping[str, nn.Module], world: EmojiWorld, size: float) -> Tensor:
    """How often each model is right, and how often sure, on the 31 pictures of `guess_panel`, as a
    table and as (models, 2).

    Sure: its largest probability is above one half.

    Args:
        models: {name: images (B, 3, H, W) -> logits}.
        world: where the pictures come from.
        size: of the object, as a share of the picture's side.
    """
    device = next(next(iter(models.values())).parameters()).device
    options = {"scale": (size, size), "clutter": 1, "device": device}
    drawn = [world.classify(1, seed=scene, **options) for scene in SCENES]
    pictures, answers = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    counts = []
    for model in models.values():
        highest, found = model(pictures).softmax(dim=1).max(dim=1)
        counts.append([int((found == answers).sum()), int((highest > 0.5).sum())])
    rows = [[name, *pair] for name, pair in zip(models, counts, strict=True)]
    pixels = size * pictures.shape[-1]
    table(["model", "right", "above one half"], rows,
          caption=f"{len(SCENES)} pictures with an object of {pixels:.0f} pixels")
    return torch.tensor(counts)


def guess_panel(models: Mapping[str, nn.Module], world: EmojiWorld) -> Panel:
    """A picture of one object, and the three likeliest names that each model has for it.

    models: {name: images (B, 3, H, W) -> logits}; world: where the pictures come from.
    """
    device = next(next(iter(models.values())).parameters()).device

    @torch.no_grad()
    def draw(size: float, scene: int) -> Figure:
        options = {"scale": (size, size), "clutter": 1, "device": device}
        pictures, answer = world.classify(1, seed=scene, **options)
        fig, ax = figure(size=(6.2, 2.5), layout="pictures")     # one panel draws faster than two
        pixels, seen = size * pictures.shape[-1], pictures[0].permute(1, 2, 0).cpu().clamp(0, 1)
        ax.imshow((255 * seen).byte().numpy(), extent=(-1.6, -0.48, 10.6, -1), aspect="auto")
        for k, (name, model) in enumerate(models.items()):
            ax.text(-0.03, 4 * k + 1, name, ha="right", va="center", fontsize=8)
            _draw_guesses(ax, model(pictures)[0], 4 * k, int(answer[0]), world.classes)
        ax.set_title(f"{world.classes[answer[0]]}, {pixels:.0f} pixels")
        ax.set(xlim=(-1.6, 1.65), ylim=(4 * len(models) - 1, -1))
        ax.text(0, -1.3, "probability (orange: right)", fontsize=9.5)
        ax.set_axis_off()                                        # a bar has its number beside it
        return fig

    slider = {"min": 0.1, "max": 0.95, "step": 0.05, "description": "object size"}
    controls = {
        "size": ipywidgets.FloatSlider(0.5, **slider),
        "scene": ipywidgets.IntSlider(3, min=0, max=SCENES[-1], description="picture"),
    }
    alt = ("Left: a picture with one object to name. Right: the three most probable classes of"
           f" {', '.join(models)} as bars; the right class is orange.")
    return panel(draw, alt=alt, **controls)


def _draw_guesses(ax, logits, top: int, answer: int, classes: Sequence[str]) -> None:
    """Three bars from the row `top` on; that of the answer is orange."""
    probabilities, found = logits.softmax(dim=0).topk(3)
    colours = [PALETTE[1] if c == answer else PALETTE[5] for c in found.tolist()]
    rows = [top, top + 1, top + 2]
    ax.hlines(rows, 0, probabilities, colours, linewidth=9)      # faster than three bars
    for row, value, c in zip(rows, probabilities.tolist(), found.tolist(), strict=True):
        ax.text(value + 0.02, row, f"{classes[c]} {value:.2f}", va="center", fontsize=8)
