"""Pictures and widgets of the notebook on OneFormer: masks in colours, the switch of tasks, where
a query looks."""

from collections.abc import Sequence
from typing import Any

import ipywidgets
import torch
import torch.nn.functional as F
from torch import Tensor

from vtlib.segmentation import oneformer_small as small
from vtlib.segmentation.oneformer_text import TASKS, text_list
from vtlib.teach.figures import figure
from vtlib.teach.pictures import image as draw_image
from vtlib.teach.widgets import Panel, panel

COLOURS = torch.tensor(
    [
        [0.60, 0.78, 0.95],                # landscape: light blue
        [0.95, 0.90, 0.70],                # paper: cream
        [0.75, 0.75, 0.78],                # cloud: grey
        [0.84, 0.37, 0.00],                # red apple: vermilion
        [0.00, 0.45, 0.70],                # automobile: blue
        [0.94, 0.80, 0.10],                # sunflower: yellow
        [0.80, 0.47, 0.65],                # octopus: purple
        [0.00, 0.62, 0.45],                # cactus: green
    ]
)
"""Of the classes in `oneformer_small.NAMES`; stuff is pale."""
SHADE, DARKEST = 0.7, 3                    # each further copy is darker, up to the third


def painted(image: Tensor, masks: Tensor, classes: Sequence[int], alpha: float = 0.75) -> Tensor:
    """A picture with masks in their classes' colours and a white line around each: (3, H, W).

    What no mask covers is dark. Further masks of one class, its copies, are in darker shades.

    Args:
        image: (3, H, W).
        masks: (T, H, W) bool.
        classes: the class of each mask.
        alpha: how much the colours cover.
    """
    image, masks = image.detach().cpu(), masks.detach().cpu()
    out = 0.3 * image
    copies: dict[int, int] = {}
    for mask, number in zip(masks, map(int, classes), strict=True):
        copies[number] = copies.get(number, -1) + 1
        colour = COLOURS[number][:, None] * SHADE ** min(copies[number], DARKEST - 1)
        out[:, mask] = (1 - alpha) * image[:, mask] + alpha * colour
    for mask in masks:
        shrunk = -F.max_pool2d(-mask[None].float(), 3, 1, 1)[0]
        out[:, mask & (shrunk < 0.5)] = 1.0
    return out


def masks_of(answer: Any, task: str, index: int = 0, score: float = 0.5) -> tuple[Tensor, Tensor]:
    """Masks (T, H, W) and classes (T,) of picture `index` in an answer of `OneFormer.segment`.

    Args:
        answer: scores, `Instances` or `Panoptic`.
        task: which of them.
        index: of the picture.
        score: least score of an instance.
    """
    if task == "semantic":
        found = answer[index].argmax(0)
        classes = found.unique()
        return found == classes[:, None, None], classes
    if task == "instance":
        kept = answer.things[index] & (answer.scores[index] > score)
        return answer.masks[index][kept], answer.classes[index][kept]
    rows = answer.rows(index)
    numbers = torch.tensor([number for number, _, _ in rows], dtype=torch.long)
    classes = torch.tensor([c for _, c, _ in rows], dtype=torch.long)
    return answer.ids[index].cpu() == numbers[:, None, None], classes


def truths(image: Tensor, codes: Tensor) -> tuple[list[Tensor], list[str]]:
    """Pictures of a scene's three targets, and a line on each.

    Args:
        image: (3, H, W).
        codes: (H, W), 1000 x class + number.
    """
    pictures, titles = [], []
    for task in TASKS:
        (target,) = small.targets(codes[None].cpu(), [task])
        pictures.append(painted(image, target.masks, target.classes))
        titles.append(f"{task}: {len(target.classes)} masks")
    return pictures, titles


def _texts(ax, lines: Sequence[str], title: str) -> None:
    ax.set_axis_off()
    ax.set_title(title)
    told = "\n".join(lines)
    ax.text(0.0, 0.97, told, fontsize=8, va="top", linespacing=1.4, transform=ax.transAxes)


