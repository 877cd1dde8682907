"""The exercise on VisionDrop: contextual tokens."""

import torch
import torch.nn.functional as F

from vtlib.teach.exercises import check, expect, untouched
from vtlib.tokens.merge import merge_to_targets


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


@check("visiondrop.contextual", reference=contextual)
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
