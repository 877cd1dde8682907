"""Plausible wrong answers to the exercises of notebook 05, with what the check must say."""


def cls(line):
    return f'''
def keep_by_cls(attention, keep):
    row = attention[:, :, 0]
    {line}
'''


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

ROLES = '''
def three_roles(object_score, deep_score, keep, grid, alpha):
    anchors = object_score.topk(%s).indices
    chosen = %s
    rest = %s
    registers = rest.topk(%s).indices
    return %s
'''
COUNT, CROSS, REST = "round(keep * alpha / 5)", "cross(anchors, grid)", 'deep_score.masked_fill(chosen, -float("inf"))'
LEFT, UNITED = "keep - int(chosen.sum())", "chosen.index_fill(0, registers, True).nonzero()[:, 0]"

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


def quota(line):
    return f'''
def quotas(weight, keep):
    quota = (weight * keep).floor().long()
    rest = keep - quota.sum(dim=1, keepdim=True)
    rank = weight.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    {line}
'''


ZOO = '''
import torch
import torch.nn.functional as F
def sensitivity(features, project, directions, step):
    u = %s
    x = features[:, :, None]
    move = (project(x + step * u) - project(%s)) / (%s)
    return %s
'''
DIRECTIONS, BACK, BY, MEAN = "F.normalize(directions, dim=1)", "x - step * u", "2 * step", "move.norm(dim=-1).mean(dim=2)"

WRONG = {
    "05.keep_by_cls": [
        ("score order", cls("return row[:, :, 1:].mean(dim=1).topk(keep, dim=1).indices"), "sort them"),
        ("cls may win", cls("return row.mean(dim=1).topk(keep, dim=1).indices.sort(dim=1).values"), "cut key 0 away"),
        ("off by one", cls("return row[:, :, 1:].mean(dim=1).topk(keep, dim=1).indices.sort(dim=1).values + 1"), "off by one"),
        ("max over heads", cls("return row[:, :, 1:].amax(dim=1).topk(keep, dim=1).indices.sort(dim=1).values"), "max over heads"),
        ("normalised again", cls("row = row[:, :, 1:] / row[:, :, 1:].sum(-1, keepdim=True)\n    return row.mean(dim=1).topk(keep, dim=1).indices.sort(dim=1).values"), "normalised again"),
        ("column", cls("return attention[:, :, 1:, 0].mean(dim=1).topk(keep, dim=1).indices.sort(dim=1).values"), "that is the column"),
        ("lowest", cls("return row[:, :, 1:].mean(dim=1).topk(keep, dim=1, largest=False).indices.sort(dim=1).values"), "lowest scores"),
    ],
    "05.greedy": [
        ("not normalised", GREEDY % ("tokens", FIRST, NEAR, MASK, OUT), "not normalised"),
        ("minimum with itself", GREEDY % (UNIT, "d.fill_diagonal_(0).min(dim=1).values.argmax()", NEAR, MASK, OUT), "token 0"),
        ("largest mean", GREEDY % (UNIT, "d.mean(dim=1).argmax()", NEAR, MASK, OUT), "largest MEAN"),
        ("last alone", GREEDY % (UNIT, FIRST, "d[chosen[-1]].clone()", 'near[torch.stack(chosen)] = -float("inf")', OUT), "only the last chosen"),
        ("mean to the set", GREEDY % (UNIT, FIRST, "d[torch.stack(chosen)].mean(dim=0)", 'near[torch.stack(chosen)] = -float("inf")', OUT), "NEAREST chosen"),
        ("no mask", GREEDY % (UNIT, FIRST, NEAR, "pass", OUT), "chosen twice"),
        ("sorted", GREEDY % (UNIT, FIRST, NEAR, MASK, OUT + ".sort().values"), "order of choice"),
    ],
    "05.three_roles": [
        ("too many anchors", ROLES % ("round(keep * alpha)", CROSS, REST, "max(0, keep - int(chosen.sum()))", UNITED), "an anchor may cost five"),
        ("chosen twice", ROLES % (COUNT, CROSS, "deep_score", LEFT, UNITED), "chosen again"),
        ("keep registers", ROLES % (COUNT, CROSS, REST, "keep", UNITED), "all three together"),
        ("five each", ROLES % (COUNT, CROSS, REST, "keep - 5 * len(anchors)", UNITED), "a cross at the border is smaller"),
        ("wrong layer", ROLES % (COUNT, CROSS, 'object_score.masked_fill(chosen, -float("inf"))', LEFT, UNITED), "from the deep score"),
        ("no buffers", ROLES % (COUNT, CROSS + " & False | torch.zeros_like(object_score).index_fill(0, anchors, 1).bool()", REST, LEFT, UNITED), "buffers are missing"),
        ("not sorted", ROLES % (COUNT, CROSS, REST, LEFT, "torch.cat([chosen.nonzero()[:, 0], registers])"), "raster order"),
        ("no registers", ROLES % (COUNT, CROSS, REST, "1", "chosen.nonzero()[:, 0]"), "registers are missing"),
    ],
    "05.contextual": [
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
    "05.quotas": [
        ("largest remainder", quota("rank = (weight * keep - quota).argsort(dim=1, descending=True, stable=True).argsort(dim=1)\n    return quota + (rank < rest)"), "largest WEIGHT"),
        ("all to one", quota("return quota + (rank == 0) * rest"), "one each"),
        ("no rest", quota("return quota"), "rest is missing"),
        ("rounded", quota("return (weight * keep).round().long()"), "rounded"),
        ("rounded up", quota("return (weight * keep).ceil().long()"), "rounded up"),
        ("smallest", quota("rank = weight.argsort(dim=1, stable=True).argsort(dim=1)\n    return quota + (rank < rest)"), "SMALLEST"),
        ("ties anyhow", quota("rank = weight.flip(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1).flip(1)\n    return quota + (rank < rest)"), "ties went elsewhere"),
        ("sorted once", quota("return quota + (weight.argsort(dim=1, descending=True, stable=True) < rest)"), "sort twice"),
    ],
    "05.sensitivity": [
        ("length of the mean", ZOO % (DIRECTIONS, BACK, BY, "move.mean(dim=2).norm(dim=-1)"), "length of the MEAN"),
        ("by h", ZOO % (DIRECTIONS, BACK, "step", MEAN), "2 h apart"),
        ("not divided", ZOO % (DIRECTIONS, BACK, "1", MEAN), "not divided"),
        ("long directions", ZOO % ("directions", BACK, BY, MEAN), "not normalised"),
        ("wrong axis", ZOO % ("F.normalize(directions, dim=0)", BACK, BY, MEAN), "each ROW is a direction"),
        ("forward", ZOO % (DIRECTIONS, "x", "step", MEAN), "forward difference"),
        ("squares", ZOO % (DIRECTIONS, BACK, BY, "move.square().sum(dim=-1).mean(dim=2)"), "squared"),
        ("sum", ZOO % (DIRECTIONS, BACK, BY, "move.norm(dim=-1).sum(dim=2)"), "the sum over directions"),
    ],
}
