"""Exercises of notebook 05: the row of [CLS], max-min diversity, three roles, contextual tokens, quotas, sensitivity."""

import torch
import torch.nn.functional as F

from vtlib.pruning import fastervlm, hiprune, holov
from vtlib.teach.exercises import Wrong, check, expect, untouched
from vtlib.tokens.greedy import greedy_maxmin
from vtlib.tokens.merge import merge_to_targets

# ----------------------------------------------------------------------------------------------------------- the row of [CLS]


def keep_by_cls(attention, keep):
    """attention (B, heads, 1 + N, 1 + N) -> (B, keep): the patches [CLS] looks at most, ascending."""
    return fastervlm.select(fastervlm.score(attention[:, :, 0, 1:]), keep).index


def _maps():
    """Two images, two heads, six patches: every classic mistake picks other patches than the right answer."""
    maps = torch.rand(2, 2, 7, 7, generator=torch.Generator().manual_seed(359)) ** 2
    maps[:, :, 0, 0] += torch.tensor([0.3, 3])                                   # the heads give [CLS] itself different shares
    return maps / maps.sum(dim=-1, keepdim=True)


@check("05.keep_by_cls", reference=keep_by_cls)
def _(fn):
    maps = _maps()
    with untouched(maps):
        got = fn(maps, 3)
    row = maps[:, :, 0]

    def top(score, keep=3):
        return score.topk(keep, dim=1).indices

    def sort(index):
        return index.sort(dim=1).values

    score = row[:, :, 1:].mean(1)
    causes = {
        "the indices are in the order of their scores; sort them: tokens stay in raster order": top(score),
        "off by one: [CLS] is key 0, and patch 0 is key 1; cut key 0 away before topk": sort(top(torch.cat([torch.zeros(2, 1), score], 1))),
        "[CLS] itself was allowed to win a place; cut key 0 away": sort(top(row.mean(1))),
        "max over heads; the score is the mean over heads": sort(top(row[:, :, 1:].amax(1))),
        "the first head alone; take the mean over heads": sort(top(row[:, 0, 1:])),
        "the row was normalised again after [CLS] was cut, which weighs the heads differently": sort(top((row[:, :, 1:] / row[:, :, 1:].sum(-1, keepdim=True)).mean(1))),
        "that is the column: what patches give to [CLS]. Take the query of [CLS], attention[:, :, 0]": sort(top(maps[:, :, 1:, 0].mean(1))),
        "the lowest scores were kept": sort(score.topk(3, dim=1, largest=False).indices),
        "the first image's choice was used for the whole batch": sort(top(score[:1])).expand(2, -1)}
    expect(got, keep_by_cls(maps, 3), what="the kept patches", mistakes=causes)
    expect(fn(maps, 6), torch.arange(6).expand(2, -1), what="with keep = N every patch stays: the indices")


# -------------------------------------------------------------------------------------------------------- max-min diversity


def greedy(tokens, keep):
    """tokens (N, D) -> (keep,): greedy max-min choice, in order."""
    return greedy_maxmin(tokens[None], keep)[0][0]


def _loop(tokens, keep, normalise=True, first="isolated", how="min", mask=True):
    """The same with a mistake."""
    x = F.normalize(tokens, dim=-1) if normalise else tokens
    d = 1 - x @ x.T
    if first == "isolated":
        start = d.clone().fill_diagonal_(float("inf")).amin(1).argmax()
    elif first == "mean":
        start = d.mean(1).argmax()
    elif first == "crowded":
        start = d.clone().fill_diagonal_(float("inf")).amin(1).argmin()
    else:
        start = torch.tensor(0)
    chosen = [int(start)]
    for _ in range(keep - 1):
        rows = d[chosen]
        near = {"min": rows.amin(0), "mean": rows.mean(0), "last": rows[-1], "max": rows.amax(0)}[how].clone()
        if mask:
            near[chosen] = -float("inf")
        chosen.append(int(near.argmax()))
    return torch.tensor(chosen)


