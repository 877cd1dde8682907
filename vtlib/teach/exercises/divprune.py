"""The exercise on DivPrune: greedy max-min diversity."""

import torch
import torch.nn.functional as F

from vtlib.teach.exercises import Wrong, check, expect, untouched
from vtlib.tokens.greedy import greedy_maxmin


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


@check("divprune.greedy", reference=greedy)
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
