"""Plausible wrong answers to the exercises of crossget.py, with what the check must say."""

from tests.teach.slips import slips

MATCH = '''
import torch
def match(similarity, importance, r):
    rank = similarity.amax(dim=1).argsort(descending=True, stable=True).argsort()
    later = rank[None, :] > rank[:, None]
    redundancy = similarity.masked_fill(~later, -torch.inf).amax(dim=1)
    source = (importance - redundancy).argsort(descending=False, stable=True)[:r]
    target = similarity.index_fill(1, source, -torch.inf)[source].argmax(dim=1)
    return source, target
'''
RANK = "similarity.amax(dim=1).argsort(descending=True, stable=True).argsort()"
LATER = "rank[None, :] > rank[:, None]"
TARGETS = "similarity.index_fill(1, source, -torch.inf)"

WRONG = {
    "crossget.match": slips(
        MATCH,
        (
            "no rank mask",
            LATER,
            "torch.ones_like(similarity, dtype=torch.bool)",
            "both halves of a pair",
        ),
        (
            "places for ranks",
            LATER,
            "torch.ones_like(similarity).triu(1).bool()",
            "place in the sequence",
        ),
        ("argsort once", RANK, RANK.removesuffix(".argsort()"), "argsort once"),
        ("rising ranks", "descending=True, ", "", "LARGEST maximum"),
        ("importance reversed", "(importance -", "(-importance -", "wrong sign"),
        ("no importance", "(importance - redundancy)", "(-redundancy)", "plays no part"),
        ("largest leave", "descending=False", "descending=True", "the smallest have to"),
        ("target is a source", TARGETS, "similarity", "may not be a source"),
        (
            "later ranks only",
            TARGETS,
            "similarity.masked_fill(~later, -torch.inf).index_fill(1, source, -torch.inf)",
            "later ranks only",
        ),
    ),
}
