"""Plausible wrong answers to the exercises of divprune.py, with what the check must say."""

GREEDY = '''
import torch
import torch.nn.functional as F
def greedy(tokens, keep):
    x = %s
    d = 1 - x @ x.T
    chosen = [%s]
    near = torch.full_like(d[0], float("inf"))
    for _ in range(keep - 1):
        near = %s
        %s
        chosen.append(near.argmax())
    return %s
'''

UNIT, FIRST = "F.normalize(tokens, dim=-1)", 'd.clone().fill_diagonal_(float("inf")).min(dim=1).values.argmax()'

NEAR, MASK, OUT = "torch.minimum(near, d[chosen[-1]])", 'near[chosen[-1]] = -float("inf")', "torch.stack(chosen)"

WRONG = {
    "divprune.greedy": [
        ("not normalised", GREEDY % ("tokens", FIRST, NEAR, MASK, OUT), "not normalised"),
        ("minimum with itself", GREEDY % (UNIT, "d.fill_diagonal_(0).min(dim=1).values.argmax()", NEAR, MASK, OUT), "the token itself, at distance 0"),
        (
            "zero diagonal",
            GREEDY % (UNIT, "d.min(dim=1).values.argmax()", NEAR, MASK, OUT),
            "the token itself, at distance 0",
        ),
        ("token 0 first", GREEDY % (UNIT, "torch.tensor(0)", NEAR, MASK, OUT), "the wrong one"),
        ("largest mean", GREEDY % (UNIT, "d.mean(dim=1).argmax()", NEAR, MASK, OUT), "largest MEAN"),
        ("last alone", GREEDY % (UNIT, FIRST, "d[chosen[-1]].clone()", 'near[torch.stack(chosen)] = -float("inf")', OUT), "only the last chosen"),
        ("mean to the set", GREEDY % (UNIT, FIRST, "d[torch.stack(chosen)].mean(dim=0)", 'near[torch.stack(chosen)] = -float("inf")', OUT), "NEAREST chosen"),
        ("no mask", GREEDY % (UNIT, FIRST, NEAR, "pass", OUT), "chosen twice"),
        ("sorted", GREEDY % (UNIT, FIRST, NEAR, MASK, OUT + ".sort().values"), "order of choice"),
    ],
}
