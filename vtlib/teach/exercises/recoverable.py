"""Exercises on recoverable compression: outliers on a line, recovery by the question."""

import torch

from vtlib.pruning import recoverable
from vtlib.teach.exercises import check, expect

# ---------------------------------------------------------------------------- local outlier factor


def outlier_factor(x, k):
    """Local outlier factor of numbers on a line: x (N,), k neighbours -> (N,)."""
    return recoverable.local_outlier_factor(x[None], k)[0]


def _lof(x, k, itself=False, reach="neighbour", ratio="right", density="inverse"):
    """`outlier_factor` with one thing done differently."""
    distance = (x[:, None] - x).abs()
    if not itself:
        distance = distance.fill_diagonal_(torch.inf)
    near = distance.topk(k, largest=False)
    reached = {
        "neighbour": torch.maximum(near.values, near.values[near.indices, -1]),
        "plain": near.values,
        "own": torch.maximum(near.values, near.values[:, -1:]),
    }[reach].mean(dim=1)
    dense = reached if density == "distance" else 1 / (reached + 1e-10)
    around = dense[near.indices].mean(dim=1)
    return {"right": around / dense, "inverted": dense / around, "none": dense}[ratio]


def _lof_causes(x, k):
    def variant(**changed):
        return lambda: _lof(x, k, **changed)

    return {
        "each number is its own nearest neighbour: put infinity on the diagonal first":
            variant(itself=True),
        "the reach is missing: max(distance, how far the NEIGHBOUR's k-th neighbour is)":
            variant(reach="plain"),
        "the reach of the number itself was taken; it is the neighbour's": variant(reach="own"),
        "the ratio is upside down: how dense the neighbours are, divided by how dense it is here":
            variant(ratio="inverted"),
        "this is the density; the factor compares it with the neighbours'": variant(ratio="none"),
        "the mean distance was used as the density; density is one over it":
            variant(density="distance"),
    }


@check("recoverable.outlier_factor", reference=outlier_factor)
def _(fn):
    hand = torch.tensor([0.0, 1.0, 3.0, 9.0])
    ten = torch.cat([torch.rand(9), torch.tensor([4.0])])
    for name, x, k in (("0, 1, 3, 9", hand, 2), ("ten numbers", ten, 3)):
        what = f"the factor of {name} with k={k}"
        causes = _lof_causes(x, k)
        expect(fn(x, k), outlier_factor(x, k), what=what, rtol=1e-3, mistakes=causes)


# ---------------------------------------------------------------------------------------- recover


def recover(visual, text, n_v, n_t):
    """Indices (n_v + n_t,), ascending, from scores (N,).

    The n_v largest visual scores, and of the OTHERS the n_t largest text scores.
    """
    first, second = _filters(visual, text, n_v, n_t)
    return torch.cat([first, second]).sort().values


def _filters(visual, text, n_v, n_t):
    first = visual.argsort(descending=True, stable=True)[:n_v]
    others = text.index_fill(0, first, -torch.inf)
    return first, others.argsort(descending=True, stable=True)[:n_t]


def _recover_causes(visual, text, n_v, n_t):
    total = n_v + n_t
    first, second = visual.topk(n_v).indices, text.topk(n_t).indices
    lowest = text.index_fill(0, first, text.min().item()).argsort(descending=True, stable=True)
    twice = torch.cat([first, second])
    return {
        "tokens come twice: the second filter chooses among those that the first one left":
            twice.sort().values,
        "a kept token comes twice: it ties with the smallest text score; put -inf in its place":
            torch.cat([first, lowest[:n_t]]).sort().values,
        "the same tokens are counted in both filters, so fewer than n_v + n_t are left: the second"
        " filter chooses among the others": twice.unique(),
        "the tokens are not in their old order: sort the indices":
            torch.cat(_filters(visual, text, n_v, n_t)),
        "the question alone decided": text.topk(total).indices.sort().values,
        "the picture alone decided": visual.topk(total).indices.sort().values,
        "the two scores were added: each filter has its own score and its own number":
            (visual + text).topk(total).indices.sort().values,
        "the question went first": torch.cat(_filters(text, visual, n_t, n_v)).sort().values,
    }


@check("recoverable.recover", reference=recover)
def _(fn):
    cases = []
    for size, n_v, n_t in ((20, 5, 4), (12, 3, 5)):
        visual = torch.rand(size)
        text = 0.4 * visual + 0.6 * torch.rand(size)  # what stands out often matches, too
        cases.append((visual, text, n_v, n_t))
    falling = torch.linspace(1, 0, 8)
    cases.append((falling, falling, 3, 5))  # all others come back, the smallest score included
    for args in cases:
        what = f"the {args[2]} + {args[3]} kept tokens"
        expect(fn(*args), recover(*args), what=what, mistakes=_recover_causes(*args))
