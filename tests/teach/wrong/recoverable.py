"""Plausible wrong answers to the exercises of recoverable.py, with what the check must say."""

LOF = '''
import torch
def outlier_factor(x, k):
    distance = (x[:, None] - x).abs()%s
    near = distance.topk(k, largest=False)
    reach = %s
    density = %s
    return %s
'''

ALONE, REACH = ".fill_diagonal_(torch.inf)", "torch.maximum(near.values, near.values[near.indices, -1])"

DENSITY, RATIO = "1 / (reach.mean(dim=1) + 1e-10)", "density[near.indices].mean(dim=1) / density"

RECOVER = '''
import torch
def recover(visual, text, n_v, n_t):
    first = visual.argsort(descending=True, stable=True)[:n_v]
    second = %s.argsort(descending=True, stable=True)[:n_t]
    return %s
'''

OTHERS, BOTH = "text.index_fill(0, first, -torch.inf)", "torch.cat([first, second]).sort().values"

WRONG = {
    "recoverable.outlier_factor": [
        ("its own neighbour", LOF % ("", REACH, DENSITY, RATIO), "own nearest neighbour"),
        ("no reach", LOF % (ALONE, "near.values", DENSITY, RATIO), "reach is missing"),
        ("own reach", LOF % (ALONE, "torch.maximum(near.values, near.values[:, -1:])", DENSITY, RATIO), "it is the neighbour's"),
        ("upside down", LOF % (ALONE, REACH, DENSITY, "density / density[near.indices].mean(dim=1)"), "upside down"),
        ("density", LOF % (ALONE, REACH, DENSITY, "density"), "this is the density"),
        ("distance as density", LOF % (ALONE, REACH, "reach.mean(dim=1)", RATIO), "one over it"),
    ],
    "recoverable.recover": [
        ("chosen twice", RECOVER % ("text", BOTH), "come twice"),
        ("counted twice", RECOVER % ("text", "torch.cat([first, second]).unique()"), "fewer than n_v + n_t"),
        ("unsorted", RECOVER % (OTHERS, "torch.cat([first, second])"), "not in their old order"),
        ("sum of scores", RECOVER % (OTHERS, "(visual + text).argsort(descending=True)[: n_v + n_t].sort().values"), "were added"),
        ("question alone", RECOVER % (OTHERS, "text.argsort(descending=True)[: n_v + n_t].sort().values"), "question alone"),
        ("picture alone", RECOVER % (OTHERS, "visual.argsort(descending=True)[: n_v + n_t].sort().values"), "picture alone"),
    ],
}
