"""Exercises on CrossViT: the one query, the cross-attention around it, the exchange."""

import torch
from einops import rearrange
from torch import nn

from vtlib.teach.exercises import Wrong, check, expect


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


# ---------------------------------------------------------------------------------- 1, the query


def cls_attention(z, wq, wk, wv):
    """One head, the first token asks, all tokens answer: z (B, 1 + N, D) -> (B, 1, D)."""
    return _asked(z, wq(z[:, :1]), wk, wv)


def _asked(z, q, wk, wv):
    weights = (q @ wk(z).transpose(1, 2) * z.shape[-1] ** -0.5).softmax(dim=-1)
    return weights @ wv(z)


def _query_causes(z, wq, wk, wv):
    queries = {
        "every token asks; the cost is N² again. Only the first token, z[:, :1], is the query":
            wq(z),
        "the mean of all tokens asks; the query is the first token alone, z[:, :1]":
            wq(z.mean(dim=1, keepdim=True)),
        "z[:, 0] loses the token axis, and the batch axis takes its place; z[:, :1] keeps it":
            wq(z[:, 0]),
        "the query is not projected; wq(...) is missing": z[:, :1],
        "the first patch asks; [CLS] is token 0": wq(z[:, 1:2]),
        "all patches ask; [CLS] is token 0": wq(z[:, 1:]),
        "the last token asks; [CLS] stands first": wq(z[:, -1:]),
    }
    return {cause: _asked(z, q, wk, wv) for cause, q in queries.items()}


@check("crossvit.cls_query", reference=cls_attention)
def _(fn):
    for dim, tokens, seed in ((8, 6, 1), (6, 4, 11)):
        z = _random(2, tokens, dim, seed=seed - 1)
        wq, wk, wv = (_linear(dim, dim, seed + 2 * i) for i in range(3))
        got, want = fn(z, wq, wk, wv), cls_attention(z, wq, wk, wv)
        causes = _query_causes(z, wq, wk, wv)
        expect(got, want, what=f"the answer to the query of {dim} channels", mistakes=causes)


# ------------------------------------------------------------------------ 2, the cross-attention


def cross_attention(c, patches, w, heads):
    """y = c + MCA(LN([c; patches])): c (B, 1, D), patches (B, N, D) -> (B, 1, D)."""
    return _variant(c, patches, w, heads)


def _variant(
    c,
    patches,
    w,
    heads,
    residual="c",
    keys="all",
    scale=None,
    norm=True,
    softmax=-1,
    query="first",
    proj=True,
    split="(h p)",
    merge="(h p)",
):
    """`cross_attention` with one thing done differently; the defaults are right."""
    z = torch.cat([c, patches], dim=1)
    n = w["norm"](z) if norm else z
    sources = {"all": n, "patches": n[:, 1:]}[keys]
    asks = {"first": n[:, :1], "all": n, "mean": n.mean(dim=1, keepdim=True), "raw": c}[query]
    parts = w["wq"](asks), w["wk"](sources), w["wv"](sources)
    q, k, v = (rearrange(part, f"b n {split} -> b h n p", h=heads) for part in parts)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    weights = (q @ k.transpose(-2, -1) * scale).softmax(dim=softmax)
    out = rearrange(weights @ v, f"b h n p -> b n {merge}")
    out = w["proj"](out) if proj else out
    return out + {"c": c, "none": 0.0, "norm": n[:, :1]}[residual]


_INTERLEAVED = (
    "the heads are interleaved, (p h): each head takes every heads-th channel. Heads come first,"
    " (h p): head 0 has the first D / heads channels"
)


