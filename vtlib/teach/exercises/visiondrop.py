"""The exercise on VisionDrop: contextual tokens."""

import torch
import torch.nn.functional as F

from vtlib.teach.exercises import check, expect
from vtlib.tokens.merge import merge_to_targets


def contextual(x, keys, kept, count):
    """x (N, D), keys (N, P), kept (d,) -> (count, D): target + mean of its followers."""
    plan = merge_to_targets(keys[None], kept[None], count)
    return plan.apply(x[None])[0, len(kept) :]


def _targets(rest, count, stride):
    step = max(1, len(rest) // count)
    last = len(rest) - 1
    return {
        "count": rest[::step][:count],
        "first": rest[:count],
        "all": rest[::step],
        "late": rest[step - 1 :: step][:count],
        "ends": [rest[round(j * last / (count - 1))] for j in range(count)],
    }[stride]


def _merge(x, keys, kept, count, stride="count", by="cosine", how="sum"):
    """`contextual` with one thing done differently."""
    rest = [n for n in range(len(x)) if n not in set(kept.tolist())]
    targets = _targets(rest, count, stride)
    followers = [n for n in rest if n not in targets]
    metric = {"cosine": F.normalize(keys, dim=-1), "dot": keys, "x": F.normalize(x, dim=-1)}[by]
    goes_to = (metric[followers] @ metric[targets].T).argmax(dim=1).tolist()
    out = []
    for j, target in enumerate(targets):
        own = [n for n, to in zip(followers, goes_to, strict=True) if to == j]
        mean = x[own].mean(dim=0) if own else torch.zeros_like(x[target])
        out.append({
            "sum": x[target] + mean,
            "mean": x[[target, *own]].mean(dim=0),
            "total": x[[target, *own]].sum(dim=0),
            "followers": mean,
            "half": (x[target] + mean) / (2 if own else 1),
        }[how])
    return torch.stack(out)


def _causes(x, keys, kept, count):
    def variant(**changed):
        return lambda: _merge(x, keys, kept, count, **changed)

    return {
        "mean of the target and its followers together; it is the target PLUS the mean of the"
        " followers": variant(how="mean"),
        "the followers are summed; their mean is added to the target": variant(how="total"),
        "half of the sum: target plus mean of the followers is not divided": variant(how="half"),
        "the targets themselves are missing in the sum": variant(how="followers"),
        "the first `count` others became targets; take every (R // count)-th":
            variant(stride="first"),
        "too many targets: R // count rounds down, so every (R // count)-th may give more than"
        " `count`; take the first `count`": variant(stride="all"),
        "the first target is others[0], at place 0; then step, 2 step, ...":
            variant(stride="late"),
        "the targets reach to the last of the others; they stand at places 0, step, 2 step, ..."
        " with step = R // count": variant(stride="ends"),
        "the keys are not normalised: a follower goes to the target with the largest COSINE":
            variant(by="dot"),
        "likeness was measured on x; it is measured on the keys": variant(by="x"),
    }


@check("visiondrop.contextual", reference=contextual)
def _(fn):
    generator = torch.Generator().manual_seed(4)
    lengths = torch.linspace(0.2, 3, 16)[:, None]
    x = torch.randn(16, 5, generator=generator)
    keys = torch.randn(16, 4, generator=generator) * lengths
    args = (x, keys, torch.tensor([1, 4, 9]), 4)
    expect(fn(*args), contextual(*args), what="the contextual tokens", mistakes=_causes(*args))
    args = (x + 1, keys.flip(0), torch.tensor([0, 7]), 3)
    expect(fn(*args), contextual(*args), what="three contextual tokens", mistakes=_causes(*args))
    alone = fn(x, keys, torch.arange(12), 4)  # four others, four targets, no followers
    expect(alone, x[12:], what="targets without followers stay as they are: the tokens")
