"""Plausible wrong answers to the exercises of transprune.py, with what the check must say."""

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

WRONG = {
    "transprune.cut": [
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
    "transprune.fair": [
        ("plain mean", FAIR % "attn.mean(dim=1)", "plain mean"),
        ("columns only", FAIR % "attn.sum(dim=1) / seers", "rows are as they were"),
        ("rows only", FAIR % "(attn * keys[:, None]).mean(dim=1)", "averaged over all N rows"),
        ("start forgotten", FAIR % "(attn * (keys - start)[:, None]).sum(dim=1) / seers", "keys before the image"),
        ("itself forgotten", FAIR % "(attn * (keys - 1)[:, None]).sum(dim=1) / seers", "sees itself"),
        ("n - j as keys", FAIR % "(attn * keys[:, None]).sum(dim=1) / keys", "number of keys instead"),
        ("columns multiplied", FAIR % "(attn * keys).sum(dim=1) / seers", "not the rows"),
        ("summed over keys", FAIR % "(attn * keys[:, None]).sum(dim=2) / seers", "sum over the queries"),
    ],
    "transprune.ttv": [
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
}
