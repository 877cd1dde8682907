"""Exercises on Split Matching: seeds of the clusters, and the two matchings."""

import torch

from vtlib.segmentation.matching import assign
from vtlib.teach.exercises import check, expect


# ------------------------------------------------------------------------------------------- seeds
def seeds(features, window):
    """features (h, w, D), window s -> means (n, D) of the windows at 0, s/2, s ..., row by row."""
    return _seeds(features, window)


def _seeds(features, window, step=None, last=True, order="rows", pool="mean"):
    """`seeds`, or with one thing done differently."""
    height, width, _ = features.shape
    step = step or window // 2
    stop = 1 if last else 0
    rows, cols = (range(0, side - window + stop, step) for side in (height, width))
    if order == "columns":
        places = [(i, j) for j in cols for i in rows]
    else:
        places = [(i, j) for i in rows for j in cols]
    parts = [features[i : i + window, j : j + window].flatten(0, 1) for i, j in places]
    made = {"mean": lambda x: x.mean(0), "max": lambda x: x.amax(0), "sum": lambda x: x.sum(0)}
    return torch.stack([made[pool](part) for part in parts])


def _seed_causes(features, window):
    def other(**change):
        return lambda: _seeds(features, window, **change)

    return {
        "windows step by their whole width: the step is half of it": other(step=window),
        "windows move one place at a time: the step is half a window": other(step=1),
        "the last window is missing: it may end exactly at the edge, so range stops at "
        "side - window + 1": other(last=False),
        "windows come column by column: row by row": other(order="columns"),
        "the largest value of a window: its mean": other(pool="max"),
        "the sum of a window: its mean": other(pool="sum"),
    }


@check("split_matching.seeds", reference=seeds)
def _(fn):
    generator = torch.Generator().manual_seed(0)
    for height, width, window in ((8, 12, 4), (6, 4, 2)):
        x = torch.randn(height, width, 3, generator=generator, dtype=torch.float64)
        what = f"the seeds of windows of {window}"
        expect(fn(x, window), seeds(x, window), what=what, mistakes=_seed_causes(x, window))


# ----------------------------------------------------------------------------------- two matchings
def split_pairs(cost_seen, cost_candidates):
    """Costs (Q_s, T) and (Q_c, U) -> [(query, target)], numbered among all, seen first."""
    return _pairs(cost_seen, cost_candidates)


def _offset(cost, queries=0, targets=0):
    return [(q + queries, t + targets) for q, t in zip(*(x.tolist() for x in assign(cost)),
                                                       strict=True)]


def _pairs(cost_seen, cost_candidates):
    shift = cost_seen.shape
    return _offset(cost_seen) + _offset(cost_candidates, *shift)


def _one(cost_seen, cost_candidates):
    """One matching among all: pairs across the groups are dear, but as good as any other."""
    first, labels = cost_seen.shape
    whole = torch.full((first + len(cost_candidates), labels + cost_candidates.shape[1]), 1.0)
    whole[:first, :labels], whole[first:, labels:] = cost_seen, cost_candidates
    return _offset(whole.to(cost_seen.dtype))


def _greedy(cost_seen, cost_candidates):
    """Each target takes its cheapest query, whoever had it."""
    found = []
    for cost, (query, target) in ((cost_seen, (0, 0)), (cost_candidates, cost_seen.shape)):
        best = cost.argmin(0).tolist() if len(cost) else []
        found += [(q + query, t + target) for t, q in enumerate(best)]
    return found


@check("split_matching.split_pairs", reference=split_pairs)
def _(fn):
    generator = torch.Generator().manual_seed(3)
    for sizes in ((3, 2, 2, 4), (4, 1, 3, 2), (2, 3, 3, 3)):
        first, labels, others, pseudo = sizes
        costs = [5 * torch.rand(*shape, generator=generator, dtype=torch.float64)
                 for shape in ((first, labels), (others, pseudo))]
        got = fn(*(cost.clone() for cost in costs))
        causes = {
            "the second matching's queries are numbered from 0: add the number of seen queries":
                lambda c=costs: _offset(c[0]) + _offset(c[1], 0, c[0].shape[1]),
            "the second matching's targets are numbered from 0: add the number of labelled masks":
                lambda c=costs: _offset(c[0]) + _offset(c[1], len(c[0]), 0),
            "neither number of the second matching is shifted":
                lambda c=costs: _offset(c[0]) + _offset(c[1]),
            "candidates come first: seen queries do":
                lambda c=costs: _offset(c[1], *c[0].shape) + _offset(c[0]),
            "a pair is (target, query): (query, target)":
                lambda c=costs: [(t, q) for q, t in _pairs(*c)],
            "one matching over all queries and targets: two, each within its group":
                lambda c=costs: _one(*c),
            "each target takes its cheapest query, so that a query may serve twice: call assign":
                lambda c=costs: _greedy(*c),
        }
        expect(as_rows(got), as_rows(split_pairs(*costs)), what="the pairs",
               mistakes={why: (lambda v=value: as_rows(v())) for why, value in causes.items()})


def as_rows(pairs):
    """Pairs as (n, 2) int64; anything else as it is."""
    if not isinstance(pairs, (list, tuple)):
        return pairs
    return torch.tensor([[int(q), int(t)] for q, t in pairs]).reshape(-1, 2)
