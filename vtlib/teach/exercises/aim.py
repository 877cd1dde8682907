"""Exercises on AIM: one merging step before the decoder, page rank inside it."""

import torch
import torch.nn.functional as F

from vtlib.pruning import aim
from vtlib.teach.exercises import check, expect, untouched


def merge_step(x, r):
    """One of AIM's merging steps for one picture: x (N, D) -> (N - r, D), the other even tokens first, then the odd ones."""
    return aim.merge_step(x[None], r).apply(x[None])[0]


def _merge(x, r, order="falling", mean="all", first="rest", cosine=True, flip=False):
    """merge_step with one mistake."""
    a, b = (x[1::2], x[0::2]) if flip else (x[0::2], x[1::2])
    similarity = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T if cosine else a @ b.T
    best, target = similarity.max(dim=1)
    ranking = best.argsort(descending=order != "rising", stable=True)
    gone, rest = ranking[:r], ranking[r:]
    if first == "raster":
        rest = rest.sort().values
    out = torch.zeros_like(b) if mean == "sources" else b.clone()
    for i in gone.tolist():
        out[target[i]] = (out[target[i]] + a[i]) / 2 if mean == "pairs" else out[target[i]] + a[i]
    count = torch.bincount(target[gone], minlength=len(b))[:, None]
    if mean == "all":
        out = out / (count + 1)
    if mean == "sources":
        out = torch.where(count > 0, out / count.clamp(min=1), b)
    return torch.cat([out, a[rest]] if first == "odd" else [a[rest], out])


@check("aim.merge_step", reference=merge_step)
def _(fn):
    centre = torch.randn(4, 6)
    near = torch.tensor([1, 1, 1, 5, 1, 5, 5, 5, 5, 5, 5])[:, None] / 10                     # three even tokens choose token 1
    x = centre[[0, 0, 0, 1, 0, 2, 1, 3, 2, 3, 3]] + near * torch.randn(11, 6)                # 11 tokens, four look-alike groups
    x = x * (0.5 + torch.rand(11, 1))
    for r in (4, 2):
        with untouched(x):
            got = fn(x, r)
        expect(got, merge_step(x, r), what=f"the merged tokens with r={r}", mistakes={
            "the r worst matches were merged: sort by falling similarity": lambda: _merge(x, r, order="rising"),
            "the mean was taken pair by pair, so that the last one merged counts half: add all up, divide once": lambda: _merge(x, r, mean="pairs"),
            "sums, not means": lambda: _merge(x, r, mean="sum"),
            "the target itself is missing in the mean: b_j and all that chose it": lambda: _merge(x, r, mean="sources"),
            "the tokens that were not merged are in raster order; AIM leaves them by falling similarity": lambda: _merge(x, r, first="raster"),
            "the odd tokens come first; the rest of the even ones leads": lambda: _merge(x, r, first="odd"),
            "the dot product decided: similarity is the cosine": lambda: _merge(x, r, cosine=False),
            "the odd tokens were merged into the even ones; it is the other way round": lambda: _merge(x, r, flip=True)})
    expect(fn(x, 0).shape, merge_step(x, 0).shape, what="the shape with r=0 (nothing is merged)")


def page_rank(logits, tau, iterations):
    """Importance of each token: logits (heads, S, S), -inf where a query must not look -> (S,)."""
    return aim.page_rank(logits[None], tau, iterations)[0]


@check("aim.page_rank", reference=page_rank)
def _(fn):
    s, tau, iterations = 6, 0.5, 3
    later = torch.ones(s, s).triu(1).bool()
    logits = torch.randn(3, s, s).masked_fill(later, -torch.inf)

    def rank(flow, start=1 / s, steps=iterations, heads="rms", back=False):
        mass = torch.full((3, 1, s), start)
        for _ in range(steps):
            mass = (flow @ mass.mT).mT if back else mass @ flow
        mass = mass[:, 0]
        return mass.square().mean(0).sqrt() if heads == "rms" else mass.mean(0)

    flow = (logits / tau).softmax(-1)
    with untouched(logits):
        got = fn(logits, tau, iterations)
    expect(got, page_rank(logits, tau, iterations), what="the page rank", mistakes={
        "all stays at 1/S: a query shares out its mass among its keys. The softmax runs over keys (dim=-1), and s @ M, a row times a matrix, "
        "sends mass from queries to keys; M @ s goes against the arrows": rank(flow, back=True),
        "tau multiplies the logits; it divides them, so that a small tau sharpens": rank((logits * tau).softmax(-1)),
        "tau was not used": rank(logits.softmax(-1)),
        "heads were averaged; AIM takes the root of their mean square": rank(flow, heads="mean"),
        "the mass starts at 1 instead of 1/S": rank(flow, start=1.0),
        "only one iteration: that is the mean attention received": rank(flow, steps=1),
        "one iteration too many": rank(flow, steps=iterations + 1),
        "one iteration too few": rank(flow, steps=iterations - 1)})
