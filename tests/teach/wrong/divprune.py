"""Plausible wrong answers to the exercises of divprune.py, with what the check must say."""

from tests.teach.slips import changed, slips

GREEDY = '''
import torch
import torch.nn.functional as F
def greedy(tokens, keep):
    x = F.normalize(tokens, dim=-1)
    d = 1 - x @ x.T
    chosen = [d.clone().fill_diagonal_(float("inf")).min(dim=1).values.argmax()]
    near = torch.full_like(d[0], float("inf"))
    for _ in range(keep - 1):
        near = torch.minimum(near, d[chosen[-1]])
        near[chosen[-1]] = -float("inf")
        chosen.append(near.argmax())
    return torch.stack(chosen)
'''
FIRST = 'd.clone().fill_diagonal_(float("inf")).min(dim=1).values.argmax()'
NEAR = "torch.minimum(near, d[chosen[-1]])"

# the same with all chosen ones masked in each round, for distances that are computed anew
ANEW = changed(GREEDY, "near[chosen[-1]] =", "near[torch.stack(chosen)] =")

WRONG = {
    "divprune.greedy": [
        *slips(
            GREEDY,
            ("not normalised", "F.normalize(tokens, dim=-1)", "tokens", "not normalised"),
            (
                "minimum with itself",
                FIRST,
                "d.fill_diagonal_(0).min(dim=1).values.argmax()",
                "the token itself, at distance 0",
            ),
            (
                "zero diagonal",
                FIRST,
                "d.min(dim=1).values.argmax()",
                "the token itself, at distance 0",
            ),
            ("token 0 first", FIRST, "torch.tensor(0)", "the wrong one"),
            ("largest mean", FIRST, "d.mean(dim=1).argmax()", "largest MEAN"),
            ("no mask", 'near[chosen[-1]] = -float("inf")', "pass", "chosen twice"),
            (
                "sorted",
                "torch.stack(chosen)",
                "torch.stack(chosen).sort().values",
                "order of choice",
            ),
        ),
        *slips(
            ANEW,
            ("last alone", NEAR, "d[chosen[-1]].clone()", "only the last chosen"),
            ("mean to the set", NEAR, "d[torch.stack(chosen)].mean(dim=0)", "NEAREST chosen"),
        ),
    ],
}
