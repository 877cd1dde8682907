"""What the notebook on Expedit draws and measures: clusters and masks on a picture, a model with
few tokens in the middle, and its widgets."""

from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets
import torch
import torch.nn.functional as F
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from vtlib.hub import Dropping, Merging, hourglass
from vtlib.segmentation import Expedit, Pooling, clustering_cost, encoder_cost
from vtlib.segmentation.expedit import soft_assignment, window_mask
from vtlib.teach.figures import PALETTE, figure
from vtlib.teach.meter import processor_seconds, timed
from vtlib.teach.pictures import image
from vtlib.teach.plots import curves
from vtlib.teach.widgets import Panel, panel

WAYS = ("Expedit", "pooling", "dropping", "merging")


# ------------------------------------------------------------------------------------------ drawing
def owners(tokens: Tensor, centres: Tensor, size: tuple[int, int], grid: tuple[int, int],
           tau: float, window: int = 5) -> Tensor:
    """The centre with the largest share of each token: (H, W) long.

    Args:
        tokens: (H W, C).
        centres: (h w, C).
        size: (H, W).
        grid: (h, w).
        tau: inverse temperature.
        window: of the clustering.
    """
    allowed = window_mask(size, grid, window, tokens.device)
    share = soft_assignment(tokens[None], centres[None], allowed, tau)
    return share[0].argmax(1).unflatten(0, size)


def cluster_picture(picture: Tensor, owner: Tensor) -> Tensor:
    """Each cluster in the mean colour of its patches, with dark borders: (3, H, W).

    Args:
        picture: (3, H, W).
        owner: (h, w) long, which cluster a patch belongs to.
    """
    h, w = owner.shape
    colours = F.adaptive_avg_pool2d(picture, (h, w)).flatten(1).T               # n 3
    which, count = owner.flatten(), int(owner.max()) + 1
    total = torch.zeros(count, 3).index_add(0, which.cpu(), colours.cpu())
    mean = total / which.cpu().bincount(minlength=count).clamp_min(1)[:, None]
    times = picture.shape[-2] // h, picture.shape[-1] // w
    fine = owner.cpu().repeat_interleave(times[0], 0).repeat_interleave(times[1], 1)
    out = mean[fine].permute(2, 0, 1).clone()
    border = torch.zeros_like(fine, dtype=torch.bool)
    border[:, 1:] |= fine[:, 1:] != fine[:, :-1]
    border[1:] |= fine[1:] != fine[:-1]
    out[:, border] = 0.05
    return out


def mask_picture(picture: Tensor, classes: Tensor) -> Tensor:
    """The picture in pale grey, with each class but 0 in a colour of the palette: (3, H, W).

    Args:
        picture: (3, H, W).
        classes: (H, W) long.
    """
    grey = 0.55 + 0.45 * picture.cpu().mean(0)
    colours = torch.tensor([to_rgb(colour) for colour in PALETTE])
    tint = colours[(classes.cpu() - 1) % len(colours)].permute(2, 0, 1)
    return torch.where(classes.cpu() > 0, 0.25 * grey + 0.75 * tint, grey.expand(3, -1, -1))


def score_curves(
    runs: Sequence[Mapping[str, Any]], pixels: str = "all", side: int = 8, ax: Axes | None = None,
    names: bool = True,
) -> Figure:
    """mIoU against the blocks before the hourglass, a curve a way.

    Args:
        runs: the scores of each training, as in the checkpoint's header.
        pixels: "all", or those at the "border".
        side: of the grid of centres.
        ax: an Axes to draw on, by default that of a new figure.
        names: whether the curves' names stand in the plot.
    """
    after = [key for key in runs[0] if key.isdigit()]
    series = {
        name: [[run[key][f"{name.lower()} {side}"][pixels] for key in after] for run in runs]
        for name in WAYS
    }
    whole = sum(run["all tokens"][pixels] for run in runs) / len(runs)
    fig = curves(
        [int(key) for key in after], series, f"{side} x {side} centres: who keeps the masks",
        ("blocks on all 256 tokens (alpha)", "mIoU"), level={"all tokens": whole},
        ylim=(0.15, 0.47), legend="lower right", ax=ax,
    )
    if not names:
        (ax or fig.axes[0]).get_legend().remove()
    return fig


# ---------------------------------------------------------------------------------------- measuring
def neighbour_cosines(tokens: Tensor) -> tuple[float, float]:
    """Mean cosine of tokens beside each other, and of tokens 8 columns apart. (B, H, W, C)."""
    x = F.normalize(tokens, dim=-1)
    near = (x[:, :, 1:] * x[:, :, :-1]).sum(-1).mean()
    far = (x[:, :, 8:] * x[:, :, :-8]).sum(-1).mean()
    return near.item(), far.item()


def agreement(one: Tensor, other: Tensor) -> float:
    """Share of equal entries."""
    return (one == other).float().mean().item()


# ------------------------------------------------------------------------------------------ widgets
def _reduction(way: str, side: int, tau: float, rounds: int, k: int) -> Any:
    if way == "pooling":
        return Pooling((side, side))
    if way == "dropping":
        return Dropping(side * side)
    if way == "merging":
        return Merging(side * side)
    k = min(k, side * side)
    return Expedit((side, side), tau=tau, iterations=rounds, k=k, normalise="sum")