@check("05.greedy", reference=greedy)
def _(fn):
    tokens = torch.randn(14, 3, generator=torch.Generator().manual_seed(9)) * torch.linspace(0.3, 4, 14)[:, None]
    with untouched(tokens):
        got = fn(tokens, 6)
    want = greedy(tokens, 6)
    causes = {
        "the tokens are not normalised: the distance is 1 - cosine": _loop(tokens, 6, normalise=False),
        "the first token is token 0: it has to be the most isolated one (a minimum that includes the token itself is 0 everywhere)": _loop(tokens, 6, first="zero"),
        "the first token is the one with the largest MEAN distance; isolated means far from the NEAREST other": _loop(tokens, 6, first="mean"),
        "the first token is the least isolated: argmin instead of argmax": _loop(tokens, 6, first="crowded"),
        "only the last chosen token counts; keep the minimum over all chosen ones": _loop(tokens, 6, how="last"),
        "the mean distance to the chosen set; max-min takes the distance to the NEAREST chosen token": _loop(tokens, 6, how="mean"),
        "the largest distance to the chosen set; max-min takes the smallest": _loop(tokens, 6, how="max"),
        "the indices are sorted; the order of choice is wanted here": want.sort().values}
    expect(got, want, what="the choice of 6 from 14", mistakes=causes)
    copies = torch.eye(3).repeat(2, 1)                                           # three directions, each twice
    got = fn(copies, 5)
    if isinstance(got, torch.Tensor) and len(set(got.tolist())) < len(got):
        raise Wrong(f"exact copies: token {sorted(got.tolist())} - one was chosen twice\n  likely cause: chosen tokens are not masked; once all "
                    "distances are 0 the argmax returns an old one")
    expect(got, greedy(copies, 5), what="the choice of 5 from three directions, each there twice")


# -------------------------------------------------------------------------------------------------------------- three roles


def three_roles(object_score, deep_score, keep, grid, alpha):
    """Scores (N,), grid (h, w) -> (keep,): anchors, their neighbours and registers, ascending."""
    return hiprune.select(object_score[None], deep_score[None], keep, grid, alpha).index[0]


def _roles(o, d, keep, grid, alpha, anchors=None, exclude=True, registers=None, of=None):
    count = round(keep * alpha / 5) if anchors is None else anchors
    top = o.topk(count).indices
    chosen = hiprune.neighbourhood(top[None], grid)[0] if of is None else torch.zeros(len(o), dtype=torch.bool).index_fill(0, top, True)
    score = d if registers is None else registers
    rest = score.masked_fill(chosen, -float("inf")) if exclude else score
    more = rest.topk(max(0, keep - int(chosen.sum()))).indices
    return chosen.index_fill(0, more, True).nonzero()[:, 0]


@check("05.three_roles", reference=three_roles)
def _(fn):
    generator = torch.Generator().manual_seed(2)
    grid, keep, alpha = (5, 7), 20, 0.5
    o, d = torch.rand(35, generator=generator), torch.rand(35, generator=generator)
    o[6] = 2.0                                                                   # an anchor at the right border
    d[o.topk(2).indices] = torch.tensor([1.5, 1.4])                              # anchors that would also be registers
    with untouched(o, d):
        got = fn(o, d, keep, grid, alpha)
    want = three_roles(o, d, keep, grid, alpha)
    crosses = hiprune.neighbourhood(o.topk(2).indices[None], grid)[0]
    causes = {
        "alpha keep anchors: an anchor may cost five tokens, so there are round(keep alpha / 5)": _roles(o, d, keep, grid, alpha, anchors=round(keep * alpha)),
        "patches that are chosen already were chosen again as registers, so some places stay empty; give them a score of -inf": _roles(o, d, keep, grid, alpha, exclude=False),
        "keep registers on top of anchors and buffers; all three together are keep": crosses.index_fill(0, d.masked_fill(crosses, -1).topk(keep).indices, True).nonzero()[:, 0],
        "registers are counted as if each anchor cost five tokens; a cross at the border is smaller, crosses overlap: keep - chosen.sum()":
            crosses.index_fill(0, d.masked_fill(crosses, -1).topk(keep - 10).indices, True).nonzero()[:, 0],
        "registers come from the deep score, not from the object score": _roles(o, d, keep, grid, alpha, registers=o),
        "anchors come from the object score, not from the deep one": _roles(d, d, keep, grid, alpha),
        "the buffers are missing: use cross(anchors, grid)": _roles(o, d, keep, grid, alpha, of="anchors"),
        "anchors and buffers alone: the registers are missing": crosses.nonzero()[:, 0]}
    if isinstance(got, torch.Tensor) and got.shape == want.shape and torch.equal(got.sort().values, want) and not torch.equal(got, want):
        causes = {"the right patches, not in raster order: sort them": got}
    expect(got, want, what="the kept patches", mistakes=causes)
    expect(fn(o, d, 20, grid, 0.0), d.topk(20).indices.sort().values, what="with alpha = 0 there are registers alone: the patches")


