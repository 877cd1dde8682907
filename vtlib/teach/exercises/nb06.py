"""Exercises of notebook 06: cuts inside a decoder, what may decide them, and merging before it."""

import torch
import torch.nn.functional as F

from vtlib.pruning import aim, transprune
from vtlib.teach.exercises import Wrong, check, expect, untouched
from vtlib.tokens import take

# ------------------------------------------------------------------------------------------------------------------------ cut


def cut(x, where, visual, index, renumber):
    """Keep all text and of the visual tokens only `index`.

    x (B, S, D); where (B, S) long: positions; visual: slice of S; index (B, T): kept visual tokens, 0 ... n - 1, ascending.
    -> x (B, S', D), where (B, S'), visual. renumber: positions count 0, 1, ... again; else survivors keep theirs.
    """
    place = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)                    # b s
    stay = torch.cat([place[:, : visual.start], visual.start + index, place[:, visual.stop :]], dim=1)
    where = place[:, : stay.shape[1]] if renumber else take(where, stay)
    return take(x, stay), where, slice(visual.start, visual.start + index.shape[1])


@check("06.cut", reference=cut)
def _(fn):
    x, visual = torch.randn(2, 9, 3), slice(2, 7)                                           # two words, five patches, two words
    where = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 4, 5, 9, 11, 12, 20, 21]])
    index = torch.tensor([[0, 2, 3], [1, 2, 4]])
    place = torch.arange(9).expand(2, -1)

    def wrong(parts, renumber, stop=5):
        stay = torch.cat(parts, dim=1)
        return take(x, stay), place[:, : stay.shape[1]] if renumber else take(where, stay), slice(2, stop)

    for renumber in (False, True):
        want = cut(x, where, visual, index, renumber)
        with untouched(x, where, index):
            got = fn(x, where, visual, index, renumber)
        if isinstance(got, tuple) and len(got) == 3 and got[2] == visual:
            raise Wrong(f"the visual slice: found {got[2]}, expected {want[2]}\n  likely cause: it still has its old length; "
                        "with T tokens kept it ends at visual.start + T")
        mistakes = {
            "`index` counts from the first visual token, which stands at visual.start in the sequence: add it":
                wrong([place[:, :2], index, place[:, 7:]], renumber),
            "the text behind the image is gone: the question must stay": wrong([place[:, :2], 2 + index], renumber),
            "the text in front of the image is gone": wrong([2 + index, place[:, 7:]], renumber),
            "all text is gone: only the visual tokens are cut": wrong([2 + index], renumber),
            "the kept patches come last: the question has to stay behind them": wrong([place[:, :2], place[:, 7:], 2 + index], renumber),
        }
        right = [place[:, :2], 2 + index, place[:, 7:]]
        if renumber:
            mistakes["the positions are the old ones; renumber=True counts 0, 1, 2, ... again"] = wrong(right, False)
        else:
            mistakes["the positions are counted anew; renumber=False lets survivors keep the ones they had"] = wrong(right, True)
            stay = torch.cat(right, dim=1)
            mistakes["these are places in the sequence, not the positions in `where`, which may have gaps already"] = (
                take(x, stay), stay, slice(2, 5))
        expect(got, want, what=f"the cut with renumber={renumber}", mistakes=mistakes)


# ----------------------------------------------------------------------------------------------------------------------- fair


def fair(attn, start):
    """Attention received, without the causal bias: attn (B, N, N), rows query, columns key -> (B, N).

    Row i sees start + i + 1 keys. Its weights are multiplied by that number; each column is averaged over the rows that see it.
    """
    n = attn.shape[-1]
    keys = start + torch.arange(1, n + 1, device=attn.device)                               # how many each row sees
    seers = torch.arange(n, 0, -1, device=attn.device)                                      # how many rows see each column
    return (attn * keys[:, None]).sum(dim=1) / seers


