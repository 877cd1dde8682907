"""VWFormer - Multi-Scale Representations by Varying Window Attention for Semantic Segmentation
(Yan, Wu, Zhang, ICLR 2024, arXiv 2404.16573).

The idea: decoders with several scales have too few of them, or kernels that are large in name only.
Varying window attention splits local attention in two: queries from a window of P x P pixels, keys
and values from a context of RP x RP around it, with R = 2, 4, 8 side by side. Shrinking channels by
R^2 first and folding each R x R patch into channels afterwards makes every context P^2 tokens of C
channels, so that a wide one costs what a narrow one does.

    x: (B, C, h, w), levels 2-4 fused       VWHead.fuse_levels
    windows of P = h / 8, the grid is fixed query_windows
    d = ReLU(BN(conv RxR (x)))              VWHead.embed       DOPE, densely overlapping patch
                                            embedding: stride 1, C -> C/R^2, zeros R/2 - 1 before
                                            and R/2 after
    d -> h + (R-1) P                        copy_shift_padding CSP, width first: strips of the map
                                            itself, [(R+1)P/2, RP) from each side
    (C/R^2, RP, RP) every P pixels          context_windows
    -> (R^2 C/R^2, P, P), order (r, s, c)   fold; both at once: folded_contexts
    BN(W softmax(theta phi^T / sqrt(C/m)) g) VWA               m heads, contiguous channels
    short path, image pool, R = 2, 4, 8     VWHead.scales      concatenated, 1x1 conv
    c1 in 48 channels, at a quarter         VWHead.sharpen

Zero padding would fill 44, 61, 68 % of a corner's context (R = 2, 4, 8) with tokens that all have
the same key, and attention collapses onto them. With copy-shift padding the context of a window at
the border holds the pixels of the nearest RP x RP square inside the map, each once, cyclically
rearranged. For odd (R-1)P there is no middle: contexts begin half a pixel early, and the padded map
is a pixel longer than is read. Costs and the pixels of each context: `vwformer_cost`. The decoder
for Cityscapes: `vwformer_city`.

State-dict names are the official ones (yan-hao-tian/VW); `convert_official` takes `decode_head.`
off. `pre_scaling=False` is there as it is here: unfold first, shrink after, R^2 times the work. Not
the release's: `padding="zeros"`; `pos="sincos"` (a class for it is never called there, so that
attention cannot tell left from right in its context); other ratios and grids, for small maps;
windows of one pixel (there, an error). The paper's full text was not at hand: mechanism from its
code; costs and shares of zeros are derived; the names DOPE and CSP and the collapse of attention
come from public reviews.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..nn import (
    attend,
    check_dtype,
    check_flag,
    check_heads,
    check_images,
    check_int,
    check_ints,
    check_multiple,
    check_number,
    sincos_2d,
    unwrap,
)
from ..nn.checks import check_list
from .conv_module import ConvModule, PixelLinear

PAPER = "vwformer"
PADDINGS = ("copy_shift", "zeros")
POSITIONS = ("none", "sincos")


# ------------------------------------------------------------------------------------- the windows
def query_windows(x: Tensor, num_windows: int = 8) -> Tensor:
    """The grid of windows: (B, C, h, w) -> (B * 64, C, h/8, w/8), by batch, row, column."""
    num_windows = _check_map(x, 1, num_windows)[1]
    grid = dict(i=num_windows, j=num_windows)
    return rearrange(x, "b c (i p) (j q) -> (b i j) c p q", **grid)


def merge_windows(windows: Tensor, num_windows: int = 8) -> Tensor:
    """The inverse of `query_windows`: (B * 64, C, P, P) -> (B, C, h, w)."""
    check_images(windows, None, "windows")
    num_windows = check_int(num_windows, "num_windows", 1)
    if windows.shape[0] % num_windows**2:
        raise ValueError(f"windows {tuple(windows.shape)}: needs a multiple of {num_windows**2}")
    grid = dict(i=num_windows, j=num_windows)
    return rearrange(windows, "(b i j) c p q -> b c (i p) (j q)", **grid)


def copy_shift_padding(
    x: Tensor, ratio: int, num_windows: int = 8, padding: str = "copy_shift"
) -> Tensor:
    """Widen a map by (R-1)P/2 on each side, with strips of itself: (B, C, h + (R-1)P, w + (R-1)P).

    Left goes a copy of columns [(R+1)P/2, RP), right of those as far from the other end; then the
    same with rows, corners included. For odd (R-1)P the strips are rounded up.

    Args:
        x: (B, C, h, w), sides divisible by num_windows.
        ratio: R, at most num_windows.
        num_windows: on each side of the map.
        padding: "copy_shift", or "zeros" to see what it is good for.
    """
    ratio, num_windows = _check_map(x, ratio, num_windows)
    padding = choice(padding, "padding", PADDINGS)
    x = pad_axis(x, 3, ratio, num_windows, padding)
    return pad_axis(x, 2, ratio, num_windows, padding)


def pad_axis(x: Tensor, axis: int, ratio: int, num_windows: int, padding: str) -> Tensor:
    """`copy_shift_padding` along one axis of what has been checked.

    Args:
        x: of any shape.
        axis: which is widened.
        ratio: R.
        num_windows: along the axis.
        padding: "copy_shift" or "zeros".
    """
    size = x.shape[axis]
    window = size // num_windows
    inner, outer = (ratio + 1) * window // 2, ratio * window
    if inner == outer:
        return x
    left = x.narrow(axis, inner, outer - inner)
    right = x.narrow(axis, size - outer, outer - inner)
    if padding == "zeros":
        left, right = torch.zeros_like(left), torch.zeros_like(right)
    return torch.cat([left, x, right], dim=axis)


def context_windows(
    x: Tensor, ratio: int, num_windows: int = 8, padding: str = "copy_shift"
) -> Tensor:
    """Around each query window a square R times as wide: (B * 64, C, R P_h, R P_w).

    Args:
        x: (B, C, h, w), sides divisible by num_windows.
        ratio: R, at most num_windows.
        num_windows: on each side of the map.
        padding: as for `copy_shift_padding`.
    """
    windows = _cut_contexts(x, ratio, num_windows, padding)
    return rearrange(windows, "b c i j p q -> (b i j) c p q")


def folded_contexts(
    x: Tensor, ratio: int, num_windows: int = 8, padding: str = "copy_shift"
) -> Tensor:
    """`fold(context_windows(x))`, copied once: (B, c, h, w) -> (B * 64, R^2 c, P_h, P_w).

    Args:
        x: (B, c, h, w), sides divisible by num_windows.
        ratio: R, at most num_windows.
        num_windows: on each side of the map.
        padding: as for `copy_shift_padding`.
    """
    windows = _cut_contexts(x, ratio, num_windows, padding)
    split = dict(r=ratio, s=ratio)
    return rearrange(windows, "b c i j (p r) (q s) -> (b i j) (r s c) p q", **split)


def _cut_contexts(x: Tensor, ratio: int, num_windows: int, padding: str) -> Tensor:
    """All contexts as a view of the padded map, (B, C, 8, 8, R P_h, R P_w)."""
    padded = copy_shift_padding(x, ratio, num_windows, padding)
    height, width = (side // num_windows for side in x.shape[2:])
    windows = padded.unfold(2, ratio * height, height).unfold(3, ratio * width, width)
    return windows[:, :, :num_windows, :num_windows]           # P = 1 makes room for one too many


def fold(windows: Tensor, ratio: int) -> Tensor:
    """Each R x R patch into channels, in the order (row, column, c): (N, c, RP, RQ) -> (N, R^2 c,
    P, Q)."""
    check_images(windows, None, "windows")
    ratio = check_int(ratio, "ratio", 1)
    check_multiple(windows.shape[2:], ratio, "windows")
    return rearrange(windows, "n c (p r) (q s) -> n (r s c) p q", r=ratio, s=ratio)


def embed_densely(x: Tensor, layer: nn.Module, ratio: int) -> Tensor:
    """Densely overlapping patch embedding: (B, C, h, w) -> (B, C/R^2, h, w).

    The convolution has few outputs for its many weights, which is slow. For R >= 4 it is computed
    as what it is also: a C x C matrix at every pixel, whose C = R^2 C/R^2 results each go to
    the place that they are a summand of. R >= 8: a third of the convolution's time.

    Args:
        x: the map.
        layer: a `ConvModule` with a kernel of R x R.
        ratio: R.
    """
    check_images(x, None, "x")
    after = ratio // 2
    before = after - 1 + ratio % 2
    if ratio < 4:
        return layer(F.pad(x, (before, after, before, after)))
    weight, size = layer.get_parameter("conv.weight"), x.shape[2:]
    matrix = rearrange(weight, "d c r s -> (d r s) c")
    parts = (matrix @ x.flatten(2)).to(x.dtype)                          # b (d r s) (h w)
    parts = parts.unflatten(2, size).unflatten(1, (-1, ratio, ratio))    # b d r s h w
    small = _sum_shifted(_sum_shifted(parts, 4, before), 4, before)      # rows, then columns
    return F.relu(layer.get_submodule("bn")(small))


def _sum_shifted(parts: Tensor, axis: int, before: int) -> Tensor:
    """Sum over the third axis, entry k read k - before places farther on; outside are zeros.

    R sums of whole maps, in a fifth of the time of F.fold.

    Args:
        parts: (b, d, R, ...).
        axis: of places; in the result it is axis - 1.
        before: how far back entry 0 reads.
    """
    total, size = parts[:, :, before].clone(), parts.shape[axis]
    for k, part in enumerate(parts.unbind(2)):
        shift = k - before
        length = size - abs(shift)
        if shift and length > 0:
            read = part.narrow(axis - 1, max(shift, 0), length)
            total.narrow(axis - 1, max(-shift, 0), length).add_(read)
    return total


def _check_map(x: Tensor, ratio: int, num_windows: int) -> tuple[int, int]:
    check_images(x, None, "x")
    num_windows = check_int(num_windows, "num_windows", 1)
    check_multiple(x.shape[2:], num_windows, "x: map size")
    return check_int(ratio, "ratio", 1, num_windows), num_windows


def choice(value: Any, name: str, choices: Sequence[str]) -> str:
    """`value`, or a ValueError.

    Args:
        value: what was given.
        name: what the message calls it.
        choices: what is allowed.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={value!r}: needs one of {', '.join(choices)}")
    return value


