"""Plausible wrong answers to the exercises of notebook 06, with what the check must say."""

CUT = '''
import torch
from vtlib.tokens import take
def cut(x, where, visual, index, renumber):
    place = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
    stay = torch.cat([%s], dim=1)
    where = %s
    return take(x, stay), where, %s
'''
STAY = "place[:, : visual.start], visual.start + index, place[:, visual.stop :]"
WHERE = "place[:, : stay.shape[1]] if renumber else take(where, stay)"
SLICE = "slice(visual.start, visual.start + index.shape[1])"

FAIR = '''
import torch
def fair(attn, start):
    n = attn.shape[-1]
    keys = start + torch.arange(1, n + 1, device=attn.device)
    seers = torch.arange(n, 0, -1, device=attn.device)
    return %s
'''

TTV = '''
import torch
import torch.nn.functional as F
def ttv(token_in, token_out):
    m = token_out.norm(dim=-1) / token_in.norm(dim=-1)
    d = F.cosine_similarity(token_in, token_out, dim=-1)
    return %s
'''

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
    "06.cut": [
        ("index not shifted", CUT % ("place[:, : visual.start], index, place[:, visual.stop :]", WHERE, SLICE), "stands at visual.start"),
        ("question dropped", CUT % ("place[:, : visual.start], visual.start + index", WHERE, SLICE), "behind the image is gone"),
        ("start dropped", CUT % ("visual.start + index, place[:, visual.stop :]", WHERE, SLICE), "in front of the image is gone"),
        ("text dropped", CUT % ("visual.start + index", WHERE, SLICE), "all text is gone"),
        ("patches last", CUT % ("place[:, : visual.start], place[:, visual.stop :], visual.start + index", WHERE, SLICE), "kept patches come last"),
        ("always renumbered", CUT % (STAY, "place[:, : stay.shape[1]]", SLICE), "counted anew"),
        ("never renumbered", CUT % (STAY, "take(where, stay)", SLICE), "positions are the old ones"),
        ("places for positions", CUT % (STAY, "place[:, : stay.shape[1]] if renumber else stay", SLICE), "places in the sequence"),
        ("old slice", CUT % (STAY, WHERE, "visual"), "visual.start + T"),
    ],
    "06.fair": [
        ("plain mean", FAIR % "attn.mean(dim=1)", "plain mean"),
        ("columns only", FAIR % "attn.sum(dim=1) / seers", "rows are as they were"),
        ("rows only", FAIR % "(attn * keys[:, None]).mean(dim=1)", "averaged over all N rows"),
        ("start forgotten", FAIR % "(attn * (keys - start)[:, None]).sum(dim=1) / seers", "keys before the image"),
        ("itself forgotten", FAIR % "(attn * (keys - 1)[:, None]).sum(dim=1) / seers", "sees itself"),
        ("n - j as keys", FAIR % "(attn * keys[:, None]).sum(dim=1) / keys", "number of keys instead"),
        ("columns multiplied", FAIR % "(attn * keys).sum(dim=1) / seers", "not the rows"),
        ("summed over keys", FAIR % "(attn * keys[:, None]).sum(dim=2) / seers", "sum over the queries"),
    ],
    "06.ttv": [
        ("magnitude in the softmax", TTV % "(m * (1 - d)).softmax(dim=-1)", "sees the direction only"),
        ("softmax of d", TTV % "m * d.softmax(dim=-1)", "the more it counts"),
        ("the paper's |d|", TTV % "m * (1 - d.abs()).softmax(dim=-1)", "paper's |d|"),
        ("divided by m", TTV % "(1 - d).softmax(dim=-1) / m", "m divides"),
        ("no softmax", TTV % "m * (1 - d)", "no softmax"),
        ("over the batch", TTV % "m * (1 - d).softmax(dim=0)", "over the tokens"),
        ("direction only", TTV % "(1 - d).softmax(dim=-1)", "magnitude is missing"),
        ("with the residual", (TTV % "m * (1 - d).softmax(dim=-1)").replace("    m = ", "    token_out = token_in + token_out\n    m = "), "residual"),
        ("dot product", TTV % "m * (1 - (token_in * token_out).sum(dim=-1)).softmax(dim=-1)", "divided by the lengths"),
    ],
    "06.merge_step": [
        ("worst first", MERGE % ("0::2", "1::2", COSINE, "False", OUT), "worst matches"),
        ("pair by pair", PAIRWISE, "pair by pair"),
        ("sums", MERGE % ("0::2", "1::2", COSINE, "True", "torch.cat([even[rest], total])"), "sums, not means"),
        ("raster order", MERGE % ("0::2", "1::2", COSINE, "True", "torch.cat([even[rest.sort().values], total / count[:, None]])"), "raster order"),
        ("odd first", MERGE % ("0::2", "1::2", COSINE, "True", "torch.cat([total / count[:, None], even[rest]])"), "odd tokens come first"),
        ("dot product", MERGE % ("0::2", "1::2", "even @ odd.T", "True", OUT), "dot product"),
        ("odd into even", MERGE % ("1::2", "0::2", COSINE, "True", OUT), "other way round"),
    ],
    "06.page_rank": [
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
