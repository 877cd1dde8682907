"""CrossFormer: kernels over one spot, groups of tokens, padding, the bias of a pair."""

from collections.abc import Callable, Mapping, Sequence

import ipywidgets
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from vtlib.nn.checks import check_images
from vtlib.teach.figures import PALETTE, figure, show
from vtlib.teach.pictures import box, image, lines, tiles
from vtlib.teach.widgets import Panel, panel

PADDED, PICKED, NOTHING = -1, -2, -3
"""Keys of `teach.tiles`."""

# ------------------------------------------------------------------------------------- embedding


def kernel_panel(photo: Tensor, channels: Callable, work: Callable) -> Panel:
    """What the kernels of a cross-scale embedding read at one token; past the border it is black.

    Args:
        photo: (3, 128, 128), a token every 4 pixels.
        channels: kernels -> channels of each.
        work: (kernels, channels) -> MFLOPs of each.
    """
    check_images(photo[None], 3)
    padded = F.pad(photo, (14, 14, 14, 14))                      # what a kernel of 32 may read

    def draw(kernels: Sequence[int], row: int, col: int) -> Figure:
        dims, y, x = channels(kernels), 16 + 4 * row, 16 + 4 * col
        costs = work(kernels, dims)
        fig, axes = figure(5, size=(8, 2.45), layout="pictures", width_ratios=[2, 1, 1, 1, 1])
        image(axes[0], padded, f"{sum(costs):.0f} MFLOPs for all 32 x 32 tokens")
        for ax in axes[1:]:
            ax.set_axis_off()
        for n, (kernel, dim, cost) in enumerate(zip(kernels, dims, costs, strict=True)):
            r = kernel // 2
            box(axes[0], (y - 0.5, x - 0.5), kernel, PALETTE[1 + n])
            title = f"{kernel} x {kernel} pixels\n{dim} channels\n{cost / sum(costs):.0%} of FLOPs"
            image(axes[1 + n], padded[:, y - r:y + r, x - r:x + r], title)
        return fig

    sets = ((4,), (4, 8), (4, 32), (4, 8, 16), (4, 8, 16, 32))
    options = {", ".join(map(str, kernels)): kernels for kernels in sets}
    controls = {
        "kernels": ipywidgets.Dropdown(options=options, value=sets[-1], description="kernels"),
        "row": ipywidgets.IntSlider(13, 0, 31, description="row"),
        "col": ipywidgets.IntSlider(11, 0, 31, description="column"),
    }
    alt = ("A photograph with four nested squares around one token, and what each holds: a spot of"
           " colour at 4 pixels, a whole feature at 32. The smallest kernel has most channels and"
           " the least work.")
    return panel(draw, alt=alt, **controls)


# ---------------------------------------------------------------------------------------- groups


def show_groups(near: Tensor, far: Tensor, regions: Tensor, side: int) -> None:
    """Three maps of numbered tokens, coloured by group.

    Args:
        near: (h, w), the group of each token of a small map, adjacent ones.
        far: (h, w), the same for distant groups.
        regions: (h, w) of a larger map, distant groups; of these only the first and the last show.
        side: of a region.
    """
    fig, axes = figure(3, size=(8, 3.1), layout="pictures", width_ratios=[1, 1, 1.2])
    tiles(axes[0], _counted(near), "SDA: neighbours share a group", numbers=True)
    tiles(axes[1], _counted(far), "LDA: every second token does", numbers=True)
    blank = torch.full_like(regions, 6)                          # white
    first = torch.where(regions == regions[0, 0], 0, blank)
    both = torch.where(regions == regions[side, side], 3, first)
    tiles(axes[2], both, "A large map: LDA stays in its region", numbers=True)
    lines(axes[2], side, color="black", width=1.5)
    members = [(t.flatten() == t[0, 0]).nonzero().flatten().tolist() for t in (near, far)]
    said = [", ".join(map(str, numbers)) for numbers in members]
    show(fig, alt=f"Numbered maps coloured by group. SDA: blocks, the first holds {said[0]}. LDA:"
                  f" interleaved lattices, the first holds {said[1]}. On the large map a lattice"
                  f" stays inside its region of {side} x {side}.")


def _counted(groups: Tensor) -> Tensor:
    """The same groups, named 0, 1, 2, ..."""
    return groups.unique(return_inverse=True)[1]