# --------------------------------------------------------------------------------------------------------- contextual tokens


def contextual(x, keys, kept, count):
    """x (N, D), keys (N, P), kept (d,) -> (count, D): target + mean of its followers."""
    return merge_to_targets(keys[None], kept[None], count).apply(x[None])[0, len(kept):]


def _merge(x, keys, kept, count, stride="count", by="cosine", how="sum"):
    rest = [n for n in range(len(x)) if n not in set(kept.tolist())]
    step = max(1, len(rest) // count)
    targets = {"count": rest[::step][:count], "first": rest[:count], "all": rest[::step], "late": rest[step - 1 :: step][:count],
               "ends": [rest[round(j * (len(rest) - 1) / (count - 1))] for j in range(count)]}[stride]
    followers = [n for n in rest if n not in targets]
    metric = {"cosine": F.normalize(keys, dim=-1), "dot": keys, "x": F.normalize(x, dim=-1)}[by]
    goes_to = (metric[followers] @ metric[targets].T).argmax(1).tolist()
    out = []
    for j, t in enumerate(targets):
        mine = [n for n, g in zip(followers, goes_to) if g == j]
        mean = x[mine].mean(0) if mine else torch.zeros_like(x[t])
        out.append({"sum": x[t] + mean, "mean": x[[t, *mine]].mean(0), "total": x[[t, *mine]].sum(0), "followers": mean, "half": (x[t] + mean) / 2 if mine else x[t]}[how])
    return torch.stack(out)


@check("05.contextual", reference=contextual)
def _(fn):
    generator = torch.Generator().manual_seed(4)
    x, keys = torch.randn(16, 5, generator=generator), torch.randn(16, 4, generator=generator) * torch.linspace(0.2, 3, 16)[:, None]
    kept = torch.tensor([1, 4, 9])
    with untouched(x, keys, kept):
        got = fn(x, keys, kept, 4)
    causes = {
        "mean of the target and its followers together; it is the target PLUS the mean of the followers": _merge(x, keys, kept, 4, how="mean"),
        "the followers are summed; their mean is added to the target": _merge(x, keys, kept, 4, how="total"),
        "half of the sum: target plus mean of the followers is not divided": _merge(x, keys, kept, 4, how="half"),
        "the targets themselves are missing in the sum": _merge(x, keys, kept, 4, how="followers"),
        "the first `count` others became targets; take every (R // count)-th": _merge(x, keys, kept, 4, stride="first"),
        "too many targets: R // count rounds down, so every (R // count)-th may give more than `count`; take the first `count`": _merge(x, keys, kept, 4, stride="all"),
        "the first target is others[0], at place 0; then step, 2 step, ...": _merge(x, keys, kept, 4, stride="late"),
        "the targets reach to the last of the others; they stand at places 0, step, 2 step, ... with step = R // count": _merge(x, keys, kept, 4, stride="ends"),
        "the keys are not normalised: a follower goes to the target with the largest COSINE": _merge(x, keys, kept, 4, by="dot"),
        "likeness was measured on x; it is measured on the keys": _merge(x, keys, kept, 4, by="x")}
    expect(got, contextual(x, keys, kept, 4), what="the contextual tokens", mistakes=causes)
    alone = fn(x, keys, torch.arange(12), 4)                                     # four others, four targets, no followers
    expect(alone, x[12:], what="targets without followers stay as they are: the tokens")


# ------------------------------------------------------------------------------------------------------------------- quotas


def quotas(weight, keep):
    """weight (B, C) -> (B, C) long: floor(w K), the rest one each to the largest weights."""
    return holov.quotas(weight, torch.full((weight.shape[1],), keep), keep, allocate="release")


@check("05.quotas", reference=quotas)
def _(fn):
    weight = torch.tensor([[0.52, 0.24, 0.24], [0.33, 0.28, 0.39]])
    with untouched(weight):
        got = fn(weight, 10)
    floor = (weight * 10).floor().long()
    rest = 10 - floor.sum(1, keepdim=True)
    remainder = (weight * 10 - floor).argsort(dim=1, descending=True, stable=True).argsort(1)
    first = torch.nn.functional.one_hot(weight.argmax(1), 3)
    causes = {
        "the rest went to the largest REMAINDER; here it goes to the largest WEIGHT": floor + (remainder < rest),
        "the whole rest went to one crop; it goes one each": floor + rest * first,
        "the rest is missing: the quotas must sum to K": floor,
        "rounded; it is floor, and then the rest": (weight * 10).round().long(),
        "rounded up: the quotas exceed K": (weight * 10).ceil().long(),
        "the rest went to the crops with the SMALLEST weight": floor + (weight.argsort(dim=1, stable=True).argsort(1) < rest),
        "one argsort gives the crops in order of weight, not the rank of each crop; sort twice": floor + (weight.argsort(dim=1, descending=True, stable=True) < rest)}
    expect(got, quotas(weight, 10), what="the quotas of 10", mistakes=causes)
    even = torch.full((1, 4), 0.25)
    got, want = fn(even, 6), torch.tensor([[2, 2, 1, 1]])
    causes = {}
    if isinstance(got, torch.Tensor) and got.shape == want.shape and got.sum() == 6 and (got >= 1).all():
        causes = {"ties went elsewhere (`topk` and a plain `argsort` promise no order); use argsort(dim=1, descending=True, stable=True)": got}
    expect(got, want, what="equal weights, 6 tokens for 4 crops (ties to the lower index): the quotas", mistakes=causes)


# -------------------------------------------------------------------------------------------------------------- sensitivity


def sensitivity(features, project, directions, step):
    """features (B, N, d) -> (B, N): mean length of (M(x + h u) - M(x - h u)) / 2h over unit directions."""
    u = F.normalize(directions, dim=1)
    x = features[:, :, None]
    move = (project(x + step * u) - project(x - step * u)) / (2 * step)
    return move.norm(dim=-1).mean(dim=2)


def _along(features, project, u, step):
    x = features[:, :, None]
    return ((project(x + step * u) - project(x - step * u)) / (2 * step)).norm(dim=-1).mean(2)


@check("05.sensitivity", reference=sensitivity)
def _(fn):
    generator = torch.Generator().manual_seed(6)
    features, directions = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64), 3 * torch.randn(9, 6, generator=generator, dtype=torch.float64)
    w1, w2 = (torch.randn(6, 6, generator=generator, dtype=torch.float64) for _ in range(2))

    def project(x):
        return F.gelu(x @ w1) @ w2

    h = 0.05
    with untouched(features, directions):
        got = fn(features, project, directions, h)
    u, x = F.normalize(directions, dim=1), features[:, :, None]
    move = (project(x + h * u) - project(x - h * u)) / (2 * h)
    raw = (project(x + h * directions) - project(x - h * directions)) / (2 * h)
    forward = (project(x + h * u) - project(x)) / h
    causes = {
        "the length of the MEAN move: opposite moves cancel; take the length of each, then the mean": move.mean(2).norm(dim=-1),
        "divided by h; the two points are 2 h apart": 2 * move.norm(dim=-1).mean(2),
        "not divided by 2 h": 2 * h * move.norm(dim=-1).mean(2),
        "the directions are not normalised to length 1": raw.norm(dim=-1).mean(2),
        "the directions are normalised along the wrong axis: each ROW is a direction, dim=1": _along(features, project, F.normalize(directions, dim=0), h),
        "a forward difference; use M(x + h u) - M(x - h u)": forward.norm(dim=-1).mean(2),
        "squared lengths": move.square().sum(-1).mean(2),
        "the sum over directions; the mean is needed": move.norm(dim=-1).sum(2),
        "the largest move; the mean over directions is needed": move.norm(dim=-1).amax(2),
        "the direction axis is still there: take the mean over it": move.norm(dim=-1)}
    expect(got, sensitivity(features, project, directions, h), what="the sensitivity", mistakes=causes, atol=1e-9, rtol=1e-6)
    expect(fn(features, lambda x: 3 * x, directions, h), torch.full((2, 5), 3.0, dtype=torch.float64), what="M(x) = 3 x: the sensitivity", atol=1e-6)
