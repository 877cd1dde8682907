"""Exercises on recoverable compression: outliers on a line, recovery by the question."""

import torch

from vtlib.pruning import recoverable
from vtlib.teach.exercises import check, expect, untouched


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


@check("recoverable.outlier_factor", reference=outlier_factor)
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


def recover(visual, text, n_v, n_t):
    """Indices (n_v + n_t,), ascending: the n_v largest visual scores, and of the OTHERS the n_t largest text scores. visual, text (N,)."""
    first = visual.argsort(descending=True, stable=True)[:n_v]
    second = text.index_fill(0, first, -torch.inf).argsort(descending=True, stable=True)[:n_t]
    return torch.cat([first, second]).sort().values


@check("recoverable.recover", reference=recover)
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
