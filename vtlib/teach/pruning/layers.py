"""HiPrune and VisionDrop as pictures: neighbours, roles, and the pyramid of stages."""

from collections.abc import Mapping, Sequence

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vtlib.nn.checks import check_int
from vtlib.pruning import hiprune
from vtlib.pruning.bench import reduce
from vtlib.teach.figures import figure, show
from vtlib.teach.pictures import image, overlay, picture_row, tiles
from vtlib.teach.plots import curves
from vtlib.teach.pruning.plans import draw, outline
from vtlib.teach.widgets import Panel, panel
from vtlib.tokens import Plan, VisionOutputs

PICTURE, NOTHING = 2.4, -3  # inches; the key of an empty square in `tiles`


# ------------------------------------------------------------------------------------------ layers
def show_by_layer(series: Mapping[str, Sequence], title: str, label: str, **options) -> None:
    """Publish numbers of the encoder's layers, from 1, as curves; the alt text holds them.

    Args:
        series: {name: one number a layer}.
        title: the message, in a sentence.
        label: of y, with its unit.
        options: as for `teach.curves`.
    """
    layers = range(1, 1 + len(next(iter(series.values()))))
    said = [f"{name} " + ", ".join(f"{y:.3g}" for y in ys) for name, ys in series.items()]
    fig = curves(layers, dict(series), title, ("encoder layer", label), **options)
    show(fig, alt=f"{label} by encoder layer, 1 to {len(layers)}. {'; '.join(said)}.")


def show_votes(picture: Tensor, votes: Tensor, grid: tuple[int, int], title: str) -> None:
    """Publish a picture and, for each layer, its votes: the 3 % of the patches with most are white.

    Args:
        picture: (3, H, W) in [0, 1].
        votes: (layers, N), what each patch receives.
        grid: (h, w), N = h w.
        title: the message, in a sentence.
    """
    peaks = votes.quantile(0.97, dim=1, keepdim=True)
    maps = (votes / peaks).unflatten(1, grid).cpu()
    titles = ["the picture", *[f"layer {layer}" for layer in range(1, 1 + len(votes))]]
    look = {"cmap": "gray", "alpha": 1, "vmin": 0, "vmax": 1, "size": 1.5, "title": title}
    pictures = [picture.cpu()] * len(titles)
    show(
        picture_row(pictures, titles, heat=[None, *maps], cols=min(len(titles), 6), **look),
        alt=f"A picture, and maps of the votes that its patches get in {len(votes)} layers.",
    )


# ------------------------------------------------------------------------------- neighbours, roles
def show_neighbours(masks: Mapping[str, tuple[int, Tensor]], grid: tuple[int, int]) -> None:
    """Publish an anchor with its neighbours, each mask on a numbered grid of its own.

    Args:
        masks: {title: (anchor, (h w,) bool, the anchor and what counts as its neighbour)}.
        grid: (h, w).
    """
    fig, axes = figure(len(masks), layout="pictures", size=(1.95 * len(masks), 2.15))
    said = []
    for ax, (title, (anchor, mask)) in zip(fig.axes, masks.items(), strict=True):
        keys = torch.where(mask.cpu(), 1, NOTHING)
        keys[anchor] = 0
        tiles(ax, keys.view(*grid), title, numbers=True)
        others = [str(n) for n in mask.nonzero()[:, 0].tolist() if n != anchor]
        said.append(f"{title}: patch {anchor} with {', '.join(others)}")
    show(fig, alt=f"Numbered grids of {grid[0]} by {grid[1]} patches. {'; '.join(said)}.")


def show_roles(
    picture: Tensor, plans: Mapping[str, Plan | None], grid: tuple[int, int], row: int = 0
) -> None:
    """Publish one picture under plans with roles, the frames coloured by role and counted below.

    Args:
        picture: (3, H, W) in [0, 1].
        plans: {title: plan with roles}; None in place of a plan is the picture itself.
        grid: (h, w), of its patches.
        row: which picture of the plans' batch.
    """
    side = 1.4 * PICTURE if len(plans) < 3 else PICTURE
    fig, _ = figure(len(plans), layout="pictures", size=(side * len(plans), side + 0.4))
    said = []
    for ax, (title, plan) in zip(fig.axes, plans.items(), strict=True):
        if plan is None:
            image(ax, picture.cpu(), title)
            continue
        draw(ax, picture, plan, grid, row, colour="roles", title=title)
        role = plan.role[row][plan.index[row] >= 0]
        counts = role.bincount(minlength=len(plan.roles)).tolist()
        names = [f"{name} {n}" for name, n in zip(plan.roles, counts, strict=True)]
        said.append(f"{title}: {', '.join(names)}")
    show(fig, alt=f"A picture with its kept patches framed by role. {'; '.join(said)}.")


