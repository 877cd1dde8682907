"""Pictures of the small dual encoder (`vtlib.pruning.pretrained`): groups that CrossGET merges, and
what Recoverable Compression keeps."""

import textwrap
from collections.abc import Callable, Mapping, Sequence

import ipywidgets
import matplotlib
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from vtlib.pruning import recoverable
from vtlib.pruning.crossget_encoder import CrossGETCLIP
from vtlib.pruning.pretrained import Pictures
from vtlib.teach.figures import PALETTE, STYLE, figure, show
from vtlib.teach.pictures import image, overlay, picture_row
from vtlib.teach.pruning.plans import draw, outline
from vtlib.teach.widgets import Panel, panel
from vtlib.tokens import Plan

GRID = (8, 8)
PATCHES = 64
ROLES = ("vision", "text", "centre")
SPOKEN, SILENT = PALETTE[1], PALETTE[3]  # lines around what captions name, and around the rest
LINE = 34  # letters of a caption in a line above a picture


def show_captioned(images: Tensor, captions: Sequence[str]) -> None:
    """Publish pictures (B, 3, S, S), each under its caption."""
    titles = [textwrap.fill(caption, 26) for caption in captions]
    told = "; ".join(captions)
    show(picture_row(list(images), titles), alt=f"{len(images)} pictures, captioned: {told}")


# --------------------------------------------------------------------------------------- CrossGET
@torch.no_grad()
def merged_patches(
    model: CrossGETCLIP,
    images: Tensor,
    r: int,
    guidance: float = 1.0,
    method: str = "complete",
) -> Plan:
    """What all layers of the image's tower merge, as one plan over the patches: patches that went
    together share a slot. Its weights are for drawing only.

    Args:
        model: the dual encoder.
        images: (B, 3, S, S).
        r: tokens to merge away in each layer.
        guidance: factor on the importance.
        method: of `crossget.match`.
    """
    plans = [p for p in model.encode_image(images, r, guidance, method).plans if p is not None]
    side = model.visual.img_size // model.visual.conv1.stride[0]
    patch = torch.arange(side**2, device=images.device).expand(len(images), -1)
    if not plans:
        return Plan(patch, side**2)
    whole = plans[0]
    for plan in plans[1:]:
        whole = whole.then(plan)
    slot = whole.source()[:, 1:-1] - 1                  # without [CLS] and the cross token
    weight = torch.ones_like(slot, dtype=torch.float)
    return Plan(whole.index[:, 1:-1] - 1, side**2, patch, slot, weight)


def _gone(gone: Tensor, mask: Tensor) -> str:
    return f"{int((gone & mask).sum())} of {int(mask.sum())}"


def _outline_both(ax, spoken: Tensor, silent: Tensor) -> None:
    for mask, color in ((silent, SILENT), (spoken, SPOKEN)):
        outline(ax, mask, GRID, color)


def show_gone(
    picture: Tensor, plans: Mapping[str, Plan], spoken: Tensor, silent: Tensor
) -> None:
    """Publish which patches of one picture merged into another one (grey): beside the picture a
    panel a plan, with lines around the spoken patches (orange) and the silent ones (pink).

    Args:
        picture: (3, S, S).
        plans: {title: plan of one picture}.
        spoken: (N,) bool, patches of what the caption names.
        silent: (N,) bool, patches of the other pictograms.
    """
    size = (2.3 * (1 + len(plans)), 2.9)
    fig, axes = figure(1 + len(plans), size=size, layout="pictures")
    fig.subplots_adjust(top=0.78)
    image(axes[0], picture.cpu(), "spoken: orange line\nsilent: pink line\n")
    _outline_both(axes[0], spoken, silent)
    said = []
    for ax, (name, plan) in zip(axes[1:], plans.items(), strict=True):
        gone = ~plan.kept()[0]
        told = f"spoken gone: {_gone(gone, spoken)}\nsilent gone: {_gone(gone, silent)}"
        stay = Plan(plan.index[:1], plan.num_tokens)
        draw(ax, picture, stay, GRID, colour="kept", title=f"{name}\n{told}")
        _outline_both(ax, spoken, silent)
        said.append(f"{name}: {told}".replace("\n", ", "))
    show(fig, alt=f"A picture, and its patches that stay in colour. {'; '.join(said)}.")


def _borders(ax, group: Tensor) -> None:
    """White lines where neighbouring patches are in different groups (N,)."""
    of = group.cpu().view(GRID)
    height, width = ax.images[0].get_array().shape[:2]
    lines = [[(c, r + 1), (c + 1, r + 1)] for r, c in (of[1:] != of[:-1]).nonzero().tolist()]
    upright = (of[:, 1:] != of[:, :-1]).nonzero().tolist()
    lines += [[(c + 1, r), (c + 1, r + 1)] for r, c in upright]
    scale = torch.tensor([width / GRID[1], height / GRID[0]], device="cpu")
    ends = torch.tensor(lines, device="cpu").view(-1, 2, 2) * scale - 0.5
    ax.add_collection(LineCollection(ends.tolist(), colors="white", linewidths=1), autolim=False)


