"""Plausible wrong answers to the exercises of visiondrop.py, with what the check must say."""

from tests.teach.slips import slips

CONTEXT = '''
import torch
import torch.nn.functional as F
def contextual(x, keys, kept, count):
    others = torch.tensor([n for n in range(len(x)) if n not in set(kept.tolist())])
    step = max(1, len(others) // count)
    targets = others[::step][:count]
    followers = others[~torch.isin(others, targets)]
    unit = F.normalize(keys, dim=-1)
    goes_to = (unit[followers] @ unit[targets].T).argmax(dim=1)
    out = []
    for j, target in enumerate(targets):
        mine = followers[goes_to == j]
        out.append(x[target] + x[mine].mean(dim=0) if len(mine) else x[target])
    return torch.stack(out)
'''
SUM = "x[target] + x[mine].mean(dim=0) if len(mine) else x[target]"
ENDS = "others[torch.linspace(0, len(others) - 1, count).round().long()]"

WRONG = {
    "visiondrop.contextual": slips(
        CONTEXT,
        ("mean of all", SUM, "torch.cat([x[target][None], x[mine]]).mean(dim=0)", "PLUS the mean"),
        ("sum of all", SUM, "x[target] + x[mine].sum(dim=0)", "their mean is added"),
        (
            "target lost",
            SUM,
            "x[mine].mean(dim=0) if len(mine) else x[target] * 0",
            "targets themselves are missing",
        ),
        ("first ones", "others[::step][:count]", "others[:count]", "every (R // count)-th"),
        ("too many targets", "[::step][:count]", "[::step]", "too many targets"),
        ("late start", "[::step][:count]", "[step - 1 :: step][:count]", "at place 0"),
        ("to both ends", "others[::step][:count]", ENDS, "reach to the last"),
        ("dot product", "F.normalize(keys, dim=-1)", "keys", "largest COSINE"),
        ("by x", "F.normalize(keys", "F.normalize(x", "measured on the keys"),
        ("nan", " if len(mine) else x[target]", "", "not finite"),
    ),
}
