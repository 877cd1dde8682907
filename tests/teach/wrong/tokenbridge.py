"""Plausible wrong answers to the TokenBridge exercises of notebook 02b."""

from tests.teach.slips import slips

MEANS = '''
import math
import torch
def means(edges):
    density = torch.exp(-edges**2 / 2) / math.sqrt(2 * math.pi)
    below = torch.special.ndtr(edges)
    return (density[:-1] - density[1:]) / (below[1:] - below[:-1])
'''
QUANTISE = '''
import torch
def quantise(x, means, limit):
    n = x / limit * 3
    indices = (n[..., None] - means).abs().argmin(dim=-1)
    return indices, means[indices] / 3 * limit
'''
INPUTS = '''
import torch
def head_inputs(first, tables, indices, order):
    row = [first]
    for step, table in enumerate(tables):
        row.append(table[indices[:, order[step]]])
    return torch.stack(row, dim=1)
'''
MIDDLES = "(edges[:-1] + edges[1:]) / 2"
RIGHT = "(density[:-1] - density[1:]) / (below[1:] - below[:-1])"

WRONG = {
    "tokenbridge.means": slips(
        MEANS,
        ("sign", "(density[:-1] - density[1:])", "(density[1:] - density[:-1])", "flipped"),
        ("middles", RIGHT, MIDDLES, "middles of the bins"),
        ("not divided", " / (below[1:] - below[:-1])", "", "probability of the bin is missing"),
        ("times B", " / (below[1:] - below[:-1])", " * (len(edges) - 1)", "1 / B"),
        ("multiplied", ") / (below", ") * (below", "divide by it"),
    ),
    "tokenbridge.quantise": slips(
        QUANTISE,
        ("not scaled", "n = x / limit * 3", "n = x", "not brought to"),
        ("wrong way", "n = x / limit * 3", "n = x * limit / 3", "wrong way round"),
        ("in deviations", "means[indices] / 3 * limit", "means[indices]", "still in deviations"),
        ("no abs", ".abs()", "", "without .abs()"),
        ("argmax", ".argmin(", ".argmax(", "farthest"),
        ("swapped", "return indices, means[indices] / 3 * limit",
         "return means[indices] / 3 * limit, indices", "swapped"),
    ),
    "tokenbridge.head_inputs": slips(
        INPUTS,
        ("own order", "order[step]", "step", "their own order"),
        ("inverted", "order[step]", "order.index(step)", "inverted"),
        ("one late", "order[step]", "order[step + 1]", "one channel too late"),
        ("axis", "dim=1", "dim=0", "axis 0"),
        ("context added", "order[step]]]", "order[step]]] + first", "added to each entry"),
    ),
}
