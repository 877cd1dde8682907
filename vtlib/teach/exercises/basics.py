"""Exercises of notebook 00: patches, positions, attention, costs, and a first selection."""

import math

import torch
from einops import rearrange

from vtlib.nn import patchify, sincos_2d, unpatchify
from vtlib.teach.exercises import check, expect
from vtlib.tokens import take

# ------------------------------------------------------------------------------------- unpatchify

_PATTERNS = {
    "b (h w) (q p c) -> b c (h p) (w q)": (
        "rows and columns inside a patch are swapped: (p q c) means row p first, then column q"
    ),
    "b (h w) (c p q) -> b c (h p) (w q)": (
        "the colours were taken from the front of a token; `patchify` put them last, (p q c)"
    ),
    "b (w h) (p q c) -> b c (h p) (w q)": (
        "the patches were read column by column; tokens are row-major, (h w)"
    ),
    "b (h w) (p q c) -> b c (p h) (q w)": (
        "(p h) puts the rows of all patches side by side; a pixel's row is patch row first, then"
        " row inside it: (h p)"
    ),
    "b (h w) (p q c) -> b (h p) (w q) c": (
        "the colours are on the last axis: images are (B, C, H, W)"
    ),
}


def _unpatchify_causes(tokens, size, grid):
    h, w = grid
    causes = {
        cause: rearrange(tokens, pattern, h=h, w=w, p=size, q=size)
        for pattern, cause in _PATTERNS.items()
    }
    right = "b (h w) (p q c) -> b c (h p) (w q)"
    swapped = rearrange(tokens, right, h=w, w=h, p=size, q=size)
    return causes | {"h and w of the grid are swapped: `grid` is (h, w), rows first": swapped}


