"""CrossViT - Cross-Attention Multi-Scale Vision Transformer for Image Classification (Chen, Fan,
Panda, ICCV 2021, arXiv 2103.14899).

The idea: fine patches help a ViT but cost quadratically, so keep two branches, small patches in a
narrow shallow one and large patches in a wide deep one. They talk only through their [CLS] tokens:
each [CLS] is projected to the other branch's width, visits the other branch's patch tokens as the
single query of a cross-attention (linear cost), and carries what it learned home.

    z = [f(x_cls); x_o]                    exchange_cls, f = _project     (paper eq. 5: LN, GELU,
                                                                           Linear)
    y = f(x_cls) + MCA(LN(z))              CrossAttentionBlock            (eq. 6, 7)
    [g(y); x_patch]                        exchange_cls, g = _project     (eq. 7)
    all-attention, class-token, pairwise   AllAttentionFusion, SumFusion  (eq. 2, 3, 4: baselines)

Branch 0 has the small patches, branch 1 the large ones. State-dict names are the official ones
(IBM/CrossViT), so official checkpoints load as they are; timm's are renamed by
`vtlib.hub.convert_timm_crossvit`.

Different from the official code: exactly one cross-attention per encoder (there, a third depth
entry of 0 means the same; stacking more makes the second attend to itself only); stochastic depth
also accepts a small branch deeper than the large one; the four fusions of the paper's ablation are
one argument (official: cross only). The common width of all-attention and pairwise fusion, the
large branch's, is inferred: the paper does not state it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..nn import (
    Attention,
    Block,
    CrossAttention,
    DropPath,
    check_dtype,
    check_flag,
    check_images,
    check_int,
    check_ints,
    check_multiple,
    check_number,
    check_tokens,
)
from ..nn.checks import describe

PAPER = "crossvit"

FUSIONS = ("cross", "none", "all", "cls", "pairwise")


def _norm(dim):
    return nn.LayerNorm(dim, eps=1e-6)


def _project(in_dim, out_dim):
    """f and g of the paper: LN and GELU come before the Linear. Official indices 0, 1, 2."""
    return nn.Sequential(_norm(in_dim), nn.GELU(), nn.Linear(in_dim, out_dim))


class ConvStem(nn.Sequential):
    """Patch embedding of the dagger models: three convolutions.

    Their strides multiply to the patch size.

    Args:
        patch_size: 12 or 16; ValueError otherwise.
        in_chans: channels of the images.
        embed_dim: D, a multiple of 4.
    """

    def __init__(self, patch_size, in_chans, embed_dim):
        patch_size = check_int(patch_size, "patch_size", 1)
        in_chans = check_int(in_chans, "in_chans", 1)
        embed_dim = check_int(embed_dim, "embed_dim", 4)
        if embed_dim % 4:
            raise ValueError(f"embed_dim={embed_dim}: the stem needs a multiple of 4")
        if patch_size not in (12, 16):
            raise ValueError(
                f"patch_size={patch_size} has no convolutional stem; "
                f"CrossViT's dagger models define it for 12 and 16"
            )
        if patch_size == 12:
            middle, last = dict(stride=3, padding=0), 1
        else:
            middle, last = dict(stride=2, padding=1), 2
        super().__init__(
            nn.Conv2d(in_chans, embed_dim // 4, 7, stride=4, padding=3),
            nn.ReLU(),
            nn.Conv2d(embed_dim // 4, embed_dim // 2, 3, **middle),
            nn.ReLU(),
            nn.Conv2d(embed_dim // 2, embed_dim, 3, stride=last, padding=1),
        )


class BranchEmbed(nn.Module):
    """One branch's patches: resize the image to the branch's own size, embed.

    (B, C, H, W) -> (B, N, D).

    Args:
        img_size: side of the branch's square image, a multiple of patch_size.
        patch_size: P.
        in_chans: C.
        embed_dim: D.
        multi_conv: whether a `ConvStem` takes the place of one strided convolution.
    """

    def __init__(self, img_size, patch_size, in_chans, embed_dim, multi_conv):
        super().__init__()
        img_size = check_int(img_size, "img_size", 1)
        patch_size = check_int(patch_size, "patch_size", 1)
        check_multiple((img_size, img_size), patch_size, "img_size of the branch")
        self.img_size, self.num_patches = img_size, (img_size // patch_size) ** 2
        if check_flag(multi_conv, "multi_conv"):
            self.proj = ConvStem(patch_size, in_chans, embed_dim)
        else:
            in_chans = check_int(in_chans, "in_chans", 1)
            embed_dim = check_int(embed_dim, "embed_dim", 1)
            self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size)

    def forward(self, images):
        check_images(images, None)
        size = (self.img_size, self.img_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size=size, mode="bicubic", align_corners=False)
        return rearrange(self.proj(images), "b d h w -> b (h w) d")


class CrossAttentionBlock(nn.Module):
    """y = z_cls + MCA(LN(z)) (eq. 6, 7). The residual is the projected [CLS]; no MLP follows.

    Args:
        dim: D.
        num_heads: must divide D.
        qkv_bias: whether the projections to query, keys and values have a bias.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, dim, num_heads, qkv_bias=True, drop_path=0.0):
        super().__init__()
        dim = check_int(dim, "dim", 1)
        self.norm1 = _norm(dim)
        self.attn = CrossAttention(dim, num_heads, qkv_bias)
        self.drop_path = DropPath(drop_path)

    def forward(self, z, return_attn=False):
        check_tokens(z, self.norm1.normalized_shape[0], "z")
        y = self.norm1(z)
        y = self.attn(y[:, :1], y, return_attn)              # one query, the first token: cost N
        y, attn = y if return_attn else (y, None)
        y = z[:, :1] + self.drop_path(y)
        return (y, attn) if return_attn else y