def _cross_causes(c, patches, w, heads):
    def variant(**changed):
        return lambda: _variant(c, patches, w, heads, **changed)

    return {
        "the residual is missing: y = c + MCA(...)": variant(residual="none"),
        "the residual is the normalised c; add c as it came": variant(residual="norm"),
        "the keys and values leave out the own [CLS]; they are all of z = [c; patches]":
            variant(keys="patches"),
        "scaled by the width D of all heads; each head has D / heads channels:"
        " (D / heads) ** -0.5": variant(scale=c.shape[-1] ** -0.5),
        "the scale is missing: scores * (D / heads) ** -0.5": variant(scale=1.0),
        "softmax over the query axis, which has length 1: every weight is 1. It goes over the"
        " keys, dim=-1": variant(softmax=-2),
        "softmax over the heads; it goes over the keys, dim=-1": variant(softmax=1),
        "LN is missing: queries, keys and values come from LN(z)": variant(norm=False),
        "the query is made from c itself; it comes from LN(z), as the keys do":
            variant(query="raw"),
        "every token asks; the query is the first token of LN(z) alone": variant(query="all"),
        "the mean of all tokens asks; the query is the first token of LN(z) alone":
            variant(query="mean"),
        "the last projection w['proj'] is missing": variant(proj=False),
        "one head of width D instead of several of width D / heads":
            lambda: _variant(c, patches, w, 1),
        _INTERLEAVED: variant(split="(p h)", merge="(p h)"),
        f"{_INTERLEAVED} ": variant(split="(p h)"),
        "the heads are put back interleaved, (p h); they were split heads first: (h p)":
            variant(merge="(p h)"),
    }


def _weights(dim, seed):
    layers = {
        name: _linear(dim, dim, seed + 2 * i) for i, name in enumerate(("wq", "wk", "wv", "proj"))
    }
    w = nn.ModuleDict({"norm": nn.LayerNorm(dim), **layers})
    with torch.no_grad():
        w["norm"].weight.copy_(1 + 0.3 * _random(dim, seed=seed + 8))
    return w


@check("crossvit.cross_attention", reference=cross_attention)
def _(fn):
    for dim, heads, seed in ((12, 3, 1), (8, 2, 21)):
        w = _weights(dim, seed)
        c = 0.7 * _random(2, 1, dim, seed=seed + 10)
        patches = 2 * _random(2, 5, dim, seed=seed + 11) + 0.5
        got, want = fn(c, patches, w, heads), cross_attention(c, patches, w, heads)
        causes = _cross_causes(c, patches, w, heads)
        expect(got, want, what=f"y with {heads} heads", mistakes=causes)
    moved = fn(c, patches[:, [4, 2, 0, 1, 3]], w, heads)
    expect(moved, got, what="y after a permutation of the patches (a set has no order)")
    c, patches = c[:1], patches[:1, :1]
    got, want = fn(c, patches, w, heads), cross_attention(c, patches, w, heads)
    expect(got, want, what="y for one image with one patch")


# -------------------------------------------------------------------------------- 3, the exchange


def exchange(xs, f, visit, g):
    """Both [CLS] visit the other branch at the same time; patch tokens leave as they came."""
    out = []
    for i in (0, 1):
        y = visit[i](f[i](xs[i][:, :1]), xs[1 - i][:, 1:])
        out.append(torch.cat([g[i](y), xs[i][:, 1:]], dim=1))
    return out


def _new_cls(i, xs, f, visit, g, kind):
    """The new [CLS] of branch i, with one thing done differently."""
    own, other = xs[i], xs[1 - i]
    cls = own[:, :1]
    c = {"unprojected": cls, "other's f": f[1 - i](cls)}.get(kind, f[i](cls))
    seen = {"own patches": own[:, 1:], "with its cls": other}.get(kind, other[:, 1:])
    y = visit[i](c, seen)
    back = g[i](y)
    changed = {
        "no g": y,
        "outer residual": back + cls,
        "residual of c": back + c,
        "residual twice": g[i](y + c),
    }
    return changed.get(kind, back)


