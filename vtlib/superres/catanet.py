"""CATANet - Efficient Content-Aware Token Aggregation for Lightweight Image Super-Resolution (Liu, Liu, Tang, Wu, CVPR 2025, arXiv 2503.06896).

The idea: window attention sees neighbours only, although similar texture returns far away, and clustering each image anew is slow. So keep a few
token centres shared by all images, moved in training only; grouping then is one arg-max and one stable sort. The sorted row of tokens is cut into
equal subgroups that attend to themselves and to the next one, every token also attends to the centres, and local windows do the rest.

    g_i = argmax_j cos(n_i, c_j)                      assign           n = LN(x): tokens, c: centres
    c_j <- normalise(sum of unit tokens with g_i = j) center_iter      training: n_iter times from the stored centres, over the whole batch
    means <- 0.999 means + 0.001 c                    TAB.learn        training; the first call ever copies
    order = stable argsort(g)                         grouping         CATA
    softmax(q k^T / sqrt(P)) v, own and next subgroup IASA             subgroup i: sorted queries [i s, (i+1) s), keys [i s, (i+2) s)
      + softmax(q kc^T / sqrt(P)) vc                  IRCA             the same queries, keys and values of the centres
    x + conv1x1(proj(.)), then x + ConvFFN(LN(x))     TAB              token aggregation block
    attention in overlapping patches, averaged        LRSA             patches of p x p every p - 2 pixels, the last one shifted to the border

State-dict names are the official ones (EquationWalker/CATANet), so official checkpoints load as they are (x2.pth, key `params`). Different from
the official code: the sort is stable (there, the order inside a group is left open and results depend on it); overlaps of patches are divided by
how many patches cover a pixel (there, by 4 instead of 3 where the shifted last patch meets two others, sides p + m (p - 2) + 1); where the
mirrored padding is longer than the sequence it bounces to and fro, and patches larger than the image shrink to it (there, both fail); in eval mode
the stored centres are used even when nothing was learned yet (random unit vectors then); Linear layers start as torch starts them (there: normal, 0.02). The paper's full text was not at hand: mechanism from its code.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..nn import attend, check_heads, check_images

UPSCALES = (2, 3, 4)


# ------------------------------------------------------------------------------------------------------------ centres and groups
def assign(tokens, centres):
    """g_i = argmax_j cos(tokens_i, centres_j), the first one when equal: (B, N, C), (M, C) -> (B, N) long."""
    return nearest(F.normalize(tokens, dim=-1), F.normalize(centres, dim=-1))


def nearest(unit, centres):
    """argmax_j of the plain products with centres (M, C): what `assign` is for tokens (B, N, C) and centres of unit length. -> (B, N) long."""
    return (unit @ centres.mT).argmax(-1)


def first_centres(tokens, num_centres):
    """Where training starts: means of M equal stretches of the raster sequence, over the batch. (B, N, C) -> (M, C).

    The end is filled up with the last tokens reversed; when M divides N, as in the release, with M of them all the same.
    """
    n = tokens.shape[1]
    tokens = tokens[:, mirrored(n + num_centres - n % num_centres, n, tokens.device)]
    return rearrange(tokens, "b (m l) c -> m (b l) c", m=num_centres).mean(1)


def center_iter(unit, centres):
    """One round of spherical k-means over the whole batch: unit tokens (B, N, C), centres (M, C) of unit length -> (M, C).

    c_j = normalise(sum of the tokens nearest to centre j); a centre without tokens stays as it is. Differentiable in the tokens.
    """
    belong = nearest(unit, centres).flatten()
    sums = torch.zeros_like(centres).index_add(0, belong, unit.flatten(0, 1).to(centres.dtype))
    counts = torch.zeros_like(centres[:, 0]).index_add(0, belong, torch.ones_like(belong, dtype=centres.dtype))
    return torch.where(counts[:, None] == 0, centres, F.normalize(sums, dim=-1))


def mirrored(length, n, device=None):
    """Positions 0 ... length - 1 of a sequence of n tokens that is continued by its mirror image: 0 1 2 | 2 1 0 | 0 1 ... (length,) long."""
    at = torch.arange(length, device=device) % (2 * n)
    return torch.minimum(at, 2 * n - 1 - at)


def subgroups(n, group_size, device=None):
    """How a sorted sequence of n tokens is cut: positions of queries (G, s) and of keys (G, 2 s), with s = min(n, group_size), G = ceil(n / s).

    Subgroup i asks with tokens [i s, (i + 1) s) and looks at [i s, (i + 2) s): its own and the next. Behind the end the sequence is mirrored.
    """
    size = min(n, group_size)
    count = -(-n // size)
    at = mirrored((count + 1) * size, n, device)
    return at[: count * size].reshape(count, size), at.unfold(0, 2 * size, size)


@dataclass
class Grouping:
    """Who is with whom: `belong` (B, N), each token's centre; `order` (B, N), raster positions in sorted order; centres (M, C); group_size."""

    belong: torch.Tensor
    order: torch.Tensor
    centres: torch.Tensor
    group_size: int

    def members(self):
        """Raster positions of the queries (B, G, s) and of the keys (B, G, 2 s) of each subgroup."""
        return tuple(self.order[:, at] for at in subgroups(self.order.shape[1], self.group_size, self.order.device))


