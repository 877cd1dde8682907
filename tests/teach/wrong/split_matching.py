"""Plausible wrong answers to the exercises of split_matching.py, with what the check must say."""

from tests.teach.slips import slips

SEEDS = '''
import torch
def seeds(features, window):
    height, width, _ = features.shape
    step, rest, means = window // 2, window - 1, []
    for i in range(0, height - rest, step):
        for j in range(0, width - rest, step):
            means.append(features[i : i + window, j : j + window].mean(dim=(0, 1)))
    return torch.stack(means)
'''
PAIRS = '''
from vtlib.segmentation.matching import assign
def split_pairs(cost_seen, cost_candidates):
    queries, targets = assign(cost_seen)
    pairs = list(zip(queries.tolist(), targets.tolist()))
    more_queries, more_targets = assign(cost_candidates)
    for query, target in zip(more_queries.tolist(), more_targets.tolist()):
        pairs.append((query + len(cost_seen), target + cost_seen.shape[1]))
    return pairs
'''

WRONG = {
    "split_matching.seeds": slips(
        SEEDS,
        ("whole steps", "window // 2", "window", "half of it"),
        ("one place", "window // 2", "1", "one place at a time"),
        ("no last one", "window - 1", "window", "the last window is missing"),
        ("largest", ".mean(dim=(0, 1))", ".amax(dim=(0, 1))", "the largest value"),
        ("sum", ".mean(dim", ".sum(dim", "the sum of a window"),
    ),
    "split_matching.split_pairs": slips(
        PAIRS,
        ("queries from 0", "query + len(cost_seen)", "query", "add the number of seen queries"),
        ("targets from 0", "target + cost_seen.shape[1]", "target", "number of labelled masks"),
        ("neither", "(query + len(cost_seen), target + cost_seen.shape[1])", "(query, target)",
         "neither number"),
        ("turned", "return pairs", "return [(t, q) for q, t in pairs]", "(target, query)"),
        ("greedy", "from vtlib.segmentation.matching import assign",
         "import torch\nassign = lambda cost: (cost.argmin(0) if cost.shape[1] else torch.zeros(0),"
         " torch.arange(cost.shape[1]))", "cheapest query"),
    ),
}
