"""Widgets on codebooks: their size, and the neighbours of a code in two of them."""

import math
from collections.abc import Callable, Mapping, Sequence

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vtlib.nn import patchify, unpatchify
from vtlib.quantize import nearest, perplexity
from vtlib.quantize.contract import used
from vtlib.teach.figures import figure
from vtlib.teach.pictures import box, image
from vtlib.teach.tokenizers.codes import coloured
from vtlib.teach.widgets import Panel, panel

SIZES = (4, 16, 64, 256, 1024)
CHANNELS = (1, 2, 4, 8, 16)


def directions(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(mean (D,), the first principal components (D, count)) of x (N, D)."""
    mean = x.mean(dim=0)
    table = torch.linalg.eigh((x - mean).T @ (x - mean)).eigenvectors
    return mean, table.flip(1)[:, :count]


class Codebooks:
    """k-means codebooks of patches, for some sides of a patch, channels and sizes.

    Args:
        fit: (x (N, D), K) -> codes (K, D).
        training: pictures (B, 3, H, W).
        sides: of a patch.
        most: so many patches are fitted to.
    """

    def __init__(
        self, fit: Callable, training: Tensor, sides: Sequence[int], most: int = 6000
    ) -> None:
        self.space, self.books = {}, {}
        for side in sides:
            x = patchify(training, side).flatten(0, 1)
            x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:most]]
            mean, axes = directions(x, max(CHANNELS))
            self.space[side] = mean, axes
            seen = (x - mean) @ axes
            for channels in CHANNELS:
                for size in SIZES:
                    part = seen[:, :channels].contiguous()
                    self.books[side, channels, size] = fit(part, size)

    def through(self, picture: Tensor, side: int, channels: int, size: int):
        """picture (3, H, W) -> (indices (h, w), the picture of their codes)."""
        mean, axes = self.space[side]
        codes, axes = self.books[side, channels, size], axes[:, :channels]
        x = (patchify(picture[None], side)[0] - mean) @ axes
        indices, grid = nearest(x, codes), [n // side for n in picture.shape[-2:]]
        patches = codes[indices] @ axes.T + mean
        return indices.view(*grid), unpatchify(patches[None], side, tuple(grid))[0].clamp(0, 1)

    def sheet(self, side: int, channels: int, size: int, shown: int = 64) -> Tensor:
        """The first codes as patches, 8 in a row: (3, h, w)."""
        mean, axes = self.space[side]
        codes = self.books[side, channels, size][:shown]
        patches = codes @ axes[:, :channels].T + mean
        full = mean.new_ones(shown, len(mean))
        full[: len(codes)] = patches.clamp(0, 1)
        across = max(2, math.isqrt(shown))
        return unpatchify(full[None], side, (across, across))[0]


def codebook_panel(
    fit: Callable, training: Tensor, pictures: Mapping[str, Tensor], alt: str
) -> Panel:
    """The widget "a codebook's size": controls picture, side (of a patch), size (K), channels (of a
    code). Shows the picture, its codes, the picture of these, and the first codes.

    Panel.books: the `Codebooks`.

    Args:
        fit: (x (N, D), K) -> codes (K, D), k-means.
        training: pictures (B, 3, H, W) that codebooks are fitted to.
        pictures: {name: (3, H, W)} to choose from.
        alt: what the first frame shows.
    """
    books = Codebooks(fit, training, (4, 8))

    def draw(picture, side, size, channels) -> Figure:
        truth = pictures[picture]
        indices, back = books.through(truth, side, channels, size)
        error = (back - truth).square().mean()
        bits, share = indices.numel() * math.log2(size), used(indices, size)
        fig, axes = figure(4, size=(10.4, 2.9), layout="pictures")
        image(axes[0], truth, "the picture")
        image(axes[1], coloured(indices), f"{indices.numel()} tokens = {bits:.0f} bits")
        image(axes[2], back, f"their picture: {-10 * error.log10():.1f} dB")
        words = f"{share:.0%} of {size} codes in use here, perplexity "
        image(axes[3], books.sheet(side, channels, size), "the first codes, up to 64")
        fig.text(0.005, 0.005, words + f"{perplexity(indices, size):.0f}", fontsize=8)
        fig.subplots_adjust(bottom=0.06)
        return fig

    out = panel(
        draw, alt=alt,
        picture=ipywidgets.Dropdown(options=list(pictures), description="picture"),
        side=ipywidgets.SelectionSlider(options=(4, 8), value=8, description="patch side"),
        size=ipywidgets.SelectionSlider(options=SIZES, value=64, description="codes K"),
        channels=ipywidgets.SelectionSlider(options=CHANNELS, value=8, description="channels D"),
    )
    out.books = books
    return out


# ----------------------------------------------------------------------- two codebooks, one index
def around(pictures: Tensor, side: int, reach: int) -> Tensor:
    """Each patch with what stands around it: (B, h w, 3, side + 2 reach, side + 2 reach)."""
    padded = torch.nn.functional.pad(pictures, (reach,) * 4, mode="replicate")
    size = side + 2 * reach
    cut = padded.unfold(2, size, side).unfold(3, size, side)                  # b 3 h w s s
    return cut.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)


def index_panel(
    halves: tuple[Tensor, Tensor],
    books: tuple[Tensor, Tensor],
    pictures: Tensor,
    start: tuple[int, int],
    alt: str,
    most: int = 8,
) -> Panel:
    """The widget "one index, two codebooks": controls picture, row, column, weight (w).

    Shows the picture with a patch framed, the codes nearest to that patch by meaning, by look and
    by the weighed sum, each as the patch that is nearest to it, and patches that share the index.

    Args:
        halves: meaning (B, n, D) and pixels (B, n, d) of all patches, rows of length 1.
        books: the two codebooks (K, D) and (K, d), rows of length 1.
        pictures: (B, 3, H, W) with n patches each.
        start: (row, column) of the first patch.
        alt: what the first frame shows.
        most: codes in a row.
    """
    grid = math.isqrt(halves[0].shape[1])
    side = pictures.shape[-1] // grid
    cuts = around(pictures, side, side // 2).flatten(0, 1)
    flat = [half.flatten(0, 1) for half in halves]
    tables = [(2 - 2 * x @ codes.T).clamp(min=0) for x, codes in zip(flat, books, strict=True)]
    faces = (tables[0] + tables[1]).argmin(dim=0)                         # a patch for each code
    chosen = {w: (tables[0] + w * tables[1]).argmin(dim=1) for w in WEIGHTS}

    def draw(picture, row, column, weight) -> Figure:
        place = picture * grid * grid + row * grid + column
        both = tables[0][place] + weight * tables[1][place]
        rows = [cuts[faces[d.argsort()[:most]]] for d in (*(t[place] for t in tables), both)]
        index = int(chosen[weight][place])
        rows.append(cuts[(chosen[weight] == index).nonzero()[:most, 0]])
        fig, (left, right) = figure(2, size=(9.6, 3.0), layout="pictures", width_ratios=(1, 2.1))
        image(left, pictures[picture], f"the patch has index {index}")
        box(left, ((row + 0.5) * side - 0.5, (column + 0.5) * side - 0.5), side, color="#D55E00")
        image(right, _sheet(rows, most))
        step = _sheet(rows, most).shape[1] / len(rows)
        names = ("nearest by meaning", "nearest by look", f"by the sum, w = {weight:g}",
                 "patches of this index")
        for k, name in enumerate(names):
            right.text(-2, (k + 0.5) * step, name, ha="right", va="center", fontsize=8)
        fig.subplots_adjust(wspace=0.42)
        return fig

    slider = ipywidgets.IntSlider
    return panel(
        draw, alt=alt,
        picture=slider(0, 0, len(pictures) - 1, description="picture"),
        row=slider(start[0], 0, grid - 1, description="row"),
        column=slider(start[1], 0, grid - 1, description="column"),
        weight=ipywidgets.SelectionSlider(options=WEIGHTS, value=1.0, description="w"),
    )


WEIGHTS = (0.0, 0.25, 1.0, 4.0, 16.0)


def _sheet(rows: Sequence[Tensor], most: int) -> Tensor:
    """Rows of patches (n, 3, s, s) as one picture, white between them."""
    size = rows[0].shape[-1]
    sheet = torch.ones(3, len(rows) * (size + 2), most * (size + 1))
    for r, patches in enumerate(rows):
        for c, patch in enumerate(patches):
            top, left = r * (size + 2), c * (size + 1)
            sheet[:, top : top + size, left : left + size] = patch.clamp(0, 1)
    return sheet