@torch.no_grad()
def grouping(tokens, centres, group_size):
    """tokens (B, N, C), centres (M, C) -> `Grouping`: one arg-max, one stable sort. Tokens of one group stay in raster order."""
    belong = assign(tokens, centres)
    return Grouping(belong, belong.argsort(dim=-1, stable=True), centres, group_size)


# ------------------------------------------------------------------------------------------------------------ token aggregation
class IRCA(nn.Module):
    """Inter-group cross-attention, its keys and values: centres (M, C) -> (heads, M, P_qk), (heads, M, P_v)."""

    def __init__(self, dim, qk_dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.to_k = nn.Linear(dim, qk_dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)

    def forward(self, centres):
        return tuple(rearrange(t, "m (h p) -> h m p", h=self.num_heads) for t in (self.to_k(centres), self.to_v(centres)))


class Attention(nn.Module):
    """Plain self-attention with separate projections, no biases: (B, N, C) -> (B, N, C)."""

    def __init__(self, dim, qk_dim, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(dim, qk_dim, bias=False)
        self.to_k = nn.Linear(dim, qk_dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x):
        q, k, v = (rearrange(to(x), "b n (h p) -> b h n p", h=self.num_heads) for to in (self.to_q, self.to_k, self.to_v))
        return self.proj(rearrange(attend(q, k, v), "b h n p -> b n (h p)"))


class IASA(Attention):
    """Intra-group self-attention, with the same projections: sorted subgroups of tokens attend to themselves and to the next one; attention to the
    centres is added."""

    def forward(self, tokens, groups, k_global, v_global):
        """tokens (B, N, C), their `Grouping`, keys and values of the centres (heads, M, P) -> (B, N, C) in raster order."""
        queries, keys = (rearrange(at, "b g s -> b (g s)") for at in groups.members())
        batch, n, size = *groups.order.shape, min(groups.order.shape[1], groups.group_size)
        q, k, v = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)

        def take(t, at, group):
            """Tokens at raster positions, cut into subgroups."""
            t = t.gather(1, at[..., None].expand(-1, -1, t.shape[-1]))
            return rearrange(t, "b (g s) (h p) -> (b g) h s p", s=group, h=self.num_heads)
        own = attend(take(q, queries, size), take(k, keys, 2 * size), take(v, keys, 2 * size))
        own = rearrange(own, "(b g) h s p -> b (g s) (h p)", b=batch)[:, :n]     # sorted, without the padding
        own = torch.zeros_like(own).scatter(1, groups.order[..., None].expand_as(own), own)
        k, v = (t.to(q.dtype).expand(batch, -1, -1, -1) for t in (k_global, v_global))
        far = attend(rearrange(q, "b n (h p) -> b h n p", h=self.num_heads), k, v)
        return self.proj(own + rearrange(far, "b h n p -> b n (h p)"))


class DepthwiseConv(nn.Module):
    """GELU(5 x 5 depthwise convolution) on a map; official name `depthwise_conv.0`."""

    def __init__(self, dim, kernel_size=5):
        super().__init__()
        self.depthwise_conv = nn.Sequential(nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim), nn.GELU())

    def forward(self, x):
        return self.depthwise_conv(x)


