"""Exercises on AIM: one merging step before the decoder, page rank inside it."""

import torch
import torch.nn.functional as F

from vtlib.pruning import aim
from vtlib.teach.exercises import check, expect

# ------------------------------------------------------------------------------------- merge step


def merge_step(x, r):
    """One of AIM's merging steps for one picture: x (N, D) -> (N - r, D).

    The other even tokens come first, then the odd ones.
    """
    return aim.merge_step(x[None], r).apply(x[None])[0]


def _targets(odd, even, target, gone, mean):
    """The odd tokens with what was merged into them."""
    out = torch.zeros_like(odd) if mean == "sources" else odd.clone()
    for i in gone.tolist():
        total = out[target[i]] + even[i]
        out[target[i]] = total / 2 if mean == "pairs" else total
    count = torch.bincount(target[gone], minlength=len(odd))[:, None]
    if mean == "all":
        return out / (count + 1)
    if mean == "sources":
        return torch.where(count > 0, out / count.clamp(min=1), odd)
    return out


def _merge(x, r, falling=True, mean="all", first="rest", cosine=True, flip=False):
    """`merge_step` with one thing done differently."""
    even, odd = (x[1::2], x[0::2]) if flip else (x[0::2], x[1::2])
    unit = F.normalize(even, dim=-1), F.normalize(odd, dim=-1)
    similarity = unit[0] @ unit[1].T if cosine else even @ odd.T
    best, target = similarity.max(dim=1)
    ranking = best.argsort(descending=falling, stable=True)
    gone, rest = ranking[:r], ranking[r:]
    if first == "raster":
        rest = rest.sort().values
    merged = _targets(odd, even, target, gone, mean)
    return torch.cat([merged, even[rest]] if first == "odd" else [even[rest], merged])


def _merge_causes(x, r):
    def variant(**changed):
        return lambda: _merge(x, r, **changed)

    return {
        "the r worst matches were merged: sort by falling similarity": variant(falling=False),
        "the mean was taken pair by pair, so that the last one merged counts half: add all up,"
        " divide once": variant(mean="pairs"),
        "sums, not means": variant(mean="sum"),
        "the target itself is missing in the mean: b_j and all that chose it":
            variant(mean="sources"),
        "the tokens that were not merged are in raster order; AIM leaves them by falling"
        " similarity": variant(first="raster"),
        "the odd tokens come first; the rest of the even ones leads": variant(first="odd"),
        "the dot product decided: similarity is the cosine": variant(cosine=False),
        "the odd tokens were merged into the even ones; it is the other way round":
            variant(flip=True),
    }


@check("aim.merge_step", reference=merge_step)
def _(fn):
    for r in (4, 2):
        centre = torch.randn(4, 6)
        # 11 tokens, four look-alike groups; three even tokens choose token 1
        near = torch.tensor([1, 1, 1, 5, 1, 5, 5, 5, 5, 5, 5])[:, None] / 10
        x = centre[[0, 0, 0, 1, 0, 2, 1, 3, 2, 3, 3]] + near * torch.randn(11, 6)
        x = x * (0.5 + torch.rand(11, 1))
        got, causes = fn(x, r), _merge_causes(x, r)
        expect(got, merge_step(x, r), what=f"the merged tokens with r={r}", mistakes=causes)
    what = "the shape with r=0 (nothing is merged)"
    expect(fn(x, 0).shape, merge_step(x, 0).shape, what=what)


# -------------------------------------------------------------------------------------- page rank


def page_rank(logits, tau, iterations):
    """Importance of each token: logits (heads, S, S), -inf where a query must not look -> (S,)."""
    return aim.page_rank(logits[None], tau, iterations)[0]


def _rank(flow, steps, start=None, mean=False, back=False):
    """`page_rank` from the weights, with one thing done differently."""
    size = flow.shape[-1]
    mass = torch.full_like(flow[:, :1], 1 / size if start is None else start)
    for _ in range(steps):
        mass = (flow @ mass.mT).mT if back else mass @ flow
    mass = mass[:, 0]
    return mass.mean(dim=0) if mean else mass.square().mean(dim=0).sqrt()


def _rank_causes(logits, tau, iterations):
    flow = (logits / tau).softmax(dim=-1)
    return {
        "all stays at 1/S: a query shares out its mass among its keys. The softmax runs over keys"
        " (dim=-1), and s @ M, a row times a matrix, sends mass from queries to keys; M @ s goes"
        " against the arrows": _rank(flow, iterations, back=True),
        "tau multiplies the logits; it divides them, so that a small tau sharpens":
            _rank((logits * tau).softmax(dim=-1), iterations),
        "tau was not used": _rank(logits.softmax(dim=-1), iterations),
        "heads were averaged; AIM takes the root of their mean square":
            _rank(flow, iterations, mean=True),
        "the mass starts at 1 instead of 1/S": _rank(flow, iterations, start=1.0),
        "only one iteration: that is the mean attention received": _rank(flow, 1),
        "one iteration too many": _rank(flow, iterations + 1),
        "one iteration too few": _rank(flow, iterations - 1),
    }


@check("aim.page_rank", reference=page_rank)
def _(fn):
    for size, tau, iterations in ((6, 0.5, 3), (5, 2.0, 2)):
        later = torch.ones(size, size).triu(1).bool()
        logits = torch.randn(3, size, size).masked_fill(later, -torch.inf)
        args = (logits, tau, iterations)
        what = f"the page rank with tau={tau}, {iterations} iterations"
        expect(fn(*args), page_rank(*args), what=what, mistakes=_rank_causes(*args))
