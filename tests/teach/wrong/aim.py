"""Plausible wrong answers to the exercises of aim.py, with what the check must say."""

MERGE = '''
import torch
import torch.nn.functional as F
def merge_step(x, r):
    even, odd = x[%s], x[%s]
    best, target = (%s).max(dim=1)
    order = best.argsort(descending=%s, stable=True)
    gone, rest = order[:r], order[r:]
    total = odd.clone().index_add(0, target[gone], even[gone])
    count = 1 + torch.bincount(target[gone], minlength=len(odd))
    return %s
'''

COSINE, OUT = "F.normalize(even, dim=-1) @ F.normalize(odd, dim=-1).T", "torch.cat([even[rest], total / count[:, None]])"

RANK = '''
import torch
def page_rank(logits, tau, iterations):
    M = %s
    s = %s
    for _ in range(%s):
        s = %s
    return %s
'''

FLOW, START, TIMES, STEP, HEADS = "(logits / tau).softmax(dim=-1)", "torch.full_like(M[:, :1], 1 / M.shape[-1])", "iterations", "s @ M", "s[:, 0].square().mean(dim=0).sqrt()"

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

WRONG = {
    "aim.merge_step": [
        ("worst first", MERGE % ("0::2", "1::2", COSINE, "False", OUT), "worst matches"),
        ("pair by pair", PAIRWISE, "pair by pair"),
        ("sums", MERGE % ("0::2", "1::2", COSINE, "True", "torch.cat([even[rest], total])"), "sums, not means"),
        ("raster order", MERGE % ("0::2", "1::2", COSINE, "True", "torch.cat([even[rest.sort().values], total / count[:, None]])"), "raster order"),
        ("odd first", MERGE % ("0::2", "1::2", COSINE, "True", "torch.cat([total / count[:, None], even[rest]])"), "odd tokens come first"),
        ("dot product", MERGE % ("0::2", "1::2", "even @ odd.T", "True", OUT), "dot product"),
        ("odd into even", MERGE % ("1::2", "0::2", COSINE, "True", OUT), "other way round"),
    ],
    "aim.page_rank": [
        ("against the arrows", RANK % (FLOW, START, TIMES, "(M @ s.mT).mT", HEADS), "against the arrows"),
        ("times tau", RANK % ("(logits * tau).softmax(dim=-1)", START, TIMES, STEP, HEADS), "it divides them"),
        ("no tau", RANK % ("logits.softmax(dim=-1)", START, TIMES, STEP, HEADS), "tau was not used"),
        ("over the queries", RANK % ("(logits / tau).softmax(dim=-2)", START, TIMES, STEP, HEADS), "runs over keys"),
        ("mean over heads", RANK % (FLOW, START, TIMES, STEP, "s[:, 0].mean(dim=0)"), "heads were averaged"),
        ("starts at 1", RANK % (FLOW, "torch.ones_like(M[:, :1])", TIMES, STEP, HEADS), "instead of 1/S"),
        ("one step", RANK % (FLOW, START, "1", STEP, HEADS), "only one iteration"),
        ("off by one", RANK % (FLOW, START, "iterations - 1", STEP, HEADS), "one iteration too few"),
    ],
}