def show_padding(size: int, padded: int, weights: Mapping[str, Tensor]) -> None:
    """A square map with its padding, and the attention weights of a query in its last group.

    Args:
        size: side of the map.
        padded: side with padding, two groups.
        weights: {label: (slots,)}.
    """
    fig, axes = figure(2, size=(6.6, 2.8), width_ratios=[1, 1.4])
    extra = padded - size
    keys = F.pad(torch.full((size, size), 5), (0, extra, 0, extra), value=PADDED)
    title = f"{size} x {size} tokens, padded to {padded} x {padded}"
    tiles(axes[0], keys, title, numbers=True)
    lines(axes[0], padded // 2, color="black", width=1.5)
    for k, (label, values) in enumerate(weights.items()):
        slots = [slot + 0.4 * k - 0.2 for slot in range(len(values))]
        axes[1].bar(slots, values.tolist(), 0.4, color=PALETTE[1 - k], label=label)
    axes[1].set(title="Padding takes part in the softmax", ylim=(0, 0.34))
    axes[1].set(xlabel="slot of the last group", ylabel="attention weight")
    axes[1].set_xticks(range(len(slots)))
    axes[1].legend(ncols=2, loc="upper right")
    said = []
    for label, values in weights.items():
        said.append(f"{label}: " + ", ".join(f"{value:.2f}" for value in values.tolist()))
    show(fig, alt="Left: a map with a grey row and column of padding. Right: the weights of the"
                  f" slots of the last group. {'; '.join(said)}.")


def _paint(seen: Tensor, multiple: int, colour: int, pick: tuple[int, int]) -> Tensor:
    """Keys of `teach.tiles`: the seen tokens, the picked one, and padding to the multiple."""
    missing = -len(seen) % multiple
    keys = F.pad(torch.where(seen, colour, NOTHING), (0, missing, 0, missing), value=PADDED)
    keys[pick] = PICKED
    return keys


def group_panel(group_of: Callable, reach: Callable) -> Panel:
    """The SDA and the LDA group of a picked token, and what it has heard of after some blocks.

    group_of: (size, group_size, interval) -> (size,), the group of each place of an axis, with
    interval 1 that of SDA; reach: (size, group_size, interval, blocks) -> (size, size) of booleans,
    along an axis.
    """

    def draw(size: int, group: int, interval: int, row: int, col: int, blocks: int) -> Figure:
        row, col = min(row, size - 1), min(col, size - 1)
        fig, axes = figure(3, layout="pictures")
        whole = size <= group
        for ax, step, colour, name in ((axes[0], 1, 0, "SDA"), (axes[1], interval, 1, "LDA")):
            place = group_of(size, group, step)
            seen = (place == place[row])[:, None] & (place == place[col])                  # h w
            side = size if whole else group * step
            keys = _paint(seen, side, colour, (row, col))
            tiles(ax, keys, f"{name}: a group of {int(seen.sum())}")
            lines(ax, side, color="black", width=0.6)
        heard = reach(size, group, interval, blocks)
        seen = heard[row][:, None] & heard[col]
        after = f"after {blocks} block{'s' * (blocks > 1)}: {int(seen.sum())} of {size**2}"
        tiles(axes[2], _paint(seen, size, 2, (row, col)), after)
        largest = max(len(ax.images[0].get_array()) for ax in axes)
        for ax in axes:                                          # a token has one size in all three
            ax.set(xlim=(-0.6, largest - 0.4), ylim=(largest - 0.4, -0.6))
        return fig

    controls = {
        "size": ipywidgets.IntSlider(14, 4, 28, description="map side"),
        "group": ipywidgets.IntSlider(3, 2, 7, description="G"),
        "interval": ipywidgets.IntSlider(4, 1, 8, description="I"),
        "row": ipywidgets.IntSlider(4, 0, 27, description="row"),
        "col": ipywidgets.IntSlider(7, 0, 27, description="column"),
        "blocks": ipywidgets.IntSlider(2, 1, 6, description="blocks"),
    }
    alt = ("A 14 x 14 map with G = 3, I = 4. SDA: the 3 x 3 neighbours of the picked token. LDA:"
           " tokens 4 apart in its region; the map is padded with grey. Right: what the token has"
           " heard of after two blocks.")
    return panel(draw, alt=alt, **controls)


# ------------------------------------------------------------------------------------------ bias


def bias_panel(tables: Callable[[int], Mapping[str, Tensor]], trained: int) -> Panel:
    """The bias of one head at any group size, as several tables give it, with their errors.

    tables: group size -> {name: (2G - 1, 2G - 1, heads)}, the wanted one first; trained: the group
    size at which they agree, framed.
    """

    def draw(group: int, head: int) -> Figure:
        surfaces = {name: table[..., head] for name, table in tables(group).items()}
        wanted = next(iter(surfaces.values()))
        edge = group - 0.5
        fig, axes = figure(len(surfaces), size=(8, 2.9))
        for ax, (name, surface) in zip(axes, surfaces.items(), strict=True):
            place = (-edge, edge, edge, -edge)
            low, high = wanted.min().item(), wanted.max().item()
            ax.imshow(surface.numpy(), vmin=low, vmax=high, extent=place)
            error = F.mse_loss(surface, wanted)
            note = "bright: large" if surface is wanted else f"error {error:.3f}"
            ax.set_title(f"{name}, {note}")
            ax.set(xlabel="dx", xticks=(1 - group, 0, group - 1), yticks=())
            box(ax, (0, 0), 2 * min(trained, group) - 1, PALETTE[1])
        axes[0].set(ylabel="dy", yticks=(1 - group, 0, group - 1))
        return fig

    controls = {
        "group": ipywidgets.IntSlider(10, 2, 16, description="G"),
        "head": ipywidgets.IntSlider(2, 0, 2, description="head"),
    }
    alt = ("Bias of one head for G = 10: wanted, from the DPB fitted at G = 7 (inside the square),"
           " and from the stretched table. The DPB goes on outside the square; the stretched table"
           " is too wide everywhere.")
    return panel(draw, alt=alt, **controls)
