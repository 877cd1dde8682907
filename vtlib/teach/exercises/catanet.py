"""Exercises on CATANet: one round of the centres, the pieces that a sorted row is cut into, overlapping windows averaged."""

import torch
import torch.nn.functional as F
from einops import rearrange

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


@check("catanet.center_round", reference=center_round)
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
        "the old centre is still in the sum: start from zeros": lambda: F.normalize(
            centres.index_add(0, (unit @ centres.T).argmax(1), unit), dim=1),
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


@check("catanet.piece_positions", reference=piece_positions)
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


# ------------------------------------------------------------------------------------------------------- windows back on a map


def overlap_average(patches, rows, columns, size):
    """patches (n, m, C, p, q), rows (n, p), columns (m, q), size (h, w) -> (C, h, w): summed, divided by how many cover each pixel."""
    total, covered = _summed(patches, rows, columns, size)
    return total / (covered[0][:, None] * covered[1])


def _summed(patches, rows, columns, size):
    """Windows summed onto the map, and how many cover each row and each column."""
    wide = rearrange(patches, "n m c p q -> c (n p) (m q)")
    for axis, at in ((1, rows.flatten()), (2, columns.flatten())):
        shape = list(wide.shape)
        shape[axis] = size[axis - 1]
        wide = wide.new_zeros(shape).index_add(axis, at, wide)
    return wide, [torch.bincount(at.flatten(), minlength=side) for at, side in zip((rows, columns), size)]


def _averaged(patches, rows, columns, size, way):
    total, (tall, wide) = _summed(patches, rows, columns, size)
    if way == "last":
        total = torch.zeros_like(total)
        for i, at in enumerate(rows):
            for j, across in enumerate(columns):
                total[:, at[0] : at[-1] + 1, across[0] : across[-1] + 1] = patches[i, j]
        return total
    by = {"sum": 1, "halves": 2 ** (tall - 1)[:, None] * 2 ** (wide - 1), "rows": tall[:, None], "columns": wide, "plus": tall[:, None] + wide - 1,
          "all": patches.shape[0] * patches.shape[1]}
    return total / by[way]


@check("catanet.overlap_average", reference=overlap_average)
def _(fn):
    size = (15, 21)                                                            # with windows of 8, row 7 and column 13 are covered three times
    rows, columns = (catanet.patch_rows(side, 8) for side in size)
    patches = torch.randn(len(rows), len(columns), 2, 8, 8, generator=torch.Generator().manual_seed(0))
    with untouched(patches, rows, columns):
        got = fn(patches, rows, columns, size)
    expect(got, overlap_average(patches, rows, columns, size), what="the map", mistakes={
        message: lambda way=way: _averaged(patches, rows, columns, size, way) for message, way in (
            ("these are sums: divide by how many windows cover each pixel", "sum"),
            ("halved at every seam: a row that three windows cover is divided by 4 there; count them and divide by 3", "halves"),
            ("the last window wins where windows overlap; sum them and divide", "last"),
            ("only the rows have been counted; columns overlap as well", "rows"),
            ("only the columns have been counted; rows overlap as well", "columns"),
            ("row and column counts are multiplied, not added: where two seams cross, four windows meet", "plus"),
            ("divided by the number of all windows; a pixel is covered by a few", "all"))})
