"""Widgets and pictures of the notebook on GigaTok and ReToK."""

from collections.abc import Mapping

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vtlib.teach.figures import CMAP, PALETTE, figure
from vtlib.teach.pictures import image
from vtlib.teach.widgets import Panel, panel
from vtlib.tokenizers.base import Tokenizer
from vtlib.tokenizers.gigatok import GigaTok
from vtlib.tokenizers.gigatok_qformer import query_regions
from vtlib.tokenizers.measures import psnr

KEPT = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
LOOKS = {
    "ReToK": {"color": PALETTE[0], "marker": "o"},
    "GigaTok": {"color": PALETTE[1], "marker": "D"},
    "grid": {"color": PALETTE[2], "marker": "s"},
    "grid, shrunk": {"color": PALETTE[2], "marker": "s"},
    "nested dropout alone": {"color": PALETTE[3], "marker": "^"},
}
"""One colour and mark a tokenizer, in all figures of the notebook."""


def region_pictures(regions: Tensor, side: int = 8) -> Tensor:
    """regions (N, h, w) bool -> pictures (N, 3, side h, side w): blue inside, grey outside."""
    inside, outside = (torch.tensor(c)[:, None, None] for c in ([0, 0.45, 0.7], [0.9, 0.9, 0.9]))
    big = regions.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, None]
    return torch.where(big, inside, outside)


@torch.no_grad()
def prefix(tokenizer: GigaTok, codes: Tensor, kept: int) -> Tensor:
    """Pictures (B, 3, H, W) painted from the first `kept` codes, clamped."""
    return tokenizer.decode(codes[:, :kept]).clamp(0, 1)


@torch.no_grad()
def prefix_panel(
    tokenizers: Mapping[str, GigaTok], pictures: Mapping[str, Tensor], alt: str
) -> Panel:
    """The widget "tokens kept": controls picture and kept. Shows the picture, what each tokenizer
    paints from its first tokens, and PSNR against their number.

    Args:
        tokenizers: {name: tokenizer}, up to three.
        pictures: {name: (3, H, W)}.
        alt: what the first frame shows.
    """
    stacked = torch.stack(list(pictures.values()))
    codes = {name: model.encode(stacked).codes for name, model in tokenizers.items()}
    found = {}
    for name, model in tokenizers.items():
        made = [psnr(prefix(model, codes[name], k), stacked) for k in KEPT]
        found[name] = torch.stack(made).cpu()                                   # kept pictures
    places = {name: row for row, name in enumerate(pictures)}

    def draw(picture, kept) -> Figure:
        row, truth = places[picture], pictures[picture]
        fig, axes = figure(
            len(tokenizers) + 2, size=(10.2, 2.9), width_ratios=(*[1] * (len(tokenizers) + 1), 1.4)
        )
        fig.subplots_adjust(left=0.01, right=0.99, wspace=0.12, top=0.86, bottom=0.17)
        image(axes[0], truth, "the picture")
        curve = axes[-1]
        for k, (name, model) in enumerate(tokenizers.items()):
            look = LOOKS.get(name, {"color": PALETTE[k + 4], "marker": "v"})
            made = prefix(model, codes[name][row:row + 1], kept)
            score = psnr(made, truth[None]).item()
            image(axes[k + 1], made[0], f"{name}: {score:.1f} dB")
            curve.plot(KEPT, found[name][:, row], label=name, markersize=3, **look)
            curve.plot([kept], [score], markersize=9, **look)
        curve.set(xlabel="tokens kept", ylabel="PSNR (dB)")
        curve.set_title(f"{kept} tokens = {9 * kept} bits")
        curve.legend(loc="lower right")
        box = curve.get_position()
        curve.set_position((box.x0 + 0.05, box.y0, box.width - 0.05, box.height))
        return fig

    return panel(
        draw,
        alt=alt,
        picture=ipywidgets.Dropdown(options=list(pictures), description="picture"),
        kept=ipywidgets.SelectionSlider(options=KEPT, value=8, description="tokens kept"),
    )


def regions_of(tokenizer: Tokenizer, shape: tuple[int, ...]) -> Tensor:
    """Which places each token began from: (N, h, w) bool. A token of a grid has its own place.

    shape: of the indices of one picture, (h, w) or (N,).
    """
    if isinstance(tokenizer, GigaTok):
        return query_regions(tokenizer.num_tokens, tokenizer.s2to1encoder.grid)
    return torch.eye(shape[0] * shape[1]).bool().reshape(-1, *shape)


@torch.no_grad()
def swap_panel(
    tokenizers: Mapping[str, Tokenizer], pictures: Mapping[str, Tensor], alt: str
) -> Panel:
    """The widget "token swap": controls tokenizer, source (A), target (B), token. Shows A, B, B
    with one token of A, the difference, and the region that the token began from.

    Args:
        tokenizers: {name: tokenizer} with as many tokens each.
        pictures: {name: (3, H, W)}, two or more.
        alt: what the first frame shows.
    """
    stacked, names = torch.stack(list(pictures.values())), list(pictures)
    indices, regions = {}, {}
    for name, model in tokenizers.items():
        indices[name] = model.encode(stacked).indices
        regions[name] = regions_of(model, tuple(indices[name].shape[1:]))
    count = min(len(x) for x in regions.values())

    def draw(tokenizer, source, target, token) -> Figure:
        model, known = tokenizers[tokenizer], indices[tokenizer]
        before = known[names.index(target)].clone()
        after = before.clone()
        after.view(-1)[token - 1] = known[names.index(source)].view(-1)[token - 1]
        made = model.decode_indices(torch.stack([before, after])).clamp(0, 1)
        change = (made[1] - made[0]).abs().mean(dim=0)
        fig, axes = figure(5, size=(10.4, 2.45), layout="pictures")
        image(axes[0], pictures[source], "A")
        image(axes[1], made[0], "B, rebuilt")
        image(axes[2], made[1], f"B with token {token} of A")
        axes[3].imshow(change.cpu().numpy(), cmap=CMAP, vmin=0, vmax=0.3)
        axes[3].set_axis_off()
        axes[3].set_title(f"change: {(change > 0.02).float().mean():.0%} of pixels")
        image(axes[4], region_pictures(regions[tokenizer][token - 1:token])[0], "it began here")
        return fig

    dropdown = ipywidgets.Dropdown
    return panel(
        draw,
        alt=alt,
        tokenizer=dropdown(options=list(tokenizers), description="tokenizer"),
        source=dropdown(options=names, value=names[0], description="A"),
        target=dropdown(options=names, value=names[1], description="B"),
        token=ipywidgets.IntSlider(1, min=1, max=count, description="token"),
    )
