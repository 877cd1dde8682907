"""Exercises on judging a tokenizer: PSNR, a Frechet distance in one dimension, edits, bins."""

import math

import torch

from vtlib.teach.exercises import check, expect
from vtlib.tokenizers import measures, tokbench

# --------------------------------------------------------------------------------------------- PSNR


def decibels(got, want):
    """got and want (B, 3, H, W) in [0, 1] -> PSNR of each picture, (B,)."""
    return -10 * (got - want).square().mean(dim=(1, 2, 3)).log10()


def _decibel_causes(got, want):
    error = (got - want).square()
    each = error.mean(dim=(1, 2, 3))
    return {
        "one number for the whole batch: take the mean over axes 1, 2 and 3, not over the"
        " pictures": -10 * error.mean().log10(),
        "the root of the error was taken: then it is 20 log10; of the squares it is 10":
            -10 * each.sqrt().log10(),
        "the sign: a small error is many decibels": 10 * each.log10(),
        "the natural logarithm; decibels take log10": -10 * each.log(),
        "the squares are summed; PSNR takes their mean": -10 * error.sum(dim=(1, 2, 3)).log10(),
        "20 log10 belongs to the root of the mean square; here it is 10": -20 * each.log10(),
        "absolute differences; PSNR takes squares":
            -10 * (got - want).abs().mean(dim=(1, 2, 3)).log10(),
    }


@check("tokbench.decibels", reference=decibels)
def _(fn):
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 3, 8, 8), (2, 3, 6, 10)):
        got, want = (torch.rand(shape, generator=generator) for _ in range(2))
        causes = _decibel_causes(got, want)
        expect(fn(got, want), decibels(got, want), what="the decibels", mistakes=causes)
        expect(fn(got, want), measures.psnr(got, want), what="the decibels")


# ------------------------------------------------------------------------------ Frechet, one number


def frechet_1d(x, y):
    """x (N,), y (M,) -> (difference of means)^2 + (difference of standard deviations)^2."""
    return (x.mean() - y.mean()).square() + (x.std() - y.std()).square()


def _frechet_causes(x, y):
    means = (x.mean() - y.mean()).square()
    return {
        "variances were compared; of one number it is the standard deviations":
            means + (x.var() - y.var()).square(),
        "the means alone; the spread counts too": means,
        "the spread alone; the means count too": (x.std() - y.std()).square(),
        "the differences are not squared": (x.mean() - y.mean()) + (x.std() - y.std()),
        "the absolute differences; both are squared":
            (x.mean() - y.mean()).abs() + (x.std() - y.std()).abs(),
        "the root of the sum: the Frechet distance of FID is left squared":
            (means + (x.std() - y.std()).square()).sqrt(),
        "the deviations are those of the sample itself, over N; here they are over N - 1, torch's"
        " std() as it is": means + (x.std(correction=0) - y.std(correction=0)).square(),
    }


@check("tokbench.frechet_1d", reference=frechet_1d)
def _(fn):
    generator = torch.Generator().manual_seed(1)
    for n, m, wide in ((6, 9, 3.0), (12, 5, 0.4)):
        x = torch.randn(n, generator=generator)
        y = 1 + wide * torch.randn(m, generator=generator)
        got, want = fn(x, y), frechet_1d(x, y)
        expect(got, want, what="the distance", mistakes=_frechet_causes(x, y))
        expect(fn(x, x), torch.tensor(0.0), what="the distance of a set to itself", atol=1e-6)


# -------------------------------------------------------------------------------------------- edits


def edit_distance(written, read):
    """Fewest letters to insert, delete or replace until `read` is `written`."""
    return tokbench.edit_distance(written, read)


def _edits(a, b, replace):
    """`edit_distance` where replacing a letter has another price."""
    above = list(range(len(b) + 1))
    for i, letter in enumerate(a, start=1):
        row = [i]
        for j, other in enumerate(b, start=1):
            swapped = above[j - 1] + replace * (letter != other)
            row.append(min(swapped, above[j] + 1, row[j - 1] + 1))
        above = row
    return above[-1]


