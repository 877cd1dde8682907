"""Widgets of one method's mechanism: HoloV's quotas, ZOO-Prune's nudges."""

from collections.abc import Callable, Mapping

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vtlib.nn.checks import check_int
from vtlib.pruning import divprune, holov, zooprune
from vtlib.teach.figures import PALETTE, figure
from vtlib.teach.pictures import overlay
from vtlib.teach.pruning.plans import draw
from vtlib.teach.widgets import Panel, panel
from vtlib.tokens import Plan, VisionOutputs

CROPS = (1, 2, 4, 8, 16)
TAUS = (0.0, 0.5, 1.0, 2.0)
POWERS = (0.5, 1, 2, 4)
DIRECTIONS = (1, 2, 4, 8)


def _choice(name: str, options, value) -> ipywidgets.SelectionSlider:
    return ipywidgets.SelectionSlider(options=list(options), value=value, description=name)


# ------------------------------------------------------------------------------------------- quotas
def _draw_quotas(ax, quota: list[int], size: int) -> None:
    """A bar a crop, beside its band of the picture; red where it exceeds the crop."""
    colours = [PALETTE[1] if places > size else PALETTE[0] for places in quota]
    ax.barh(range(len(quota)), quota, color=colours)
    ax.axvline(size, color="black", linestyle=":", linewidth=1)
    ax.set(ylim=(len(quota) - 0.5, -0.5), yticks=[], xlim=(0, 1.05 * max(*quota, size) + 1))
    ax.set(title="quota of each crop; dotted: its size", xlabel="tokens")


def quota_panel(images: Tensor, vision: VisionOutputs, keep: int = 28) -> Panel:
    """HoloV's crops as bands: picture, budget, number of crops, tau, sharpness of the attention and
    what happens to a surplus -> what stays, and the quota of each crop beside it.

    Args:
        images: (B, 3, H, W) in [0, 1].
        vision: what the encoder made of them, with `cls_row`; 16 crops at most must fit its rows.
        keep: the first budget.
    """
    attention = vision.cls_row.mean(dim=1)
    count, grid = attention.shape[1], vision.grid

    def draw_quotas(picture, keep, crops, tau, sharpness, surplus) -> Figure:
        looks = attention[picture : picture + 1] ** sharpness
        looks = looks / looks.sum()
        bands = holov.bands(count, crops, looks.device)
        score = holov.score(vision.tokens[picture : picture + 1], looks, bands)
        plan = holov.select(score, looks, bands, keep, surplus, tau=tau)
        sizes = (bands >= 0).sum(dim=1)
        quota = holov.quotas(holov.crop_weights(score, bands, tau), sizes, keep, surplus)[0]
        empty = int((plan.index < 0).sum())
        fig, (left, right) = figure(2, size=(6.4, 3.3), width_ratios=(1.25, 1))
        fig.subplots_adjust(0.01, 0.15, 0.98, 0.9, wspace=0.08)
        title = f"{keep - empty} tokens, {empty} of {keep} places empty"
        draw(left, images[picture].cpu(), plan, grid, title=title, colour="kept")
        _draw_quotas(right, quota.tolist(), int(sizes.amax()))
        return fig

    return panel(
        draw_quotas,
        alt=f"A scene with {keep} kept patches and, beside it, a bar for each of 16 bands: how many"
            f" of the {keep} places it has.",
        picture=ipywidgets.IntSlider(0, 0, len(images) - 1, description="picture"),
        keep=ipywidgets.IntSlider(check_int(keep, "keep", 1, count // 2), 4, count // 2,
                                  description="keep"),
        crops=_choice("crops", CROPS, CROPS[-1]),
        tau=_choice("tau", TAUS, 1.0),
        sharpness=_choice("sharpness", POWERS, 1),
        surplus=ipywidgets.ToggleButtons(options=list(holov.ALLOCATE), description="surplus"),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------- nudges
def _choices(vision: VisionOutputs, projectors: Mapping[str, Callable]) -> Callable:
    """A function (picture, directions, projector) -> (sensitivity (1, N), 64 tokens in the order of
    choice (1, 64)), which keeps what it found."""
    count, dim = vision.features.shape[1:]
    every = torch.randn(max(DIRECTIONS), dim, generator=torch.Generator().manual_seed(0))
    known: dict[tuple, tuple[Tensor, Tensor]] = {}

    def chosen(picture: int, directions: int, projector: str) -> tuple[Tensor, Tensor]:
        setting = (picture, directions, projector)
        if setting not in known:
            own = vision.features[picture : picture + 1]
            given = every[:directions].to(own)
            found = zooprune.sensitivity(own, projectors[projector], directions=given)
            tokens = vision.tokens[picture : picture + 1]
            known[setting] = (found, zooprune.sads(found, tokens, min(64, count))[0])
        return known[setting]

    return chosen


def nudge_panel(
    images: Tensor, vision: VisionOutputs, projectors: Mapping[str, Callable], step: int = 12
) -> Panel:
    """ZOO-Prune token by token: picture, step, number of directions and projector -> the patches
    chosen so far, the sensitivity, the distance to the chosen ones, and the product of both.

    The title of the sensitivity says how much it varies from token to token.

    Args:
        images: (B, 3, H, W) in [0, 1].
        vision: what the encoder made of them.
        projectors: {name: function of (..., d_v)} that are nudged, such as the model's own.
        step: how many tokens are chosen in the first frame.
    """
    grid, count = vision.grid, vision.features.shape[1]
    chosen = _choices(vision, projectors)

    def draw_nudges(picture, step, directions, projector) -> Figure:
        found, order = chosen(picture, directions, projector)
        taken = order[:, :step]
        near = divprune.coverage(vision.tokens[picture : picture + 1], taken)[0].clamp(min=0)
        weight = zooprune.importance(found)[0]
        spread = ((found.amax() - found.amin()) / found.mean()).item()
        maps = {
            f"S: (max - min) / mean = {spread:.2g}": weight,
            "distance to the chosen": near,
            "product of both": weight * near,
        }
        fig, axes = figure(4, layout="pictures", size=(8.8, 2.5))
        seen = images[picture].cpu()
        draw(axes[0], seen, Plan(taken, count), grid, title=f"the first {step}")
        for ax, (title, heat) in zip(axes[1:], maps.items(), strict=True):
            overlay(ax, seen, heat.unflatten(0, grid), mode="nearest", alpha=0.9, title=title)
        return fig

    names = list(projectors)
    return panel(
        draw_nudges,
        alt=f"A scene with the first {step} chosen patches, and maps of the sensitivity, of the"
            f" distance to the chosen ones, and of their product ({names[0]}).",
        picture=ipywidgets.IntSlider(0, 0, len(images) - 1, description="picture"),
        step=ipywidgets.IntSlider(check_int(step, "step", 1, min(64, count)), 1, min(64, count),
                                  description="step"),
        directions=_choice("directions", DIRECTIONS, DIRECTIONS[-1]),
        projector=ipywidgets.ToggleButtons(options=names, description="projector"),
    )  # fmt: skip
