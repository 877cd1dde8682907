"""Exercises on TransPrune: the cut inside a decoder, fair attention, transition variation."""

import torch

from vtlib.pruning import transprune
from vtlib.teach.exercises import Wrong, check, expect
from vtlib.tokens import take

# -------------------------------------------------------------------------------------------- cut


def cut(x, where, visual, index, renumber):
    """Keep all text and of the visual tokens only `index`: -> x (B, S', D), where (B, S'), visual.

    x (B, S, D); where (B, S) long: positions; visual: slice of S; index (B, T): kept visual tokens,
    0 ... n - 1, ascending. renumber: positions count 0, 1, ... again; else survivors keep theirs.
    """
    place = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)  # b s
    before, behind = place[:, : visual.start], place[:, visual.stop :]
    stay = torch.cat([before, visual.start + index, behind], dim=1)
    where = place[:, : stay.shape[1]] if renumber else take(where, stay)
    return take(x, stay), where, slice(visual.start, visual.start + index.shape[1])


def _cut_causes(x, where, visual, index, renumber):
    place = torch.arange(x.shape[1]).expand(len(x), -1)
    before, behind = place[:, : visual.start], place[:, visual.stop :]
    kept = visual.start + index
    span = slice(visual.start, visual.start + index.shape[1])

    def variant(*parts, renumber=renumber):
        stay = torch.cat(parts, dim=1)
        return take(x, stay), place[:, : stay.shape[1]] if renumber else take(where, stay), span

    causes = {
        "`index` counts from the first visual token, which stands at visual.start in the sequence:"
        " add it": variant(before, index, behind),
        "the text behind the image is gone: the question must stay": variant(before, kept),
        "the text in front of the image is gone": variant(kept, behind),
        "all text is gone: only the visual tokens are cut": variant(kept),
        "the kept patches come last: the question has to stay behind them":
            variant(before, behind, kept),
    }
    if renumber:
        cause = "the positions are the old ones; renumber=True counts 0, 1, 2, ... again"
        return causes | {cause: variant(before, kept, behind, renumber=False)}
    stay = torch.cat([before, kept, behind], dim=1)
    return causes | {
        "the positions are counted anew; renumber=False lets survivors keep the ones they had":
            variant(before, kept, behind, renumber=True),
        "these are places in the sequence, not the positions in `where`, which may have gaps"
        " already": (take(x, stay), stay, span),
    }


@check("transprune.cut", reference=cut)
def _(fn):
    nine = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 4, 5, 9, 11, 12, 20, 21]])
    eight = torch.tensor([[0, 2, 4, 5, 6, 7, 9, 11], [1, 2, 3, 7, 8, 9, 11, 20]])
    cases = (
        (nine, slice(2, 7), torch.tensor([[0, 2, 3], [1, 2, 4]]), False),  # 2 words, 5 patches, 2
        (nine, slice(2, 7), torch.tensor([[0, 2, 3], [1, 2, 4]]), True),
        (eight, slice(1, 5), torch.tensor([[0, 3], [1, 2]]), False),
    )
    for where, visual, index, renumber in cases:
        x = torch.randn(2, where.shape[1], 3)
        args = (x, where, visual, index, renumber)
        got, want = fn(*args), cut(*args)
        if isinstance(got, tuple) and len(got) == 3 and got[2] == visual:
            raise Wrong(
                f"the visual slice: found {got[2]}, expected {want[2]}\n"
                "  likely cause: it still has its old length; with T tokens kept it ends at"
                " visual.start + T"
            )
        what = f"the cut with renumber={renumber}, visual={visual}"
        expect(got, want, what=what, mistakes=_cut_causes(*args))


# ------------------------------------------------------------------------------------------- fair


def fair(attn, start):
    """Attention received, without the causal bias: attn (B, N, N), rows query -> (B, N).

    Row i sees start + i + 1 keys. Its weights are multiplied by that number; each column is
    averaged over the rows that see it.
    """
    keys, seers = _counts(attn.shape[-1], start, attn.device)
    return (attn * keys[:, None]).sum(dim=1) / seers