def _edit_causes(a, b):
    strangers = sum(x != y for x, y in zip(a, b, strict=False))
    return {
        "letters were compared place by place: one missing letter then shifts all behind it":
            strangers + abs(len(a) - len(b)),
        "letters were compared place by place, and what sticks out does not count": strangers,
        "to replace a letter costs 1, not 2: the third way comes from above left, plus 1":
            _edits(a, b, replace=2),
        "the third way is missing, from above left: a letter that is kept, or replaced":
            len(a) + len(b),
        "replacing always costs 1; where the letters are equal it costs nothing":
            _always(a, b),
        "upper and lower case were taken for equal; they differ":
            tokbench.edit_distance(a.lower(), b.lower()),
        "the difference of lengths alone": abs(len(a) - len(b)),
        "this is the similarity, not the number of edits":
            1 - tokbench.edit_distance(a, b) / max(len(a), len(b), 1),
    }


def _always(a, b):
    above = list(range(len(b) + 1))
    for i in range(1, len(a) + 1):
        row = [i]
        for j in range(1, len(b) + 1):
            row.append(min(above[j - 1] + 1, above[j] + 1, row[j - 1] + 1))
        above = row
    return above[-1]


@check("tokbench.edit_distance", reference=edit_distance)
def _(fn):
    pairs = (("speed", "sped"), ("GARDEN", "GAADEN"), ("HOTEL", "OTELO"), ("Stop", "stop"),
             ("kitten", "sitting"), ("EXIT", ""), ("", "ab"), ("ZOO", "ZOO"))  # fmt: skip
    for pair in pairs:
        want, causes = tokbench.edit_distance(*pair), _edit_causes(*pair)
        what = f"the edits from {pair[1]!r} to {pair[0]!r}"
        expect(fn(*pair), want, what=what, mistakes=causes)


# --------------------------------------------------------------------------------------------- bins


def by_size(values, sizes, edges):
    """values (N,), sizes (N,), K + 1 edges -> (mean of each bin (K,), mean over the bins)."""
    score = tokbench.binned(values, sizes, edges)
    return score.bins.to(values), values.new_tensor(score.mean)


def _bins(values, sizes, edges, inside=None, mean=None, empty=math.nan):
    """`by_size` with one thing done differently."""
    inside = inside or (lambda low, high: (sizes >= low) & (sizes < high))
    rows = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        part = values[inside(low, high)]
        rows.append(part.mean() if len(part) else values.new_tensor(empty))
    rows = torch.stack(rows)
    return rows, rows.nanmean() if mean is None else mean(rows)


def _bin_causes(values, sizes, edges):
    def variant(**changed):
        return lambda: _bins(values, sizes, edges, **changed)

    ends = (sizes >= edges[0]) & (sizes < edges[-1])
    return {
        "the mean is that of all words; each bin counts the same, however many are in it":
            variant(mean=lambda rows: values.mean()),
        "the mean is that of all words in a bin; each bin counts the same":
            variant(mean=lambda rows: values[ends].mean()),
        "the upper edge belongs to the bin; a bin is from low up to, and without, high":
            variant(inside=lambda low, high: (sizes > low) & (sizes <= high)),
        "both edges belong to the bin; a bin is from low up to, and without, high":
            variant(inside=lambda low, high: (sizes >= low) & (sizes <= high)),
        "no edge belongs to the bin; its lower one does":
            variant(inside=lambda low, high: (sizes > low) & (sizes < high)),
        "an empty bin counts as 0: it says nothing, so leave it out (NaN, and nanmean)":
            variant(empty=0.0),
        "an empty bin makes the mean NaN: leave it out (nanmean)":
            variant(mean=lambda rows: rows.mean()),
        "the upper edge is not looked at: each bin holds all larger words, too":
            variant(inside=lambda low, high: sizes >= low),
    }


@check("tokbench.by_size", reference=by_size)
def _(fn):
    generator = torch.Generator().manual_seed(2)
    values = torch.rand(12, generator=generator).double()
    sizes = [0.01, 0.02, 0.021, 0.022, 0.029, 0.03, 0.035, 0.04, 0.5, 0.9, 1, 1.2]
    sizes = torch.tensor(sizes, dtype=torch.float64)
    for edges in ((0.02, 0.03, 0.04, 1.0), (0.02, 0.04, 0.1, 0.2, 1.0), (0.029, 0.03, 0.6)):
        got, want = fn(values, sizes, edges), by_size(values, sizes, edges)
        causes = _bin_causes(values, sizes, edges)
        expect(got, want, what=f"the bins of {edges}, and their mean", mistakes=causes)
    got, want = fn(values[:5], sizes[:5], edges), by_size(values[:5], sizes[:5], edges)
    expect(got, want, what="few words: bins and mean")