# ------------------------------------------------------------------------------------ the attention
class VWA(nn.Module):
    """Attention of query windows to context windows, without a residual.

    It starts at zero: the last batch norm has weight 0, as every non-local block of mmcv.

    Args:
        channels: C.
        num_heads: must divide C; contiguous channels each.
    """

    def __init__(self, channels: int, num_heads: int = 1) -> None:
        super().__init__()
        check_heads(channels, num_heads)
        channels, self.num_heads = int(channels), int(num_heads)
        self.theta = ConvModule(channels, channels, norm=False, act=False)
        self.phi = ConvModule(channels, channels, norm=False, act=False)
        self.g = ConvModule(channels, channels, norm=False, act=False)
        self.conv_out = ConvModule(channels, channels, act=False)
        nn.init.normal_(self.theta.conv.weight, std=0.01)
        nn.init.zeros_(self.conv_out.get_parameter("bn.weight"))

    def forward(self, query: Tensor, context: Tensor, return_attn: bool = False) -> Any:
        """(N, C, P, Q), (N, C, P', Q') -> (N, C, P, Q).

        Args:
            query: query windows.
            context: of each of them; folded, it has as many tokens as the window.
            return_attn: also return the weights (N, heads, P Q, P' Q').
        """
        check_pair(query, context, self.theta.conv.in_channels)
        projected = (self.theta(query), self.phi(context), self.g(context))
        q, k, v = (rearrange(t, "n (m d) p q -> n m (p q) d", m=self.num_heads) for t in projected)
        out = attend(q, k, v, return_attn=return_attn)
        out, attn = out if return_attn else (out, None)
        out = rearrange(out, "n m (p q) d -> n (m d) p q", p=query.shape[2])
        out = self.conv_out(out)
        return (out, attn) if return_attn else out