def group_panel(
    model: CrossGETCLIP, shots: Pictures, spoken: Tensor, silent: Tensor, first: int = 0
) -> Panel:
    """Picture, r, guidance and matching -> the groups that four layers merge, beside the picture.

    Args:
        model: the dual encoder.
        shots: its pictures.
        spoken: (B, N) bool, patches of what the captions name.
        silent: (B, N) bool, patches of the other pictograms.
        first: the first picture.
    """

    def draw_groups(picture: int, r: int, guidance: float, method: str) -> Figure:
        plan = merged_patches(model, shots.images[[picture]], r, guidance, method)
        masks = spoken[picture], silent[picture]
        said, unsaid = (_gone(~plan.kept()[0], mask) for mask in masks)
        fig, (left, right) = figure(2, size=(6.6, 3.7), layout="pictures")
        fig.subplots_adjust(top=0.84)
        image(left, shots.images[picture].cpu(), textwrap.fill(shots.captions[picture], 40))
        title = f"64 patches, {len(plan)} tokens\ngone: spoken {said}, silent {unsaid}"
        draw(right, shots.images[picture], plan, GRID, title=title)
        _borders(right, plan.source()[0])
        for ax in (left, right):
            _outline_both(ax, *masks)
        return fig

    return panel(
        draw_groups,
        alt="A picture with three pictograms, its caption above; beside it its 64 patches after"
            " four layers of merging: patches of one group share a colour. An orange line is"
            " around what the caption names, a pink one around the other pictograms.",
        picture=ipywidgets.IntSlider(first, 0, min(24, len(shots.captions)) - 1,
                                     description="picture"),
        r=ipywidgets.IntSlider(10, 0, 32, description="r, tokens a layer"),
        guidance=ipywidgets.FloatSlider(1.0, min=-2, max=4, step=0.5, description="guidance"),
        method=ipywidgets.ToggleButtons(options=["complete", "bipartite"],
                                        description="matching"),
    )  # fmt: skip


# ------------------------------------------------------------------------- Recoverable Compression
@matplotlib.rc_context(STYLE)
def outlier_dots(scores: Tensor, outlier: Tensor, label: str) -> Figure:
    """A panel a row of scores (B, N): each score a dot on the line, at a height of no meaning;
    outliers (B, N) bool are orange triangles.

    Args:
        scores: at most three rows.
        outlier: which stand out.
        label: of the line.
    """
    fig, axes = figure(len(scores), size=(3.1 * len(scores), 1.9))
    height = torch.rand(scores.shape[1], generator=torch.Generator().manual_seed(0))
    for ax, row, out in zip(axes if len(scores) > 1 else [axes], scores, outlier, strict=True):
        row, out = row.cpu(), out.cpu()
        ax.plot(row[~out], height[~out], ".", color="#888888")
        ax.plot(row[out], height[out], "^", color=PALETTE[1], markersize=5)
        title = f"{int(out.sum())} outliers of {len(row)}"
        ax.set(title=title, xlabel=label, yticks=(), ylim=(-0.1, 1.1))
    return fig


def by_role(plan: Plan) -> Plan:
    """A plan of `recoverable` as the patches that it chose, by role, without the extra token and
    what was gathered."""
    index = torch.where(plan.role < recoverable.EXTRA, plan.index, -1)
    role = plan.role.clamp(max=recoverable.CENTRE)
    return Plan(index, plan.num_tokens, role=role, roles=ROLES)


def _draw_scores(ax, visual: Tensor, text: Tensor, found) -> None:
    """Every patch by both scores; the chosen ones in the colour of their role."""
    ax.plot(visual.cpu(), text.cpu(), ".", color="#999999", label="the others")
    for k, part in enumerate((found.vision, found.text, found.centre)):
        look = {"color": PALETTE[k], "markersize": 5, "label": ROLES[k]}
        ax.plot(visual[part[0]].cpu(), text[part[0]].cpu(), "o", **look)
    title = f"{int(found.kept.sum())} kept, {int(found.centre.sum())} centres of {len(visual)}"
    ax.set(title=title, xlabel="visual score", ylabel="text score", xscale="log")
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)


def recovery_panel(
    scores: Callable[[Tensor, list[str]], tuple[Tensor, Tensor]],
    images: Tensor,
    captions: Mapping[str, Sequence[str]],
    first: int = 0,
) -> Panel:
    """Picture, caption and neighbours -> the text score, the patches by role, both scores.

    Args:
        scores: (images, captions) -> (visual, text), each (B, N).
        images: (B, 3, S, S).
        captions: {whose: B texts}.
        first: the first picture.
    """

    def draw_recovery(picture: int, caption: str, neighbours: int) -> Figure:
        words = captions[caption][picture]
        visual, text = scores(images[[picture]], [words])
        found = recoverable.filters(visual, text, (neighbours, neighbours, 10))
        fig, axes = figure(3, size=(9.6, 3.3), width_ratios=(1, 1, 1.1))
        fig.subplots_adjust(left=0.01, right=0.89, wspace=0.3, top=0.78)
        heat, title = text.reshape(GRID).cpu(), "text score: " + words
        overlay(axes[0], images[picture].cpu(), heat, alpha=0.7, mode="nearest",
                title=textwrap.fill(title, LINE))  # fmt: skip
        chosen = (found.kept | found.centre)[0].nonzero()[:, 0]
        role = torch.where(found.text, 1, torch.where(found.centre, 2, 0))[0, chosen]
        plan = Plan(chosen[None], PATCHES, role=role[None], roles=ROLES)
        draw(axes[1], images[picture], plan, GRID)
        _draw_scores(axes[2], visual[0], text[0], found)
        return fig

    sizes = ipywidgets.SelectionSlider(
        options=[3, 5, 10, 20, 40], value=20, description="neighbours"
    )
    return panel(
        draw_recovery,
        alt="A picture under its text score; the patches kept by the picture (blue), by the text"
            " (orange), and the centres (green); every patch by its visual and its text score.",
        picture=ipywidgets.IntSlider(first, 0, len(images) - 1, description="picture"),
        caption=ipywidgets.ToggleButtons(options=list(captions), description="caption"),
        neighbours=sizes,
    )  # fmt: skip
