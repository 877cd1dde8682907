"""Maps of features: their colours, the best averages, masks by a linear probe, and a microscope.

What the notebook on feature upsampling needs beside its ideas.
"""

from collections.abc import Callable

import ipywidgets
import torch
import torch.nn.functional as F
from einops import rearrange
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from vtlib.nn import IMAGENET_MEAN, IMAGENET_STD
from vtlib.nn.checks import check_images, check_multiple
from vtlib.superres import uplift
from vtlib.teach.figures import PALETTE, figure
from vtlib.teach.pictures import box, image
from vtlib.teach.widgets import Panel, panel

OTHERS = ["#000000", "#8c510a", "#7b3294", "#a6dba0", "#b2abd2", "#fdb863"]
COLOURS = ["#eeeeee", *PALETTE[:6], *OTHERS]
"""Of the classes of a mask, the first one for the background."""
LOOKS = {
    "nearest": {"color": PALETTE[3], "marker": "v"},
    "bilinear": {"color": PALETTE[4], "marker": "s"},
    "UPLiFT": {"color": PALETTE[0], "marker": "o"},
    "first steps only": {"color": PALETTE[5], "marker": "P", "linestyle": "--"},
    "no attender": {"color": PALETTE[2], "marker": "^"},
    "cross-attention": {"color": PALETTE[1], "marker": "D"},
    "best average": {"color": PALETTE[6], "marker": "X"},
}
"""One colour and one mark a method, the same in all figures."""


