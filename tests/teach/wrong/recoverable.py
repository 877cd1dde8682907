"""Plausible wrong answers to the exercises of recoverable.py, with what the check must say."""

from tests.teach.slips import slips

LOF = '''
import torch
def outlier_factor(x, k):
    distance = (x[:, None] - x).abs().fill_diagonal_(torch.inf)
    near = distance.topk(k, largest=False)
    reach = torch.maximum(near.values, near.values[near.indices, -1])
    density = 1 / (reach.mean(dim=1) + 1e-10)
    return density[near.indices].mean(dim=1) / density
'''
REACH = "torch.maximum(near.values, near.values[near.indices, -1])"
RATIO = "density[near.indices].mean(dim=1) / density"

RECOVER = '''
import torch
def recover(visual, text, n_v, n_t):
    first = visual.argsort(descending=True, stable=True)[:n_v]
    others = text.index_fill(0, first, -torch.inf)
    second = others.argsort(descending=True, stable=True)[:n_t]
    return torch.cat([first, second]).sort().values
'''
OTHERS = "text.index_fill(0, first, -torch.inf)"
BOTH = "torch.cat([first, second]).sort().values"


def _one_score(score):
    return f'''
def recover(visual, text, n_v, n_t):
    return ({score}).argsort(descending=True)[: n_v + n_t].sort().values
'''


WRONG = {
    "recoverable.outlier_factor": slips(
        LOF,
        ("its own neighbour", ".fill_diagonal_(torch.inf)", "", "own nearest neighbour"),
        ("no reach", REACH, "near.values", "reach is missing"),
        (
            "own reach",
            "near.values[near.indices, -1]",
            "near.values[:, -1:]",
            "it is the neighbour's",
        ),
        ("upside down", RATIO, "density / density[near.indices].mean(dim=1)", "upside down"),
        ("density", RATIO, "density", "this is the density"),
        (
            "distance as density",
            "1 / (reach.mean(dim=1) + 1e-10)",
            "reach.mean(dim=1)",
            "one over it",
        ),
    ),
    "recoverable.recover": [
        *slips(
            RECOVER,
            ("chosen twice", OTHERS, "text", "come twice"),
            (
                "set to the smallest",
                OTHERS,
                "text.index_fill(0, first, text.min().item())",
                "ties with the smallest text score",
            ),
            ("unsorted", ".sort().values", "", "not in their old order"),
        ),
        (
            "counted twice",
            RECOVER.replace(OTHERS, "text").replace(BOTH, "torch.cat([first, second]).unique()"),
            "fewer than n_v + n_t",
        ),
        ("sum of scores", _one_score("visual + text"), "were added"),
        ("question alone", _one_score("text"), "question alone"),
        ("picture alone", _one_score("visual"), "picture alone"),
    ],
}
