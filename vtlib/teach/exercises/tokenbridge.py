"""Exercises on TokenBridge: the values of the bins, the nearest value, what the head reads."""

import math

import torch

from vtlib.quantize.dimwise import gaussian_bins
from vtlib.teach.exercises import check, expect

# --------------------------------------------------------------------------- the values of the bins


def _density(b):
    return torch.exp(-b.square() / 2) / math.sqrt(2 * math.pi)


def means(edges):
    """edges (B + 1,) of bins of N(0, 1) -> the mean (B,) of N(0, 1) in each bin."""
    below, density = torch.special.ndtr(edges), _density(edges)
    return (density[:-1] - density[1:]) / (below[1:] - below[:-1])


def _mean_causes(edges):
    density = _density(edges)
    gap = density[:-1] - density[1:]
    share = torch.special.ndtr(edges).diff()
    return {
        "the sign is flipped: the density at the LOWER edge comes first": -gap / share,
        "these are the middles of the bins; a Gaussian has more on the side towards 0":
            (edges[:-1] + edges[1:]) / 2,
        "the probability of the bin is missing, by which the difference is divided": gap,
        "multiplied by the bin's probability; divide by it": gap * share,
        "divided by 1 / B: the outermost bins are cut at the last edges, and hold less":
            gap * len(share),
        "Phi and phi are swapped: differences of the density stand on top, of Phi below":
            share / gap.where(gap != 0, torch.ones_like(gap)),
        "these are the means of the densities at both edges": (density[:-1] + density[1:]) / 2,
    }


@check("tokenbridge.means", reference=means)
def _(fn):
    for levels in (4, 9):
        edges = gaussian_bins(levels)[0]
        what = f"the values of {levels} bins"
        expect(fn(edges), means(edges), what=what, mistakes=_mean_causes(edges), atol=1e-7)


# ------------------------------------------------------------------------------- the nearest value


def quantise(x, means, limit):
    """x (...), means (B,) in deviations, range -limit ... limit -> indices (...), values (...)."""
    n = x / limit * 3
    indices = (n[..., None] - means).abs().argmin(dim=-1)
    return indices, means[indices] / 3 * limit


def _quantise_causes(x, means, limit):
    n, edges = x / limit * 3, gaussian_bins(len(means))[0].to(x.dtype)
    right, values = quantise(x, means, limit)
    own = torch.bucketize(n, edges[1:-1])

    def at(indices):
        return indices, means[indices] / 3 * limit

    def nearest(y):
        return (y[..., None] - means).abs().argmin(dim=-1)

    return {
        "the latents were not brought to -3 ... 3 before the search: x / limit * 3":
            at(nearest(x)),
        "scaled the wrong way round: x / limit * 3 lies in -3 ... 3": at(nearest(x * limit / 3)),
        "the values are still in deviations: bring them back, / 3 * limit":
            (right, means[right]),
        "the values were scaled the wrong way: / 3 * limit": (right, means[right] * 3 / limit),
        "this is the index of the bin that x lies in; TokenBridge takes the NEAREST value":
            at(own),
        "argmax finds the farthest value": at((n[..., None] - means).abs().argmax(dim=-1)),
        "without .abs() the most negative difference wins": at((n[..., None] - means).argmin(-1)),
        "indices and values are swapped": (values, right),
        "the range was taken as 5 whatever `limit` is":
            (quantise(x, means, 5.0)[0], quantise(x, means, 5.0)[1]),
    }


@check("tokenbridge.quantise", reference=quantise)
def _(fn):
    generator = torch.Generator().manual_seed(0)
    for shape, levels, limit in (((2, 3, 5), 4, 5.0), ((40, 2), 16, 4.0), ((200,), 8, 2.0)):
        x = 1.5 * torch.randn(shape, generator=generator)
        values = gaussian_bins(levels)[1].float()
        what = f"indices and values at {levels} levels, range {limit:g}"
        want = quantise(x, values, limit)
        expect(fn(x, values, limit), want, what, _quantise_causes(x, values, limit))


# ------------------------------------------------------------------------------ what the head reads


def head_inputs(first, tables, indices, order):
    """first (M, E), tables: C - 1 of (B, E), indices (M, C), order: C channels -> (M, C, E)."""
    row = [first]
    for table, channel in zip(tables, order, strict=False):
        row.append(table[indices[:, channel]])
    return torch.stack(row, dim=1)


def _with_order(first, tables, indices, order):
    return lambda: head_inputs(first, tables, indices, order)


def _by_channel(first, tables, indices, order):
    """The table of the channel's number, where there is one."""
    row = [tables[min(c, len(tables) - 1)][indices[:, c]] for c in order[:-1]]
    return torch.stack([first, *row], dim=1)


def _input_causes(first, tables, indices, order):
    inverse = [order.index(c) for c in range(len(order))]
    right = head_inputs(first, tables, indices, order)
    return {
        "the channels come in their own order; `order` says which is first":
            _with_order(first, tables, indices, list(range(len(order)))),
        "the order is inverted: step i reads channel order[i]":
            _with_order(first, tables, indices, inverse),
        "the tables belong to STEPS, not to channels: table i goes with channel order[i]":
            lambda: _by_channel(first, tables, indices, order),
        "one channel too late: entry i holds the channel of step i - 1, so the head would see"
        " nothing of it; the last channel is the one left out":
            _with_order(first, tables, indices, [*order[1:], order[0]]),
        "the context stands last; it comes first, before any channel is known":
            right.roll(-1, 1),
        "stacked on axis 0; the M positions come first": right.transpose(0, 1),
        "the context is added to each entry; it is the first entry alone":
            torch.cat([right[:, :1], right[:, 1:] + first[:, None]], dim=1),
    }


@check("tokenbridge.head_inputs", reference=head_inputs)
def _(fn):
    generator = torch.Generator().manual_seed(0)
    for order, levels, count in (([2, 0, 3, 1], 5, 6), ([1, 4, 0, 2, 3], 4, 3)):
        channels = len(order)
        first = torch.randn(count, 7, generator=generator)
        tables = [torch.randn(levels, 7, generator=generator) for _ in range(channels - 1)]
        indices = torch.randint(levels, (count, channels), generator=generator)
        args = (first, tables, indices, order)
        want = head_inputs(*args)
        expect(fn(*args), want, f"the sequence of {channels} entries", _input_causes(*args))
