"""Plausible wrong answers to the exercises of transprune.py, with what the check must say."""

from tests.teach.slips import slips

CUT = '''
import torch
from vtlib.tokens import take
def cut(x, where, visual, index, renumber):
    place = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
    before, after = place[:, : visual.start], place[:, visual.stop :]
    stay = torch.cat([before, visual.start + index, after], dim=1)
    where = place[:, : stay.shape[1]] if renumber else take(where, stay)
    return take(x, stay), where, slice(visual.start, visual.start + index.shape[1])
'''
WHERE = "place[:, : stay.shape[1]] if renumber else take(where, stay)"
SLICE = "slice(visual.start, visual.start + index.shape[1])"

FAIR = '''
import torch
def fair(attn, start):
    n = attn.shape[-1]
    keys = start + torch.arange(1, n + 1, device=attn.device)
    seers = torch.arange(n, 0, -1, device=attn.device)
    return (attn * keys[:, None]).sum(dim=1) / seers
'''
FAIR_MEAN = "(attn * keys[:, None]).sum(dim=1) / seers"

TTV = '''
import torch
import torch.nn.functional as F
def ttv(token_in, token_out):
    m = token_out.norm(dim=-1) / token_in.norm(dim=-1)
    d = F.cosine_similarity(token_in, token_out, dim=-1)
    return m * (1 - d).softmax(dim=-1)
'''
SCORE = "m * (1 - d).softmax(dim=-1)"

WRONG = {
    "transprune.cut": slips(
        CUT,
        ("index not shifted", "visual.start + index,", "index,", "stands at visual.start"),
        ("question dropped", ", after]", "]", "behind the image is gone"),
        ("start dropped", "[before, ", "[", "in front of the image is gone"),
        (
            "text dropped",
            "[before, visual.start + index, after]",
            "[visual.start + index]",
            "all text is gone",
        ),
        (
            "patches last",
            "visual.start + index, after]",
            "after, visual.start + index]",
            "kept patches come last",
        ),
        ("always renumbered", WHERE, "place[:, : stay.shape[1]]", "counted anew"),
        ("never renumbered", WHERE, "take(where, stay)", "positions are the old ones"),
        ("places for positions", "take(where, stay)", "stay", "places in the sequence"),
        ("old slice", SLICE, "visual", "visual.start + T"),
    ),
    "transprune.fair": slips(
        FAIR,
        ("plain mean", FAIR_MEAN, "attn.mean(dim=1)", "plain mean"),
        ("columns only", "(attn * keys[:, None])", "attn", "rows are as they were"),
        ("rows only", ".sum(dim=1) / seers", ".mean(dim=1)", "averaged over all N rows"),
        ("start forgotten", "keys[:, None]", "(keys - start)[:, None]", "keys before the image"),
        ("itself forgotten", "keys[:, None]", "(keys - 1)[:, None]", "sees itself"),
        ("n - j as keys", "/ seers", "/ keys", "number of keys instead"),
        ("columns multiplied", "keys[:, None]", "keys", "not the rows"),
        ("summed over keys", "sum(dim=1)", "sum(dim=2)", "sum over the queries"),
    ),
    "transprune.ttv": slips(
        TTV,
        (
            "magnitude in the softmax",
            SCORE,
            "(m * (1 - d)).softmax(dim=-1)",
            "sees the direction only",
        ),
        ("softmax of d", "(1 - d)", "d", "the more it counts"),
        ("the paper's |d|", "1 - d", "1 - d.abs()", "paper's |d|"),
        ("divided by m", SCORE, "(1 - d).softmax(dim=-1) / m", "m divides"),
        ("no softmax", ".softmax(dim=-1)", "", "no softmax"),
        ("over the batch", "softmax(dim=-1)", "softmax(dim=0)", "over the tokens"),
        ("direction only", "return m * ", "return ", "magnitude is missing"),
        (
            "with the residual",
            "    m = ",
            "    token_out = token_in + token_out\n    m = ",
            "residual",
        ),
        (
            "dot product",
            "1 - d",
            "1 - (token_in * token_out).sum(dim=-1)",
            "divided by the lengths",
        ),
    ),
}
