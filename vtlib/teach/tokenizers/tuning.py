"""What tuning does to a tokenizer: where its vectors go, and what becomes of its pictures."""

from collections.abc import Mapping
from typing import NamedTuple

import ipywidgets
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vtlib.teach.figures import PALETTE, figure
from vtlib.teach.pictures import image
from vtlib.teach.widgets import Panel, panel
from vtlib.tokenizers import IBQTokenizer
from vtlib.tokenizers.measures import psnr


class Tuned(NamedTuple):
    """One run.

    Args:
        images: (B, 3, H, W), what the tokenizer makes of the pictures.
        quality: (B,), PSNR of each.
        vectors: (B, N, D), what the encoder says of each place.
        indices: (B, N), the codes chosen.
    """

    images: Tensor
    quality: Tensor
    vectors: Tensor
    indices: Tensor


def record(tokenizer: IBQTokenizer, pictures: Tensor) -> Tuned:
    """What a tokenizer makes of pictures (B, 3, H, W)."""
    vectors = tokenizer.quantizer.normalised(tokenizer.features(pictures)).flatten(1, 2)
    out = tokenizer(pictures)
    images, indices = out.images.clamp(0, 1), out.quantized.indices.flatten(1)
    return Tuned(images, psnr(images, pictures), vectors, indices)


def drift(ax: Axes, before: Tensor, after: Tensor, title: str) -> None:
    """Arrows from vectors to where they went, in the plane of the two main directions of the first.

    Args:
        ax: to draw on.
        before: (N, D).
        after: (N, D).
        title: over it.
    """
    middle = before.mean(dim=0)
    plane = torch.linalg.svd(before - middle, full_matrices=False).Vh[:2]
    start, end = ((vectors - middle) @ plane.T for vectors in (before, after))
    ax.quiver(*start.T, *(end - start).T, angles="xy", scale_units="xy", scale=1,
              color=PALETTE[0], width=0.005)
    ax.plot(*start.T, ".", color="#999999", markersize=3)
    reach = 1.1 * float(torch.cat([start, end]).abs().max())
    ax.set(title=title, xlabel="first direction", ylabel="second", xlim=(-reach, reach),
           ylim=(-reach, reach))


def alpha_panel(
    runs: Mapping[str, Tuned], start: Tuned, pictures: Tensor, alt: str, told: Mapping[str, str]
) -> Panel:
    """The widget "alpha": controls alpha, picture.

    Args:
        runs: {alpha: the tokenizer after the tuning}.
        start: before it.
        pictures: (B, 3, H, W).
        alt: what the first frame shows.
        told: {alpha: a line about the captions}.
    """
    def draw(alpha, picture) -> Figure:
        run = runs[alpha]
        fig, (left, first, second) = figure(3, size=(8.6, 2.7), width_ratios=(1.4, 1, 1))
        other = (run.indices[picture] != start.indices[picture]).float().mean().item()
        before, after = start.vectors[picture], run.vectors[picture]
        drift(left, before, after, f"{other:.0%} other codes; {told[alpha]}")
        for ax, one, name in ((first, start, "before"), (second, run, f"alpha {alpha}")):
            image(ax, one.images[picture], f"{name}: {one.quality[picture]:.2f} dB")
        return fig

    return panel(
        draw,
        alt=alt,
        alpha=ipywidgets.SelectionSlider(options=list(runs), description="alpha"),
        picture=ipywidgets.IntSlider(1, min=0, max=len(pictures) - 1, description="picture"),
    )
