"""The widgets of the notebook on hierarchies: prefixes of ResTok, orders of generation, scales and
the mask of HieraTok."""

from collections.abc import Mapping, Sequence

import ipywidgets
import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from vtlib.teach.figures import CMAP, figure
from vtlib.teach.pictures import image
from vtlib.teach.tokenizers.hierarchies import ASKED, SEEN, UNSEEN, draw_cells, enlarged
from vtlib.teach.widgets import Panel, panel
from vtlib.tokenizers import HAR, HieraTok, ResTok
from vtlib.tokenizers.hieratok import ScaleDecoder, scale_index, shrunk
from vtlib.tokenizers.measures import psnr


def signed(change: Tensor, gain: float = 2.0) -> Tensor:
    """A change of colours as a picture: grey is none."""
    return (0.5 + gain * change).clamp(0, 1)


def kept_panel(
    net: ResTok, pictures: Mapping[str, Tensor], alt: str, kept: int = 16
) -> Panel:
    """The widget "tokens kept": controls picture, kept, rest (what stands for the others).

    Args:
        net: the tokenizer.
        pictures: {name: (3, H, W)}.
        alt: what the first frame shows.
        kept: tokens, at first.
    """
    stacked = torch.stack(list(pictures.values()))
    codes = dict(zip(pictures, net.encode(stacked).codes, strict=True))
    others = dict(zip(pictures, torch.stack(list(codes.values())).roll(1, 0), strict=True))
    ends = [2**k for k in range(net.lengths[-1].bit_length())]
    bits = net.quantizer.bits

    def made(picture: str, kept: int, rest: str) -> Tensor:
        if rest == "mask token":
            return net.decode(codes[picture][None], keep=kept)[0]
        mixed = torch.cat([codes[picture][:kept], others[picture][kept:]])
        return net.decode(mixed[None])[0]

    def draw(picture, kept, rest) -> Figure:
        x, now = pictures[picture], made(picture, kept, rest)
        before = made(picture, kept // 2, rest)
        fig, axes = figure(3, size=(7.6, 2.75), layout="pictures")
        score = psnr(now[None].clamp(0, 1), x[None]).item()
        image(axes[0], x, "the picture")
        image(axes[1], now, f"{kept} tokens, {kept * bits:.0f} bits: {score:.1f} dB")
        added = kept - kept // 2
        image(axes[2], signed(now - before), f"what the last {added} of these changed")
        return fig

    return panel(
        draw,
        alt=alt,
        picture=ipywidgets.Dropdown(options=list(pictures), description="picture"),
        kept=ipywidgets.SelectionSlider(options=ends, value=kept, description="tokens kept"),
        rest=ipywidgets.Dropdown(
            options=["mask token", "another picture's"], description="the other tokens"
        ),
    )


def order_panel(
    generator: HAR, net: ResTok, samples: Mapping[str, Tensor], alt: str, passes: int = 5
) -> Panel:
    """The widget "level by level against token by token": controls pictogram, passes.

    Args:
        generator: whose `groups` say how many tokens are there after each pass.
        net: its tokenizer.
        samples: {name: (N,) tokens}.
        alt: what the first frame shows.
        passes: at first.
    """
    codes = {name: net.quantizer.decode(tokens[None]) for name, tokens in samples.items()}
    stops = [stop for _, stop in generator.groups]

    def draw(pictogram, passes) -> Figure:
        done = min(passes, len(stops))
        fig, axes = figure(2, size=(6.0, 3.25), layout="pictures")
        for ax, name, number, kept in (
            (axes[0], "level by level", done, stops[done - 1]),
            (axes[1], "token by token", passes, passes),
        ):
            title = f"{name}: pass {number}, {kept} token{'s' if kept > 1 else ''}"
            image(ax, net.decode(codes[pictogram], keep=kept)[0], title)
        return fig

    return panel(
        draw,
        alt=alt,
        pictogram=ipywidgets.Dropdown(options=list(samples), description="category"),
        passes=ipywidgets.IntSlider(passes, min=1, max=stops[-1], description="passes"),
    )


def scale_panel(
    net: HieraTok, pictures: Mapping[str, Tensor], alt: str, scale: int = 4
) -> Panel:
    """The widget "decode up to a scale": controls picture, scale, channel.

    Args:
        net: with a head that coarse scales have learned to use.
        pictures: {name: (3, H, W)}.
        alt: what the first frame shows.
        scale: at first.
    """
    latents = {name: net.encode(x[None]).codes for name, x in pictures.items()}
    made = {name: net.decode_scales(z) for name, z in latents.items()}
    sides = [side for side, _ in net.scales]
    counts = [side * side for side in sides]

    def draw(picture, scale, channel) -> Figure:
        number = sides.index(scale)
        got = made[picture][number]
        wanted = shrunk(pictures[picture][None], got.shape[-2:])
        tokens = net.tokens(latents[picture])[0].split(counts)[number][:, channel]
        fig, axes = figure(3, size=(8.2, 2.95), layout="pictures")
        title = f"channel {channel} of {len(tokens)} token{'s' if len(tokens) > 1 else ''}"
        reach = latents[picture][..., channel].abs().max().item()
        axes[0].imshow(tokens.view(scale, scale).numpy(), cmap=CMAP, vmin=-reach, vmax=reach)
        axes[0].set_axis_off()
        axes[0].set_title(title)
        score = psnr(got.clamp(0, 1), wanted).item()
        side = got.shape[-1]
        image(axes[1], got[0], f"decoded: {side} x {side}, {score:.1f} dB")
        image(axes[2], wanted[0], "what it should be")
        return fig

    return panel(
        draw,
        alt=alt,
        picture=ipywidgets.Dropdown(options=list(pictures), description="picture"),
        scale=ipywidgets.SelectionSlider(options=sides, value=scale, description="up to scale"),
        channel=ipywidgets.IntSlider(0, min=0, max=net.decoder.in_channels - 1,
                                     description="channel"),
    )


# ----------------------------------------------------------------------------------- who sees whom
@torch.no_grad()
def attention(net: HieraTok, x: Tensor, mask: str) -> Tensor:
    """Weights (T, T) of the decoder's last layer for a picture (3, H, W), the mean over heads; with
    mask="full" those of the same weights without a mask.

    Args:
        net: the tokenizer.
        x: the picture.
        mask: "causal" or "full".
    """
    decoder = net.decoder
    other = ScaleDecoder(
        decoder.in_channels, decoder.scales, decoder.patch_size, decoder.embed.out_features,
        len(decoder.blocks), decoder.blocks[0].attn.num_heads, mask,
    ).to(x.device)
    other.load_state_dict(decoder.state_dict())
    _, weights = other.eval()(net.tokens(net.encode(x[None]).codes), return_attn=True)
    return weights[-1][0].mean(dim=0)


def sight_panel(
    net: HieraTok, picture: Tensor, alt: str, scale: int = 4, column: int = 2
) -> Panel:
    """The widget "who sees whom": controls scale, row, column, mask, show.

    Args:
        net: the tokenizer.
        picture: (3, H, W), for the weights.
        alt: what the first frame shows.
        scale: of the token that looks, at first.
        column: of that token.
    """
    weights = {mask: attention(net, picture, mask) for mask in ("causal", "full")}
    sides = [side for side, _ in net.scales]
    counts, index = [side * side for side in sides], scale_index(net.scales)
    base = torch.tensor([matplotlib.colors.to_rgb(c) for c in (UNSEEN, SEEN, ASKED)])

    def tint(token: int, mask: str, show: str) -> Tensor:
        sees = index <= index[token] if mask == "causal" else torch.ones_like(index).bool()
        if show == "who may be seen":
            return base[sees.long()]
        heat = (weights[mask][token] / weights[mask][token].max()).cpu()
        colours = torch.tensor(matplotlib.colormaps[CMAP](heat.numpy()))[:, :3].float()
        return torch.where(sees[:, None], colours, base[0])

    def draw(scale, row, column, mask, show) -> Figure:
        place = (min(row, scale - 1), min(column, scale - 1))
        number = sides.index(scale)
        token = sum(counts[:number]) + place[0] * scale + place[1]
        parts = tint(token, mask, show).split(counts)
        share = weights[mask][token].cpu().split(counts)
        fig, axes = figure(len(sides), size=(2.15 * len(sides), 2.45), layout="pictures")
        for k, (ax, colours) in enumerate(zip(axes, parts, strict=True)):
            title = f"{sides[k]} x {sides[k]}: {share[k].sum().item():.0%} of the weight"
            draw_cells(ax, colours, sides[k], title)
            if k == number:
                ax.plot([place[1]], [place[0]], "s", color=ASKED, markersize=7)
                ax.plot([place[1]], [place[0]], "s", color="white", markersize=3)
        return fig

    slider, dropdown = ipywidgets.SelectionSlider, ipywidgets.Dropdown
    most = max(sides) - 1
    return panel(
        draw,
        alt=alt,
        scale=slider(options=sides, value=scale, description="scale"),
        row=ipywidgets.IntSlider(1, min=0, max=most, description="row"),
        column=ipywidgets.IntSlider(column, min=0, max=most, description="column"),
        mask=dropdown(options=["causal", "full"], description="mask"),
        show=dropdown(options=["who may be seen", "how much"], description="show"),
    )


def side_by_side(levels: Sequence[Tensor], size: int) -> Tensor:
    """Pictures (3, h, w) of several sizes, enlarged to one: (n, 3, size, size)."""
    return torch.cat([enlarged(level[None], (size, size)) for level in levels])
