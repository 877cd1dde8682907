"""Histograms of cosines, codes on a circle and in a plane: what notebook 02c draws, and its widget.
"""

import math
from collections.abc import Mapping, Sequence

import ipywidgets
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from vtlib import checkpoints
from vtlib.data import EmojiWorld, backgrounds
from vtlib.teach.figures import PALETTE, figure
from vtlib.teach.widgets import Panel, panel
from vtlib.tokenizers.glotok_histogram import centres, histogram_loss, soft_histogram
from vtlib.tokenizers.glotok_uniformity import principal

STUDENT, TEACHER = PALETTE[0], PALETTE[1]
CPU = torch.device("cpu")


# ------------------------------------------------------------------------------------- by hand
def bumps(values: Tensor, num_bins: int, sharpnesses: Sequence[float]) -> Figure:
    """What each cosine gives to the bins: a panel for each sharpness, the bell around each centre
    in colour, the cosines as ticks below.

    Args:
        values: cosines (n,).
        num_bins: N.
        sharpnesses: one a panel, at most three.
    """
    fig, axes = figure(len(sharpnesses), size=(2.9 * len(sharpnesses), 2.8), layout="constrained")
    across = torch.linspace(-1.15, 1.15, 400)
    for ax, sharpness in zip(axes, sharpnesses, strict=True):
        for k, centre in enumerate(centres(num_bins, across)):
            bell = torch.exp(-sharpness * (across - centre).square())
            ax.plot(across, bell, color=PALETTE[k % len(PALETTE)], linewidth=1.4)
        ax.plot(values, torch.full_like(values, -0.06), "k|", markersize=12, markeredgewidth=2)
        ax.set(title=f"a = {sharpness:g}", xlabel="cosine", ylim=(-0.15, 1.05))
    axes[0].set_ylabel("given to the bin")
    fig.suptitle("The larger a, the fewer bins a cosine reaches", fontsize=10)
    return fig


def circles(sets: Mapping[str, Tensor], title: str) -> Figure:
    """Sets of codes in the plane, each on a circle of radius 1, and numbered; those in one place
    share a label.

    Args:
        sets: {name: codes (n, 2)}, at most three.
        title: the message, over all.
    """
    fig, axes = figure(len(sets), size=(2.6 * len(sets), 3.0), layout="constrained")
    fig.suptitle(title, fontsize=10)
    turn = torch.linspace(0, 2 * math.pi, 200)
    for ax, (name, codes) in zip(axes, sets.items(), strict=True):
        ax.plot(turn.cos(), turn.sin(), color="#bbbbbb", linewidth=1)
        units = F.normalize(codes.detach().float(), dim=1)
        together = torch.cdist(units, units) < 0.1
        for k, (x, y) in enumerate(units.tolist()):
            ax.plot([0, x], [0, y], color="#bbbbbb", linewidth=1)
            ax.plot(x, y, "o", color=STUDENT, markersize=8)
            named = [f"t{j + 1}" for j in together[k].nonzero()[:, 0].tolist()]
            far = 1.2 if len(named) == 1 else 1.27
            if not together[k, :k].any():                           # one label for a place
                ax.annotate(
                    ", ".join(named), (far * x, far * y), ha="center", va="center", fontsize=8
                )
        ax.set(title=name, aspect="equal", xlim=(-1.4, 1.4), ylim=(-1.4, 1.4))
        ax.set_xticks([-1, 0, 1])
        ax.set_yticks([-1, 0, 1])
    return fig


# ------------------------------------------------------------------------------------- all codes
def nearest_cosine(codes: Tensor) -> Tensor:
    """codes (n, d) -> (n,) the cosine to the nearest other code."""
    units = F.normalize(codes.detach().float(), dim=1)
    return (units @ units.T).fill_diagonal_(-2).amax(dim=1)


def on_plane(ax, codes: Tensor, title: str):
    """Codes (n, d) on their first two principal components, coloured by the cosine to the nearest
    other one; returns what a colour bar needs."""
    units = F.normalize(codes.detach().float(), dim=1)
    x, y = principal(units).T.tolist()
    ax.set(title=title, xlabel="first component", ylabel="second", aspect="equal",
           xlim=(-1.15, 1.15), ylim=(-1.15, 1.15))
    return ax.scatter(x, y, c=nearest_cosine(codes).tolist(), s=14, vmin=0.5, vmax=1)


def compared(ax, student: Tensor, teacher: Tensor, title: str) -> None:
    """Two histograms (N,) over the cosine: the teacher filled, the student as a line."""
    where = centres(len(teacher), teacher).tolist()
    ax.fill_between(where, teacher.tolist(), color=TEACHER, alpha=0.35, linewidth=0,
                    step="mid", label="teacher")
    ax.step(where, student.tolist(), color=STUDENT, where="mid", label="codebook")
    ax.set(title=title, xlabel="cosine of a pair", ylabel="share of pairs",
           ylim=(0, 1.6 * float(teacher.max())))
    ax.legend(loc="upper left")