def _check_branches(xs, dims=(None, None)):
    """Raise unless xs are two sequences of tokens (B, 1 + N_i, D_i); dims: D_i, None: any."""
    if not isinstance(xs, (tuple, list)) or len(xs) != 2:
        raise ValueError(f"xs is {describe(xs)} but needs to be two sequences (B, 1 + N_i, D_i)")
    for i, (x, dim) in enumerate(zip(xs, dims, strict=True)):
        check_tokens(x, dim, f"xs[{i}]")


def _check_two(parts, name):
    listed = isinstance(parts, (tuple, list, nn.ModuleList)) and len(parts) == 2
    if not listed or not all(callable(part) for part in parts):
        raise ValueError(f"{name} is {describe(parts)} but needs to be two modules")


def exchange_cls(xs, f, mca, g, return_attn=False):
    """The exchange of [CLS] tokens, both directions computed from the same state.

    Patch tokens leave as they came; there is no residual around the whole.

    Args:
        xs: two sequences (B, 1 + N_i, D_i).
        f: two modules, that of branch i maps D_i -> D_o, the other branch's width.
        mca: two modules, that of branch i works in D_o.
        g: two modules, that of branch i maps D_o -> D_i.
        return_attn: also return two weights (B, heads, 1, 1 + N_o).

    Returns two sequences of the shapes of xs.
    """
    return_attn = check_flag(return_attn, "return_attn")
    _check_branches(xs)
    for parts, name in ((f, "f"), (mca, "mca"), (g, "g")):
        _check_two(parts, name)
    out, attns = [], []
    for i in (0, 1):
        cls = f[i](xs[i][:, :1])                                                 # b 1 d_o
        y = mca[i](torch.cat([cls, xs[1 - i][:, 1:]], dim=1), return_attn)
        y, attn = y if return_attn else (y, None)
        out.append(torch.cat([g[i](y), xs[i][:, 1:]], dim=1))
        attns.append(attn)
    return (out, attns) if return_attn else out


class AllAttentionFusion(nn.Module):
    """Baseline, eq. 2: project all tokens to one width, attend over the union, project back.

    Quadratic cost.

    Args:
        dims: the branches' widths; the second is the common one.
        num_heads: the branches' heads; the second number is used.
        qkv_bias: of the attention.
    """

    def __init__(self, dims, num_heads, qkv_bias=True):
        super().__init__()
        dims = check_ints(dims, "dims", 1, length=2)
        num_heads = check_ints(num_heads, "num_heads", 1, length=2)
        self.projs = nn.ModuleList(_project(d, dims[1]) for d in dims)
        self.norm1 = _norm(dims[1])
        self.attn = Attention(dims[1], num_heads[1], qkv_bias)
        self.revert_projs = nn.ModuleList(_project(dims[1], d) for d in dims)

    def forward(self, xs):
        _check_branches(xs, [f[0].normalized_shape[0] for f in self.projs])
        parts = [f(x) for f, x in zip(self.projs, xs, strict=True)]
        y = torch.cat(parts, dim=1)                                              # b (1+n0)+(1+n1) d
        y = y + self.attn(self.norm1(y))
        parts = y.split([x.shape[1] for x in xs], dim=1)
        return [g(part) for g, part in zip(self.revert_projs, parts, strict=True)]