def _exchange_variant(xs, f, visit, g, kind):
    cls = [_new_cls(i, xs, f, visit, g, kind) for i in (0, 1)]
    if kind == "cls only":
        return cls
    if kind == "swapped":
        cls = cls[::-1]
    patches = [x[:, 1:] for x in xs]
    if kind == "patches too":
        patches = [g[i](f[i](patches[i])) for i in (0, 1)]
    if kind == "other's patches":
        patches = patches[::-1]
    return [torch.cat([cls[i], patches[i]], dim=1) for i in (0, 1)]


_CAUSES = {
    "outer residual": (
        "a residual around the whole exchange; the new [CLS] is g(y) alone, the residual is"
        " inside, in y"
    ),
    "residual of c": "c is added once more after g; it is already in y",
    "residual twice": (
        "the residual is there twice: visit returns y = c + ..., and c was added again"
    ),
    "unprojected": "the [CLS] is not projected: c = f(x_cls)",
    "no g": "the [CLS] is not projected back: g(y)",
    "other's f": "f[i] belongs to branch i's own [CLS]: it takes it to the other width",
    "own patches": "each [CLS] visits its own patches; it has to visit the other branch's",
    "with its cls": (
        "the other branch's [CLS] is among the visited tokens; only its patches are:"
        " xs[1 - i][:, 1:]"
    ),
    "patches too": "the patch tokens went through f and g; they leave as they came",
    "other's patches": (
        "the patch tokens have changed branches; only the [CLS] travels, and it comes home"
    ),
    "cls only": "only the [CLS] came back; each branch is [g(y); its own patch tokens]",
    "swapped": "the two new [CLS] tokens ended up in each other's branch",
}


def _visit(i, width, mix):
    """A visit that adds a mean of what it sees, and names what does not fit."""

    def visit(c, patches):
        if c.ndim != 3:
            raise Wrong(
                f"visit[{i}] got a [CLS] of shape {tuple(c.shape)}; it takes (B, 1, D):"
                " xs[i][:, 0] loses the token axis, xs[i][:, :1] keeps it"
            )
        if c.shape[-1] != width or patches.shape[-1] != width:
            raise Wrong(
                f"visit[{i}] got a [CLS] of width {c.shape[-1]} and patches of width"
                f" {patches.shape[-1]}; it works in width {width}, that of the other branch:"
                f" f[{i}] takes the [CLS] there"
            )
        seen = mix(torch.cat([c, patches], dim=1)).mean(dim=1, keepdim=True)
        return c + torch.tanh(seen)

    return visit


def _toy(dims):
    """Two sequences and the modules of an exchange between the widths `dims`."""
    sizes = zip((9, 4), dims, strict=True)
    xs = [_random(2, 1 + n, d, seed=n) for n, d in sizes]
    f = [_project(dims[i], dims[1 - i], 20 + 5 * i) for i in (0, 1)]
    g = [_project(dims[1 - i], dims[i], 40 + 5 * i) for i in (0, 1)]
    mix = [_linear(dims[1 - i], dims[1 - i], 60 + 5 * i) for i in (0, 1)]
    return xs, f, [_visit(i, dims[1 - i], mix[i]) for i in (0, 1)], g


@check("crossvit.exchange", reference=exchange)
def _(fn):
    # equal widths first: there a mistake in the flow has a value to be known by
    for dims in ((8, 8), (8, 12)):
        args = _toy(dims)
        xs = args[0]
        causes = {}
        if dims[0] == dims[1]:
            causes = {_CAUSES[kind]: _exchange_variant(*args, kind) for kind in _CAUSES}
        got = fn(*args)
        got = list(got) if isinstance(got, tuple) else got
        expect(got, exchange(*args), what=f"the branches of widths {dims}", mistakes=causes)
        for i in (0, 1):
            if not torch.equal(got[i][:, 1:], xs[i][:, 1:]):
                raise Wrong(
                    f"the patch tokens of branch {i} have changed; they leave bit for bit as they"
                    " came"
                )
