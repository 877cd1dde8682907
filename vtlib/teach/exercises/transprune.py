"""Exercises on TransPrune: the cut inside a decoder, attention without the causal bias, transition variation."""

import torch

from vtlib.pruning import transprune
from vtlib.teach.exercises import Wrong, check, expect, untouched
from vtlib.tokens import take


def cut(x, where, visual, index, renumber):
    """Keep all text and of the visual tokens only `index`.

    x (B, S, D); where (B, S) long: positions; visual: slice of S; index (B, T): kept visual tokens, 0 ... n - 1, ascending.
    -> x (B, S', D), where (B, S'), visual. renumber: positions count 0, 1, ... again; else survivors keep theirs.
    """
    place = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)                    # b s
    stay = torch.cat([place[:, : visual.start], visual.start + index, place[:, visual.stop :]], dim=1)
    where = place[:, : stay.shape[1]] if renumber else take(where, stay)
    return take(x, stay), where, slice(visual.start, visual.start + index.shape[1])


@check("transprune.cut", reference=cut)
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


def fair(attn, start):
    """Attention received, without the causal bias: attn (B, N, N), rows query, columns key -> (B, N).

    Row i sees start + i + 1 keys. Its weights are multiplied by that number; each column is averaged over the rows that see it.
    """
    n = attn.shape[-1]
    keys = start + torch.arange(1, n + 1, device=attn.device)                               # how many each row sees
    seers = torch.arange(n, 0, -1, device=attn.device)                                      # how many rows see each column
    return (attn * keys[:, None]).sum(dim=1) / seers


@check("transprune.fair", reference=fair)
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


def ttv(token_in, token_out):
    """Token transition variation of one module: token_in, token_out (B, S, D) -> (B, S)."""
    return transprune.ttv(*transprune.transition(token_in, token_out))


@check("transprune.ttv", reference=ttv)
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