class ConvFFN(nn.Module):
    """fc2(a + GELU(depthwise(a))), a = GELU(fc1(x)): tokens (B, h*w, C) of a grid (h, w) -> the same shape."""

    def __init__(self, dim, mlp_dim):
        super().__init__()
        self.fc1 = nn.Linear(dim, mlp_dim)
        self.dwconv = DepthwiseConv(mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, dim)

    def forward(self, x, grid):
        x = F.gelu(self.fc1(x))
        near = self.dwconv(rearrange(x, "b (h w) c -> b c h w", h=grid[0]))
        return self.fc2(x + rearrange(near, "b c h w -> b (h w) c"))


class PreNorm(nn.Module):
    """fn(LN(x), ...)."""

    def __init__(self, dim, fn):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(dim), fn

    def forward(self, x, *args):
        return self.fn(self.norm(x), *args)


class TAB(nn.Module):
    """Token-aggregation block on maps (B, C, h, w). Buffers: `means` (M, C), the centres of all images, and `initted`, whether they were ever learned.

    Eval: the stored centres, unchanged and as long as they are (a little under 1). Training: centres are iterated from the stored ones on this
    batch, the last time with gradient, used in place of the stored ones, and then move those by 1 - ema_decay.
    """

    def __init__(self, dim, qk_dim, mlp_dim, num_heads, num_centres, group_size, n_iter=5, ema_decay=0.999):
        super().__init__()
        check_heads(dim, num_heads)
        check_heads(qk_dim, num_heads)
        if min(num_centres, group_size, n_iter) < 1:
            raise ValueError(f"num_centres={num_centres}, group_size={group_size}, n_iter={n_iter}: each needs to be at least 1")
        if not 0 <= ema_decay <= 1:
            raise ValueError(f"ema_decay={ema_decay} must lie in [0, 1]")
        self.group_size, self.n_iter, self.ema_decay = group_size, n_iter, ema_decay
        self.norm = nn.LayerNorm(dim)
        self.mlp = PreNorm(dim, ConvFFN(dim, mlp_dim))
        self.irca_attn = IRCA(dim, qk_dim, num_heads)
        self.iasa_attn = IASA(dim, qk_dim, num_heads)
        self.conv1x1 = nn.Conv2d(dim, dim, 1, bias=False)
        self.register_buffer("means", F.normalize(torch.randn(num_centres, dim), dim=-1))
        self.register_buffer("initted", torch.tensor(False))

    def centres(self, tokens):
        """Centres (M, C) that this call works with, from normalised tokens (B, N, C)."""
        if not self.training:
            return self.means
        unit = F.normalize(tokens, dim=-1)
        with torch.no_grad():
            centres = torch.where(self.initted, self.means, first_centres(tokens, len(self.means)).to(self.means.dtype))
            for _ in range(self.n_iter - 1):
                centres = center_iter(unit, F.normalize(centres, dim=-1))
        return center_iter(unit, F.normalize(centres, dim=-1))

    @torch.no_grad()
    def learn(self, centres):
        """Move the stored centres (M, C) by an exponential moving average; the first time, copy."""
        moved = self.ema_decay * self.means + (1 - self.ema_decay) * centres
        self.means.copy_(torch.where(self.initted, moved, centres))                # not 0 * means: before, they may hold anything
        self.initted.fill_(True)

    def forward(self, x, return_groups=False):
        """x (B, C, h, w) -> (B, C, h, w); with return_groups=True also the `Grouping` of its tokens."""
        grid = x.shape[-2:]
        x = rearrange(x, "b c h w -> b (h w) c")
        tokens = self.norm(x)
        centres = self.centres(tokens)
        groups = grouping(tokens, centres, self.group_size)
        y = self.iasa_attn(tokens, groups, *self.irca_attn(centres))
        y = self.conv1x1(rearrange(y, "b (h w) c -> b c h w", h=grid[0]))
        x = x + rearrange(y, "b c h w -> b (h w) c")
        x = x + self.mlp(x, grid)
        if self.training:
            self.learn(centres)
        x = rearrange(x, "b (h w) c -> b c h w", h=grid[0])
        return (x, groups) if return_groups else x