@check("06.fair", reference=fair)
def _(fn):
    n, start = 6, 2
    keys, seers = start + torch.arange(1, n + 1), torch.arange(n, 0, -1)
    later = torch.ones(n, start + n).triu(start + 1).bool()

    def block(logits):
        return logits.masked_fill(later, -torch.inf).softmax(dim=-1)[..., start:]

    for what, logits in (("equal tokens", torch.zeros(1, n, start + n)), ("random tokens", 3 * torch.randn(2, n, start + n))):
        attn = block(logits)
        rows = attn * keys[:, None]
        with untouched(attn):
            got = fn(attn, start)
        expect(got, fair(attn, start), what=f"the fair score of {what}", mistakes={
            "this is the plain mean over all rows: early keys are seen by more rows, and early rows spread over fewer keys": attn.mean(1),
            "this is the plain sum over the rows": attn.sum(1),
            "the columns are divided by the rows that see them, but the rows are as they were: an early row has more to give to each key":
                attn.sum(1) / seers,
            "the rows are multiplied, but the columns are still averaged over all N rows, also over those that cannot see them": rows.mean(1),
            "row i was multiplied by i + 1: it also sees the `start` keys before the image":
                (attn * torch.arange(1, n + 1)[:, None]).sum(1) / seers,
            "row i was multiplied by start + i: it sees itself too": (attn * (keys - 1)[:, None]).sum(1) / seers,
            "the columns were divided by the number of keys instead of the number of rows that see them": rows.sum(1) / keys,
            "the columns (keys) were multiplied, not the rows (queries)": (attn * keys).sum(1) / seers,
            "the mean runs over the keys: a token is scored by what it receives, so sum over the queries (dim=1)": rows.sum(2) / seers})


# ------------------------------------------------------------------------------------------------------------------------ ttv


def ttv(token_in, token_out):
    """Token transition variation of one module: token_in, token_out (B, S, D) -> (B, S)."""
    return transprune.ttv(*transprune.transition(token_in, token_out))


@check("06.ttv", reference=ttv)
def _(fn):
    x = torch.randn(2, 7, 4)
    y = torch.randn(2, 7, 4) * (0.5 + torch.rand(2, 7, 1) * 2)
    y[:, 0] = -x[:, 0]                                                                      # turned round
    m, d = transprune.transition(x, y)
    with untouched(x, y):
        got = fn(x, y)
    flat_m, flat_d = transprune.transition(x, x + y)
    expect(got, ttv(x, y), what="TTV", mistakes={
        "the magnitude went into the softmax: the softmax sees the direction only, then m multiplies": (m * (1 - d)).softmax(-1),
        "the softmax runs over d: the more a token turns, the more it counts, so 1 - d": m * d.softmax(-1),
        "this is the paper's |d|, for which a reversed token did not turn; the release takes 1 - d": m * (1 - d.abs()).softmax(-1),
        "m divides: it has to multiply": (1 - d).softmax(-1) / m,
        "m is |in| / |out|; the magnitude is |out| / |in|": (1 - d).softmax(-1) / m,
        "there is no softmax over the tokens": m * (1 - d),
        "the magnitude is missing": (1 - d).softmax(-1),
        "the direction is missing": m,
        "the softmax runs over the batch; it runs over the tokens, dim=-1": m * (1 - d).softmax(0),
        "the residual was added first: token_out is what the module returns, before the sum": flat_m * (1 - flat_d).softmax(-1),
        "the cosine was not divided by the lengths: d = <in, out> / (|in| |out|)": m * (1 - (x * y).sum(-1)).softmax(-1)})


# ----------------------------------------------------------------------------------------------------------------- merge step


def merge_step(x, r):
    """One of AIM's merging steps for one picture: x (N, D) -> (N - r, D), the other even tokens first, then the odd ones."""
    return aim.merge_step(x[None], r).apply(x[None])[0]


