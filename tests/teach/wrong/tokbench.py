"""Plausible wrong answers to the exercises of notebook 04, with what the check must say."""

from tests.teach.slips import slips

DECIBELS = '''
def decibels(got, want):
    error = (got - want).square().mean(dim=(1, 2, 3))
    return -10 * error.log10()
'''

FRECHET = '''
def frechet_1d(x, y):
    means = (x.mean() - y.mean()) ** 2
    spreads = (x.std() - y.std()) ** 2
    return means + spreads
'''

EDITS = '''
def edit_distance(written, read):
    above = list(range(len(read) + 1))
    for i, letter in enumerate(written, start=1):
        row = [i]
        for j, other in enumerate(read, start=1):
            swapped = above[j - 1] + (letter != other)
            row.append(min(swapped, above[j] + 1, row[j - 1] + 1))
        above = row
    return above[-1]
'''

BINS = '''
import torch
def by_size(values, sizes, edges):
    means = []
    for low, high in zip(edges[:-1], edges[1:]):
        inside = (sizes >= low) & (sizes < high)
        means.append(values[inside].mean())
    means = torch.stack(means)
    return means, means.nanmean()
'''

WRONG = {
    "tokbench.decibels": slips(
        DECIBELS,
        ("whole batch", ".mean(dim=(1, 2, 3))", ".mean()", "whole batch"),
        ("root", "error.log10()", "error.sqrt().log10()", "root of the error"),
        ("sign", "-10 *", "10 *", "a small error is many decibels"),
        ("natural", "log10", "log", "natural logarithm"),
        ("sum", ".mean(dim", ".sum(dim", "squares are summed"),
        ("absolute", ".square()", ".abs()", "absolute differences"),
    ),
    "tokbench.frechet_1d": slips(
        FRECHET,
        ("variances", "(x.std() - y.std())", "(x.var() - y.var())", "variances were compared"),
        ("means alone", "means + spreads", "means", "the spread counts too"),
        ("root", "means + spreads", "(means + spreads).sqrt()", "left squared"),
        (
            "over N",
            "(x.std() - y.std())",
            "(x.std(correction=0) - y.std(correction=0))",
            "over N - 1",
        ),
        ("spread alone", "means + spreads", "spreads", "the means count too"),
    ),
    "tokbench.edit_distance": [
        (
            "place by place",
            "def edit_distance(written, read):\n"
            "    apart = sum(a != b for a, b in zip(written, read))\n"
            "    return apart + abs(len(written) - len(read))\n",
            "place by place",
        ),
        *slips(
            EDITS,
            ("dear", "(letter != other)", "2 * (letter != other)", "costs 1, not 2"),
            ("no replacing", "min(swapped, above[j]", "min(above[j]", "third way"),
            ("always one", "(letter != other)", "1", "it costs nothing"),
            ("similarity", "return above[-1]",
             "return 1 - above[-1] / max(len(written), len(read), 1)", "the similarity"),
            ("caseless", "(letter != other)", "(letter.lower() != other.lower())", "case"),
        ),
    ],
    "tokbench.by_size": slips(
        BINS,
        ("pooled", "means.nanmean()", "values.mean()", "each bin counts the same"),
        ("upper edge", "(sizes >= low) & (sizes < high)", "(sizes > low) & (sizes <= high)",
         "upper edge belongs"),
        ("both edges", "sizes < high", "sizes <= high", "both edges"),
        ("empty is NaN", "nanmean", "mean", "makes the mean NaN"),
        ("empty is 0", "torch.stack(means)", "torch.stack(means).nan_to_num()",
         "counts as 0"),
        ("no upper edge", "(sizes >= low) & (sizes < high)", "sizes >= low", "not looked at"),
    ),
}
