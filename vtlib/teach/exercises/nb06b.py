"""Exercises of notebook 06b: matching on a complete graph, outliers on a line, and recovery by the question."""

import torch
import torch.nn.functional as F

from vtlib.pruning import recoverable
from vtlib.teach.exercises import check, expect, untouched

# ---------------------------------------------------------------------------------------------------------------------- match


def match(similarity, importance, r):
    """CrossGET's complete-graph matching: similarity (t, t), -inf on the diagonal; importance (t,) -> source, target, each (r,)."""
    return _match(similarity, importance, r)


def _match(similarity, importance, r, mask="rank", score="difference", among="receivers", pick="small"):
    t = len(similarity)
    best = similarity.amax(dim=1)
    order = best.argsort(descending=mask != "rising", stable=True)
    rank = order if mask == "once" else order.argsort()
    later = rank[None, :] > rank[:, None]
    if mask == "place":
        later = torch.ones(t, t).triu(1).bool()
    seen = similarity if mask == "none" else similarity.masked_fill(~later, -torch.inf)
    redundancy = seen.amax(dim=1)
    value = {"difference": importance - redundancy, "sum": -importance - redundancy, "alone": -redundancy}[score]
    source = value.argsort(descending=pick == "large", stable=True)[:r]
    receives = torch.ones(t, dtype=torch.bool).scatter(0, source, False)
    allowed = {"receivers": receives.expand(t, t), "all": torch.ones(t, t).bool(), "later": later & receives}[among]
    return source, similarity.masked_fill(~allowed, -torch.inf)[source].argmax(dim=1)


@check("06b.match", reference=match)
def _(fn):
    for t, r in ((24, 10), (12, 5)):
        group = torch.randn(t // 4, 5)
        x = F.normalize(group.repeat(4, 1) + 0.3 * torch.randn(t, 5), dim=-1)[torch.randperm(t)]                    # mutual pairs, and chains
        half = (x @ x.T).triu(1)
        similarity = (half + half.T).fill_diagonal_(-torch.inf)
        importance = 0.3 * torch.rand(t)
        with untouched(similarity, importance):
            got = fn(similarity, importance, r)
        want = match(similarity, importance, r)
        expect(got, want, what=f"(source, target) of {t} tokens, r={r}", mistakes={
            "every token looks at every other: then both halves of a pair want to leave. Mask the ranks before its own":
                lambda: _match(similarity, importance, r, mask="none"),
            "the mask follows the place in the sequence; it follows the rank by largest similarity":
                lambda: _match(similarity, importance, r, mask="place"),
            "argsort once gives which token has rank 0, 1, ...; the rank of each token is argsort of that": lambda: _match(similarity, importance, r, mask="once"),
            "ranks by rising similarity: rank 0 is the token with the LARGEST maximum": lambda: _match(similarity, importance, r, mask="rising"),
            "importance has the wrong sign: an important token is to stay, and the r SMALLEST scores leave": lambda: _match(similarity, importance, r, score="sum"),
            "importance plays no part: the score is importance - redundancy": lambda: _match(similarity, importance, r, score="alone"),
            "the r largest scores leave; the smallest have to": lambda: _match(similarity, importance, r, pick="large"),
            "a target may not be a source itself: mask the sources before the argmax": lambda: _match(similarity, importance, r, among="all"),
            "the target is looked for among later ranks only; the release takes the most similar of ALL tokens that are no source":
                lambda: _match(similarity, importance, r, among="later")})


# -------------------------------------------------------------------------------------------------------- local outlier factor


def outlier_factor(x, k):
    """Local outlier factor of numbers on a line: x (N,), k neighbours -> (N,)."""
    return recoverable.local_outlier_factor(x[None], k)[0]


def _lof(x, k, itself=False, reach="max", ratio="right", density="inverse"):
    distance = (x[:, None] - x).abs()
    if not itself:
        distance = distance.fill_diagonal_(torch.inf)
    near = distance.topk(k, largest=False)
    if reach == "max":
        reached = torch.maximum(near.values, near.values[near.indices, -1])
    else:
        reached = near.values if reach == "plain" else torch.maximum(near.values, near.values[:, -1:])
    dense = reached.mean(dim=1) if density == "distance" else 1 / (reached.mean(dim=1) + 1e-10)
    around = dense[near.indices].mean(dim=1)
    return {"right": around / dense, "inverted": dense / around, "none": dense}[ratio]


@check("06b.outlier_factor", reference=outlier_factor)
def _(fn):
    hand = torch.tensor([0.0, 1.0, 3.0, 9.0])
    ten = torch.cat([torch.rand(9), torch.tensor([4.0])])
    for what, x, k in (("0, 1, 3, 9", hand, 2), ("ten numbers", ten, 3)):
        with untouched(x):
            got = fn(x, k)
        expect(got, outlier_factor(x, k), what=f"the factor of {what} with k={k}", rtol=1e-3, mistakes={
            "each number is its own nearest neighbour: put infinity on the diagonal first": lambda: _lof(x, k, itself=True),
            "the reach is missing: max(distance, how far the NEIGHBOUR's k-th neighbour is)": lambda: _lof(x, k, reach="plain"),
            "the reach of the number itself was taken; it is the neighbour's": lambda: _lof(x, k, reach="own"),
            "the ratio is upside down: how dense the neighbours are, divided by how dense it is here": lambda: _lof(x, k, ratio="inverted"),
            "this is the density; the factor compares it with the neighbours'": lambda: _lof(x, k, ratio="none"),
            "the mean distance was used as the density; density is one over it": lambda: _lof(x, k, density="distance")})


# -------------------------------------------------------------------------------------------------------------------- recover


def recover(visual, text, n_v, n_t):
    """Indices (n_v + n_t,), ascending: the n_v largest visual scores, and of the OTHERS the n_t largest text scores. visual, text (N,)."""
    first = visual.argsort(descending=True, stable=True)[:n_v]
    second = text.index_fill(0, first, -torch.inf).argsort(descending=True, stable=True)[:n_t]
    return torch.cat([first, second]).sort().values


@check("06b.recover", reference=recover)
def _(fn):
    visual = torch.rand(20)
    text = 0.4 * visual + 0.6 * torch.rand(20)                                              # what stands out often matches the question too
    n_v, n_t = 5, 4
    first, second = visual.topk(n_v).indices, text.topk(n_t).indices
    want = recover(visual, text, n_v, n_t)
    both = torch.cat([first, text.index_fill(0, first, -torch.inf).topk(n_t).indices])
    with untouched(visual, text):
        got = fn(visual, text, n_v, n_t)
    expect(got, want, what="the kept tokens", mistakes={
        "tokens come twice: the second filter chooses among those that the first one left": torch.cat([first, second]).sort().values,
        "the same tokens are counted in both filters, so fewer than n_v + n_t are left: the second filter chooses among the others":
            torch.cat([first, second]).unique(),
        "the tokens are not in their old order: sort the indices": both,
        "the question alone decided": text.topk(n_v + n_t).indices.sort().values,
        "the picture alone decided": visual.topk(n_v + n_t).indices.sort().values,
        "the two scores were added: each filter has its own score and its own number": (visual + text).topk(n_v + n_t).indices.sort().values,
        "the question went first": torch.cat([second, visual.index_fill(0, second, -torch.inf).topk(n_v).indices]).sort().values})
