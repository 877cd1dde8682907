"""The exercise on DivPrune: greedy max-min diversity."""

import torch
import torch.nn.functional as F

from vtlib.teach.exercises import Wrong, check, expect
from vtlib.tokens.greedy import greedy_maxmin


def greedy(tokens, keep):
    """tokens (N, D) -> (keep,): greedy max-min choice, in order."""
    return greedy_maxmin(tokens[None], keep)[0][0]


def _first(distance, rule):
    others = distance.clone().fill_diagonal_(float("inf"))
    if rule == "isolated":
        return others.amin(dim=1).argmax()
    if rule == "mean":
        return distance.mean(dim=1).argmax()
    if rule == "crowded":
        return others.amin(dim=1).argmin()
    return rule  # the token itself


def _loop(tokens, keep, normalise=True, first="isolated", how="min"):
    """`greedy` with one thing done differently."""
    x = F.normalize(tokens, dim=-1) if normalise else tokens
    distance = 1 - x @ x.T
    chosen = [int(_first(distance, first))]
    for _ in range(keep - 1):
        rows = distance[chosen]
        near = {
            "min": rows.amin(dim=0),
            "mean": rows.mean(dim=0),
            "last": rows[-1].clone(),
            "max": rows.amax(dim=0),
        }[how]
        near[chosen] = -float("inf")
        chosen.append(int(near.argmax()))
    return torch.tensor(chosen)


def _starts_at(got):
    """The first token of an answer, or 0."""
    return int(got[0]) if isinstance(got, torch.Tensor) and got.ndim == 1 and len(got) else 0


def _causes(tokens, keep, got):
    def loop(**changed):
        return lambda: _loop(tokens, keep, **changed)

    return {
        "the tokens are not normalised: the distance is 1 - cosine": loop(normalise=False),
        "the first token is the one with the largest MEAN distance; isolated means far from the"
        " NEAREST other": loop(first="mean"),
        "the first token is the least isolated: argmin instead of argmax": loop(first="crowded"),
        "only the last chosen token counts; keep the minimum over all chosen ones":
            loop(how="last"),
        "the mean distance to the chosen set; max-min takes the distance to the NEAREST chosen"
        " token": loop(how="mean"),
        "the largest distance to the chosen set; max-min takes the smallest": loop(how="max"),
        "the indices are sorted; the order of choice is wanted here":
            lambda: greedy(tokens, keep).sort().values,
        "all follows rightly from your first token, which is the wrong one. A minimum over all"
        " tokens meets the token itself, at distance 0 (the diagonal): put infinity there, and the"
        " most isolated token comes first": loop(first=_starts_at(got)),
    }


@check("divprune.greedy", reference=greedy)
def _(fn):
    generator = torch.Generator().manual_seed(9)
    lengths = torch.linspace(0.3, 4, 14)[:, None]
    tokens = torch.randn(14, 3, generator=generator) * lengths
    got = fn(tokens, 6)
    causes = _causes(tokens, 6, got)
    expect(got, greedy(tokens, 6), what="the choice of 6 from 14", mistakes=causes)
    copies = torch.eye(3).repeat(2, 1)  # three directions, each twice
    got = fn(copies, 5)
    if isinstance(got, torch.Tensor) and len(set(got.tolist())) < len(got):
        raise Wrong(
            f"exact copies: token {sorted(got.tolist())} - one was chosen twice\n"
            "  likely cause: chosen tokens are not masked; once all distances are 0 the argmax"
            " returns an old one"
        )
    what = "the choice of 5 from three directions, each there twice"
    expect(got, greedy(copies, 5), what=what)
