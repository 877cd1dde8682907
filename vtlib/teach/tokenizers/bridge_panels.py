"""The widgets of the notebook on TokenBridge."""

from collections.abc import Mapping, Sequence

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vtlib.teach.figures import PALETTE, figure
from vtlib.teach.pictures import image
from vtlib.teach.tokenizers.bridge import draw_levels
from vtlib.teach.widgets import Panel, panel
from vtlib.tokenizers import TokenBridge
from vtlib.tokenizers.base import Tokenizer
from vtlib.tokenizers.measures import psnr

LEVELS = (2, 3, 4, 6, 8, 16, 32, 64)


def levels_panel(
    autoencoder: Tokenizer, pictures: Mapping[str, Tensor], scales: Sequence[float], alt: str
) -> Panel:
    """The widget "levels and range": controls picture, levels, range, scale, channel.

    Args:
        autoencoder: continuous.
        pictures: {name: (3, H, W)}.
        scales: what the latents may be multiplied by before they are cut.
        alt: what the first frame shows.
    """
    latents = {name: autoencoder.encode(x[None]).codes for name, x in pictures.items()}
    dim = next(iter(latents.values())).shape[-1]

    def draw(picture, levels, limit, scale, channel) -> Figure:
        x, z = pictures[picture], latents[picture]
        cut = TokenBridge(autoencoder, dim, levels, (-limit, limit), scale=1 / scale).quantizer
        got = cut(z * scale).codes
        made = autoencoder.decode(got / scale)[0]
        error = (got - z * scale).square().mean().item() / scale**2
        fig, (left, middle, right) = figure(3, size=(8.6, 2.6), width_ratios=(1.7, 1, 1))
        place = f"channel {channel}: squared error {error:.4f} (all channels)"
        draw_levels(left, scale * z[..., channel].flatten(), cut.values[channel], place)
        image(middle, x, "the picture")
        bits = cut.bits * z[..., 0].numel()
        score = psnr(made[None], x[None]).item()
        image(right, made, f"{bits:.0f} bits: {score:.2f} dB")
        return fig

    dropdown, slider = ipywidgets.Dropdown, ipywidgets.SelectionSlider
    return panel(
        draw,
        alt=alt,
        picture=dropdown(options=list(pictures), description="picture"),
        levels=slider(options=LEVELS, value=4, description="levels"),
        limit=ipywidgets.FloatSlider(5, min=1, max=6, step=0.5, description="range"),
        scale=dropdown(options=list(scales), value=1, description="latents times"),
        channel=ipywidgets.IntSlider(0, min=0, max=dim - 1, description="channel"),
    )


def before_any(head: torch.nn.Module, context: Tensor, draws: int, generator) -> Tensor:
    """p(q_c | z) of each channel (M, C, B), the others unknown: the mean over drawn prefixes."""
    many = context.repeat_interleave(draws, 0)
    indices = head.sample(many, generator=generator)[0]
    chance = head(many, indices).softmax(dim=-1)
    return chance.unflatten(0, (len(context), draws)).mean(dim=1)


def head_panel(
    head: torch.nn.Module, contexts: Mapping[str, tuple[Tensor, Tensor]], alt: str,
    generator: torch.Generator | None = None,
) -> Panel:
    """The widget "one channel after another": controls place, step, last.

    Args:
        head: a serial `DimensionHead`.
        contexts: {name: (context (D,), true indices (C,))}.
        alt: what the first frame shows.
        generator: of the draws that the grey bars are means of.
    """
    order = head.order.tolist()
    stacked = torch.stack([context for context, _ in contexts.values()])
    alone = dict(zip(contexts, before_any(head, stacked, 200, generator), strict=True))

    def draw(place, step, last) -> Figure:
        context, truth = contexts[place]
        given, channel = truth.clone(), order[step]
        if step and last >= 0:
            given[order[step - 1]] = last
        after = head(context[None], given[None])[0, channel].softmax(dim=0)
        fig, ax = figure(size=(7.2, 2.8))
        left, right = ([k + shift for k in range(head.levels)] for shift in (-0.2, 0.2))
        ax.bar(left, alone[place][channel].tolist(), 0.4, color="#BBBBBB", label="z alone")
        known = ", ".join(f"{c}: {int(given[c])}" for c in order[:step]) or "nothing yet"
        ax.bar(right, after.tolist(), 0.4, color=PALETTE[0], label="z and the channels before")
        ax.plot([int(truth[channel])], [0], "^", color=PALETTE[1], clip_on=False,
                label="the level that came", markersize=8)
        sure = after[truth[channel]].item()
        ax.set(title=f"channel {channel}, step {step + 1} of {len(order)}: "
               f"{sure:.0%} on the level that came", ylabel="probability",
               xlabel=f"level (known of the channels before: {known})", xticks=range(head.levels))
        ax.set_ylim(0, 1.45 * ax.get_ylim()[1])
        ax.legend(loc="upper right", ncols=3)
        return fig

    options = [("as it came", -1), *((str(k), k) for k in range(head.levels))]
    return panel(
        draw,
        alt=alt,
        place=ipywidgets.Dropdown(options=list(contexts), description="place"),
        step=ipywidgets.IntSlider(3, min=0, max=len(order) - 1, description="step"),
        last=ipywidgets.SelectionSlider(options=options, description="channel before"),
    )
