"""CrossFormer - A Versatile Vision Transformer Hinging on Cross-scale Attention (Wang et al., ICLR
2022, arXiv 2108.00154) and CrossFormer++ (TPAMI 2023, arXiv 2303.06908).

The idea: a pyramid transformer feeds each layer tokens of one scale, so a small part can never be
related to a large object. Here every token mixes several patch sizes (cross-scale embedding),
attention alternates between groups of adjacent tokens (short distance) and groups of tokens spaced
an interval apart (long distance), and a small MLP turns relative offsets into the position bias,
for any group size.

    cross-scale embedding layer, CEL   CrossScaleEmbed, CrossScaleMerge       (paper sec. 3.1)
    short / long distance attention    group_sda, group_lda, GroupAttention   (sec. 3.2.1)
    dynamic position bias, DPB         DynamicPositionBias                    (sec. 3.2.2)
    amplitude cooling layer (++)       CrossFormerBlock.ex_conv, .ex_ln       (++ sec. 4.2)

State-dict names are the official ones (cheerss/CrossFormer), so official checkpoints load after
`vtlib.hub.convert_crossformer`. Followed from the code where the paper differs: the hidden width of
DPB is D/16 (paper: D/4). Different from the official code: masks and bias tables are made from the
actual input in forward, so any image that is a multiple of 4 * 2^(stages - 1) pixels works, square
or not; of the options that are off in every released configuration none is here.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..nn import (
    DropPath,
    Mlp,
    attend,
    check_dtype,
    check_heads,
    check_images,
    check_int,
    check_ints,
    check_multiple,
    check_number,
    check_tokens,
    pad_to_multiple,
    relative_index,
    relative_offsets,
    window_merge,
    window_partition,
)
from ..nn.checks import check_callable, check_channels, check_flag, check_map

PAPER = "crossformer"

NEG_INF = -1e6


def split_channels(embed_dim, num_kernels):
    """Channels of each kernel of a CEL: D/2, D/4, ..., the last one equal to the one before.

    They sum to D.
    """
    embed_dim = check_int(embed_dim, "embed_dim", 1)
    num_kernels = check_int(num_kernels, "num_kernels", 1)
    if embed_dim % 2 ** (num_kernels - 1):
        raise ValueError(
            f"embed_dim={embed_dim} cannot be halved {num_kernels - 1} times for "
            f"{num_kernels} kernels"
        )
    dims = [embed_dim // 2 ** (i + 1) for i in range(num_kernels - 1)]
    return [*dims, embed_dim - sum(dims)]


class CrossScaleEmbed(nn.Module):
    """First CEL: several kernels, one stride.

    Images (B, C, H, W) -> tokens (B, (H/s)(W/s), D), s = the first kernel. A kernel k is padded by
    (k - s) / 2, so all kernels are centred on the same s x s patch and give the same grid.

    Args:
        patch_size: the kernels, the smallest first.
        in_chans: C.
        embed_dim: D.
    """

    def __init__(self, patch_size=(4, 8, 16, 32), in_chans=3, embed_dim=96):
        super().__init__()
        patch_size = check_ints(patch_size, "patch_size", 1)
        embed_dim = check_int(embed_dim, "embed_dim", 1)
        self.in_chans = check_int(in_chans, "in_chans", 1)
        if not patch_size:
            raise ValueError("patch_size=(): needs one kernel at least")
        self.stride = patch_size[0]
        if any(k < self.stride or (k - self.stride) % 2 for k in patch_size):
            raise ValueError(
                f"patch_size={patch_size}: each kernel must exceed the first by an even number, "
                f"else the grids differ"
            )
        dims = split_channels(embed_dim, len(patch_size))
        self.projs = nn.ModuleList(
            nn.Conv2d(
                self.in_chans, dim, k, stride=self.stride, padding=(k - self.stride) // 2
            )
            for k, dim in zip(patch_size, dims, strict=True)
        )
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, images):
        check_images(images, self.in_chans)
        check_dtype(images, self.norm.weight, "images")
        check_multiple(images.shape[-2:], self.stride)
        x = torch.cat([proj(images) for proj in self.projs], dim=1)              # b d h w
        return self.norm(rearrange(x, "b d h w -> b (h w) d"))


def _check_grid(x, grid, dim):
    """Raise unless x (B, H*W, dim) are the tokens of a grid (H, W)."""
    check_tokens(x, dim, "x")
    height, width = check_ints(grid, "grid", 1, length=2)
    if x.shape[1] != height * width:
        raise ValueError(f"x has {x.shape[1]} tokens but grid={(height, width)}")


class CrossScaleMerge(nn.Module):
    """CEL between stages: LayerNorm, then kernels 2 and 4 with stride 2, half of the channels each.

    (B, H*W, C) -> (B, H/2 * W/2, 2C). Raises ValueError for odd H or W.
    """

    def __init__(self, dim, merge_size=(2, 4)):
        super().__init__()
        dim, merge_size = check_int(dim, "dim", 1), check_ints(merge_size, "merge_size", 2)
        dims = split_channels(2 * dim, len(merge_size))
        self.norm = nn.LayerNorm(dim)
        self.reductions = nn.ModuleList(
            nn.Conv2d(dim, d, k, stride=2, padding=(k - 2) // 2)
            for k, d in zip(merge_size, dims, strict=True)
        )

    def forward(self, x, grid):
        _check_grid(x, grid, self.norm.normalized_shape[0])
        check_multiple(grid, 2, "token map before merging")
        x = rearrange(self.norm(x), "b (h w) c -> b c h w", h=grid[0])
        x = torch.cat([conv(x) for conv in self.reductions], dim=1)
        return rearrange(x, "b c h w -> b (h w) c")


def group_sda(x, group_size):
    """Short distance: (B, H, W, C) -> (B, groups, G*G, C), groups of G x G adjacent tokens.

    H, W must be multiples of G.
    """
    return window_partition(x, group_size)


def group_lda(x, group_size, interval):
    """Long distance: (B, H, W, C) -> (B, groups, G*G, C), groups of tokens spaced I apart.

    The map is cut into regions of (G*I) x (G*I); a group is one residue (row mod I, column mod I)
    inside one region.

    Args:
        x: the map; H and W must be multiples of G*I.
        group_size: G.
        interval: I.
    """
    check_map(x)
    group_size = check_int(group_size, "group_size", 1)
    interval = check_int(interval, "interval", 1)
    check_multiple(x.shape[1:3], group_size * interval, "token map")
    sizes = dict(g=group_size, f=group_size, i=interval, j=interval)
    return rearrange(x, "b (r g i) (s f j) c -> b (r s i j) (g f) c", **sizes)


def ungroup(groups, group_size, height, width, interval=None):
    """The exact inverse of `group_sda` and `group_lda`.

    Args:
        groups: (B, groups, G*G, C).
        group_size: G.
        height: of the map.
        width: of the map.
        interval: that of `group_lda`; None: the groups are those of `group_sda`.

    Returns (B, height, width, C).
    """
    if interval is None:
        return window_merge(groups, group_size, height, width)
    group_size = check_int(group_size, "group_size", 1)
    region = group_size * check_int(interval, "interval", 1)
    check_map(groups, "groups")
    check_multiple((height, width), region, "token map")
    need = height * width // group_size**2, group_size**2
    if groups.shape[1:3] != need:
        raise ValueError(f"groups {tuple(groups.shape)}: need (B, {need[0]}, {need[1]}, C)")
    sizes = dict(r=height // region, s=width // region)
    sizes |= dict(g=group_size, f=group_size, i=interval, j=interval)
    return rearrange(groups, "b (r s i j) (g f) c -> b (r g i) (s f j) c", **sizes)


class DynamicPositionBias(nn.Module):
    """DPB: an MLP from an integer offset (dy, dx) to one bias per head.

    A table for any group size comes out of one set of weights: Linear(2, p) -> 3 x [LN, ReLU,
    Linear], last to num_heads. group_size G -> bias (heads, G*G, G*G), rows = queries.
    """

    def __init__(self, dim, num_heads):
        super().__init__()
        dim, num_heads = check_int(dim, "dim", 1), check_int(num_heads, "num_heads", 1)

        def step(out):
            return nn.Sequential(nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, out))

        self.pos_proj = nn.Linear(2, dim)
        self.pos1, self.pos2, self.pos3 = step(dim), step(dim), step(num_heads)

    def table(self, group_size):
        """((2G-1)^2, heads): the bias of every offset, dy outer, from 1 - G to G - 1."""
        like = self.pos1[0].weight                  # of a norm: a Linear's may be stored otherwise
        offsets = relative_offsets(group_size, like.device).to(like.dtype)
        return self.pos3(self.pos2(self.pos1(self.pos_proj(offsets))))

    def forward(self, group_size):
        table = self.table(group_size)
        return rearrange(table[relative_index(group_size, table.device)], "q k h -> h q k")


class GroupAttention(nn.Module):
    """Self-attention inside each group, with DPB added to the logits. Names `qkv`, `proj`, `pos`.

    ValueError when dim has fewer than 16 channels: the position bias works in dim/16.
    """

    def __init__(self, dim, num_heads):
        super().__init__()
        dim = check_heads(dim, num_heads) * int(num_heads)
        self.num_heads = int(num_heads)
        if dim < 16:
            raise ValueError(f"dim={dim}: the position bias works in dim/16 channels, needs 16")
        self.pos = DynamicPositionBias(dim // 4 // 4, self.num_heads)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x, group_size, mask=None):
        """x: (B, groups, G*G, C) -> the same.

        Args:
            x: tokens by groups.
            group_size: G.
            mask: (groups, 1, 1, G*G), added to the logits of keys; None: nothing is.
        """
        check_map(x)
        check_channels(x, self.qkv.in_features)
        batch, groups = x.shape[:2]
        qkv = self.qkv(x)
        split = "b g n (three h p) -> three (b g) h n p"
        q, k, v = rearrange(qkv, split, three=3, h=self.num_heads)
        bias = self.pos(group_size)[None]                                        # 1 h n n
        if mask is not None:
            bias = bias + mask                                                   # g h n n
            bias = bias[None].expand(batch, -1, -1, -1, -1).flatten(0, 1)        # (b g) h n n
        out = attend(q, k, v, bias)
        return self.proj(rearrange(out, "(b g) h n p -> b g n (h p)", g=groups))


def padding_mask(height, width, pad, group, dtype=torch.float32, device=None):
    """What keeps padding out of the softmax: (groups, 1, 1, G*G), or None without padding.

    0 for real keys and -1e6 for padded ones.

    Args:
        height: of the map without padding.
        width: of the map without padding.
        pad: (rows below, columns to the right).
        group: the function that groups a (1, H, W, 1) map.
        dtype: of the mask.
        device: of the mask.
    """
    check_callable(group, "group", "a function of a map (1, H, W, 1)")
    height, width = check_int(height, "height", 1), check_int(width, "width", 1)
    pad = check_ints(pad, "pad", 0, length=2)
    if pad == (0, 0):
        return None
    real = torch.ones(1, height, width, 1, dtype=dtype, device=device)
    real = group(F.pad(real, (0, 0, 0, pad[1], 0, pad[0])))                      # 1 groups g*g 1
    lowest = max(NEG_INF, torch.finfo(dtype).min)
    return ((1 - real) * lowest)[0, :, None, None, :, 0]


class CrossFormerBlock(nn.Module):
    """Pre-norm block on a token map, attention in groups.

        x = x + attn(LN(x)); x = x + MLP(LN(x)); with cooling then x = LN(DWConv3x3(x))

    A map whose shorter side is <= group_size becomes SDA with that side as group size (one group
    per square).

    Args:
        dim: C.
        num_heads: must divide C.
        group_size: G.
        interval: I, of kind "lda".
        kind: "sda" or "lda".
        mlp_ratio: hidden width of the MLP / C.
        drop_path: rate of stochastic depth.
        cooling: whether CrossFormer++'s amplitude cooling layer ends the block.
    """

    def __init__(
        self,
        dim,
        num_heads,
        group_size=7,
        interval=1,
        kind="sda",
        mlp_ratio=4.0,
        drop_path=0.0,
        cooling=False,
    ):
        super().__init__()
        if kind not in ("sda", "lda"):
            raise ValueError(f"kind={kind!r} must be 'sda' or 'lda'")
        dim = check_int(dim, "dim", 1)
        self.group_size = check_int(group_size, "group_size", 1)
        self.interval = check_int(interval, "interval", 1)
        self.kind = kind
        self.norm1 = nn.LayerNorm(dim)
        self.attn = GroupAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * check_number(mlp_ratio, "mlp_ratio", 0, 1e4)))
        self.drop_path = DropPath(drop_path)
        if check_flag(cooling, "cooling"):
            self.ex_conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
            self.ex_ln = nn.LayerNorm(dim)

    def plan(self, height, width):
        """(group_size, interval or None) really used on a map of this size."""
        if min(height, width) <= self.group_size:
            return min(height, width), None
        return self.group_size, self.interval if self.kind == "lda" else None

    def attend_in_groups(self, x, grid):
        """x: (B, H*W, C) normalised tokens -> attention output of the same shape.

        Pad, group, attend, ungroup, crop.
        """
        size, interval = self.plan(*grid)

        def group(t):
            return group_sda(t, size) if interval is None else group_lda(t, size, interval)

        x = rearrange(x, "b (h w) c -> b h w c", h=grid[0])
        x, pad = pad_to_multiple(x, size * (interval or 1))                      # after the norm
        mask = padding_mask(*grid, pad, group, x.dtype, x.device)
        y = self.attn(group(x), size, mask)
        y = ungroup(y, size, x.shape[1], x.shape[2], interval)[:, :grid[0], :grid[1]]
        return rearrange(y, "b h w c -> b (h w) c")

    def forward(self, x, grid):
        """x: (B, H*W, C), grid: (H, W) -> (B, H*W, C)."""
        _check_grid(x, grid, self.norm1.normalized_shape[0])
        x = x + self.drop_path(self.attend_in_groups(self.norm1(x), grid))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        if hasattr(self, "ex_conv"):                  # no residual: this cools the amplitude
            x = self.ex_conv(rearrange(x, "b (h w) c -> b c h w", h=grid[0]))
            x = self.ex_ln(rearrange(x, "b c h w -> b (h w) c"))
        return x


class Stage(nn.Module):
    """`depth` blocks, even ones SDA, odd ones LDA; then a CEL to the next stage, if there is one.

    Args:
        dim: C.
        depth: number of blocks.
        num_heads: must divide C.
        group_sizes: one for each block.
        interval: of the LDA blocks.
        mlp_ratio: hidden width of the MLPs / C.
        drop_path: rates of stochastic depth, one for each block.
        cooling: every third block, the last one apart, ends with a cooling layer.
        merge_size: kernels of the CEL; None: there is none.
    """

    def __init__(
        self,
        dim,
        depth,
        num_heads,
        group_sizes,
        interval,
        mlp_ratio,
        drop_path,
        cooling,
        merge_size=None,
    ):
        super().__init__()
        self.blocks = nn.ModuleList()
        for j in range(depth):
            kind = "lda" if j % 2 else "sda"
            cools = cooling and (j + 1) % 3 == 0 and j < depth - 1
            self.blocks.append(
                CrossFormerBlock(
                    dim, num_heads, group_sizes[j], interval, kind, mlp_ratio, drop_path[j], cools
                )
            )
        self.downsample = CrossScaleMerge(dim, merge_size) if merge_size else None

    def forward(self, x, grid):
        for block in self.blocks:
            x = block(x, grid)
        if self.downsample is None:
            return x, grid
        return self.downsample(x, grid), (grid[0] // 2, grid[1] // 2)


class CrossFormer(nn.Module):
    """Pyramid of stages, images (B, in_chans, H, W) -> logits (B, num_classes).

    No [CLS], the mean over tokens goes into the head; channels double from stage to stage. Defaults
    are CrossFormer-T. Raises ValueError when H or W is not a multiple of
    patch_size[0] * 2^(stages - 1).

    Args:
        patch_size: kernels of the first CEL, the smallest first.
        in_chans: channels of the images.
        num_classes: 0: no head, the mean over tokens comes out.
        embed_dim: channels of the first stage.
        depths: blocks of each stage.
        num_heads: of each stage.
        group_size: of each stage: an int, or a list with one int for each block.
        interval: of each stage.
        merge_size: kernels between stages, one entry fewer.
        mlp_ratio: one number, or one for each stage.
        drop_path: rate of stochastic depth in the last block, linear from 0.
        cooling: CrossFormer++'s amplitude cooling layers.
    """

    def __init__(
        self,
        patch_size=(4, 8, 16, 32),
        in_chans=3,
        num_classes=1000,
        embed_dim=64,
        depths=(1, 1, 8, 6),
        num_heads=(2, 4, 8, 16),
        group_size=(7, 7, 7, 7),
        interval=(8, 4, 2, 1),
        merge_size=((2, 4), (2, 4), (2, 4)),
        mlp_ratio=4.0,
        drop_path=0.0,
        cooling=False,
    ):
        super().__init__()
        depths = check_ints(depths, "depths", 1)
        num_heads = check_ints(num_heads, "num_heads", 1)
        interval = check_ints(interval, "interval", 1)
        embed_dim = check_int(embed_dim, "embed_dim", 1)
        num_classes = check_int(num_classes, "num_classes", 0)
        drop_path = check_number(drop_path, "drop_path", 0, 1)
        cooling = check_flag(cooling, "cooling")
        stages = len(depths)
        for name, value in (("group_size", group_size), ("merge_size", merge_size)):
            if not isinstance(value, (tuple, list)):
                raise ValueError(f"{name}={value!r}: needs a sequence")
        counts = len(num_heads), len(group_size), len(interval), len(merge_size) + 1
        if set(counts) != {stages}:
            raise ValueError(
                f"depths ({stages}), num_heads ({counts[0]}), group_size ({counts[1]}), interval "
                f"({counts[2]}) need one entry per stage and merge_size ({len(merge_size)}) one "
                f"fewer"
            )
        sizes = _group_sizes(group_size, depths)
        ratios = mlp_ratio if isinstance(mlp_ratio, (list, tuple)) else [mlp_ratio] * stages
        if len(ratios) != stages:
            raise ValueError(f"mlp_ratio={mlp_ratio}: needs one number, or one for each stage")
        rates = torch.linspace(0, drop_path, sum(depths), device="cpu").split(list(depths))
        merges = [*merge_size, None]
        self.patch_embed = CrossScaleEmbed(patch_size, in_chans, embed_dim)
        self.layers = nn.ModuleList(
            Stage(
                embed_dim * 2**s, depths[s], num_heads[s], sizes[s], interval[s], ratios[s],
                rates[s].tolist(), cooling, merges[s],
            )
            for s in range(stages)
        )
        width = embed_dim * 2 ** (stages - 1)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def stages(self, images):
        """Token maps after each stage (before its merging), for dense tasks.

        A list of (B, C_s, H_s, W_s).
        """
        x, grid, maps = *self._embed(images), []
        for stage in self.layers:
            for block in stage.blocks:
                x = block(x, grid)
            maps.append(rearrange(x, "b (h w) c -> b c h w", h=grid[0]))
            if stage.downsample is not None:
                x, grid = stage.downsample(x, grid), (grid[0] // 2, grid[1] // 2)
        return maps

    def _embed(self, images):
        check_images(images, self.patch_embed.in_chans)
        (height, width), stride = images.shape[-2:], self.patch_embed.stride
        check_multiple((height, width), stride * 2 ** (len(self.layers) - 1))
        return self.patch_embed(images), (height // stride, width // stride)

    def tokens(self, images):
        """Tokens of the last stage after the final LayerNorm: (B, N, C)."""
        x, grid = self._embed(images)
        for stage in self.layers:
            x, grid = stage(x, grid)
        return self.norm(x)

    def forward(self, images):
        return self.head(self.tokens(images).mean(dim=1))


def _group_sizes(group_size, depths):
    """One group size for each block of each stage: an entry is an int, or a list of them."""
    sizes = []
    for s, (entry, depth) in enumerate(zip(group_size, depths, strict=True)):
        if isinstance(entry, (list, tuple)):
            sizes.append(check_ints(entry, f"group_size[{s}]", 1, length=depth))
        else:
            sizes.append((check_int(entry, f"group_size[{s}]", 1),) * depth)
    return sizes


def _official(embed_dim, depths, num_heads, drop_path, **extra):
    def build(**kwargs):
        sizes = dict(embed_dim=embed_dim, depths=depths, num_heads=num_heads, drop_path=drop_path)
        return CrossFormer(**{**sizes, **extra, **kwargs})

    return build


# ++: progressive group size, cooling layers
_PP = dict(group_size=(4, 4, 14, 7), interval=(4, 2, 1, 1), cooling=True)

# Official sizes for 224 px; ++ differs by group sizes and cooling layers.
crossformer_tiny = _official(64, (1, 1, 8, 6), (2, 4, 8, 16), 0.1)
crossformer_small = _official(96, (2, 2, 6, 2), (3, 6, 12, 24), 0.2)
crossformer_base = _official(96, (2, 2, 18, 2), (3, 6, 12, 24), 0.3)
crossformer_large = _official(128, (2, 2, 18, 2), (4, 8, 16, 32), 0.5)
crossformer_pp_small = _official(64, (2, 2, 18, 2), (2, 4, 8, 16), 0.2, **_PP)
crossformer_pp_base = _official(96, (2, 2, 18, 2), (3, 6, 12, 24), 0.3, **_PP)
crossformer_pp_large = _official(128, (2, 2, 18, 2), (4, 8, 16, 32), 0.5, **_PP)
crossformer_pp_huge = _official(128, (6, 6, 18, 2), (4, 8, 16, 32), 0.5, **_PP)