class SumFusion(nn.Module):
    """Baselines: the [CLS] tokens are projected, summed and projected back.

    That is class-token fusion (eq. 3). With patches=True the patch tokens are summed too, after
    bilinear interpolation to the same grid: pairwise fusion (eq. 4).
    """

    def __init__(self, dims, patches=False):
        super().__init__()
        self.patches = check_flag(patches, "patches")
        dims = check_ints(dims, "dims", 1, length=2)
        self.projs = nn.ModuleList(_project(d, dims[1]) for d in dims)
        self.revert_projs = nn.ModuleList(_project(dims[1], d) for d in dims)

    def forward(self, xs):
        _check_branches(xs, [f[0].normalized_shape[0] for f in self.projs])
        cls = sum(f(x[:, :1]) for f, x in zip(self.projs, xs, strict=True))      # b 1 d
        rests = [x[:, 1:] for x in xs]
        if self.patches:
            rests = self._sum_patches(rests)
        heads = [g(cls) for g in self.revert_projs]
        return [torch.cat(pair, dim=1) for pair in zip(heads, rests, strict=True)]

    def _sum_patches(self, rests):
        """Two lots of patch tokens (B, N_i, D_i) -> two of the same shapes."""
        parts = [f(rest) for f, rest in zip(self.projs, rests, strict=True)]
        sums = [parts[i] + _regrid(parts[1 - i], parts[i].shape[1]) for i in (0, 1)]
        return [g(both) for g, both in zip(self.revert_projs, sums, strict=True)]


def _regrid(tokens, num_tokens):
    """Interpolate tokens (B, n*n, D) of a square grid to (B, num_tokens, D)."""
    old, new = round(tokens.shape[1] ** 0.5), round(num_tokens**0.5)
    maps = rearrange(tokens, "b (h w) d -> b d h w", h=old)
    maps = F.interpolate(maps, size=(new, new), mode="bilinear", align_corners=False)
    return rearrange(maps, "b d h w -> b (h w) d")


class MultiScaleEncoder(nn.Module):
    """Ordinary ViT blocks in each branch (N in the small, M in the large), then one fusion.

    Args:
        dims: the branches' widths.
        depth: (N, M).
        num_heads: the branches' heads.
        mlp_ratio: the branches' hidden width / width.
        qkv_bias: of all attentions.
        drop_path: rates of stochastic depth, one for each block of the deeper branch.
        fusion: one of FUSIONS.
    """

    def __init__(self, dims, depth, num_heads, mlp_ratio, qkv_bias, drop_path, fusion):
        super().__init__()

        def branch(i):
            options = dims[i], num_heads[i], mlp_ratio[i], qkv_bias
            return nn.Sequential(*[Block(*options, drop_path[j]) for j in range(depth[i])])

        self.kind = fusion
        self.blocks = nn.ModuleList(branch(i) for i in (0, 1))
        if fusion == "cross":
            self.projs = nn.ModuleList(_project(dims[i], dims[1 - i]) for i in (0, 1))
            self.fusion = nn.ModuleList(
                CrossAttentionBlock(dims[1 - i], num_heads[1 - i], qkv_bias, drop_path[-1])
                for i in (0, 1)
            )
            self.revert_projs = nn.ModuleList(_project(dims[1 - i], dims[i]) for i in (0, 1))
        elif fusion == "all":
            self.exchange = AllAttentionFusion(dims, num_heads, qkv_bias)
        elif fusion in ("cls", "pairwise"):
            self.exchange = SumFusion(dims, patches=fusion == "pairwise")

    def forward(self, xs, return_attn=False):
        return_attn = check_flag(return_attn, "return_attn")
        _check_branches(xs)
        xs = [blocks(x) for blocks, x in zip(self.blocks, xs, strict=True)]
        if self.kind == "cross":
            return exchange_cls(xs, self.projs, self.fusion, self.revert_projs, return_attn)
        return self.exchange(xs) if self.kind != "none" else xs