@check("basics.unpatchify", reference=unpatchify)
def _(fn):
    for height, width, size in ((8, 12, 4), (6, 4, 2)):
        images = torch.rand(2, 3, height, width)
        grid = (height // size, width // size)
        tokens = patchify(images, size)
        got = fn(tokens, size, grid)
        causes = _unpatchify_causes(tokens, size, grid)
        expect(got, images, what=f"the images of a {grid} grid", mistakes=causes)


# ----------------------------------------------------------------------------------------- sincos


def _waves(x):
    return torch.cat([x.sin(), x.cos()], dim=-1)


def _woven(x):
    return rearrange(torch.stack([x.sin(), x.cos()], dim=-1), "n d two -> n (d two)")


def _table(grid, freq, half=_waves, column_first=False):
    """The table from frequencies (D / 4,), with one thing done differently."""
    h, w = grid
    rows = half(torch.arange(h)[:, None] * freq)[:, None].expand(h, w, -1)
    cols = half(torch.arange(w)[:, None] * freq)[None].expand(h, w, -1)
    both = [cols, rows] if column_first else [rows, cols]
    return rearrange(torch.cat(both, dim=-1), "h w d -> (h w) d")


def _sincos_causes(grid, dim):
    h, w = grid
    i = torch.arange(dim // 4)
    freq = 10000.0 ** (-i / (dim // 4))
    slow = 10000.0 ** (-i / (dim // 2))
    rising = 10000.0 ** (i / (dim // 4))
    running = torch.arange(h * w)[:, None] * 10000.0 ** (-torch.arange(dim // 2) / (dim // 2))
    right = sincos_2d(grid, dim)
    return {
        "the column comes before the row: the first half of the channels belongs to the row":
            _table(grid, freq, column_first=True),
        "cosines before sines: each half is [sin, cos]":
            _table(grid, freq, half=lambda x: torch.cat([x.cos(), x.sin()], dim=-1)),
        "sines and cosines alternate; here all sines of a half come first, then its cosines":
            _table(grid, freq, half=_woven),
        "the frequencies fall too slowly: the exponent is -i / (D/4), because a half holds D/4"
        " sines": _table(grid, slow),
        "the frequencies rise: the exponent needs a minus sign": _table(grid, rising),
        "a one-dimensional table over the running number of the token: rows and columns each need"
        " half of the channels": _waves(running),
        "the table is still a grid (h, w, D): flatten it to (h w, D)":
            rearrange(right, "(h w) d -> h w d", h=h),
    }


@check("basics.sincos", reference=sincos_2d)
def _(fn):
    for grid, dim in (((3, 5), 16), ((4, 2), 8)):
        what = f"the table for a {grid} grid and {dim} channels"
        causes = _sincos_causes(grid, dim)
        expect(fn(grid, dim), sincos_2d(grid, dim), what=what, mistakes=causes, atol=1e-4)


# ------------------------------------------------------------------------------ attention weights


def attention_weights(q, k):
    """softmax(q k^T / sqrt(d)) over the keys: q, k (..., N, d) -> (..., N, N)."""
    return (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1)


def _weights_causes(q, k):
    logits = q @ k.transpose(-2, -1)
    n, d = q.shape[-2:]
    scaled = logits / d**0.5
    return {
        "softmax over the queries: each row (one query) must sum to 1, so dim=-1":
            scaled.softmax(dim=-2),
        "softmax over the batch: each row must sum to 1, so dim=-1": scaled.softmax(dim=0),
        "the scale 1 / sqrt(d) is missing": logits.softmax(dim=-1),
        "the scale is 1 / d; it has to be 1 / sqrt(d)": (logits / d).softmax(dim=-1),
        "the scale multiplies by sqrt(d) instead of dividing": (logits * d**0.5).softmax(dim=-1),
        "1 / sqrt(N) instead of 1 / sqrt(d): the scale belongs to the channels, not to the tokens":
            (logits / n**0.5).softmax(dim=-1),
        "these are the logits, before the softmax": scaled,
        "queries and keys are swapped": scaled.transpose(-2, -1).softmax(dim=-1),
    }


@check("basics.weights", reference=attention_weights)
def _(fn):
    for what, shape in (("", (2, 5, 4)), (" with a head axis (B, heads, N, d)", (2, 3, 6, 8))):
        q, k = torch.randn(shape), torch.randn(shape)
        got, want = fn(q, k), attention_weights(q, k)
        expect(got, want, what=f"the weights{what}", mistakes=_weights_causes(q, k))


# ------------------------------------------------------------------------------------- multi-head


def multi_head(qkv, num_heads):
    """Attention after the fused projection: qkv (B, N, 3 D) -> (B, N, D), (B, heads, N, N)."""
    q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=num_heads)
    attn = attention_weights(q, k)
    return rearrange(attn @ v, "b h n d -> b n (h d)"), attn


_SPLIT, _MERGE = "b n (three h d) -> three b h n d", "b h n d -> b n (h d)"


def _heads(qkv, num_heads, split=_SPLIT, merge=_MERGE, scale=None, dim=-1, order=(0, 1, 2)):
    """`multi_head` with one thing done differently."""
    parts = rearrange(qkv, split, three=3, h=num_heads)
    q, k, v = (parts[i] for i in order)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    attn = (q @ k.transpose(-2, -1) * scale).softmax(dim=dim)
    return rearrange(attn @ v, merge), attn


def _heads_causes(qkv, num_heads):
    def variant(**changed):
        return lambda: _heads(qkv, num_heads, **changed)

    return {
        "the scale uses D; a head sees only d = D / heads channels":
            variant(scale=(qkv.shape[-1] // 3) ** -0.5),
        "the scale 1 / sqrt(d) is missing": variant(scale=1.0),
        "the channels were split as (three d h); heads come before channels, (three h d)":
            variant(split="b n (three d h) -> three b h n d"),
        "the channels were split as (h three d); q, k and v are the outermost blocks, (three h d)":
            variant(split="b n (h three d) -> three b h n d"),
        "the heads are woven together as (d h); put them side by side, (h d)":
            variant(merge="b h n d -> b n (d h)"),
        "softmax over the queries: each row (one query) must sum to 1, so dim=-1": variant(dim=-2),
        "queries and keys are swapped": variant(order=(1, 0, 2)),
        "keys and values are swapped: the blocks are q, k, v": variant(order=(0, 2, 1)),
        "the heads still have an axis of their own: put them side by side, b n (h d)":
            variant(merge="b h n d -> b h n d"),
        "only the output is returned; (out, weights) is needed":
            lambda: _heads(qkv, num_heads)[0],
        "the number of heads is not used: 2 is written in": lambda: _heads(qkv, 2),
    }


@check("basics.multi_head", reference=multi_head)
def _(fn):
    for n, d, heads in ((5, 8, 2), (4, 12, 3)):
        qkv = torch.randn(2, n, 3 * d)
        what = f"(out, weights) with {heads} heads"
        causes = _heads_causes(qkv, heads)
        if heads == 2:
            del causes["the number of heads is not used: 2 is written in"]
        expect(fn(qkv, heads), multi_head(qkv, heads), what=what, mistakes=causes)


# ------------------------------------------------------------------------------------------ flops


def block_flops(num_tokens, embed_dim, mlp_ratio=4):
    """FLOPs of a block's matrix products, a multiply-add is 2: (8 + 4 r) N D^2 + 4 N^2 D."""
    per_token = (8 + 4 * mlp_ratio) * embed_dim**2
    return per_token * num_tokens + 4 * num_tokens**2 * embed_dim


@check("basics.block_flops", reference=block_flops)
def _(fn):
    n, d = 10, 8
    want = block_flops(n, d)
    causes = {
        "a multiply-add counts 2 FLOPs here, you counted 1": want // 2,
        "the output projection of attention is missing (D x D)": want - 2 * n * d * d,
        "the MLP has two layers, D -> 4 D and 4 D -> D; you counted one": want - 8 * n * d * d,
        "attention needs two products of N x N size: Q K^T and weights times V":
            want - 2 * n * n * d,
        "the term 4 N^2 D of attention itself is missing": 24 * n * d * d,
        "q, k and v are three projections; you counted one": want - 4 * n * d * d,
    }
    expect(fn(n, d), want, what="FLOPs for N=10, D=8", mistakes=causes, rtol=1e-9)
    expect(fn(7, 12), block_flops(7, 12), what="FLOPs for N=7, D=12", rtol=1e-9)
    causes = {"mlp_ratio is not used: the hidden layer has mlp_ratio * D channels": want}
    got, want = fn(n, d, mlp_ratio=2), block_flops(n, d, 2)
    expect(got, want, what="FLOPs for N=10, D=8, mlp_ratio=2", mistakes=causes, rtol=1e-9)


# ------------------------------------------------------------------------------------------- keep


def keep_tokens(x, score, keep):
    """[CLS] and the `keep` best patch tokens, in their old order.

    x (B, 1 + N, D), score (B, N) -> (B, 1 + keep, D).
    """
    index = score.topk(keep, dim=1).indices.sort(dim=1).values + 1  # b keep; 1: behind [CLS]
    index = torch.cat([torch.zeros_like(index[:, :1]), index], dim=1)
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def _keep_causes(x, score, keep):
    raw = score.topk(keep, dim=1).indices
    fewer = score.topk(keep - 1, dim=1).indices
    lowest = score.topk(keep, dim=1, largest=False).indices
    patches = raw.sort(dim=1).values

    def behind_cls(index):
        return take(x, torch.cat([torch.zeros_like(index[:, :1]), index], dim=1))

    return {
        "[CLS] was dropped: it stays in front, whatever the scores": take(x, patches + 1),
        "off by one: score[:, i] belongs to token i + 1, because [CLS] is token 0":
            behind_cls(patches),
        "the tokens are in the order of their scores; sort the indices": behind_cls(raw + 1),
        "the lowest scores were kept": behind_cls(lowest.sort(dim=1).values + 1),
        "the first image's choice was used for the whole batch":
            behind_cls(patches[:1].expand_as(patches) + 1),
        "[CLS] counts as one of `keep`; keep counts patch tokens only":
            behind_cls(fewer.sort(dim=1).values + 1),
    }


@check("basics.keep_tokens", reference=keep_tokens)
def _(fn):
    x = torch.arange(2 * 7 * 2, dtype=torch.float32).reshape(2, 7, 2)
    score = torch.tensor([[0.1, 0.9, 0.3, 0.2, 0.8, 0.7], [0.6, 0.1, 0.2, 0.9, 0.5, 0.3]])
    causes = _keep_causes(x, score, 3)
    expect(fn(x, score, 3), keep_tokens(x, score, 3), what="the kept tokens", mistakes=causes)
    x, score = torch.randn(2, 5, 3), torch.rand(2, 4)
    expect(fn(x, score, 4), x, what="with keep = N nothing may change: the tokens")