def _merge(x, r, order="falling", mean="all", first="rest", cosine=True, flip=False):
    """merge_step with one mistake."""
    a, b = (x[1::2], x[0::2]) if flip else (x[0::2], x[1::2])
    similarity = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T if cosine else a @ b.T
    best, target = similarity.max(dim=1)
    ranking = best.argsort(descending=order != "rising", stable=True)
    gone, rest = ranking[:r], ranking[r:]
    if first == "raster":
        rest = rest.sort().values
    out = torch.zeros_like(b) if mean == "sources" else b.clone()
    for i in gone.tolist():
        out[target[i]] = (out[target[i]] + a[i]) / 2 if mean == "pairs" else out[target[i]] + a[i]
    count = torch.bincount(target[gone], minlength=len(b))[:, None]
    if mean == "all":
        out = out / (count + 1)
    if mean == "sources":
        out = torch.where(count > 0, out / count.clamp(min=1), b)
    return torch.cat([out, a[rest]] if first == "odd" else [a[rest], out])


@check("06.merge_step", reference=merge_step)
def _(fn):
    centre = torch.randn(4, 6)
    near = torch.tensor([1, 1, 1, 5, 1, 5, 5, 5, 5, 5, 5])[:, None] / 10                     # three even tokens choose token 1
    x = centre[[0, 0, 0, 1, 0, 2, 1, 3, 2, 3, 3]] + near * torch.randn(11, 6)                # 11 tokens, four look-alike groups
    x = x * (0.5 + torch.rand(11, 1))
    for r in (4, 2):
        with untouched(x):
            got = fn(x, r)
        expect(got, merge_step(x, r), what=f"the merged tokens with r={r}", mistakes={
            "the r worst matches were merged: sort by falling similarity": lambda: _merge(x, r, order="rising"),
            "the mean was taken pair by pair, so that the last one merged counts half: add all up, divide once": lambda: _merge(x, r, mean="pairs"),
            "sums, not means": lambda: _merge(x, r, mean="sum"),
            "the target itself is missing in the mean: b_j and all that chose it": lambda: _merge(x, r, mean="sources"),
            "the tokens that were not merged are in raster order; AIM leaves them by falling similarity": lambda: _merge(x, r, first="raster"),
            "the odd tokens come first; the rest of the even ones leads": lambda: _merge(x, r, first="odd"),
            "the dot product decided: similarity is the cosine": lambda: _merge(x, r, cosine=False),
            "the odd tokens were merged into the even ones; it is the other way round": lambda: _merge(x, r, flip=True)})
    expect(fn(x, 0).shape, merge_step(x, 0).shape, what="the shape with r=0 (nothing is merged)")


# ------------------------------------------------------------------------------------------------------------------ page rank


def page_rank(logits, tau, iterations):
    """Importance of each token: logits (heads, S, S), -inf where a query must not look -> (S,)."""
    return aim.page_rank(logits[None], tau, iterations)[0]


@check("06.page_rank", reference=page_rank)
def _(fn):
    s, tau, iterations = 6, 0.5, 3
    later = torch.ones(s, s).triu(1).bool()
    logits = torch.randn(3, s, s).masked_fill(later, -torch.inf)

    def rank(flow, start=1 / s, steps=iterations, heads="rms", back=False):
        mass = torch.full((3, 1, s), start)
        for _ in range(steps):
            mass = (flow @ mass.mT).mT if back else mass @ flow
        mass = mass[:, 0]
        return mass.square().mean(0).sqrt() if heads == "rms" else mass.mean(0)

    flow = (logits / tau).softmax(-1)
    with untouched(logits):
        got = fn(logits, tau, iterations)
    expect(got, page_rank(logits, tau, iterations), what="the page rank", mistakes={
        "all stays at 1/S: a query shares out its mass among its keys. The softmax runs over keys (dim=-1), and s @ M, a row times a matrix, "
        "sends mass from queries to keys; M @ s goes against the arrows": rank(flow, back=True),
        "tau multiplies the logits; it divides them, so that a small tau sharpens": rank((logits * tau).softmax(-1)),
        "tau was not used": rank(logits.softmax(-1)),
        "heads were averaged; AIM takes the root of their mean square": rank(flow, heads="mean"),
        "the mass starts at 1 instead of 1/S": rank(flow, start=1.0),
        "only one iteration: that is the mean attention received": rank(flow, steps=1),
        "one iteration too many": rank(flow, steps=iterations + 1),
        "one iteration too few": rank(flow, steps=iterations - 1)})
