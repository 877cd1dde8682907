"""Exercises of notebook 00: patches, positions, attention, costs, and the first selection of tokens."""

import math

import torch
from einops import rearrange

from vtlib.nn import patchify, sincos_2d, unpatchify
from vtlib.teach.exercises import check, expect, untouched
from vtlib.tokens import take

# ---------------------------------------------------------------------------------------------------------------- unpatchify


@check("basics.unpatchify", reference=unpatchify)
def _(fn):
    images = torch.rand(2, 3, 8, 12)                                              # b c H W: two rows and three columns of patches
    tokens = patchify(images, 4)
    with untouched(tokens):
        got = fn(tokens, 4, (2, 3))
    p = dict(p=4, q=4)
    expect(got, images, what="the images", mistakes={
        "rows and columns inside a patch are swapped: (p q c) means row p first, then column q":
            rearrange(tokens, "b (h w) (q p c) -> b c (h p) (w q)", h=2, **p),
        "the colours were taken from the front of a token; `patchify` put them last, (p q c)":
            rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=2, **p),
        "the patches were read column by column; tokens are row-major, (h w)":
            rearrange(tokens, "b (w h) (p q c) -> b c (h p) (w q)", h=2, **p),
        "(p h) puts the rows of all patches side by side; a pixel's row is patch row first, then row inside it: (h p)":
            rearrange(tokens, "b (h w) (p q c) -> b c (p h) (q w)", h=2, **p),
        "the colours are on the last axis: images are (B, C, H, W)":
            rearrange(tokens, "b (h w) (p q c) -> b (h p) (w q) c", h=2, **p),
        "h and w of the grid are swapped: `grid` is (h, w), rows first":
            rearrange(tokens, "b (h w) (p q c) -> b c (h p) (w q)", h=3, **p)})


# -------------------------------------------------------------------------------------------------------------------- sincos