def check_pair(query: Tensor, context: Tensor, channels: int) -> None:
    """Raise unless each query window has one context.

    Args:
        query: (N, C, P, Q).
        context: (N, C, P', Q').
        channels: the C that is needed.
    """
    check_images(query, channels, "query")
    check_images(context, channels, "context")
    if query.shape[0] != context.shape[0]:
        shapes = tuple(query.shape), tuple(context.shape)
        raise ValueError(f"query and context {shapes}: each window needs one context")


# ------------------------------------------------------------------------------------- the decoders
class VWHead(nn.Module):
    """Maps of a backbone at 1/4, 1/8, 1/16, 1/32 -> logits at 1/4 (ADE20K).

    Args:
        in_channels: of the four maps.
        num_classes: K.
        channels: C, divisible by num_heads and by every R^2.
        num_heads: of the attention.
        short_cut: whether the fused levels are added to what each scale gives.
        ratios: R of the scales, each at most num_windows.
        num_windows: on each side, whatever the size of the map.
        padding: "copy_shift", or "zeros".
        pre_scaling: False: contexts are cut from all C channels and shrunk one by one.
        pos: "sincos" adds places of the map to what queries and contexts are made of.
        low_channels: of the finest map.
        dropout: rate of whole channels, before the classifier.
    """

    level_mode = "bilinear"                            # how levels 3, 4 get to the size of level 2
    pools = True

    def __init__(
        self,
        in_channels: Sequence[int] = (96, 192, 384, 768),
        num_classes: int = 150,
        channels: int = 512,
        num_heads: int = 16,
        short_cut: bool = True,
        ratios: Sequence[int] = (2, 4, 8),
        num_windows: int = 8,
        padding: str = "copy_shift",
        pre_scaling: bool = True,
        pos: str = "none",
        low_channels: int = 48,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.in_channels = check_ints(in_channels, "in_channels", 1, length=4)
        channels = _check_width(channels, pos)
        low_channels = check_int(low_channels, "low_channels", 1)
        self.num_windows = check_int(num_windows, "num_windows", 1)
        self.ratios = _check_ratios(ratios, channels, self.num_windows)
        self.short_cut = check_flag(short_cut, "short_cut")
        self.padding, self.pos = choice(padding, "padding", PADDINGS), pos
        self.pre_scaling = check_flag(pre_scaling, "pre_scaling")
        c1, c2, c3, c4 = self.in_channels
        self.linear_c4 = self._project(c4, channels)
        self.linear_c3 = self._project(c3, channels)
        self.linear_c2 = self._project(c2, channels)
        self.linear_fuse = ConvModule(3 * channels, channels)
        self.attn = nn.ModuleList(self._attention(channels, num_heads) for _ in self.ratios)
        self.ds = nn.ModuleList(ConvModule(channels, channels // r**2, r) for r in self.ratios)
        self.short_path = ConvModule(channels, channels)
        self.image_pool = None
        if self.pools:
            self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvModule(channels, channels))
        self.cat = ConvModule((1 + self.pools + len(self.ratios)) * channels, channels)
        self.linear_c1 = self._project(c1, low_channels)
        self.low_level_fuse = ConvModule(channels + low_channels, channels)
        self.dropout = nn.Dropout2d(check_number(dropout, "dropout", 0.0, 1.0))
        self.conv_seg = nn.Conv2d(channels, check_int(num_classes, "num_classes", 1), 1)
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        nn.init.zeros_(self.conv_seg.get_parameter("bias"))

    def _project(self, in_channels: int, out_channels: int) -> nn.Module:
        return PixelLinear(in_channels, out_channels)

    def _attention(self, channels: int, num_heads: int) -> nn.Module:
        return VWA(channels, num_heads)

    def fuse_levels(self, c2: Tensor, c3: Tensor, c4: Tensor) -> Tensor:
        """Levels 2-4 in one map at the size of level 2, (B, C, h, w).

        Args:
            c2: (B, C_2, h, w).
            c3: (B, C_3, h/2, w/2), or any size.
            c4: (B, C_4, h/4, w/4), or any size.
        """
        size = c2.shape[2:]
        levels = [_resize(self.linear_c4(c4), size, self.level_mode)]
        levels.append(_resize(self.linear_c3(c3), size, self.level_mode))
        levels.append(self.linear_c2(c2))
        return self.linear_fuse(torch.cat(levels, dim=1))

    def embed(self, x: Tensor, index: int) -> Tensor:
        """DOPE of the scale `index`: (B, C, h, w) -> (B, C/R^2, h, w)."""
        return embed_densely(x, self.ds[self._check_scale(x, index)], self.ratios[index])

    def contexts(self, x: Tensor, index: int) -> Tensor:
        """Folded contexts of the scale `index`: (B, C, h, w) -> (B * 64, C, P_h, P_w)."""
        index = self._check_scale(x, index)
        ratio = self.ratios[index]
        if self.pre_scaling:
            return folded_contexts(self.embed(x, index), ratio, self.num_windows, self.padding)
        windows = context_windows(x, ratio, self.num_windows, self.padding)
        return fold(self.embed(windows, index), ratio)

    def scale(self, x: Tensor, index: int, return_attn: bool = False) -> Any:
        """One scale: (B, C, h, w) -> (B, C, h, w).

        Args:
            x: the fused levels.
            index: which of `ratios`.
            return_attn: also return the weights (B * 64, heads, P^2, P^2); a column is a patch of
                R x R pixels of the context.
        """
        index = self._check_scale(x, index)
        read = x
        if self.pos == "sincos":
            table = sincos_2d(tuple(x.shape[2:]), x.shape[1], device=x.device).to(x.dtype)
            read = x + table.mT.unflatten(1, x.shape[2:])                               # c h w
        query = query_windows(read, self.num_windows)
        out = self.attn[index](query, self.contexts(read, index), return_attn)
        out, attn = out if return_attn else (out, None)
        out = merge_windows(out, self.num_windows)
        out = out + x if self.short_cut else out
        return (out, attn) if return_attn else out

    def scales(self, x: Tensor) -> Tensor:
        """Short path, image pool and all scales fused: (B, C, h, w) -> (B, C, h, w)."""
        parts = [self.short_path(x)]
        if self.image_pool is not None:
            parts.append(self.image_pool(x).expand_as(x))
        parts += [self.scale(x, index) for index in range(len(self.ratios))]
        return self.cat(torch.cat(parts, dim=1))

    def sharpen(self, x: Tensor, c1: Tensor) -> Tensor:
        """Low-level enhancement: (B, C, h, w) and the finest map (B, C_1, 2h, 2w) -> (B, C, 2h,
        2w)."""
        fine = self.linear_c1(c1)
        return self.low_level_fuse(torch.cat([_resize(x, c1.shape[2:], "bilinear"), fine], dim=1))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """[c1, c2, c3, c4], (B, C_i, h_i, w_i) -> logits (B, K, h_1, w_1).

        ValueError unless the sides of c2 are multiples of num_windows; in training also for a
        single image, whose pooled map has no batch statistics.
        """
        features = check_list(features, "features", "a list of four maps (B, C, h, w)")
        if len(features) != 4:
            raise ValueError(f"features has {len(features)} maps but needs four, finest first")
        for i, feature in enumerate(features):
            check_images(feature, self.in_channels[i], f"features[{i}]")
            check_dtype(feature, self.conv_seg.weight, f"features[{i}]")
        if any(feature.shape[0] != features[0].shape[0] for feature in features):
            shapes = [tuple(feature.shape) for feature in features]
            raise ValueError(f"features have shapes {shapes} but need one batch size")
        c1, c2, c3, c4 = features
        check_multiple(c2.shape[2:], self.num_windows, "features[1]: map size")
        x = self.sharpen(self.scales(self.fuse_levels(c2, c3, c4)), c1)
        return self.conv_seg(self.dropout(x))

    def _check_scale(self, x: Tensor, index: int) -> int:
        check_images(x, self.conv_seg.in_channels, "x")
        return check_int(index, "index", 0, len(self.ratios) - 1)


def _resize(x: Tensor, size: Sequence[int], mode: str) -> Tensor:
    if mode == "nearest":
        return F.interpolate(x, size=tuple(size), mode=mode)
    return F.interpolate(x, size=tuple(size), mode=mode, align_corners=False)


def _check_width(channels: int, pos: str) -> int:
    channels = check_int(channels, "channels", 1)
    if choice(pos, "pos", POSITIONS) == "sincos" and channels % 4:
        raise ValueError(f"channels={channels}: needs a multiple of 4 for pos='sincos'")
    return channels


def _check_ratios(ratios: Sequence[int], channels: int, num_windows: int) -> tuple[int, ...]:
    ratios = tuple(check_ints(ratios, "ratios", 1))
    for ratio in ratios:
        if ratio > num_windows:
            raise ValueError(f"ratios={ratios}: none may exceed num_windows={num_windows}")
        if channels % ratio**2:
            raise ValueError(
                f"channels={channels} but R={ratio} leaves 1 of R^2={ratio**2}: needs a multiple"
            )
    return ratios


def convert_official(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The decoder's weights out of an official checkpoint: what begins with `decode_head.`, without
    it. A bare decoder passes through."""
    state = dict(unwrap(state))
    inside = {key: value for key, value in state.items() if key.startswith("decode_head.")}
    if not inside:
        return state
    return {key.removeprefix("decode_head."): value for key, value in inside.items()}