class _Hourglass:
    """What `hourglass_panel` draws; masks with all tokens are made once.

    Args:
        model: a LinearSegmenter.
        pictures: {name: (3, H, W)}.
        truths: {name: classes (H, W)}.
    """

    def __init__(
        self, model: Any, pictures: Mapping[str, Tensor], truths: Mapping[str, Tensor] | None
    ):
        self.model, self.pictures = model, pictures
        self.truths = {k: mask_picture(pictures[k], mask) for k, mask in (truths or {}).items()}
        first = next(iter(pictures.values()))[None]
        self.seconds = processor_seconds(model, first, repeat=5)            # the least of five
        self.full = {name: model(x[None]).argmax(1)[0] for name, x in pictures.items()}
        self.masks = {name: mask_picture(pictures[name], mask) for name, mask in self.full.items()}

    def draw(
        self, picture: str, way: str, after: int, side: int, tau: float, rounds: int, k: int
    ) -> Figure:
        """The scene, its clusters, the truth, the mask with all tokens, the mask with few."""
        x, want = self.pictures[picture], self.full[picture]
        with hourglass(self.model, _reduction(way, side, tau, rounds, k), after) as seen:
            runs = [timed(self.model, x[None]) for _ in range(2)]
        got, seconds = runs[0][0].argmax(1)[0], min(spent for _, spent in runs)
        shown = [(x, "the scene"),
                 (self._groups(x, way, side, tau, seen), f"{way}: {side * side} tokens")]
        if self.truths:
            shown.append((self.truths[picture], "the truth"))
        share, same = self._share(way, after, side, rounds, seen), agreement(want, got)
        shown += [(self.masks[picture], f"all tokens: {1000 * self.seconds:.0f} ms"),
                  (mask_picture(x, got), f"{1000 * seconds:.0f} ms, {share:.0%} of the work,\n"
                                         f"{same:.1%} as with all tokens")]
        fig, axes = figure(len(shown), size=(9.6, 2.6), layout="pictures")
        for ax, (picture_shown, title) in zip(axes, shown, strict=True):
            image(ax, picture_shown, title)
        return fig

    def _groups(self, x: Tensor, way: str, side: int, tau: float, seen: Any) -> Tensor:
        """The picture in groups, where the way makes groups that lie together."""
        if way not in ("Expedit", "pooling"):
            return x
        tokens, window = (seen.before[0], 5) if way == "Expedit" else (0 * seen.before[0], 1)
        owner = owners(tokens, seen.tokens[0], seen.size, (side, side), tau, window)
        return cluster_picture(x, owner)

    def _share(self, way: str, after: int, side: int, rounds: int, seen: Any) -> float:
        """Multiply-adds, as a part of the full model's. Rebuilding costs as much as a round."""
        layers, dim = len(self.model.blocks), self.model.pos_embed.shape[-1]
        count = seen.size[0] * seen.size[1]
        cost = encoder_cost(layers, dim, count, after, side * side)
        if way == "Expedit":
            cost += clustering_cost(count, side * side, dim, rounds + 1)
        return cost / encoder_cost(layers, dim, count)


def hourglass_panel(
    model: Any, pictures: Mapping[str, Tensor], alt: str, taus: Sequence[float], tau: float,
    after: int = 2, truths: Mapping[str, Tensor] | None = None,
) -> Panel:
    """The widget "fewer tokens in the middle": controls picture, way, after, side, tau, rounds, k.

    Args:
        model: a LinearSegmenter.
        pictures: {name: (3, H, W)}.
        alt: what the first frame shows.
        taus: to choose among.
        tau: the first one.
        after: blocks on all tokens, at first.
        truths: {name: classes (H, W)}, shown as well.
    """
    drawing = _Hourglass(model, pictures, truths)
    layers = len(model.blocks)
    slider, choice = ipywidgets.IntSlider, ipywidgets.SelectionSlider
    return panel(
        drawing.draw,
        alt=alt,
        picture=ipywidgets.Dropdown(options=list(pictures), description="picture"),
        way=ipywidgets.Dropdown(options=WAYS, description="way"),
        after=slider(after, 1, layers - 1, description="alpha"),
        side=choice(options=[2, 4, 6, 8, 10, 12], value=8, description="grid side"),
        tau=choice(options=list(taus), value=tau, description="tau"),
        rounds=slider(5, 0, 8, description="rounds"),
        k=choice(options=[1, 2, 5, 10, 20], value=10, description="k"),
    )


def saliency_panel(
    photo: Tensor, frames: Mapping[tuple[str, str], Tensor], want: Tensor, alt: str
) -> Panel:
    """The widget "where one looks, with fewer tokens": controls way, tokens. Nothing is computed
    but the picture: white is where one looks.

    Args:
        photo: (3, H, W).
        frames: {(way, tokens): saliency (h, w) in [0, 1]}.
        want: the same with all tokens.
        alt: what the first frame shows.
    """
    ways = list(dict.fromkeys(way for way, _ in frames))
    counts = list(dict.fromkeys(count for _, count in frames))

    def draw(way, tokens) -> Figure:
        fig, axes = figure(4, size=(9.6, 2.9), layout="pictures")
        got = frames[way, tokens]
        image(axes[0], photo, "the photograph")
        image(axes[1], want, "all tokens")
        far = (got - want).abs().mean().item()
        image(axes[2], got, f"{way}, {tokens}")
        image(axes[3], (got - want).abs(), f"difference, mean {far:.3f}")
        return fig

    return panel(
        draw,
        alt=alt,
        way=ipywidgets.Dropdown(options=ways, description="way"),
        tokens=ipywidgets.Dropdown(options=counts, description="tokens"),
    )


def masks_of(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Scores of each token (B, N, K) on a square map -> the class of each pixel (B, H, W)."""
    side = round(logits.shape[1] ** 0.5)
    plane = rearrange(logits, "b (h w) k -> b k h w", h=side)
    return F.interpolate(plane, size, mode="bilinear", align_corners=False).argmax(1)