def histogram_panel(recorded: Mapping, teacher: Tensor, every: int) -> Panel:
    """The widget of notebook 02c: a codebook while its histogram learns the teacher's.

    Args:
        recorded: {(start, a, eps): codebooks (n, d) after 0, every, 2 every ... steps}; all of one
            number. One that has NaN is told in words.
        teacher: tokens (m, D).
        every: steps between two codebooks.
    """
    starts, sharp, small = (list(dict.fromkeys(key[i] for key in recorded)) for i in range(3))
    last = len(next(iter(recorded.values()))) - 1

    def draw(start, a, eps, step) -> Figure:
        codes = recorded[start, a, eps][step]
        fig, (left, right) = figure(2, size=(7.6, 3.2))
        fig.subplots_adjust(left=0.08, right=0.88, bottom=0.15, top=0.91, wspace=0.25)
        target = soft_histogram(teacher, sharpness=a)
        if not codes.isfinite().all():
            compared(left, torch.zeros_like(target), target, f"a = {a:g}: no histogram")
            text = f"after {step * every} steps\nall codes are NaN\n(eps = {eps:g})"
            right.text(0.5, 0.5, text, ha="center", va="center", fontsize=11)
            right.set(title="The codebook is lost", xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1))
            return fig
        loss = histogram_loss(codes, target, a, eps).item()
        told = f"a = {a:g}, eps = {eps:g}, step {step * every}: KL = {loss:.3f}"
        compared(left, soft_histogram(codes, sharpness=a), target, told)
        points = on_plane(right, codes, "The codes, on two components")
        beside = fig.add_axes((0.91, 0.15, 0.015, 0.76))
        fig.colorbar(points, cax=beside, label="cosine to the nearest code")
        return fig

    return panel(
        draw,
        alt="Left: the histogram of a teacher's cosines, filled, and that of a codebook, a line, "
        "during training. Right: the codes on two principal components, coloured by the cosine to "
        "the nearest other code.",
        start=ipywidgets.ToggleButtons(options=starts, description="start"),
        a=ipywidgets.SelectionSlider(options=sharp, value=sharp[1], description="a"),
        eps=ipywidgets.ToggleButtons(options=small, description="eps"),
        step=ipywidgets.IntSlider(0, 0, last, description="training"),
    )


# ------------------------------------------------------------------------------------- patches
def patch_classes(labels: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """labels (B, H, W), 0 for the background -> of each patch the commonest label, and the share
    of its pixels that show an object: (B, n) both, row by row."""
    patches = labels.unfold(1, side, side).unfold(2, side, side).flatten(3).flatten(1, 2)
    return patches.mode(dim=-1).values, (patches > 0).float().mean(dim=-1)


def nearest_patches(x: Tensor, asked: Tensor, count: int) -> Tensor:
    """Unit vectors (B, n, D) and numbers (m,) of patches, counted through all pictures -> (m,
    count) the numbers of the most alike patches of other pictures."""
    flat, picture = x.flatten(0, 1), torch.arange(len(x), device=x.device)
    picture = picture.repeat_interleave(x.shape[1])
    alike = flat[asked] @ flat.T
    alike[picture[asked][:, None] == picture] = -2
    return alike.topk(count, dim=1).indices


def patch_with_surroundings(
    images: Tensor, number: int, side: int = 8, around: int = 8, framed: bool = False
) -> Tensor:
    """The patch of that number, counted through all pictures (B, 3, H, W), with some pixels around
    it; framed: those next to it are a line of magenta."""
    columns = images.shape[-1] // side
    picture, place = divmod(number, columns * (images.shape[-2] // side))
    top, left = side * (place // columns), side * (place % columns)
    padded = F.pad(images[picture][None], (around,) * 4, mode="replicate")[0]
    size = side + 2 * around
    cut = padded[:, top:top + size, left:left + size]
    if framed:
        patch = cut[:, around:around + side, around:around + side].clone()
        line = cut.new_tensor([1.0, 0, 1])[:, None, None]
        cut[:, around - 1:around + side + 1, around - 1:around + side + 1] = line
        cut[:, around:around + side, around:around + side] = patch
    return cut


def in_use(book, latents: Tensor, teacher: Tensor) -> tuple[float, float, float]:
    """Of a `VectorQuantizer`: the share of codes that some of the latents (n, C) fall to, and the
    divergence from the teacher's histogram (N,) of all codes and of those in use."""
    with torch.no_grad():
        used = torch.bincount(book(latents).indices, minlength=book.codebook_size) > 0
        losses = [histogram_loss(x, teacher).item() for x in (book.codebook, book.codebook[used])]
    return used.float().mean().item(), *losses


def scenes_and_photographs(split: str, count: int, device) -> Tensor:
    """(2 count, 3, 64, 64): scenes of EmojiWorld, then crops of photographs, of a split."""
    scenes = EmojiWorld(64, split, artist="both").scenes(count, 1, scale=(0.2, 0.7)).images
    crops = backgrounds.crops(split, (64, 64), count, torch.Generator().manual_seed(1), CPU)[0]
    return torch.cat([scenes, crops / 255]).to(device)


def stored(name: str) -> dict[int, dict]:
    """`checkpoints.seeds(name)`; {} where the repository has none."""
    try:
        return checkpoints.seeds(name)
    except ValueError:
        return {}