# ------------------------------------------------------------------------------------------------------------ local attention
def patch_rows(side, patch, device=None):
    """Where patches lie along one side: positions (n, p), p = min(patch, side), one every p - 2, the last one ending at the border."""
    patch = min(patch, side)
    step = patch if side == patch else patch - 2
    begin = torch.arange(0, side + step - patch, step, device=device).clamp(max=side - patch)
    return begin[:, None] + torch.arange(patch, device=device)


def patch_divide(x, patch_size):
    """Overlapping patches: (B, C, h, w) -> (B, rows, columns, C, p, q), p = min(patch_size, h), q = min(patch_size, w)."""
    rows, columns = (patch_rows(side, patch_size, x.device) for side in x.shape[-2:])
    return rearrange(x[:, :, rows][..., columns], "b c n p m q -> b n m c p q")


def patch_reverse(patches, size):
    """The inverse of `patch_divide`: patches summed back onto a map of `size` (h, w), then divided by how many cover each pixel."""
    n, m, c, p, q = patches.shape[1:]
    flat, counts = rearrange(patches, "b n m c p q -> b c (n p) (m q)"), []
    for axis, side, patch in ((2, size[0], p), (3, size[1], q)):
        at = patch_rows(side, patch, patches.device).flatten()
        if len(at) != flat.shape[axis]:
            raise ValueError(f"patches {tuple(patches.shape)} do not come from a map of size={tuple(size)}")
        shape = list(flat.shape)
        shape[axis] = side
        flat = flat.new_zeros(shape).index_add(axis, at, flat)
        counts.append(flat.new_zeros(side).index_add(0, at, flat.new_ones(len(at))))
    return flat / (counts[0][:, None] * counts[1])


class LRSA(nn.Module):
    """Local-region self-attention on maps (B, C, h, w): x + attention(LN(x)) in overlapping patches, averaged; then x + ConvFFN(LN(x)) on the map."""

    def __init__(self, dim, qk_dim, mlp_dim, num_heads, patch_size):
        super().__init__()
        check_heads(dim, num_heads)
        check_heads(qk_dim, num_heads)
        if patch_size < 3:
            raise ValueError(f"patch_size={patch_size}: patches overlap by 2 pixels, so at least 3 are needed")
        self.patch_size = patch_size
        self.layer = nn.ModuleList([PreNorm(dim, Attention(dim, qk_dim, num_heads)), PreNorm(dim, ConvFFN(dim, mlp_dim))])

    def forward(self, x):
        attention, mlp = self.layer
        batch, size = len(x), x.shape[-2:]
        patches = patch_divide(x, self.patch_size)
        _, n, m, _, p, _ = patches.shape
        tokens = rearrange(patches, "b n m c p q -> (b n m) (p q) c")
        tokens = tokens + attention(tokens)
        x = patch_reverse(rearrange(tokens, "(b n m) (p q) c -> b n m c p q", b=batch, n=n, m=m, p=p), size)
        x = rearrange(x, "b c h w -> b (h w) c")
        x = x + mlp(x, size)
        return rearrange(x, "b (h w) c -> b c h w", h=size[0])


