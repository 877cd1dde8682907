"""Plausible wrong answers to the exercises of aim.py, with what the check must say."""

from tests.teach.slips import slips

MERGE = '''
import torch
import torch.nn.functional as F
def merge_step(x, r):
    even, odd = x[0::2], x[1::2]
    best, target = (F.normalize(even, dim=-1) @ F.normalize(odd, dim=-1).T).max(dim=1)
    order = best.argsort(descending=True, stable=True)
    gone, rest = order[:r], order[r:]
    total = odd.clone().index_add(0, target[gone], even[gone])
    count = 1 + torch.bincount(target[gone], minlength=len(odd))
    return torch.cat([even[rest], total / count[:, None]])
'''

PAIRWISE = '''
import torch
import torch.nn.functional as F
def merge_step(x, r):
    even, odd = x[0::2], x[1::2].clone()
    best, target = (F.normalize(even, dim=-1) @ F.normalize(odd, dim=-1).T).max(dim=1)
    order = best.argsort(descending=True, stable=True)
    for i in order[:r].tolist():
        odd[target[i]] = (odd[target[i]] + even[i]) / 2
    return torch.cat([even[order[r:]], odd])
'''

RANK = '''
import torch
def page_rank(logits, tau, iterations):
    M = (logits / tau).softmax(dim=-1)
    s = torch.full_like(M[:, :1], 1 / M.shape[-1])
    for _ in range(iterations):
        s = s @ M
    return s[:, 0].square().mean(dim=0).sqrt()
'''

COSINE = "F.normalize(even, dim=-1) @ F.normalize(odd, dim=-1).T"
OUT = "[even[rest], total / count[:, None]]"
ROOT_MEAN_SQUARE = "s[:, 0].square().mean(dim=0).sqrt()"

WRONG = {
    "aim.merge_step": [
        *slips(
            MERGE,
            ("worst first", "descending=True", "descending=False", "worst matches"),
            ("sums", "total / count[:, None]", "total", "sums, not means"),
            ("raster order", "[even[rest]", "[even[rest.sort().values]", "raster order"),
            ("odd first", OUT, "[total / count[:, None], even[rest]]", "odd tokens come first"),
            ("dot product", COSINE, "even @ odd.T", "dot product"),
            ("odd into even", "x[0::2], x[1::2]", "x[1::2], x[0::2]", "other way round"),
        ),
        ("pair by pair", PAIRWISE, "pair by pair"),
    ],
    "aim.page_rank": slips(
        RANK,
        ("against the arrows", "s @ M", "(M @ s.mT).mT", "against the arrows"),
        ("times tau", "logits / tau", "logits * tau", "it divides them"),
        ("no tau", "(logits / tau)", "logits", "tau was not used"),
        ("over the queries", "softmax(dim=-1)", "softmax(dim=-2)", "runs over keys"),
        ("mean over heads", ROOT_MEAN_SQUARE, "s[:, 0].mean(dim=0)", "heads were averaged"),
        (
            "starts at 1",
            "torch.full_like(M[:, :1], 1 / M.shape[-1])",
            "torch.ones_like(M[:, :1])",
            "instead of 1/S",
        ),
        ("one step", "range(iterations)", "range(1)", "only one iteration"),
        ("off by one", "range(iterations)", "range(iterations - 1)", "one iteration too few"),
    ),
}
