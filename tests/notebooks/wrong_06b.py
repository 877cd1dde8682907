"""Plausible wrong answers to the exercises of notebook 06b, with what the check must say."""

MATCH = '''
import torch
def match(similarity, importance, r):
    rank = %s
    later = %s
    redundancy = similarity.masked_fill(~later, -torch.inf).amax(dim=1)
    source = (%s).argsort(descending=%s, stable=True)[:r]
    target = %s.argmax(dim=1)
    return source, target
'''
RANK = "similarity.amax(dim=1).argsort(descending=True, stable=True).argsort()"
LATER, SCORE, TARGET = "rank[None, :] > rank[:, None]", "importance - redundancy", "similarity.index_fill(1, source, -torch.inf)[source]"

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
    "06b.match": [
        ("no rank mask", MATCH % (RANK, "torch.ones_like(similarity, dtype=torch.bool)", SCORE, "False", TARGET), "both halves of a pair"),
        ("places for ranks", MATCH % (RANK, "torch.ones_like(similarity).triu(1).bool()", SCORE, "False", TARGET), "place in the sequence"),
        ("argsort once", MATCH % ("similarity.amax(dim=1).argsort(descending=True, stable=True)", LATER, SCORE, "False", TARGET), "argsort once"),
        ("rising ranks", MATCH % ("similarity.amax(dim=1).argsort(stable=True).argsort()", LATER, SCORE, "False", TARGET), "LARGEST maximum"),
        ("importance reversed", MATCH % (RANK, LATER, "-importance - redundancy", "False", TARGET), "wrong sign"),
        ("no importance", MATCH % (RANK, LATER, "-redundancy", "False", TARGET), "plays no part"),
        ("largest leave", MATCH % (RANK, LATER, SCORE, "True", TARGET), "the smallest have to"),
        ("target is a source", MATCH % (RANK, LATER, SCORE, "False", "similarity[source]"), "may not be a source"),
        ("later ranks only", MATCH % (RANK, LATER, SCORE, "False", "similarity.masked_fill(~later, -torch.inf).index_fill(1, source, -torch.inf)[source]"), "later ranks only"),
    ],
    "06b.outlier_factor": [
        ("its own neighbour", LOF % ("", REACH, DENSITY, RATIO), "own nearest neighbour"),
        ("no reach", LOF % (ALONE, "near.values", DENSITY, RATIO), "reach is missing"),
        ("own reach", LOF % (ALONE, "torch.maximum(near.values, near.values[:, -1:])", DENSITY, RATIO), "it is the neighbour's"),
        ("upside down", LOF % (ALONE, REACH, DENSITY, "density / density[near.indices].mean(dim=1)"), "upside down"),
        ("density", LOF % (ALONE, REACH, DENSITY, "density"), "this is the density"),
        ("distance as density", LOF % (ALONE, REACH, "reach.mean(dim=1)", RATIO), "one over it"),
    ],
    "06b.recover": [
        ("chosen twice", RECOVER % ("text", BOTH), "come twice"),
        ("counted twice", RECOVER % ("text", "torch.cat([first, second]).unique()"), "fewer than n_v + n_t"),
        ("unsorted", RECOVER % (OTHERS, "torch.cat([first, second])"), "not in their old order"),
        ("sum of scores", RECOVER % (OTHERS, "(visual + text).argsort(descending=True)[: n_v + n_t].sort().values"), "were added"),
        ("question alone", RECOVER % (OTHERS, "text.argsort(descending=True)[: n_v + n_t].sort().values"), "question alone"),
        ("picture alone", RECOVER % (OTHERS, "visual.argsort(descending=True)[: n_v + n_t].sort().values"), "picture alone"),
    ],
}