def _places(ax, inside: Tensor, title: str) -> None:
    """A map (1, h, w) of bools or probabilities in a frame, 1 white and 0 dark."""
    draw_image(ax, 0.25 + 0.75 * inside.float(), title)
    height, width = inside.shape[-2:]
    ax.set_axis_on()
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set(visible=True, color="0.5")
    if width <= 12:
        ax.hlines([i - 0.5 for i in range(1, height)], -0.5, width - 0.5, "0.5", linewidth=0.6)
        ax.vlines([i - 0.5 for i in range(1, width)], -0.5, height - 0.5, "0.5", linewidth=0.6)


@torch.no_grad()
def task_switch(model: Any, images: Tensor, codes: Tensor, count: int = 12) -> Panel:
    """A widget: the sentence and the scene, and what all queries say together.

    Left the scene, in the middle the panoptic reading (whatever the sentence), right the text list
    that this scene would have in training.

    Args:
        model: a trained `OneFormer` of the small scenes.
        images: (B, 3, 96, 96).
        codes: (B, 96, 96).
        count: texts of a list.
    """
    size = images.shape[-2:]
    shown = {}
    for task in TASKS:
        answer = small.answer(model(images, task).last, "panoptic", size)
        targets = small.targets(codes.cpu(), [task] * len(images))
        for i in range(len(images)):
            masks, classes = masks_of(answer, "panoptic", i)
            texts = text_list(task, targets[i].classes, small.NAMES, count)
            shown[task, i] = painted(images[i], masks, classes), len(classes), texts

    def draw(task, scene):
        picture, number, texts = shown[task, scene]
        fig, axes = figure(3, size=(8.0, 2.6), width_ratios=(1, 1, 1.1))
        draw_image(axes[0], images[scene].cpu(), "the scene")
        draw_image(axes[1], picture, f'"the task is {task}": {number} segments')
        _texts(axes[2], texts, "text list in training")
        return fig

    return panel(
        draw,
        alt="A scene; the same in the colours of the segments that are found under the sentence "
        "'the task is panoptic'; the scene's text list in training.",
        task=ipywidgets.ToggleButtons(options=TASKS, value="panoptic", description="the task is"),
        scene=ipywidgets.IntSlider(0, 0, len(images) - 1, description="scene"),
    )


@torch.no_grad()
def query_viewer(model: Any, images: Tensor, task: str = "panoptic") -> Panel:
    """A widget: what one query says before a layer, and where it may look in that layer.

    Args:
        model: a trained `OneFormer`.
        images: (B, 3, H, W).
        task: the sentence.
    """
    levels, _ = model.pixels(images)
    sizes = [tuple(level.shape[-2:]) for level in levels]
    out = model(images, task)
    steps = [*out.earlier, out.last]
    scores = [step.class_logits.softmax(-1).cpu() for step in steps]
    masks = [step.mask_logits.cpu() for step in steps]
    order = scores[-1][..., :-1].amax(-1).argsort(1, descending=True)           # surest first

    def draw(scene, query, layer):
        index = int(order[scene, query])
        chances = scores[layer][scene, index]
        number = int(chances.argmax())
        name = (*small.NAMES, "no object")[number]
        logits = masks[layer][scene : scene + 1, index : index + 1]
        fig, axes = figure(3, size=(8.0, 2.6))
        draw_image(axes[0], images[scene].cpu(), "the scene")
        title = f"before layer {layer + 1}" if layer < len(steps) - 1 else "at the end"
        _places(axes[1], logits[0].sigmoid(), f"{title}: {name} {float(chances[number]):.0%}")
        if layer == len(steps) - 1:
            inside = logits.sigmoid() >= 0.5
            told = "its final mask"
        else:
            size = sizes[layer % len(sizes)]
            small_mask = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
            inside = small_mask.sigmoid() >= 0.5
            told = f"white: may look ({int(inside.sum())} of {inside.numel()})"
            if not inside.any():
                inside, told = ~inside, "mask is nowhere: looks everywhere"
        _places(axes[2], inside[0], told)
        return fig

    most = len(order[0]) - 1
    return panel(
        draw,
        alt="Three pictures: a scene; the probability of the surest query's mask before the first "
        "layer; and the places of the coarsest map at which that query may look in it.",
        scene=ipywidgets.IntSlider(0, 0, len(images) - 1, description="scene"),
        query=ipywidgets.IntSlider(0, 0, most, description="query (surest first)"),
        layer=ipywidgets.IntSlider(0, 0, len(steps) - 1, description="layers done"),
    )