@check("basics.sincos", reference=sincos_2d)
def _(fn):
    grid, dim = (3, 5), 16
    got, want = fn(grid, dim), sincos_2d(grid, dim)
    freq = 10000.0 ** (-torch.arange(dim // 4) / (dim // 4))
    rows, cols = torch.arange(3.0)[:, None] * freq, torch.arange(5.0)[:, None] * freq

    def join(a, b):
        a, b = a[:, None].expand(3, 5, -1), b[None].expand(3, 5, -1)
        return rearrange(torch.cat([a, b], dim=-1), "h w d -> (h w) d")

    def waves(x):
        return torch.cat([x.sin(), x.cos()], dim=-1)

    slow, fast = 10000.0 ** (-torch.arange(dim // 4) / (dim // 2)), 10000.0 ** (torch.arange(dim // 4) / (dim // 4))
    one = torch.arange(15.0)[:, None] * 10000.0 ** (-torch.arange(dim // 2) / (dim // 2))
    expect(got, want, what="the table", mistakes={
        "the column comes before the row: the first half of the channels belongs to the row":
            lambda: rearrange(torch.cat([waves(cols)[None].expand(3, 5, -1), waves(rows)[:, None].expand(3, 5, -1)], -1), "h w d -> (h w) d"),
        "cosines before sines: each half is [sin, cos]":
            lambda: join(torch.cat([rows.cos(), rows.sin()], -1), torch.cat([cols.cos(), cols.sin()], -1)),
        "sines and cosines alternate; here all sines of a half come first, then its cosines":
            lambda: join(rearrange(torch.stack([rows.sin(), rows.cos()], -1), "n d two -> n (d two)"),
                         rearrange(torch.stack([cols.sin(), cols.cos()], -1), "n d two -> n (d two)")),
        "the frequencies fall too slowly: the exponent is -i / (D/4), because a half holds D/4 sines":
            lambda: join(waves(torch.arange(3.0)[:, None] * slow), waves(torch.arange(5.0)[:, None] * slow)),
        "the frequencies rise: the exponent needs a minus sign":
            lambda: join(waves(torch.arange(3.0)[:, None] * fast), waves(torch.arange(5.0)[:, None] * fast)),
        "a one-dimensional table over the running number of the token: rows and columns each need half of the channels":
            lambda: waves(one),
        "the table is still a grid (h, w, D): flatten it to (h w, D)":
            lambda: rearrange(want, "(h w) d -> h w d", h=3)}, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------- attention weights


def attention_weights(q, k):
    """softmax(q k^T / sqrt(P)) over the keys: q, k (..., N, P) -> (..., N, N)."""
    return (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1)


@check("basics.weights", reference=attention_weights)
def _(fn):
    q, k = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    logits = q @ k.transpose(-2, -1)
    with untouched(q, k):
        got = fn(q, k)
    expect(got, attention_weights(q, k), what="the weights", mistakes={
        "softmax over the queries: each row (one query) must sum to 1, so dim=-1": (logits / 2).softmax(dim=-2),
        "softmax over the batch: each row must sum to 1, so dim=-1": (logits / 2).softmax(dim=0),
        "the scale 1 / sqrt(P) is missing": logits.softmax(dim=-1),
        "the scale is 1 / P; it has to be 1 / sqrt(P)": (logits / 4).softmax(dim=-1),
        "the scale multiplies by sqrt(P) instead of dividing": (logits * 2).softmax(dim=-1),
        "1 / sqrt(N) instead of 1 / sqrt(P): the scale belongs to the channels, not to the tokens": (logits / 5**0.5).softmax(dim=-1),
        "these are the logits, before the softmax": logits / 2,
        "queries and keys are swapped": (k @ q.transpose(-2, -1) / 2).softmax(dim=-1)})
    shape = (2, 3, 6, 8)
    q, k = torch.randn(shape), torch.randn(shape)
    expect(fn(q, k), attention_weights(q, k), what="the weights with a head axis (B, heads, N, P)")


# ----------------------------------------------------------------------------------------------------------------- multi-head


def multi_head(qkv, num_heads):
    """Multi-head attention after the fused projection: qkv (B, N, 3 D) -> out (B, N, D), weights (B, heads, N, N)."""
    q, k, v = rearrange(qkv, "b n (three h p) -> three b h n p", three=3, h=num_heads)
    attn = attention_weights(q, k)
    return rearrange(attn @ v, "b h n p -> b n (h p)"), attn


@check("basics.multi_head", reference=multi_head)
def _(fn):
    qkv, heads = torch.randn(2, 5, 3 * 8), 2
    with untouched(qkv):
        got = fn(qkv, heads)

    def variant(split="b n (three h p) -> three b h n p", scale=4**-0.5, dim=-1, merge="b h n p -> b n (h p)", order=(0, 1, 2)):
        parts = rearrange(qkv, split, three=3, h=heads)
        q, k, v = (parts[i] for i in order)
        attn = (q @ k.transpose(-2, -1) * scale).softmax(dim=dim)
        return rearrange(attn @ v, merge), attn

    expect(got, multi_head(qkv, heads), what="(out, weights)", mistakes={
        "the scale uses D; a head sees only P = D / heads channels": lambda: variant(scale=8**-0.5),
        "the scale 1 / sqrt(P) is missing": lambda: variant(scale=1.0),
        "the channels were split as (three p h); heads come before channels, (three h p)":
            lambda: variant("b n (three p h) -> three b h n p"),
        "the channels were split as (h three p); q, k and v are the outermost blocks, (three h p)":
            lambda: variant("b n (h three p) -> three b h n p"),
        "the heads are woven together as (p h); put them side by side, (h p)": lambda: variant(merge="b h n p -> b n (p h)"),
        "softmax over the queries: each row (one query) must sum to 1, so dim=-1": lambda: variant(dim=-2),
        "queries and keys are swapped": lambda: variant(order=(1, 0, 2)),
        "keys and values are swapped: the blocks are q, k, v": lambda: variant(order=(0, 2, 1)),
        "the heads still have an axis of their own: put them side by side, b n (h p)": lambda: variant(merge="b h n p -> b h n p"),
        "only the output is returned; (out, weights) is needed": lambda: variant()[0]})


# ---------------------------------------------------------------------------------------------------------------------- flops


def block_flops(num_tokens, embed_dim, mlp_ratio=4):
    """FLOPs of one block's matrix products, a multiply-add counting 2: (8 + 4 r) N D^2 + 4 N^2 D."""
    return (8 + 4 * mlp_ratio) * num_tokens * embed_dim**2 + 4 * num_tokens**2 * embed_dim


@check("basics.block_flops", reference=block_flops)
def _(fn):
    n, d = 10, 8
    want = block_flops(n, d)
    causes = {
        "a multiply-add counts 2 FLOPs here, you counted 1": want // 2,
        "the output projection of attention is missing (D x D)": want - 2 * n * d * d,
        "the MLP has two layers, D -> 4 D and 4 D -> D; you counted one": want - 8 * n * d * d,
        "attention needs two products of N x N size: Q K^T and weights times V": want - 2 * n * n * d,
        "the term 4 N^2 D of attention itself is missing": 24 * n * d * d,
        "q, k and v are three projections; you counted one": want - 4 * n * d * d}
    expect(fn(n, d), want, what="FLOPs for N=10, D=8", mistakes=causes, rtol=1e-9)
    expect(fn(7, 12), block_flops(7, 12), what="FLOPs for N=7, D=12", rtol=1e-9)
    expect(fn(n, d, mlp_ratio=2), block_flops(n, d, 2), what="FLOPs for N=10, D=8, mlp_ratio=2", rtol=1e-9, mistakes={
        "mlp_ratio is not used: the hidden layer has mlp_ratio * D channels": want})


# ----------------------------------------------------------------------------------------------------------------------- keep


def keep_tokens(x, score, keep):
    """[CLS] and the `keep` best patch tokens, in their old order: x (B, 1 + N, D), score (B, N) -> (B, 1 + keep, D)."""
    index = score.topk(keep, dim=1).indices.sort(dim=1).values + 1                # b keep, +1: the place behind [CLS]
    index = torch.cat([torch.zeros_like(index[:, :1]), index], dim=1)
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


@check("basics.keep_tokens", reference=keep_tokens)
def _(fn):
    x = torch.arange(2 * 7 * 2, dtype=torch.float32).reshape(2, 7, 2)
    score = torch.tensor([[0.1, 0.9, 0.3, 0.2, 0.8, 0.7], [0.6, 0.1, 0.2, 0.9, 0.5, 0.3]])
    with untouched(x, score):
        got = fn(x, score, 3)
    raw = score.topk(3, dim=1).indices
    cls = torch.zeros(2, 1, dtype=torch.long)
    expect(got, keep_tokens(x, score, 3), what="the kept tokens", mistakes={
        "[CLS] was dropped: it stays in front, whatever the scores": take(x, raw.sort(1).values + 1),
        "off by one: score[:, i] belongs to token i + 1, because [CLS] is token 0": take(x, torch.cat([cls, raw.sort(1).values], 1)),
        "the tokens are in the order of their scores; sort the indices": take(x, torch.cat([cls, raw + 1], 1)),
        "the lowest scores were kept": take(x, torch.cat([cls, score.topk(3, dim=1, largest=False).indices.sort(1).values + 1], 1)),
        "the first image's choice was used for the whole batch": take(x, torch.cat([cls, raw[:1].sort(1).values + 1 + 0 * raw], 1)),
        "[CLS] counts as one of `keep`; keep counts patch tokens only":
            take(x, torch.cat([cls, score.topk(2, dim=1).indices.sort(1).values + 1], 1))})
    expect(fn(x, score, 6), x, what="with keep = N nothing may change: the tokens")