# ------------------------------------------------------------------------------------------------------------ the network
class CATANet(nn.Module):
    """Super-resolution of images (B, 3, h, w) in [0, 1], any size -> (B, 3, s h, s w), not clamped.

    Args: upscale s (2, 3, 4); embed_dim C; num_layers; qk_dim (all heads together); mlp_dim; num_heads; per layer, cycled, or one int for all:
    patch_sizes of LRSA, num_centres M, group_sizes, n_iter (rounds of `center_iter` a training step); ema_decay; aggregate=False leaves the TABs out
    (the paper's ablation). The defaults are the released x2 (477,435 parameters; x3 549,635; x4 535,195; each 19,208 numbers in buffers).
    """

    def __init__(self, upscale=2, embed_dim=40, num_layers=8, qk_dim=36, mlp_dim=96, num_heads=4, patch_sizes=(16, 20, 24, 28),
                 num_centres=(16, 32, 64, 128), group_sizes=(256, 128, 64, 32), n_iter=5, ema_decay=0.999, in_chans=3, aggregate=True):
        super().__init__()
        if upscale not in UPSCALES:
            raise ValueError(f"upscale={upscale}: needs one of {', '.join(map(str, UPSCALES))}")
        self.upscale, self.in_chans = upscale, in_chans
        patch_sizes, num_centres, group_sizes, n_iter = (
            _per_layer(v, num_layers, name) for name, v in (("patch_sizes", patch_sizes), ("num_centres", num_centres),
                                                            ("group_sizes", group_sizes), ("n_iter", n_iter)))
        self.first_conv = nn.Conv2d(in_chans, embed_dim, 3, padding=1)
        self.blocks = nn.ModuleList(nn.ModuleList([
            TAB(embed_dim, qk_dim, mlp_dim, num_heads, m, s, n, ema_decay) if aggregate else nn.Identity(),
            LRSA(embed_dim, qk_dim, mlp_dim, num_heads, p)]) for p, m, s, n in zip(patch_sizes, num_centres, group_sizes, n_iter))
        self.mid_convs = nn.ModuleList(nn.Conv2d(embed_dim, embed_dim, 3, padding=1) for _ in range(num_layers))
        if upscale == 4:
            self.upconv1, self.upconv2 = (nn.Conv2d(embed_dim, 4 * embed_dim, 3, padding=1) for _ in range(2))
        else:
            self.upconv = nn.Conv2d(embed_dim, upscale**2 * embed_dim, 3, padding=1)
        self.last_conv = nn.Conv2d(embed_dim, in_chans, 3, padding=1)

    def forward(self, images, return_groups=False):
        """images (B, 3, h, w) -> (B, 3, s h, s w); with return_groups=True also a list of each layer's `Grouping`. ValueError for other shapes."""
        check_images(images, self.in_chans)
        first = x = self.first_conv(images)
        groups = []
        for (aggregate, local), conv in zip(self.blocks, self.mid_convs):
            y = x
            if isinstance(aggregate, TAB):
                y, grouped = aggregate(y, return_groups=True)
                groups.append(grouped)
            x = x + conv(local(y))
        x = x + first
        for conv in (self.upconv1, self.upconv2) if self.upscale == 4 else (self.upconv,):
            x = F.leaky_relu(F.pixel_shuffle(conv(x), 2 if self.upscale == 4 else self.upscale), 0.1)
        base = F.interpolate(images, scale_factor=self.upscale, mode="bilinear", align_corners=False)
        out = self.last_conv(x) + base
        return (out, groups) if return_groups else out


def _per_layer(value, num_layers, name):
    """An int for all layers, or a sequence of ints that is repeated to fill them."""
    values = [value] if isinstance(value, int) else list(value) if isinstance(value, (tuple, list)) else []
    if num_layers < 1 or not values or num_layers % len(values) or not all(isinstance(v, int) for v in values):
        raise ValueError(f"{name}={value!r}, num_layers={num_layers}: needs one int, or a sequence of ints whose length divides num_layers >= 1")
    return values * (num_layers // len(values))