# ------------------------------------------------------------------------------------------ colours
def colours(*maps: Tensor) -> list[Tensor]:
    """Maps (C, h, w) of any sizes as pictures (3, h, w): their three main directions (principal
    components, of all maps together) in red, green and blue, so that equal colours mean like
    features."""
    every = torch.cat([m.flatten(1).T for m in maps]).float()
    middle = every.mean(0)
    some = (every - middle)[:: max(1, len(every) // 4000)]
    directions = torch.linalg.svd(some, full_matrices=False).Vh[:3]
    seen = (every - middle) @ directions.T
    low, high = seen.quantile(0.02, dim=0), seen.quantile(0.98, dim=0)
    pictures = []
    for m in maps:
        flat = (m.flatten(1).T.float() - middle) @ directions.T
        flat = ((flat - low) / (high - low)).clamp(0, 1)
        pictures.append(flat.T.unflatten(1, m.shape[-2:]).cpu())
    return pictures


def maps_of(model) -> Callable:
    """A function from pictures (B, 3, H, W) in [0, 1] to the features of their patches, as a map.

    (B, C, H / P, W / P), of the last layer. ValueError for pictures that patches don't divide.

    Args:
        model: DINOv2 as `hub.real("dinov2")` gives it.
    """
    patch = model.config.patch_size

    def maps(images: Tensor) -> Tensor:
        check_images(images)
        check_multiple(images.shape[-2:], patch, "images")
        row = torch.tensor([IMAGENET_MEAN, IMAGENET_STD], device=images.device)[..., None, None]
        tokens = model((images - row[0]) / row[1]).last_hidden_state[:, 1:]      # without [CLS]
        return rearrange(tokens, "b (h w) c -> b c h w", h=images.shape[-2] // patch)

    return maps


def paint(classes: Tensor) -> Tensor:
    """A mask (H, W) of up to 13 classes as a picture (3, H, W)."""
    rgb = [list(bytes.fromhex(code[1:])) for code in COLOURS]
    return (torch.tensor(rgb, dtype=torch.float32) / 255)[classes.cpu()].permute(2, 0, 1)


# ------------------------------------------------------------------------------------ best averages
def best_average(near: Tensor, want: Tensor, steps: int = 40) -> Tensor:
    """The convex combinations of `near` nearest to what is wanted -> (cells, m, C).

    By gradient descent on softmax weights.

    Args:
        near: (cells, n, C), what may be averaged.
        want: (cells, m, C), the truth.
        steps: of Adam.
    """
    gram, match = near @ near.mT, want @ near.mT
    logits = torch.zeros_like(match).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.3)
    with torch.enable_grad():
        for _ in range(steps):
            weights = logits.softmax(-1)
            optimizer.zero_grad()
            # the squared distance, less a constant
            ((weights @ gram * weights) - 2 * weights * match).sum().backward()
            optimizer.step()
    return logits.softmax(-1).detach() @ near


def best_of_all(coarse: Tensor, want: Tensor) -> Tensor:
    """Each position of `want` (B, C, H, W) as the best average of all features of `coarse`
    (B, C, h, w)."""
    best = best_average(coarse.flatten(2).mT, want.flatten(2).mT)
    return best.mT.unflatten(2, want.shape[-2:])


def best_of_17(coarse: Tensor, want: Tensor) -> Tensor:
    """Each position of `want` (B, C, 2h, 2w) as the best average of UPLiFT's 17 neighbours in
    `coarse` (B, C, h, w)."""
    h, w = coarse.shape[-2:]
    near = uplift.shifted(coarse, uplift.OFFSETS[17])
    near = rearrange(near, "b c n h w -> (b h w) n c")
    cells = rearrange(want, "b c (h p) (w q) -> (b h w) (p q) c", h=h, w=w)
    best = best_average(near, cells)
    return rearrange(best, "(b h w) (p q) c -> b c (h p) (w q)", h=h, w=w, p=want.shape[-2] // h)


# --------------------------------------------------------------------------- a linear probe's masks
def fit_probe(x: Tensor, answers: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """A linear probe by logistic regression -> weight (classes, C), bias (classes,).

    Args:
        x: features (n, C).
        answers: their classes (n,).
        classes: how many there are.
    """
    weight = torch.zeros(classes, x.shape[1], device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=40)

    def closure():
        optimizer.zero_grad()
        decay = 1e-4 * weight.square().sum()
        loss = F.cross_entropy(F.linear(x, weight, bias), answers) + decay
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return weight.detach(), bias.detach()


def overlaps(got: Tensor, want: Tensor, classes: int) -> Tensor:
    """Pixels of intersection and union by picture and class -> (2, B, classes).

    Args:
        got: masks (B, H, W).
        want: the true ones.
        classes: how many there are.
    """
    both, either = [], []
    for c in range(classes):
        found, true = (got == c).flatten(1), (want == c).flatten(1)
        both.append((found & true).sum(1))
        either.append((found | true).sum(1))
    return torch.stack([torch.stack(both, 1), torch.stack(either, 1)]).float()


def mean_iou(counts: Tensor) -> float:
    """Of `overlaps` (2, B, classes): intersection over union, averaged over the classes."""
    both, either = counts.sum(dim=1)
    return (both / either.clamp(min=1)).mean().item()


def iou_range(counts: Tensor, rival: Tensor, draws: int = 400) -> tuple[float, float]:
    """How far the lead in mean IoU may lie from the one measured: the middle 90 % over pictures
    drawn anew, with replacement.

    Args:
        counts: `overlaps` of one method (2, B, classes).
        rival: of the other.
        draws: how often.
    """
    number = counts.shape[1]
    rows = torch.randint(number, (draws, number), generator=torch.Generator().manual_seed(0))
    rows = rows.to(counts.device)
    measured = mean_iou(counts) - mean_iou(rival)
    leads = torch.tensor([mean_iou(counts[:, r]) - mean_iou(rival[:, r]) for r in rows])
    low, high = (leads - measured).quantile(torch.tensor([0.05, 0.95])).tolist()
    return low, high


def near_border(labels: Tensor, reach: int = 2) -> Tensor:
    """Masks (B, H, W) -> (B, H, W) bool: pixels with another class within `reach`."""
    x = F.pad(labels.float()[:, None], (reach,) * 4, mode="replicate")
    side = 2 * reach + 1
    return (F.max_pool2d(x, side, 1) != -F.max_pool2d(-x, side, 1))[:, 0]


def speckles(got: Tensor) -> float:
    """Pixels a mask (B, H, W) that differ from all four neighbours."""
    middle = got[:, 1:-1, 1:-1]
    up, down = got[:, :-2, 1:-1], got[:, 2:, 1:-1]
    left, right = got[:, 1:-1, :-2], got[:, 1:-1, 2:]
    alone = (middle != up) & (middle != down) & (middle != left) & (middle != right)
    return alone.flatten(1).sum(1).float().mean().item()


# ----------------------------------------------------------------------------------- the microscope
def subset(neighbours: int) -> list[int]:
    """Places of a smaller set of neighbours among the 17."""
    kept = uplift.OFFSETS[neighbours]
    return [i for i, offset in enumerate(uplift.OFFSETS[17]) if offset in kept]


def weight_map(attn: Tensor, neighbours: int, at: tuple[int, int]) -> tuple[Tensor, float]:
    """Weights of one output on the coarse grid (h, w), NaN where no neighbour lies; and their sum.

    Args:
        attn: (1, 17, 2h, 2w).
        neighbours: 5, 9, 13 or 17 of them.
        at: (row, column) of the output.
    """
    places = subset(neighbours)
    weights = attn[0, places, at[0], at[1]].cpu()
    h, w = attn.shape[-2] // 2, attn.shape[-1] // 2
    heat = torch.full((h, w), float("nan"))
    for i, weight in zip(places, weights, strict=True):
        dy, dx = uplift.OFFSETS[17][i]
        cell = min(max(at[0] // 2 + dy, 0), h - 1), min(max(at[1] // 2 + dx, 0), w - 1)
        heat[cell] = heat[cell].nan_to_num() + weight          # at the edge several meet in a cell
    return heat, weights.sum().item()


def write_weights(ax: Axes, heat: Tensor, unit: float) -> None:
    """Frame the coarse cells that have a weight, and write it into them in percent; the picture
    itself stays in sight.

    Args:
        ax: with the picture.
        heat: `weight_map` (h, w).
        unit: side of a cell in pixels of the picture.
    """
    outline = [patheffects.withStroke(linewidth=2, foreground="black")]
    look = {"color": "white", "fontsize": 8, "ha": "center", "va": "center"}
    squares = []
    for y, x in heat.isfinite().nonzero().tolist():
        squares.append(Rectangle((x * unit - 0.5, y * unit - 0.5), unit, unit))
        place = (x + 0.5) * unit - 0.5, (y + 0.5) * unit - 0.5
        text = f"{100 * heat[y, x].item():.0f}"
        ax.text(*place, text, path_effects=outline, clip_on=True, **look)
    ax.add_collection(PatchCollection(squares, facecolor="none", edgecolor="white", linewidth=0.8))


def around(cell: int, cells: int, reach: int = 3) -> tuple[int, int]:
    """(first, last + 1) of the 2 reach + 1 cells around one that lie in a grid; all of a smaller.

    Args:
        cell: in the middle, where there is room.
        cells: of the grid.
        reach: to each side.
    """
    first = max(0, min(cell - reach, cells - 2 * reach - 1))
    return first, min(cells, first + 2 * reach + 1)


def microscope(images: list[Tensor], attns: list, tints: list[dict], start: dict) -> Panel:
    """The widget "the attender under the microscope": an output's weights, and the features.

    Args:
        images: (3, H, W) each.
        attns: for each image the weights (1, 17, 2h, 2w) of all iterations.
        tints: for each image {name: coloured features (3, 2h, 2w) of all iterations}.
        start: {"row": ..., "column": ...} of the first position, in pixels.
    """
    height = images[0].shape[-2]
    names = tuple(tints[0])

    def draw(picture, iteration, row, column, neighbours, features) -> Figure:
        attn = attns[picture][iteration - 1]
        side = attn.shape[-2]
        fine, cells = height / side, side // 2
        y, x = row * side // height, column * side // height
        heat, held = weight_map(attn, neighbours, (y, x))
        fig, (left, right) = figure(2, layout="pictures", size=(6.4, 3.4))
        text = f"{neighbours} of {cells} x {cells} cells: {held:.0%} of the weight"
        image(left, images[picture], text)
        write_weights(left, heat, 2 * fine)
        text = f"{features}, iteration {iteration}: {side} x {side}"
        image(right, tints[picture][features][iteration - 1], text)
        (top, bottom), (first, last) = around(y // 2, cells), around(x // 2, cells)
        left.set_xlim(2 * fine * first - 0.5, 2 * fine * last - 0.5)
        left.set_ylim(2 * fine * bottom - 0.5, 2 * fine * top - 0.5)
        box(right, (top + bottom - 0.5, first + last - 0.5), 2 * (bottom - top), width=0.8)
        for ax, unit in ((left, fine), (right, 1)):
            box(ax, ((y + 0.5) * unit - 0.5, (x + 0.5) * unit - 0.5), unit, color="#F0E442")
        return fig

    slider, dropdown = ipywidgets.IntSlider, ipywidgets.Dropdown
    return panel(
        draw,
        alt="A part of a scene, with the weights of one output position's neighbours written into "
        "their coarse cells, and the coloured features after that iteration.",
        picture=slider(0, 0, len(images) - 1, description="picture"),
        iteration=slider(1, 1, len(attns[0]), description="iteration"),
        row=slider(start["row"], 0, height - 4, 4, description="row"),
        column=slider(start["column"], 0, height - 4, 4, description="column"),
        neighbours=dropdown(options=[5, 9, 13, 17], value=17, description="neighbours"),
        features=dropdown(options=names, description="features"),
    )
