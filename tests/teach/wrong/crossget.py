"""Plausible wrong answers to the exercises of crossget.py, with what the check must say."""

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

WRONG = {
    "crossget.match": [
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
}
