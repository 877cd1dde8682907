"""Widgets of the decoder's layers: what they do to each token (TransPrune), and merging, page rank
and ramp (AIM)."""

from collections.abc import Callable, Mapping, Sequence

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vtlib.nn.checks import check_int
from vtlib.pruning import aim, transprune
from vtlib.teach.figures import PALETTE, figure
from vtlib.teach.pictures import image, overlay, picture_row
from vtlib.teach.pruning.inside import states_by_layer
from vtlib.teach.pruning.plans import paint
from vtlib.teach.pruning.trials import bill
from vtlib.teach.widgets import Panel, panel
from vtlib.tokens import top_tokens
from vtlib.vlm.state import State
from vtlib.vlm.tinyvlm import TinyVLM, words

Asked = Sequence[tuple[Tensor, Tensor, str]]
"""Pictures with questions: (picture (3, H, W), visual tokens (N, D), question)."""


def _controls(asked: Asked, layers: int, layer: int) -> dict:
    texts = [(question, number) for number, (_, _, question) in enumerate(asked)]
    return {
        "question": ipywidgets.Dropdown(options=texts, value=0, description="question"),
        "layer": ipywidgets.IntSlider(layer, 1, layers - 1, description="layer"),
    }


def _dots(ax, score: Tensor, keep: int, grid: tuple[int, int], patch: int) -> None:
    """White dots on the best patches of score (N,)."""
    best = top_tokens(score[None], keep)[0]
    x, y = patch * (best % grid[1] + 0.5), patch * (best // grid[1] + 0.5)
    look = {"color": "white", "markersize": 3.5}
    ax.plot((x - 0.5).tolist(), (y - 0.5).tolist(), ".", **look)


# -------------------------------------------------------------------------------------- transitions
def _maps(state: State, module: str) -> dict[str, Tensor]:
    """{title: (N,)} of one prompt's state."""
    change = state.transitions[state.after]
    m, d = (part[0, change.visual] for part in getattr(change, module))
    ran = [state.transitions[layer] for layer in range(1, state.after + 1)]
    behind = slice(state.visual.stop, None)
    attention, asking = state.attention(behind), state.asking[:, behind]
    return {
        "magnitude m": m,
        "turn 1 - d": 1 - d,
        "TTV, summed so far": transprune.layer_ttv(ran).sum(dim=1)[0],
        "IGA": transprune.iga(attention, state.visual, asking)[0],
    }


def _without_peaks(score: Tensor) -> Tensor:
    """A score whose highest 3 % are cut to one height: a few peaks would leave all else dark."""
    return score.clamp(max=score.quantile(0.97).item())


def transition_panel(
    model: TinyVLM, asked: Asked, grid: tuple[int, int], layer: int = 3, keep: int = 28
) -> Panel:
    """Question, layer, module and budget -> four maps on the picture, with dots on the best
    patches: magnitude and turn of that module, TTV summed so far, IGA.

    Args:
        model: TinyVLM.
        asked: (picture (3, H, W), visual tokens (N, D), question) each.
        grid: (h, w), N = h w.
        layer: of the first frame.
        keep: dots in the first frame.
    """
    runs = [states_by_layer(model, tokens[None], [text]) for _, tokens, text in asked]
    patch, count = asked[0][0].shape[1] // grid[0], grid[0] * grid[1]

    def draw_maps(question: int, layer: int, module: str, keep: int) -> Figure:
        found = {name: x.cpu() for name, x in _maps(runs[question][layer], module).items()}
        heat = [_without_peaks(score).unflatten(0, grid) for score in found.values()]
        picture, _, text = asked[question]
        look = {"heat": heat, "size": 2.0, "alpha": 0.75, "title": text}
        fig = picture_row([picture.cpu()] * 4, list(found), **look)
        for ax, score in zip(fig.axes, found.values(), strict=True):
            _dots(ax, score, keep, grid, patch)
        return fig

    controls = _controls(asked, len(model.decoder.layers), layer)
    modules = {"options": ["attention", "mlp"], "description": "module"}
    controls["module"] = ipywidgets.ToggleButtons(**modules)
    keep = check_int(keep, "keep", 1, count // 3)
    controls["keep"] = ipywidgets.IntSlider(keep, 1, count // 3, description="keep")
    told = (f"Four maps on the picture after layer {layer}: magnitude, turn, summed TTV and IGA,"
            f" with white dots on the {keep} best patches of each.")  # fmt: skip
    return panel(draw_maps, alt=told, **controls)


# --------------------------------------------------------------------------- merging, rank and ramp
def _ramp_controls() -> dict:
    slider, describe = ipywidgets.FloatSlider, "description"
    taus = {"options": [0.05, 0.1, 0.3, 1.0], "value": 0.1, describe: "τ"}
    return {
        "steps": ipywidgets.IntSlider(2, 0, 5, description="merging steps"),
        "tau": ipywidgets.SelectionSlider(**taus),
        "iterations": ipywidgets.IntSlider(5, 1, 20, description="iterations"),
        "l1": slider(3.0, min=0.5, max=5.0, step=0.5, description="l₁"),
        "width": slider(1.7, min=0.1, max=4.0, step=0.4, description="l₂ - l₁"),
    }


def _draw_ramp(ax, model: TinyVLM, counts: tuple[int, int], ramp: tuple, text: str) -> None:
    """Bars of the visual tokens that each layer reads; the title says what share of the work.

    Args:
        ax: an Axes.
        model: TinyVLM.
        counts: visual tokens, before merging and after.
        ramp: (l1, l2).
        text: the question.
    """
    layers, num_text = len(model.decoder.layers), len(words(text))
    total, left = counts
    stages = aim.stages(layers, None, left, l1=ramp[0], l2=ramp[1])
    lengths, work, _ = bill(model, stages, left, num_text)
    _, whole, _ = bill(model, (), total, num_text)
    visual = [n - 1 - num_text for n in lengths]
    ax.bar(range(1, layers + 1), visual, color=PALETTE[0])
    for layer, count in enumerate(visual, start=1):
        ax.text(layer, count + 3, str(count), ha="center", va="bottom", fontsize=8)
    ax.set_xticks(range(1, layers + 1))
    ax.set(title=f"the decoder does {work / whole:.0%} of its work", xlabel="layer")
    ax.set(ylabel="visual tokens", ylim=(0, 280))


def ramp_panel(
    model: TinyVLM,
    asked: Asked,
    rank: Callable[[Tensor, float, int], Tensor],
    grid: tuple[int, int] = (16, 16),
    keep: int = 28,
) -> Panel:
    """AIM's knobs -> the merged picture, the page rank of a layer, and the tokens of each layer.

    Args:
        model: TinyVLM.
        asked: (picture (3, H, W), visual tokens (N, D), question) each.
        rank: (logits (heads, S, S), tau, iterations) -> (S,).
        grid: (h, w), N = h w.
        keep: dots on the page rank.
    """
    runs = [states_by_layer(model, tokens[None], [text]) for _, tokens, text in asked]
    merged: Mapping[tuple[int, int], Tensor] = {
        (number, steps): paint(picture.cpu(), _merged(tokens, steps), grid)
        for number, (picture, tokens, _) in enumerate(asked)
        for steps in range(6)
    }
    patch, count = asked[0][0].shape[1] // grid[0], grid[0] * grid[1]

    def draw_aim(question, layer, steps, tau, iterations, l1, width) -> Figure:
        fig, axes = figure(3, size=(9.0, 3.0), width_ratios=(1, 1, 1.25))
        fig.subplots_adjust(left=0.01, wspace=0.28)
        left = count >> steps
        image(axes[0], merged[question, steps], f"{steps} merging steps: {left} tokens")
        state = runs[question][layer]
        score = rank(state.logits(layer="last")[0], tau, iterations)[state.visual].cpu()
        mean = (top_tokens(score[None], keep) // grid[1]).float().mean()
        title = f"page rank of layer {layer}, mean row {mean:.1f}"
        look = {"alpha": 0.8, "mode": "nearest", "title": title}
        overlay(axes[1], asked[question][0].cpu(), score.unflatten(0, grid), **look)
        _dots(axes[1], score, keep, grid, patch)
        _draw_ramp(axes[2], model, (count, left), (l1, l1 + width), asked[question][2])
        return fig

    told = ("Left, a picture merged in two steps to a quarter of its tokens. Middle, the page rank"
            f" of layer 3 with τ = 0.1 after 5 iterations and its best {keep} patches. Right, the"
            " visual tokens of each layer under a ramp that starts at layer 3.")  # fmt: skip
    controls = _controls(asked, len(model.decoder.layers), 3) | _ramp_controls()
    return panel(draw_aim, alt=told, **controls)


def _merged(tokens: Tensor, steps: int):
    with torch.no_grad():
        return aim.merge(tokens[None], aim.halvings(len(tokens), steps))
