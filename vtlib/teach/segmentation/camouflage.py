"""The widget of camouflage: contrast, two heads, and the class list."""

import functools
from collections.abc import Callable, Mapping

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vtlib.data import textures
from vtlib.segmentation.camouflage import CamouflageSegmenter, foreground
from vtlib.teach.figures import figure
from vtlib.teach.pictures import image
from vtlib.teach.segmentation.zero_shot import lit
from vtlib.teach.widgets import Panel, panel

LISTS = ("all eight", "without the true one", "zeros")
Maps = Callable[[Tensor, Tensor | None], tuple[list[Tensor], Tensor]]


def surest(head: CamouflageSegmenter, maps: Maps, picture: Tensor, words: Tensor):
    """(mask of any object (H, W), number of the surest query's class or None).

    Args:
        head: trained.
        maps: (images, prompt) -> the features it was trained on.
        picture: (3, H, W).
        words: the class list (K, D).
    """
    size = tuple(picture.shape[-2:])
    found, last = maps(picture[None], words[None] if bool(words.any()) else None)
    out = head(found, last, words, size=(size[0] // 2, size[1] // 2))
    share = out.last.class_logits[0].softmax(-1)
    query = share[:, :-1].sum(1).argmax()
    named = share[query, :-1].argmax().item() if bool(words.any()) else None
    return foreground(out, size)[0] > 0.5, named


def iou(mask: Tensor, truth: Tensor) -> float:
    """Overlap by union of two masks; 1 for two empty ones."""
    union = (mask | truth).sum().item()
    return (mask & truth).sum().item() / union if union else 1.0


def contrast_panel(
    heads: Mapping[str, tuple[CamouflageSegmenter, Maps]], alt: str, seed: int = 21
) -> Panel:
    """The widget "contrast": controls scene, contrast, texts.

    Args:
        heads: {name: (head, its features)}, two of them.
        alt: what the first frame shows.
        seed: of the first scene.
    """
    world, words = textures.TextureWorld(64, "test"), textures.vectors()

    @functools.lru_cache(64)
    def made(scene: int, contrast: float) -> textures.TextureScenes:
        return world.scenes(1, seed + scene, objects=1, contrast=contrast, scale=0.6)

    def draw(scene: int, contrast: float, texts: str) -> Figure:
        drawn = made(scene, contrast)
        picture, truth, label = drawn.images[0], drawn.masks[0, 0], drawn.label[0, 0].item()
        rows = [k for k in range(len(words)) if texts == LISTS[0] or k != label]
        table = words[rows] * float(texts != LISTS[2])
        fig, axes = figure(2 + len(heads), size=(2.0 * (2 + len(heads)), 2.6), layout="pictures")
        image(axes[0], picture, f"{textures.NAMES[label]}\non {textures.NAMES[drawn.ground[0]]}")
        image(axes[1], lit(picture, truth), "the object")
        for ax, (name, (head, maps)) in zip(axes[2:], heads.items(), strict=True):
            with torch.no_grad():
                mask, best = surest(head, maps, picture, table)
            said = "no text" if best is None else textures.NAMES[rows[best]]
            image(ax, lit(picture, mask), f"{name}: IoU {iou(mask, truth):.2f}\n{said}")
        fig.subplots_adjust(top=0.84)
        return fig

    return panel(
        draw,
        alt=alt,
        scene=ipywidgets.IntSlider(0, min=0, max=11, description="scene"),
        contrast=ipywidgets.FloatSlider(1.0, min=1.0, max=2.0, step=0.1, description="contrast"),
        texts=ipywidgets.Dropdown(options=LISTS, description="class list"),
    )
