"""Exercises on CrossViT: the one query, the cross-attention around it, the exchange of both branches."""

import torch
from einops import rearrange
from torch import nn

from vtlib.teach.exercises import Wrong, check, expect, untouched


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _linear(in_dim, out_dim, seed):
    layer = nn.Linear(in_dim, out_dim)
    with torch.no_grad():
        layer.weight.copy_(_random(out_dim, in_dim, seed=seed) * in_dim**-0.5)
        layer.bias.copy_(_random(out_dim, seed=seed + 1) * 0.3)
    return layer


def _project(in_dim, out_dim, seed):
    return nn.Sequential(nn.LayerNorm(in_dim), nn.GELU(), _linear(in_dim, out_dim, seed))


# ------------------------------------------------------------------------------------------------------------- 1, the query


def cls_attention(z, wq, wk, wv):
    """Reference: one head, the first token asks, all tokens answer. z (B, 1 + N, D) -> (B, 1, D)."""
    k, v = wk(z), wv(z)
    q = wq(z[:, :1])
    weights = (q @ k.transpose(1, 2) * z.shape[-1] ** -0.5).softmax(dim=-1)
    return weights @ v


@check("crossvit.cls_query", reference=cls_attention)
def _(fn):
    z, (wq, wk, wv) = _random(2, 6, 8), (_linear(8, 8, seed) for seed in (1, 3, 5))
    k, v = wk(z), wv(z)

    def asked(q):
        return (q @ k.transpose(1, 2) * 8**-0.5).softmax(dim=-1) @ v

    with untouched(z):
        got = fn(z, wq, wk, wv)
    expect(got, cls_attention(z, wq, wk, wv), what="the answer to the query", mistakes={
        "every token asks; the cost is N² again. Only the first token, z[:, :1], is the query": lambda: asked(wq(z)),
        "the mean of all tokens asks; the query is the first token alone, z[:, :1]": lambda: asked(wq(z.mean(1, keepdim=True))),
        "z[:, 0] loses the token axis, and the batch axis takes its place; z[:, :1] keeps it": lambda: asked(wq(z[:, 0])),
        "the query is not projected; wq(...) is missing": lambda: asked(z[:, :1]),
        "the first patch asks; [CLS] is token 0": lambda: asked(wq(z[:, 1:2])),
        "all patches ask; [CLS] is token 0": lambda: asked(wq(z[:, 1:])),
        "the last token asks; [CLS] stands first": lambda: asked(wq(z[:, -1:])),
    })


# --------------------------------------------------------------------------------------------------- 2, the cross-attention


def cross_attention(c, patches, w, heads):
    """Reference: y = c + MCA(LN([c; patches])). c (B, 1, D), patches (B, N, D) -> (B, 1, D)."""
    return _variant(c, patches, w, heads)


def _variant(c, patches, w, heads, residual="c", keys="all", scale=None, norm=True, softmax=-1, rows="first", proj=True):
    """`cross_attention` with one thing done differently; the defaults are right."""
    z = torch.cat([c, patches], dim=1)
    n = w["norm"](z) if norm else z
    sources = {"all": n, "patches": n[:, 1:]}[keys]
    q = {"first": w["wq"](n[:, :1]), "all": w["wq"](n), "mean": w["wq"](n.mean(1, keepdim=True)), "raw": w["wq"](c)}[rows]
    q, k, v = (rearrange(t, "b n (h p) -> b h n p", h=heads) for t in (q, w["wk"](sources), w["wv"](sources)))
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    out = rearrange(scores.softmax(dim=softmax) @ v, "b h n p -> b n (h p)")
    out = w["proj"](out) if proj else out
    return out + {"c": c, "none": 0.0, "norm": n[:, :1]}[residual]


@check("crossvit.cross_attention", reference=cross_attention)
def _(fn):
    D, heads = 12, 3
    w = nn.ModuleDict(dict(norm=nn.LayerNorm(D), **{name: _linear(D, D, seed) for seed, name in
                                                    zip((1, 3, 5, 7), ("wq", "wk", "wv", "proj"))}))
    with torch.no_grad():
        w["norm"].weight.copy_(1 + 0.3 * _random(D, seed=9))
    c, patches = 0.7 * _random(2, 1, D, seed=11), 2 * _random(2, 5, D, seed=12) + 0.5

    def wrong(**kw):
        return lambda: _variant(c, patches, w, heads, **kw)

    with untouched(c, patches):
        got = fn(c, patches, w, heads)
    expect(got, _variant(c, patches, w, heads), what="y", mistakes={
        "the residual is missing: y = c + MCA(...)": wrong(residual="none"),
        "the residual is the normalised c; add c as it came": wrong(residual="norm"),
        "the keys and values leave out the own [CLS]; they are all of z = [c; patches]": wrong(keys="patches"),
        "scaled by the width D of all heads; each head has D / heads channels: (D / heads) ** -0.5": wrong(scale=D**-0.5),
        "the scale is missing: scores * (D / heads) ** -0.5": wrong(scale=1.0),
        "softmax over the query axis, which has length 1: every weight is 1. It goes over the keys, dim=-1": wrong(softmax=-2),
        "softmax over the heads; it goes over the keys, dim=-1": wrong(softmax=1),
        "LN is missing: queries, keys and values come from LN(z)": wrong(norm=False),
        "the query is made from c itself; it comes from LN(z), as the keys do": wrong(rows="raw"),
        "every token asks; the query is the first token of LN(z) alone": wrong(rows="all"),
        "the mean of all tokens asks; the query is the first token of LN(z) alone": wrong(rows="mean"),
        "the last projection w['proj'] is missing": wrong(proj=False),
        "one head of width D instead of several of width D / heads": lambda: _variant(c, patches, w, 1),
    })
    expect(fn(c, patches[:, [4, 2, 0, 1, 3]], w, heads), got, what="y after a permutation of the patches (a set has no order)")
    expect(fn(c[:1], patches[:1, :1], w, heads), _variant(c[:1], patches[:1, :1], w, heads), what="y for one image with one patch")