class CrossViT(nn.Module):
    """Two-branch ViT, images (B, in_chans, H, W) -> logits (B, num_classes).

    The logits are the mean of the two branches'. Pairs are (small-patch branch, large-patch
    branch). Defaults are CrossViT-Ti. ValueError for wrong channels, sizes, heads, depths.

    Args:
        img_size: pair of sides; each branch resizes the image, bicubic, to its own square.
        patch_size: pair.
        in_chans: channels of the images.
        num_classes: 0: no heads, features of [CLS] come out (then both branches need one width).
        embed_dim: pair of widths.
        depth: one (N, M) for each multi-scale encoder, or the official triples (N, M, 0).
        num_heads: pair.
        mlp_ratio: pair, or the official triple.
        qkv_bias: of all attentions.
        drop_path: rate of stochastic depth in the last layer, linear from 0.
        fusion: "cross" | "none" | "all" | "cls" | "pairwise".
        multi_conv: the convolutional stem of the dagger models.
        fan_in_projs: start f and g with a standard deviation of D^-0.5 instead of the official
            0.02, which below a width of about 100 lets so little through that whatever has to pass
            f and g learns late.
    """

    def __init__(
        self,
        img_size=(240, 224),
        patch_size=(12, 16),
        in_chans=3,
        num_classes=1000,
        embed_dim=(96, 192),
        depth=((1, 4), (1, 4), (1, 4)),
        num_heads=(3, 3),
        mlp_ratio=(4, 4),
        qkv_bias=True,
        drop_path=0.0,
        fusion="cross",
        multi_conv=False,
        fan_in_projs=False,
    ):
        super().__init__()
        if fusion not in FUSIONS:
            raise ValueError(f"fusion={fusion!r} must be one of {FUSIONS}")
        img_size = check_ints(img_size, "img_size", 1, length=2)
        patch_size = check_ints(patch_size, "patch_size", 1, length=2)
        embed_dim = check_ints(embed_dim, "embed_dim", 1, length=2)
        num_heads = check_ints(num_heads, "num_heads", 1, length=2)
        mlp_ratio = _check_ratios(mlp_ratio)
        num_classes = check_int(num_classes, "num_classes", 0)
        drop_path = check_number(drop_path, "drop_path", 0, 1)
        depth = _check_depth(depth)
        self.in_chans = check_int(in_chans, "in_chans", 1)
        branches = zip(img_size, patch_size, embed_dim, strict=True)
        self.patch_embed = nn.ModuleList(
            BranchEmbed(size, patch, self.in_chans, dim, multi_conv)
            for size, patch, dim in branches
        )
        self.pos_embed = nn.ParameterList(
            torch.zeros(1, 1 + embed.num_patches, dim)
            for embed, dim in zip(self.patch_embed, embed_dim, strict=True)
        )
        self.cls_token = nn.ParameterList(torch.zeros(1, 1, dim) for dim in embed_dim)
        deepest = [max(pair) for pair in depth]
        rates = torch.linspace(0, drop_path, sum(deepest), device="cpu").split(deepest)
        self.blocks = nn.ModuleList(
            MultiScaleEncoder(
                embed_dim, pair, num_heads, mlp_ratio, qkv_bias, rate.tolist(), fusion
            )
            for pair, rate in zip(depth, rates, strict=True)
        )
        self.norm = nn.ModuleList(_norm(dim) for dim in embed_dim)
        self.head = nn.ModuleList(
            nn.Linear(dim, num_classes) if num_classes else nn.Identity() for dim in embed_dim
        )
        self._start(fan_in_projs)

    def _start(self, fan_in_projs):
        """The weights before training."""
        for table in [*self.pos_embed, *self.cls_token]:
            nn.init.trunc_normal_(table, std=0.02)
        linear = {n: m for n, m in self.named_modules() if isinstance(m, nn.Linear)}
        for module in linear.values():
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if check_flag(fan_in_projs, "fan_in_projs"):
            for name, module in linear.items():
                if "projs." in name:
                    nn.init.normal_(module.weight, std=module.in_features**-0.5)

    def embed(self, images):
        """images -> two sequences (B, 1 + N_i, D_i): own patches, own [CLS], own positions."""
        check_images(images, self.in_chans)
        check_dtype(images, self.pos_embed[0], "images")
        out = []
        for embed, cls, pos in zip(self.patch_embed, self.cls_token, self.pos_embed, strict=True):
            x = embed(images)
            x = torch.cat([cls.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)
            out.append(x + pos)
        return out

    def tokens(self, images, return_attn=False):
        """Both branches' tokens after their last LayerNorm, [CLS] first: two (B, 1 + N_i, D_i).

        With return_attn=True (fusion "cross" only) also, for each encoder, two weights
        (B, heads, 1, 1 + N_other): entry i is the [CLS] of branch i looking at itself (key 0) and
        at the other branch's patches.
        """
        return_attn = check_flag(return_attn, "return_attn")
        if return_attn and self.blocks[0].kind != "cross":
            raise ValueError(
                f"return_attn=True needs fusion='cross'; this model has "
                f"fusion={self.blocks[0].kind!r}"
            )
        xs, attns = self.embed(images), []
        for encoder in self.blocks:
            if return_attn:
                xs, attn = encoder(xs, return_attn=True)
                attns.append(attn)
            else:
                xs = encoder(xs)
        xs = [norm(x) for norm, x in zip(self.norm, xs, strict=True)]
        return (xs, attns) if return_attn else xs

    def branch_logits(self, images):
        """The two heads' logits before averaging: two (B, num_classes)."""
        return self._heads(self.tokens(images))

    def _heads(self, xs):
        return [head(x[:, 0]) for head, x in zip(self.head, xs, strict=True)]

    def forward(self, images, return_attn=False):
        """Logits (B, num_classes), the mean over branches.

        With return_attn=True also the attention weights of `tokens`.
        """
        if not check_flag(return_attn, "return_attn"):
            return torch.stack(self.branch_logits(images)).mean(dim=0)
        xs, attns = self.tokens(images, return_attn=True)
        return torch.stack(self._heads(xs)).mean(dim=0), attns


def _check_ratios(mlp_ratio):
    """A number for each branch, and the official code's third, which nothing reads."""
    if not isinstance(mlp_ratio, (tuple, list)) or len(mlp_ratio) not in (2, 3):
        raise ValueError(f"mlp_ratio={mlp_ratio!r}: needs a pair of numbers, one for each branch")
    return [check_number(ratio, f"mlp_ratio[{i}]", 0) for i, ratio in enumerate(mlp_ratio)]


def _check_depth(depth):
    """(N, M) of each encoder, as integers; ValueError for what CrossViT cannot be built with."""
    if not isinstance(depth, Sequence) or isinstance(depth, str) or not depth:
        raise ValueError(f"depth={depth!r}: needs one (N, M) for each encoder")
    depth = [check_ints(each, f"depth[{i}]", 0) for i, each in enumerate(depth)]
    shown = tuple(depth)
    if any(len(each) not in (2, 3) for each in depth):
        raise ValueError(f"depth={shown}: needs pairs (N, M), or triples (N, M, 0)")
    if any(len(each) == 3 and each[2] > 1 for each in depth):
        raise ValueError(
            f"depth={shown}: only one cross-attention per encoder (third entry 0 or 1); "
            f"a second one would attend to its own output only"
        )
    if any(max(each[:2]) < 1 for each in depth):
        raise ValueError(
            f"depth={shown}: each encoder needs at least one block in one of its branches"
        )
    return [each[:2] for each in depth]


def _official(embed_dim, num_heads, large_depth, mlp_ratio, multi_conv=False):
    def build(**kwargs):
        sizes = dict(
            embed_dim=embed_dim,
            num_heads=(num_heads,) * 2,
            depth=((1, large_depth),) * 3,
            mlp_ratio=(mlp_ratio,) * 2,
            multi_conv=multi_conv,
        )
        return CrossViT(**{**sizes, **kwargs})

    return build


# Official sizes (paper table 1). The 384 models are the same with img_size=(408, 384).
crossvit_tiny = _official((96, 192), 3, 4, 4)
crossvit_small = _official((192, 384), 6, 4, 4)
crossvit_base = _official((384, 768), 12, 4, 4)
crossvit_9 = _official((128, 256), 4, 3, 3)
crossvit_15 = _official((192, 384), 6, 5, 3)
crossvit_18 = _official((224, 448), 7, 6, 3)
crossvit_9_dagger = _official((128, 256), 4, 3, 3, multi_conv=True)
crossvit_15_dagger = _official((192, 384), 6, 5, 3, multi_conv=True)
crossvit_18_dagger = _official((224, 448), 7, 6, 3, multi_conv=True)
