"""Exercises on CATANet: one round of the centres, and the pieces that a sorted row is cut into."""

import torch
import torch.nn.functional as F

from vtlib.superres import catanet
from vtlib.teach.exercises import Wrong, check, expect, untouched

# ------------------------------------------------------------------------------------------------------- a round of the centres


def center_round(unit, centres):
    """unit (N, C), centres (M, C), all of length 1 -> (M, C): mean directions; a centre without tokens stays."""
    return catanet.center_iter(unit[None], centres)


def _round(unit, centres, mean=False, keep=True, length=True, least=False):
    cosine = unit @ centres.T
    belong = cosine.argmin(1) if least else cosine.argmax(1)
    count = torch.bincount(belong, minlength=len(centres))[:, None]
    sums = torch.zeros_like(centres).index_add(0, belong, unit)
    out = sums / count.clamp(min=1) if mean else F.normalize(sums, dim=1) if length else sums
    return torch.where(count == 0, centres, out) if keep else out


@check("07b.center_round", reference=center_round)
def _(fn):
    generator = torch.Generator().manual_seed(0)
    unit = F.normalize(torch.randn(40, 5, generator=generator), dim=1)
    centres = F.normalize(torch.randn(6, 5, generator=generator), dim=1)
    centres[4] = -F.normalize(unit.mean(0), dim=0)                              # far from most, and the next one from all
    unit = unit[(unit @ centres.T).argmax(1) != 4]
    with untouched(unit, centres):
        got = fn(unit, centres)
    expect(got, center_round(unit, centres), what="the centres", mistakes={
        "a centre without tokens came out as zeros; it stays where it was": lambda: _round(unit, centres, keep=False),
        "the sums have not been normalised: centres have length 1": lambda: _round(unit, centres, length=False),
        "these are means: divide by the length of the sum, not by the number of tokens": lambda: _round(unit, centres, mean=True),
        "tokens went to the centre they are least similar to: argmax, not argmin": lambda: _round(unit, centres, least=True),
        "softly assigned: each token belongs to one centre alone": lambda: F.normalize((unit @ centres.T).softmax(1).T @ unit, dim=1),
        "the centres did not move": lambda: centres,
    })


# ----------------------------------------------------------------------------------------------------------------- the pieces


def piece_positions(n, size):
    """-> queries (G, size), keys (G, 2 * size): positions in the sorted row, mirrored behind its end."""
    return catanet.subgroups(n, size)


def _pieces(n, size, fold="mirror", ahead=1, back=False):
    start = torch.arange(0, n, size)[:, None]

    def where(at):
        if fold == "clamp":
            return at.clamp(0, n - 1)
        if fold == "wrap":
            return at % n
        if fold == "reflect":
            at = at % (2 * n - 2)
            return torch.minimum(at, 2 * n - 2 - at)
        at = at % (2 * n)
        return torch.minimum(at, 2 * n - 1 - at)
    keys = torch.arange(-size, size) if back else torch.arange((1 + ahead) * size)
    return where(start + torch.arange(size)), where(start + keys)


@check("07b.piece_positions", reference=piece_positions)
def _(fn):
    for n, size in ((7, 3), (12, 4), (10, 10)):
        got = fn(n, size)
        if not isinstance(got, tuple | list) or len(got) != 2:
            raise Wrong(f"return two tensors, queries and keys; found {type(got).__name__}")
        want = piece_positions(n, size)
        few = _pieces(n - n % size, size) if n % size else None
        for what, k in (("the queries", 0), ("the keys", 1)):
            mistakes = {
                "behind the end the last token is repeated; the row is mirrored there": lambda: _pieces(n, size, "clamp")[k],
                "behind the end the row starts anew; it is mirrored there": lambda: _pieces(n, size, "wrap")[k],
                "the mirror leaves out the last token: 6 is followed by 6, then 5": lambda: _pieces(n, size, "reflect")[k],
                "the keys are the piece itself alone; the next piece is missing": lambda: _pieces(n, size, ahead=0)[k],
                "the keys look back at the piece before, not ahead": lambda: _pieces(n, size, back=True)[k],
            }
            if few is not None:
                mistakes["the last, incomplete piece is missing: round n / size up"] = lambda: few[k]
            expect(got[k], want[k], what=f"{what} for n={n}, size={size}", mistakes=mistakes)
