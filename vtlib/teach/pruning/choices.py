"""Widgets of a choice: by score with a cut, and token by token in token space."""

from collections.abc import Mapping, Sequence

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vtlib.nn.checks import check_int
from vtlib.teach.figures import PALETTE, figure
from vtlib.teach.pictures import image
from vtlib.teach.pruning.plans import draw, outline
from vtlib.teach.widgets import Panel, panel
from vtlib.tokens import Plan, top_tokens


# ------------------------------------------------------------------------------------------- scores
def score_panel(
    images: Tensor,
    scores: Mapping[str, Tensor],
    questions: Sequence[str],
    patches: Tensor,
    grid: tuple[int, int],
    keep: int = 28,
) -> Panel:
    """Picture, score and budget -> the scene, the patches that stay, the sorted scores with a cut.

    A line surrounds what is asked about; the title of the curve says which share of it stays.

    Args:
        images: (B, 3, H, W) in [0, 1].
        scores: {name: (B, N)}.
        questions: B texts.
        patches: (B, N) bool, those that show what is asked about.
        grid: (h, w), N = h w.
        keep: the first budget.
    """
    count = grid[0] * grid[1]

    def draw_scores(picture: int, source: str, keep: int) -> Figure:
        score = scores[source][picture : picture + 1].cpu()
        plan = Plan(top_tokens(score, keep), count)
        fig, (whole, left, right) = figure(3, size=(8.8, 3.1), width_ratios=(1, 1, 1.1))
        fig.subplots_adjust(0.01, 0.15, 0.99, 0.83, wspace=0.2)
        fig.text(0.01, 0.97, questions[picture], va="top", weight="bold")
        image(whole, images[picture].cpu(), "the scene")
        draw(left, images[picture].cpu(), plan, grid, title=f"{source}: {keep} tokens")
        for ax in (whole, left):
            outline(ax, patches[picture], grid)
        share = count * score[0].sort(descending=True).values / score.sum()
        right.plot(range(1, count + 1), share.tolist())
        right.axvline(keep, color="black", linestyle=":")
        asked = patches[picture].cpu()
        found = (plan.kept()[0] & asked).sum() / asked.sum()
        right.set(title=f"recall of what is asked about: {found:.0%}", xlabel="rank of the token")
        right.set_ylabel("score / mean score")
        return fig

    first = next(iter(scores))
    return panel(
        draw_scores,
        alt=f"A scene, the {keep} patches of the highest score ({first}) in it, a line around"
            f" what is asked about, and all scores sorted, with the cut at {keep}.",
        picture=ipywidgets.IntSlider(0, 0, len(images) - 1, description="picture"),
        source=ipywidgets.Dropdown(options=list(scores), description="score"),
        keep=ipywidgets.IntSlider(check_int(keep, "keep", 1, count // 2), 1, count // 2,
                                  description="keep"),
    )  # fmt: skip


# -------------------------------------------------------------------------------------- token space
def plane(tokens: Tensor) -> Tensor:
    """The two directions along which tokens vary most (PCA): (N, D) -> (N, 2)."""
    centred = tokens.detach().float().cpu()
    centred = centred - centred.mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    return centred @ directions[:2].T


def _draw_cloud(ax, cloud: Tensor, chosen: Tensor, objects: Tensor | None) -> None:
    """Tokens in a plane: those of objects, the chosen ones and the newest are marked.

    Args:
        ax: matplotlib Axes.
        cloud: (N, 2).
        chosen: (T,) long, in the order of choice.
        objects: (N,) bool or None.
    """
    marked = {"background": ("#bbbbbb", ".", 4, cloud)}
    if objects is not None:
        marked["background"] = ("#bbbbbb", ".", 4, cloud[~objects])
        marked["object"] = (PALETTE[4], ".", 6, cloud[objects])
    marked["chosen"] = (PALETTE[0], "o", 5, cloud[chosen])
    marked["newest"] = (PALETTE[1], "o", 10, cloud[chosen[-1:]])
    for name, (color, mark, size, dots) in marked.items():
        fill = "none" if name == "newest" else "full"
        look = {"color": color, "markersize": size, "fillstyle": fill, "label": name}
        ax.plot(*dots.T.tolist(), mark, **look)
    if objects is not None:
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.08), "ncols": len(marked)}
        ax.legend(fontsize=7, handletextpad=0, columnspacing=0.5, **below)
    ax.set(title="all tokens in a plane (PCA)", xticks=[], yticks=[])
    ax.set(xlabel="first direction", ylabel="second direction")


def order_panel(
    images: Tensor,
    orders: Mapping[str, Tensor],
    tokens: Tensor,
    grid: tuple[int, int],
    step: int = 12,
    objects: Tensor | None = None,
) -> Panel:
    """Picture, rule and step -> the scene, and what is chosen so far, there and in token space.

    Args:
        images: (B, 3, H, W) in [0, 1].
        orders: {rule: (B, K) long, patches in the order of choice}.
        tokens: (B, N, D), what the cloud is made of.
        grid: (h, w), N = h w.
        step: how many are chosen in the first frame.
        objects: (B, N) bool, the patches that show objects: dots of another colour.
    """
    clouds = [plane(x) for x in tokens]
    most = min(order.shape[1] for order in orders.values())

    def draw_order(picture: int, rule: str, step: int) -> Figure:
        chosen, cloud = orders[rule][picture, :step].cpu(), clouds[picture]
        fig, (whole, left, right) = figure(3, size=(8.8, 3.2))
        fig.subplots_adjust(0.01, 0.17, 0.97, 0.91, wspace=0.1)
        image(whole, images[picture].cpu(), "the scene")
        plan = Plan(chosen[None], len(cloud))
        draw(left, images[picture].cpu(), plan, grid, title=f"{rule}: the first {step}")
        shows = None if objects is None else objects[picture].cpu()
        _draw_cloud(right, cloud, chosen, shows)
        return fig

    first = next(iter(orders))
    return panel(
        draw_order,
        alt=f"A scene, the first {step} patches that {first} takes in it, and the cloud of all"
            " tokens in a plane with the chosen ones marked.",
        picture=ipywidgets.IntSlider(0, 0, len(images) - 1, description="picture"),
        rule=ipywidgets.Dropdown(options=list(orders), description="rule"),
        step=ipywidgets.IntSlider(check_int(step, "step", 2, most), 2, most, description="step"),
    )  # fmt: skip
