"""CATANet - Efficient Content-Aware Token Aggregation for Lightweight Image Super-Resolution
(Liu, Liu, Tang, Wu, CVPR 2025, arXiv 2503.06896).

The idea: window attention sees neighbours only, although similar texture returns far away, and
clustering each image anew is slow. So keep a few token centres shared by all images, moved in
training only; grouping then is one arg-max and one stable sort. The sorted row of tokens is cut
into equal subgroups that attend to themselves and to the next one, every token also attends to the
centres, and local windows do the rest.

    n = LN(x): tokens, c: centres
    g_i = argmax_j cos(n_i, c_j)                      assign
    c_j <- normalise(sum of unit tokens with g_i = j) center_iter   training: n_iter times from the
                                                                    stored ones, over the batch
    means <- 0.999 means + 0.001 c                    TAB.learn     training; the first call copies
    order = stable argsort(g)                         grouping      CATA
    softmax(q k^T / sqrt(P)) v, own and next subgroup IASA          subgroup i: sorted queries
                                                                    [i s, (i+1) s), keys
                                                                    [i s, (i+2) s)
      + softmax(q kc^T / sqrt(P)) vc                  IRCA          keys, values of the centres
    x + conv1x1(proj(.)), then x + ConvFFN(LN(x))     TAB           token aggregation block
    attention in overlapping patches, averaged        LRSA          patches of p x p every p - 2
                                                                    pixels, the last at the border

State-dict names are the official ones (EquationWalker/CATANet), so official checkpoints load as
they are (x2.pth, key `params`). Different from the official code: the sort is stable (there, the
order inside a group is left open and results depend on it); overlaps of patches are divided by how
many patches cover a pixel (there, by 4 instead of 3 where the shifted last patch meets two others,
sides p + m (p - 2) + 1); where the mirrored padding is longer than the sequence it bounces to and
fro, and patches larger than the image shrink to it (there, both fail); in eval mode the stored
centres are used even when nothing was learned yet (random unit vectors then); Linear layers start
as torch starts them (there: normal, 0.02). The paper's full text was not at hand: mechanism from
its code.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..nn import (
    attend,
    check_callable,
    check_dtype,
    check_flag,
    check_float,
    check_heads,
    check_images,
    check_int,
    check_ints,
    check_number,
    check_odd,
    check_tokens,
    mirrored,
)
from ..nn.checks import check_axes, check_channels, describe
from ..tokens import take
from ..tokens.checks import check_grid

PAPER = "catanet"


# -------------------------------------------------------------------------- centres and groups
def assign(tokens: Tensor, centres: Tensor) -> Tensor:
    """g_i = argmax_j cos(tokens_i, centres_j), the first if equal: (B, N, C), (M, C) -> (B, N)."""
    _check_centres(tokens, centres)
    return nearest(F.normalize(tokens, dim=-1), F.normalize(centres, dim=-1))


def _check_centres(tokens: Tensor, centres: Tensor) -> None:
    check_tokens(tokens)
    check_float(centres, "centres")
    if centres.dim() != 2 or not len(centres) or centres.shape[1] != tokens.shape[2]:
        raise ValueError(
            f"centres has shape {tuple(centres.shape)} but needs (M, {tokens.shape[2]}), as many "
            f"channels as tokens {tuple(tokens.shape)}"
        )


def nearest(unit: Tensor, centres: Tensor) -> Tensor:
    """argmax_j of the plain products of tokens (B, N, C) with centres (M, C) -> (B, N) long.

    What `assign` is for tokens of any and centres of unit length.
    """
    return (unit @ centres.mT).argmax(-1)


def first_centres(tokens: Tensor, num_centres: int) -> Tensor:
    """Where training starts: means of M equal stretches of the raster sequence, over the batch.

    tokens (B, N, C) -> (M, C). The end is filled up with the last tokens reversed; when M divides
    N, as in the release, with M of them all the same.
    """
    check_tokens(tokens)
    n, num_centres = tokens.shape[1], check_int(num_centres, "num_centres", 1)
    length = n + num_centres - n % num_centres
    tokens = tokens[:, mirrored(torch.arange(length, device=tokens.device), n)]
    return rearrange(tokens, "b (m l) c -> m (b l) c", m=num_centres).mean(1)


def center_iter(unit: Tensor, centres: Tensor) -> Tensor:
    """One round of spherical k-means over the whole batch. Differentiable in the tokens.

    unit: tokens (B, N, C), centres (M, C), both of unit length -> (M, C):
    c_j = normalise(sum of the tokens nearest to centre j); a centre without tokens stays.
    """
    _check_centres(unit, centres)
    belong = nearest(unit, centres).flatten()
    ones = torch.ones_like(belong, dtype=centres.dtype)
    sums = torch.zeros_like(centres).index_add(0, belong, unit.flatten(0, 1).to(centres.dtype))
    counts = torch.zeros_like(centres[:, 0]).index_add(0, belong, ones)
    return torch.where(counts[:, None] == 0, centres, F.normalize(sums, dim=-1))


def sorted_row(n: int, group_size: int, device: torch.device | None = None) -> tuple[Tensor, int]:
    """How a sorted sequence of n tokens is laid out to be cut: positions ((G + 1) s,), and s.

    s = min(n, group_size), G = ceil(n / s): G subgroups and one more, so that the last one has a
    next one too. Behind the end the sequence is mirrored. Subgroup i asks with positions
    [i s, (i + 1) s) of the row and looks at [i s, (i + 2) s): its own, the next.

    Args:
        n: how many tokens there are.
        group_size: the most a subgroup has.
        device: where the positions are; None: torch's default.
    """
    n = check_int(n, "n", 1)
    size = min(n, check_int(group_size, "group_size", 1))
    count = -(-n // size)
    return mirrored(torch.arange((count + 1) * size, device=device), n), size


@dataclass
class Grouping:
    """Who is with whom."""

    belong: Tensor                   # (B, N) long: each token's centre
    order: Tensor                    # (B, N) long: raster positions in sorted order
    centres: Tensor                  # (M, C)
    group_size: int


@torch.no_grad()
def grouping(tokens: Tensor, centres: Tensor, group_size: int) -> Grouping:
    """One arg-max and one stable sort: tokens of one group stay in raster order.

    Args:
        tokens: (B, N, C).
        centres: (M, C).
        group_size: of the subgroups that the sorted tokens are cut into.
    """
    belong, group_size = assign(tokens, centres), check_int(group_size, "group_size", 1)
    return Grouping(belong, belong.argsort(dim=-1, stable=True), centres, group_size)


# --------------------------------------------------------------------------- token aggregation
class IRCA(nn.Module):
    """Inter-group cross-attention, its keys and values.

    Args:
        dim: C.
        qk_dim: of the keys, all heads together.
        num_heads: how many heads.
    """

    def __init__(self, dim: int, qk_dim: int, num_heads: int):
        super().__init__()
        dim, qk_dim, _, self.num_heads = _widths(dim, qk_dim, 1, num_heads)
        self.to_k = nn.Linear(dim, qk_dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)

    def forward(self, centres: Tensor) -> tuple[Tensor, Tensor]:
        """Centres (M, C) -> (heads, M, P_qk), (heads, M, P_v)."""
        check_axes(centres, "centres", "(M, C)")
        check_channels(centres, self.to_k.in_features, "centres")
        k = rearrange(self.to_k(centres), "m (h p) -> h m p", h=self.num_heads)
        v = rearrange(self.to_v(centres), "m (h p) -> h m p", h=self.num_heads)
        return k, v


class Attention(nn.Module):
    """Plain self-attention with separate projections, no biases: (B, N, C) -> (B, N, C).

    Heads of queries and keys (9 channels as released) are narrower than those of values (10), which
    the fused kernel does not take. `heads` fills both up to `width` channels, a multiple of 8, at
    once: `attend` would, too, but with the narrow ones still in memory.

    Args:
        dim: C.
        qk_dim: of the queries and keys, all heads together.
        num_heads: how many heads.
    """

    def __init__(self, dim: int, qk_dim: int, num_heads: int):
        super().__init__()
        dim, qk_dim, _, num_heads = _widths(dim, qk_dim, 1, num_heads)
        self.num_heads, self.value_dim = num_heads, dim // num_heads
        self.width = -(-max(dim, qk_dim) // num_heads // 8) * 8
        self.stretch = (self.width * num_heads / qk_dim) ** 0.5     # attend divides by sqrt(width)
        self.to_q = nn.Linear(dim, qk_dim, bias=False)
        self.to_k = nn.Linear(dim, qk_dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)

    def heads(self, x: Tensor) -> Tensor:
        """(..., h P) -> (..., h, width): the channels of each head, and zeros."""
        x = x.unflatten(-1, (self.num_heads, -1))
        return F.pad(x, (0, self.width - x.shape[-1]))

    def queries(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, h, width), such that `attend` divides q k^T by sqrt(P)."""
        return self.heads(self.to_q(x) * self.stretch)

    def merge(self, x: Tensor) -> Tensor:
        """(B, N, h, width) -> (B, N, h P), without the zeros."""
        return x[..., :self.value_dim].flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        check_tokens(x, self.to_q.in_features, "x")
        projected = (self.queries(x), self.heads(self.to_k(x)), self.heads(self.to_v(x)))
        q, k, v = (rearrange(t, "b n h p -> b h n p") for t in projected)
        return self.proj(self.merge(rearrange(attend(q, k, v), "b h n p -> b n h p")))