def _counts(n, start, device=None):
    """How many keys each row sees, how many rows see each column."""
    rising = torch.arange(1, n + 1, device=device)
    return start + rising, rising.flip(0)


def _fair_causes(attn, start):
    keys, seers = _counts(attn.shape[-1], start)
    rows = attn * keys[:, None]
    return {
        "this is the plain mean over all rows: early keys are seen by more rows, and early rows"
        " spread over fewer keys": attn.mean(dim=1),
        "this is the plain sum over the rows": attn.sum(dim=1),
        "the columns are divided by the rows that see them, but the rows are as they were: an"
        " early row has more to give to each key": attn.sum(dim=1) / seers,
        "the rows are multiplied, but the columns are still averaged over all N rows, also over"
        " those that cannot see them": rows.mean(dim=1),
        "row i was multiplied by i + 1: it also sees the `start` keys before the image":
            (attn * (keys - start)[:, None]).sum(dim=1) / seers,
        "row i was multiplied by start + i: it sees itself too":
            (attn * (keys - 1)[:, None]).sum(dim=1) / seers,
        "the columns were divided by the number of keys instead of the number of rows that see"
        " them": rows.sum(dim=1) / keys,
        "the columns (keys) were multiplied, not the rows (queries)":
            (attn * keys).sum(dim=1) / seers,
        "the mean runs over the keys: a token is scored by what it receives, so sum over the"
        " queries (dim=1)": rows.sum(dim=2) / seers,
    }


@check("transprune.fair", reference=fair)
def _(fn):
    cases = (
        ("equal tokens", torch.zeros(1, 6, 8), 2),
        ("random tokens", 3 * torch.randn(2, 6, 8), 2),
        ("random tokens behind four", 3 * torch.randn(2, 5, 9), 4),
    )
    for what, logits, start in cases:
        later = torch.ones_like(logits[0]).triu(start + 1).bool()
        attn = logits.masked_fill(later, -torch.inf).softmax(dim=-1)[..., start:]
        got, causes = fn(attn, start), _fair_causes(attn, start)
        expect(got, fair(attn, start), what=f"the fair score of {what}", mistakes=causes)


# -------------------------------------------------------------------------------------------- ttv


def ttv(token_in, token_out):
    """Token transition variation of one module: token_in, token_out (B, S, D) -> (B, S)."""
    return transprune.ttv(*transprune.transition(token_in, token_out))


def _ttv_causes(x, y):
    m, d = transprune.transition(x, y)
    flat_m, flat_d = transprune.transition(x, x + y)
    return {
        "the magnitude went into the softmax: the softmax sees the direction only, then m"
        " multiplies": (m * (1 - d)).softmax(dim=-1),
        "the softmax runs over d: the more a token turns, the more it counts, so 1 - d":
            m * d.softmax(dim=-1),
        "this is the paper's |d|, for which a reversed token did not turn; the release takes"
        " 1 - d": m * (1 - d.abs()).softmax(dim=-1),
        "m divides: it has to multiply, and it is |out| / |in|": (1 - d).softmax(dim=-1) / m,
        "there is no softmax over the tokens": m * (1 - d),
        "the magnitude is missing": (1 - d).softmax(dim=-1),
        "the direction is missing": m,
        "the softmax runs over the batch; it runs over the tokens, dim=-1":
            m * (1 - d).softmax(dim=0),
        "the residual was added first: token_out is what the module returns, before the sum":
            flat_m * (1 - flat_d).softmax(dim=-1),
        "the cosine was not divided by the lengths: d = <in, out> / (|in| |out|)":
            m * (1 - (x * y).sum(dim=-1)).softmax(dim=-1),
    }


@check("transprune.ttv", reference=ttv)
def _(fn):
    for tokens, dim in ((7, 4), (5, 3)):
        x = torch.randn(2, tokens, dim)
        y = torch.randn(2, tokens, dim) * (0.5 + torch.rand(2, tokens, 1) * 2)
        y[:, 0] = -x[:, 0]  # turned round
        expect(fn(x, y), ttv(x, y), what=f"TTV of {tokens} tokens", mistakes=_ttv_causes(x, y))
