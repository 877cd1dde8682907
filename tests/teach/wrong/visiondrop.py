"""Plausible wrong answers to the exercises of visiondrop.py, with what the check must say."""

CONTEXT = '''
import torch
import torch.nn.functional as F
def contextual(x, keys, kept, count):
    others = torch.tensor([n for n in range(len(x)) if n not in set(kept.tolist())])
    step = max(1, len(others) // count)
    targets = %s
    followers = torch.tensor([n for n in others.tolist() if n not in set(targets.tolist())], dtype=torch.long)
    unit = %s
    goes_to = (unit[followers] @ unit[targets].T).argmax(dim=1)
    out = []
    for j, target in enumerate(targets):
        mine = followers[goes_to == j]
        out.append(%s)
    return torch.stack(out)
'''

TARGETS, KEYS, SUM = "others[::step][:count]", "F.normalize(keys, dim=-1)", "x[target] + x[mine].mean(dim=0) if len(mine) else x[target]"

WRONG = {
    "visiondrop.contextual": [
        ("mean of all", CONTEXT % (TARGETS, KEYS, "torch.cat([x[target][None], x[mine]]).mean(dim=0)"), "PLUS the mean"),
        ("sum of all", CONTEXT % (TARGETS, KEYS, "x[target] + x[mine].sum(dim=0)"), "their mean is added"),
        ("target lost", CONTEXT % (TARGETS, KEYS, "x[mine].mean(dim=0) if len(mine) else x[target] * 0"), "targets themselves are missing"),
        ("first ones", CONTEXT % ("others[:count]", KEYS, SUM), "every (R // count)-th"),
        ("too many targets", CONTEXT % ("others[::step]", KEYS, SUM), "too many targets"),
        ("late start", CONTEXT % ("others[step - 1 :: step][:count]", KEYS, SUM), "at place 0"),
        ("to both ends", CONTEXT % ("others[torch.linspace(0, len(others) - 1, count).round().long()]", KEYS, SUM), "reach to the last"),
        ("dot product", CONTEXT % (TARGETS, "keys", SUM), "largest COSINE"),
        ("by x", CONTEXT % (TARGETS, "F.normalize(x, dim=-1)", SUM), "measured on the keys"),
        ("nan", CONTEXT % (TARGETS, KEYS, "x[target] + x[mine].mean(dim=0)"), "not finite"),
    ],
}