class IASA(Attention):
    """Intra-group self-attention, with the same projections.

    Sorted subgroups of tokens attend to themselves and to the next one; attention to the centres
    is added. All of it happens in sorted order: one gather before, one after.
    """

    def forward(
        self, tokens: Tensor, groups: Grouping, k_global: Tensor, v_global: Tensor
    ) -> Tensor:
        """-> (B, N, C) in raster order.

        Args:
            tokens: (B, N, C).
            groups: their `Grouping`.
            k_global: keys of the centres (heads, M, P_qk).
            v_global: values of the centres (heads, M, P_v).
        """
        check_tokens(tokens, self.to_q.in_features)
        if not isinstance(groups, Grouping):
            raise ValueError(f"groups is {describe(groups)} but needs to be a Grouping")
        check_axes(k_global, "k_global", "(heads, M, P_qk)")
        check_axes(v_global, "v_global", "(heads, M, P_v)")
        batch, n, _ = tokens.shape
        at, size = sorted_row(n, groups.group_size, tokens.device)
        row = take(tokens, groups.order[:, at])                              # b (g+1)s c
        q = self.queries(row[:, :-size])                                     # b gs h p
        k, v = (self.heads(to(row)).unfold(1, 2 * size, size) for to in (self.to_k, self.to_v))

        own = rearrange(q, "b (g s) h p -> (b g) h s p", s=size)
        k, v = (rearrange(t, "b g h p s -> (b g) h s p") for t in (k, v))    # views for B = 1
        own = rearrange(attend(own, k, v), "(b g) h s p -> b (g s) h p", b=batch)

        k, v = (F.pad(t, (0, self.width - t.shape[-1])) for t in (k_global, v_global))
        k, v = (t.to(q.dtype).expand(batch, -1, -1, -1) for t in (k, v))
        central = attend(rearrange(q, "b n h p -> b h n p"), k, v)
        out = self.merge(own + rearrange(central, "b h n p -> b n h p"))

        raster = groups.order.argsort(dim=-1)                              # where each token went
        return self.proj(take(out, raster))