def role_panel(
    images: Tensor,
    received: Tensor,
    objects: Tensor,
    grid: tuple[int, int],
    object_layer: int,
    deep_layer: int,
) -> Panel:
    """Picture, budget, alpha and object layer -> HiPrune's roles, and that layer's votes.

    Args:
        images: (B, 3, H, W) in [0, 1].
        received: (layers, B, N), the attention that each patch receives.
        objects: (B, N) bool, patches with an object.
        grid: (h, w), N = h w.
        object_layer: of the first frame, counted from 1.
        deep_layer: that of the registers, counted from 1.
    """
    votes, objects = received.cpu(), objects.cpu()
    most = grid[0] * grid[1] // 2
    keep, alpha = min(40, most), 0.6

    def draw_roles(picture: int, keep: int, alpha: float, layer: int) -> Figure:
        middle = votes[layer - 1, picture : picture + 1]
        deep = votes[deep_layer - 1, picture : picture + 1]
        plan = hiprune.select(middle, deep, keep, grid, alpha)
        overlap = hiprune.object_iou(middle, objects[picture : picture + 1]).item()
        fig, (scene, left, right) = figure(3, size=(9.0, 3.3))
        fig.subplots_adjust(0.01, 0.07, 0.99, 0.9, wspace=0.06)
        anchors = hiprune.num_anchors(keep, alpha)
        image(scene, images[picture].cpu(), "the scene")
        draw(left, images[picture], plan, grid, title=f"{anchors} anchors in {keep} tokens")
        heat, peak = middle[0].view(*grid), middle[0].quantile(0.97).item()
        overlay(right, images[picture], heat, mode="nearest", alpha=0.8, vmax=peak,
                title=f"layer {layer}: IoU of its best tenth {overlap:.2f}")
        return fig

    return panel(
        draw_roles,
        alt=f"A scene; {keep} kept patches framed by role,"
            f" {hiprune.num_anchors(keep, alpha)} of them anchors; and the attention that each"
            f" patch receives in layer {object_layer}.",
        picture=ipywidgets.IntSlider(0, 0, len(images) - 1, description="picture"),
        keep=ipywidgets.IntSlider(keep, 4, most, description="keep"),
        alpha=ipywidgets.FloatSlider(alpha, min=0, max=1, step=0.1, description="alpha"),
        layer=ipywidgets.IntSlider(object_layer, 1, len(received), description="object layer"),
    )  # fmt: skip


# ------------------------------------------------------------------------------------- the pyramid
def pyramid_panel(
    model,
    vision: VisionOutputs,
    images: Tensor,
    questions: Sequence[str],
    answers: Sequence[str],
    patches: Tensor,
    average: int = 28,
) -> Panel:
    """Picture, mean budget and positions -> what each of VisionDrop's stages still carries.

    Dominant patches are in colour and framed; a contextual token and all that it absorbed, through
    the stages, share a colour. A line surrounds what the question names.

    Args:
        model: TinyVLM.
        vision: what it made of the images, with what VisionDrop reads.
        images: (B, 3, H, W) in [0, 1].
        questions: B texts.
        answers: B texts, the right answers.
        patches: (B, N) bool, those that show what the question names.
        average: the first mean budget.
    """

    def draw_stages(picture: int, average: int, positions: str) -> Figure:
        row = vision.rows(torch.tensor([picture], device=vision.features.device))
        done = reduce(model, row, "visiondrop", average)
        said = model.answer(done.tokens, questions[picture : picture + 1], done.stages, positions)
        plans = [done.plan]
        for cut in said.prefill.plans:
            plans.append(plans[-1].then(cut))
        places = ["encoder", *[f"after layer {stage.after}" for stage in done.stages]]
        count = 1 + len(plans)
        columns = -(-count // 2)
        fig, _ = figure(columns, 2, layout="pictures", size=(2.6 * columns, 6.0))
        fig.subplots_adjust(top=0.88)
        axes = fig.axes
        for ax in axes[count:]:
            ax.remove()
        image(axes[0], images[picture].cpu(), "the scene")
        outline(axes[0], patches[picture], vision.grid, color="black")
        for ax, place, plan in zip(axes[1:count], places, plans, strict=True):
            title = f"{place}: {len(plan)}"
            draw(ax, images[picture], plan, vision.grid, colour="slots", title=title)
            outline(ax, patches[picture], vision.grid, color="black")
        line = f"{questions[picture]}  “{said.texts[0]}”, p = {said.probability[0]:.2f}"
        line += f"; correct: “{answers[picture]}”"
        fig.text(0.01, 0.985, line, va="top", fontsize=9.5, weight="bold")
        return fig

    return panel(
        draw_stages,
        alt="A scene, and a copy for each stage of VisionDrop, with fewer tokens each: dominant"
            " patches framed, absorbed patches in the colour of their contextual token, a line"
            " around what the question names.",
        picture=ipywidgets.IntSlider(0, 0, len(images) - 1, description="picture"),
        average=ipywidgets.IntSlider(check_int(average, "average", 4, 64), 4, 64,
                                     description="mean tokens"),
        positions=ipywidgets.ToggleButtons(
            options=["renumber", "keep"], description="positions"
        ),
    )  # fmt: skip