# ---------------------------------------------------------------------------------------------------------- 3, the exchange


def exchange(xs, f, mca, g):
    """Reference: both [CLS] visit the other branch at the same time; patch tokens leave as they came."""
    out = []
    for i in (0, 1):
        y = mca[i](f[i](xs[i][:, :1]), xs[1 - i][:, 1:])
        out.append(torch.cat([g[i](y), xs[i][:, 1:]], dim=1))
    return out


def _exchange_variant(xs, f, mca, g, kind):
    new = list(xs)
    for i in (0, 1):
        own, other = xs[i], xs[1 - i]
        c = own[:, :1] if kind == "unprojected" else f[1 - i if kind == "other's f" else i](own[:, :1])
        y = mca[i](c, own[:, 1:] if kind == "own patches" else other if kind == "with its cls" else other[:, 1:])
        cls = y if kind == "no g" else g[i](y)
        if kind == "outer residual":
            cls = cls + own[:, :1]
        elif kind == "residual of c":
            cls = g[i](y) + c
        rest = g[i](f[i](own[:, 1:])) if kind == "patches too" else other[:, 1:] if kind == "other's patches" else own[:, 1:]
        new[i] = cls if kind == "cls only" else torch.cat([cls, rest], dim=1)
    if kind == "swapped":
        return [torch.cat([new[1 - i][:, :1], xs[i][:, 1:]], dim=1) for i in (0, 1)]
    return new


_CAUSES = {
    "outer residual": "a residual around the whole exchange; the new [CLS] is g(y) alone, the residual is inside, in y",
    "residual of c": "c is added once more after g; it is already in y",
    "unprojected": "the [CLS] is not projected: c = f(x_cls)",
    "no g": "the [CLS] is not projected back: g(y)",
    "other's f": "f[i] belongs to branch i's own [CLS]: it takes it to the other width",
    "own patches": "each [CLS] visits its own patches; it has to visit the other branch's",
    "with its cls": "the other branch's [CLS] is among the visited tokens; only its patches are: xs[1 - i][:, 1:]",
    "patches too": "the patch tokens went through f and g; they leave as they came",
    "other's patches": "the patch tokens have changed branches; only the [CLS] travels, and it comes home",
    "cls only": "only the [CLS] came back; each branch is [g(y); its own patch tokens]",
    "swapped": "the two new [CLS] tokens ended up in each other's branch",
}


def _toy(dims):
    """Two sequences and the modules of an exchange between widths `dims`; mca adds a mean of what it sees."""
    xs = [_random(2, 1 + n, d, seed=n) for n, d in zip((9, 4), dims)]
    f = [_project(dims[i], dims[1 - i], 20 + 5 * i) for i in (0, 1)]
    g = [_project(dims[1 - i], dims[i], 40 + 5 * i) for i in (0, 1)]
    mix = [_linear(dims[1 - i], dims[1 - i], 60 + 5 * i) for i in (0, 1)]

    def visit(i):
        def mca(c, patches):
            if c.ndim != 3:
                raise Wrong(f"mca[{i}] got a [CLS] of shape {tuple(c.shape)}; it takes (B, 1, D): xs[i][:, 0] loses the token axis, "
                            "xs[i][:, :1] keeps it")
            if c.shape[-1] != dims[1 - i] or patches.shape[-1] != dims[1 - i]:
                raise Wrong(f"mca[{i}] got a [CLS] of width {c.shape[-1]} and patches of width {patches.shape[-1]}; it works in width "
                            f"{dims[1 - i]}, that of the other branch: f[{i}] takes the [CLS] there")
            return c + torch.tanh(mix[i](torch.cat([c, patches], dim=1)).mean(dim=1, keepdim=True))
        return mca

    return xs, f, [visit(0), visit(1)], g


@check("crossvit.exchange", reference=exchange)
def _(fn):
    for dims in ((8, 8), (8, 12)):  # equal widths first: there a mistake in the flow has a value to be known by
        xs, f, mca, g = _toy(dims)
        want = exchange(xs, f, mca, g)
        same = {_CAUSES[kind]: (lambda kind=kind: _exchange_variant(xs, f, mca, g, kind)) for kind in _CAUSES} if dims[0] == dims[1] else {}
        with untouched(*xs):
            got = fn(list(xs), f, mca, g)
        expect(list(got) if isinstance(got, tuple) else got, want, what=f"the branches of widths {dims}", mistakes=same)
        for i in (0, 1):
            if not torch.equal(got[i][:, 1:], xs[i][:, 1:]):
                raise Wrong(f"the patch tokens of branch {i} have changed; they leave bit for bit as they came")