class DepthwiseConv(nn.Module):
    """GELU(5 x 5 depthwise convolution) on a map; official name `depthwise_conv.0`."""

    def __init__(self, dim: int, kernel_size: int = 5):
        super().__init__()
        dim, kernel_size = check_int(dim, "dim", 1), check_odd(kernel_size, "kernel_size")
        conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.depthwise_conv = nn.Sequential(conv, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.depthwise_conv(x)


class ConvFFN(nn.Module):
    """fc2(a + GELU(depthwise(a))), a = GELU(fc1(x)) on tokens (B, h*w, C) of a grid (h, w)."""

    def __init__(self, dim: int, mlp_dim: int):
        super().__init__()
        dim, mlp_dim = check_int(dim, "dim", 1), check_int(mlp_dim, "mlp_dim", 1)
        self.fc1 = nn.Linear(dim, mlp_dim)
        self.dwconv = DepthwiseConv(mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, dim)

    def forward(self, x: Tensor, grid: Sequence[int]) -> Tensor:
        check_tokens(x, self.fc1.in_features, "x")
        grid = check_grid(grid, x.shape[1])
        x = F.gelu(self.fc1(x))
        near = self.dwconv(rearrange(x, "b (h w) c -> b c h w", h=grid[0]))
        return self.fc2(x + rearrange(near, "b c h w -> b (h w) c"))


class PreNorm(nn.Module):
    """fn(LN(x), ...)."""

    def __init__(self, dim: int, fn: nn.Module):
        super().__init__()
        check_callable(fn, "fn", "a module")
        self.norm, self.fn = nn.LayerNorm(check_int(dim, "dim", 1)), fn

    def forward(self, x: Tensor, *args) -> Tensor:
        check_channels(x, self.norm.normalized_shape[0])
        return self.fn(self.norm(x), *args)


def in_backward() -> bool:
    """Whether this is a second run for gradient checkpointing, in which nothing may be learned."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class TAB(nn.Module):
    """Token-aggregation block on maps (B, C, h, w).

    Buffers: `means` (M, C), the centres of all images, and `initted`, whether they were ever
    learned. Eval: the stored centres, unchanged and as long as they are (a little under 1).
    Training: centres are iterated from the stored ones on this batch, the last time with gradient,
    used in place of the stored ones, and then move those by 1 - ema_decay.

    Args:
        dim: C.
        qk_dim: channels of queries and keys, all heads together.
        mlp_dim: hidden channels of the ConvFFN.
        num_heads: must divide dim and qk_dim.
        num_centres: M.
        group_size: tokens of a subgroup, s.
        n_iter: rounds of `center_iter` a training step.
        ema_decay: how much of the stored centres stays.
    """

    def __init__(
        self, dim: int, qk_dim: int, mlp_dim: int, num_heads: int, num_centres: int,
        group_size: int, n_iter: int = 5, ema_decay: float = 0.999,
    ):
        super().__init__()
        dim, qk_dim, mlp_dim, num_heads = _widths(dim, qk_dim, mlp_dim, num_heads)
        num_centres = check_int(num_centres, "num_centres", 1)
        self.group_size = check_int(group_size, "group_size", 1)
        self.n_iter = check_int(n_iter, "n_iter", 1)
        self.ema_decay = check_number(ema_decay, "ema_decay", 0, 1)
        self.norm = nn.LayerNorm(dim)
        self.mlp = PreNorm(dim, ConvFFN(dim, mlp_dim))
        self.irca_attn = IRCA(dim, qk_dim, num_heads)
        self.iasa_attn = IASA(dim, qk_dim, num_heads)
        self.conv1x1 = nn.Conv2d(dim, dim, 1, bias=False)
        self.register_buffer("means", F.normalize(torch.randn(num_centres, dim), dim=-1))
        self.register_buffer("initted", torch.tensor(False))

    def centres(self, tokens: Tensor) -> Tensor:
        """Centres (M, C) that this call works with, from normalised tokens (B, N, C).

        Gradient checkpointing runs a training step a second time in the backward pass. It starts
        from the same stored centres then, those before the last forward pass moved them.
        """
        if not self.training:
            return self.means
        if not in_backward():
            self._before = self.means.clone(), self.initted.clone()
        means, initted = self._before
        unit = F.normalize(tokens, dim=-1)
        with torch.no_grad():
            start = first_centres(tokens, len(means)).to(means.dtype)
            centres = torch.where(initted, means, start)
            for _ in range(self.n_iter - 1):
                centres = center_iter(unit, F.normalize(centres, dim=-1))
        return center_iter(unit, F.normalize(centres, dim=-1))

    @torch.no_grad()
    def learn(self, centres: Tensor) -> None:
        """Move the stored centres (M, C) by a moving average; the first time, copy.

        A batch whose centres are not finite (an overflow that a gradient scaler will skip) teaches
        nothing: it would be remembered for ever.
        """
        moved = self.ema_decay * self.means + (1 - self.ema_decay) * centres
        # where, not 0 * means: before they are learned they may hold anything
        moved = torch.where(self.initted, moved, centres)
        finite = moved.isfinite().all()
        self.means.copy_(torch.where(finite, moved, self.means))
        self.initted.logical_or_(finite)

    def forward(
        self, x: Tensor, return_groups: bool = False
    ) -> Tensor | tuple[Tensor, Grouping]:
        """x (B, C, h, w) -> (B, C, h, w); return_groups: also the `Grouping` of its tokens."""
        check_images(x, self.means.shape[1], "x")
        return_groups = check_flag(return_groups, "return_groups")
        grid = x.shape[-2:]
        x = rearrange(x, "b c h w -> b (h w) c")
        tokens = self.norm(x)
        centres = self.centres(tokens)
        groups = grouping(tokens, centres, self.group_size)
        y = self.iasa_attn(tokens, groups, *self.irca_attn(centres))
        y = self.conv1x1(rearrange(y, "b (h w) c -> b c h w", h=grid[0]))
        x = x + rearrange(y, "b c h w -> b (h w) c")
        del tokens, y                                # or they lie in memory while the MLP runs
        x = x + self.mlp(x, grid)
        if self.training and not in_backward():
            self.learn(centres)
        x = rearrange(x, "b (h w) c -> b c h w", h=grid[0])
        return (x, groups) if return_groups else x


# ---------------------------------------------------------------------------- local attention
def patch_rows(side: int, patch: int, device: torch.device | None = None) -> Tensor:
    """Where patches lie along one side: positions (n, p), p = min(patch, side).

    One every p - 2, the last one ending at the border.

    Args:
        side: of the picture, in pixels.
        patch: of a patch, in pixels.
        device: where the positions are; None: torch's default.
    """
    side, patch = check_int(side, "side", 1), check_int(patch, "patch", 1)
    if patch < min(side, 3):
        raise ValueError(f"patch={patch}: they overlap by 2, so a side of {side} needs 3")
    patch = min(patch, side)
    step = patch if side == patch else patch - 2
    begin = torch.arange(0, side + step - patch, step, device=device).clamp(max=side - patch)
    return begin[:, None] + torch.arange(patch, device=device)


def patch_divide(x: Tensor, patch_size: int) -> Tensor:
    """Overlapping patches: (B, C, h, w) -> (B, rows, columns, C, p, q).

    p = min(patch_size, h), q = min(patch_size, w).
    """
    check_images(x, None, "x")
    patch_size = check_int(patch_size, "patch_size", 3)                    # they overlap by 2
    rows, columns = (patch_rows(side, patch_size, x.device) for side in x.shape[-2:])
    return rearrange(x[:, :, rows][..., columns], "b c n p m q -> b n m c p q")


def patch_reverse(patches: Tensor, size: Sequence[int]) -> Tensor:
    """The inverse of `patch_divide`: patches (B, rows, columns, C, p, q) -> (B, C, h, w) = size.

    They are summed back onto the map and divided by how many cover each pixel. ValueError when
    they do not come from a map of that size.
    """
    check_float(patches, "patches")
    size = check_ints(size, "size", 1, length=2)
    if patches.dim() != 6:
        needs = "needs (B, rows, columns, C, p, q)"
        raise ValueError(f"patches has shape {tuple(patches.shape)}: {needs}")
    n, m, _, p, q = patches.shape[1:]
    out = rearrange(patches, "b n m c p q -> b c (n p) (m q)")
    counts = []
    for axis, side, patch in ((2, size[0], p), (3, size[1], q)):
        at = patch_rows(side, patch, patches.device).flatten()
        if len(at) != out.shape[axis]:
            got = tuple(patches.shape)
            raise ValueError(f"patches {got} do not come from a map of size={size}")
        shape = (*out.shape[:axis], side, *out.shape[axis + 1:])
        out = out.new_zeros(shape).index_add(axis, at, out)
        counts.append(out.new_zeros(side).index_add(0, at, out.new_ones(len(at))))
    return out / (counts[0][:, None] * counts[1])


class LRSA(nn.Module):
    """Local-region self-attention on maps (B, C, h, w).

    x + attention(LN(x)) in overlapping patches, averaged; then x + ConvFFN(LN(x)) on the map.

    Args:
        dim: C.
        qk_dim: channels of queries and keys, all heads together.
        mlp_dim: hidden channels of the ConvFFN.
        num_heads: must divide dim and qk_dim.
        patch_size: p, at least 3.
    """

    def __init__(self, dim: int, qk_dim: int, mlp_dim: int, num_heads: int, patch_size: int):
        super().__init__()
        dim, qk_dim, mlp_dim, num_heads = _widths(dim, qk_dim, mlp_dim, num_heads)
        self.patch_size = check_int(patch_size, "patch_size", 3)
        attention = PreNorm(dim, Attention(dim, qk_dim, num_heads))
        self.layer = nn.ModuleList([attention, PreNorm(dim, ConvFFN(dim, mlp_dim))])

    def forward(self, x: Tensor) -> Tensor:
        attention, mlp = self.layer
        check_images(x, attention.norm.normalized_shape[0], "x")
        size = x.shape[-2:]
        patches = patch_divide(x, self.patch_size)
        _, n, m, _, p, _ = patches.shape
        tokens = rearrange(patches, "b n m c p q -> (b n m) (p q) c")
        del patches
        tokens = tokens + attention(tokens)
        patches = rearrange(tokens, "(b n m) (p q) c -> b n m c p q", n=n, m=m, p=p)
        x = rearrange(patch_reverse(patches, size), "b c h w -> b (h w) c")
        del patches, tokens
        x = x + mlp(x, size)
        return rearrange(x, "b (h w) c -> b c h w", h=size[0])


# -------------------------------------------------------------------------------- the network
class CATANet(nn.Module):
    """Super-resolution of images (B, 3, h, w) in [0, 1], any size -> (B, 3, s h, s w), unclamped.

    The defaults are the released x2 (477,435 parameters; x3 549,635; x4 535,195; each 19,208
    numbers in buffers). ValueError for sizes that make no net.

    Args:
        upscale: s, one of 2, 3, 4.
        embed_dim: C.
        num_layers: stages.
        qk_dim: channels of queries and keys, all heads together.
        mlp_dim: hidden channels of the ConvFFNs.
        num_heads: must divide embed_dim and qk_dim.
        patch_sizes: of LRSA; one int for all stages, or a sequence that is repeated to fill them.
        num_centres: M, likewise.
        group_sizes: tokens of a subgroup, likewise.
        n_iter: rounds of `center_iter` a training step, likewise.
        ema_decay: of the stored centres.
        in_chans: channels of the images.
        aggregate: False leaves the TABs out (the paper's ablation).
    """

    def __init__(
        self, upscale: int = 2, embed_dim: int = 40, num_layers: int = 8, qk_dim: int = 36,
        mlp_dim: int = 96, num_heads: int = 4,
        patch_sizes: int | Sequence[int] = (16, 20, 24, 28),
        num_centres: int | Sequence[int] = (16, 32, 64, 128),
        group_sizes: int | Sequence[int] = (256, 128, 64, 32),
        n_iter: int | Sequence[int] = 5,
        ema_decay: float = 0.999, in_chans: int = 3, aggregate: bool = True,
    ):
        super().__init__()
        self.upscale = check_int(upscale, "upscale", 2, 4)
        self.in_chans = check_int(in_chans, "in_chans", 1)
        embed_dim = check_int(embed_dim, "embed_dim", 1)
        aggregate = check_flag(aggregate, "aggregate")
        patch_sizes = _per_layer(patch_sizes, num_layers, "patch_sizes")
        tabs = zip(
            _per_layer(num_centres, num_layers, "num_centres"),
            _per_layer(group_sizes, num_layers, "group_sizes"),
            _per_layer(n_iter, num_layers, "n_iter"),
            strict=True,
        )
        widths = (embed_dim, qk_dim, mlp_dim, num_heads)
        self.first_conv = nn.Conv2d(self.in_chans, embed_dim, 3, padding=1)
        self.blocks = nn.ModuleList()
        for patch_size, tab in zip(patch_sizes, tabs, strict=True):
            first = TAB(*widths, *tab, ema_decay) if aggregate else nn.Identity()
            self.blocks.append(nn.ModuleList([first, LRSA(*widths, patch_size)]))
        self.mid_convs = nn.ModuleList(
            nn.Conv2d(embed_dim, embed_dim, 3, padding=1) for _ in patch_sizes
        )
        if self.upscale == 4:
            self.upconv1 = nn.Conv2d(embed_dim, 4 * embed_dim, 3, padding=1)
            self.upconv2 = nn.Conv2d(embed_dim, 4 * embed_dim, 3, padding=1)
        else:
            self.upconv = nn.Conv2d(embed_dim, self.upscale**2 * embed_dim, 3, padding=1)
        self.last_conv = nn.Conv2d(embed_dim, self.in_chans, 3, padding=1)

    def forward(
        self, images: Tensor, return_groups: bool = False
    ) -> Tensor | tuple[Tensor, list[Grouping]]:
        """images (B, 3, h, w) -> (B, 3, s h, s w); ValueError for other shapes.

        return_groups: also a list of each stage's `Grouping`.
        """
        check_images(images, self.in_chans)
        check_dtype(images, self.first_conv.weight, "images")
        return_groups = check_flag(return_groups, "return_groups")
        first = x = self.first_conv(images)
        groups = []
        for (aggregate, local), conv in zip(self.blocks, self.mid_convs, strict=True):
            y = x
            if isinstance(aggregate, TAB):
                y, grouped = aggregate(y, return_groups=True)
                groups += [grouped] * return_groups                  # two long integers a token
            x = x + conv(local(y))
        x = self.enlarge(x + first)
        base = F.interpolate(
            images, scale_factor=self.upscale, mode="bilinear", align_corners=False
        )
        out = self.last_conv(x) + base
        return (out, groups) if return_groups else out

    def enlarge(self, x: Tensor) -> Tensor:
        """Features (B, C, h, w) -> (B, C, s h, s w) by pixel shuffles; x4 in two steps of 2."""
        if self.upscale == 4:
            x = F.leaky_relu(F.pixel_shuffle(self.upconv1(x), 2), 0.1)
            return F.leaky_relu(F.pixel_shuffle(self.upconv2(x), 2), 0.1)
        return F.leaky_relu(F.pixel_shuffle(self.upconv(x), self.upscale), 0.1)


def _widths(dim: int, qk_dim: int, mlp_dim: int, num_heads: int) -> tuple[int, int, int, int]:
    """The four as ints. ValueError unless the heads divide the first two."""
    num_heads, mlp_dim = check_int(num_heads, "num_heads", 1), check_int(mlp_dim, "mlp_dim", 1)
    dim, qk_dim = check_int(dim, "dim", 1), check_int(qk_dim, "qk_dim", 1)
    check_heads(dim, num_heads)
    check_heads(qk_dim, num_heads)
    return dim, qk_dim, mlp_dim, num_heads


def _per_layer(value: int | Sequence[int], num_layers: int, name: str) -> list[int]:
    """An int for all layers, or a sequence of ints that is repeated to fill them."""
    num_layers = check_int(num_layers, "num_layers", 1)
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    if not values or num_layers % len(values):
        raise ValueError(
            f"{name}={value!r}, num_layers={num_layers}: needs one integer, or a sequence of "
            f"integers whose length divides num_layers"
        )
    return [check_int(each, name) for each in values] * (num_layers // len(values))
