"""Exercises on CATANet: a round of the centres, pieces of a sorted row, overlapping windows."""

import torch
import torch.nn.functional as F
from einops import rearrange

from vtlib.superres import catanet
from vtlib.teach.exercises import Wrong, check, expect

# -------------------------------------------------------------------------- a round of the centres


def center_round(unit, centres):
    """unit (N, C), centres (M, C), all of length 1 -> (M, C): mean directions.

    A centre without tokens stays.
    """
    return catanet.center_iter(unit[None], centres)


def _round(unit, centres, divide="length", stays=True, least=False, start=0):
    """`center_round` with one thing done differently."""
    cosine = unit @ centres.T
    belong = cosine.argmin(dim=1) if least else cosine.argmax(dim=1)
    count = torch.bincount(belong, minlength=len(centres))[:, None]
    sums = (start * centres).index_add(0, belong, unit)
    out = {
        "length": F.normalize(sums, dim=1),
        "count": sums / count.clamp(min=1),
        "nothing": sums,
    }[divide]
    return torch.where(count == 0, centres, out) if stays else out


def _round_causes(unit, centres):
    softly = (unit @ centres.T).softmax(dim=1)
    return {
        "a centre without tokens came out as zeros; it stays where it was":
            _round(unit, centres, stays=False),
        "the sums have not been normalised: centres have length 1":
            _round(unit, centres, divide="nothing"),
        "these are means: divide by the length of the sum, not by the number of tokens":
            _round(unit, centres, divide="count"),
        "tokens went to the centre they are least similar to: argmax, not argmin":
            _round(unit, centres, least=True),
        "softly assigned: each token belongs to one centre alone":
            F.normalize(softly.T @ unit, dim=1),
        "the centres did not move": centres,
        "the old centre is still in the sum: start from zeros":
            _round(unit, centres, start=1, stays=False),
    }


@check("catanet.center_round", reference=center_round)
def _(fn):
    generator = torch.Generator().manual_seed(0)
    for tokens, channels, count in ((40, 5, 6), (30, 4, 5)):
        unit = F.normalize(torch.randn(tokens, channels, generator=generator), dim=1)
        centres = F.normalize(torch.randn(count, channels, generator=generator), dim=1)
        centres[4] = -F.normalize(unit.mean(dim=0), dim=0)  # far from most
        unit = unit[(unit @ centres.T).argmax(dim=1) != 4]  # and the next one from all
        got, want = fn(unit, centres), center_round(unit, centres)
        causes = _round_causes(unit, centres)
        expect(got, want, what=f"the {count} centres", mistakes=causes)


# -------------------------------------------------------------------------------------- the pieces


def piece_positions(n, size):
    """-> queries (G, size), keys (G, 2 * size): positions in the sorted row.

    Behind its end the row is mirrored.
    """
    row, size = catanet.sorted_row(n, size)
    return row[:-size].reshape(-1, size), row.unfold(0, 2 * size, size)


def _folded(places, n, fold):
    """Places behind the end of a row of n."""
    if fold == "clamp":
        return places.clamp(0, n - 1)
    if fold == "wrap":
        return places % n
    period, turn = (2 * n - 2, 2 * n - 2) if fold == "reflect" else (2 * n, 2 * n - 1)
    places = places % period
    return torch.minimum(places, turn - places)


def _pieces(n, size, fold="mirror", ahead=1, back=False):
    """`piece_positions` with one thing done differently."""
    start = torch.arange(0, n, size)[:, None]
    keys = torch.arange(-size, size) if back else torch.arange((1 + ahead) * size)
    queries = torch.arange(size)
    return _folded(start + queries, n, fold), _folded(start + keys, n, fold)


def _piece_causes(n, size):
    causes = {
        "behind the end the last token is repeated; the row is mirrored there":
            _pieces(n, size, "clamp"),
        "behind the end the row starts anew; it is mirrored there": _pieces(n, size, "wrap"),
        "the mirror leaves out the last token: 6 is followed by 6, then 5":
            _pieces(n, size, "reflect"),
        "the keys are the piece itself alone; the next piece is missing":
            _pieces(n, size, ahead=0),
        "the keys look back at the piece before, not ahead": _pieces(n, size, back=True),
    }
    if n % size:
        cause = "the last, incomplete piece is missing: round n / size up"
        causes[cause] = _pieces(n - n % size, size)
    return causes


@check("catanet.piece_positions", reference=piece_positions)
def _(fn):
    for n, size in ((7, 3), (12, 4), (10, 10)):
        got, want = fn(n, size), piece_positions(n, size)
        if not isinstance(got, (tuple, list)) or len(got) != 2:
            raise Wrong(f"return two tensors, queries and keys; found {type(got).__name__}")
        causes = _piece_causes(n, size)
        for part, what in enumerate(("the queries", "the keys")):
            mistakes = {cause: value[part] for cause, value in causes.items()}
            expect(got[part], want[part], what=f"{what} for n={n}, size={size}", mistakes=mistakes)


# ---------------------------------------------------------------------------- windows back on a map


def overlap_average(windows, rows, columns, size):
    """windows (n, m, C, p, q), rows (n, p), columns (m, q), size (h, w) -> (C, h, w).

    Windows are summed, and divided by how many cover each pixel.
    """
    total, (tall, wide) = _summed(windows, rows, columns, size)
    return total / (tall[:, None] * wide)


def _summed(windows, rows, columns, size):
    """Windows summed onto the map, and how many cover each row and each column."""
    places = rows.flatten(), columns.flatten()
    total = rearrange(windows, "n m c p q -> c (n p) (m q)")
    for axis, place in zip((1, 2), places, strict=True):
        shape = list(total.shape)
        shape[axis] = size[axis - 1]
        total = total.new_zeros(shape).index_add(axis, place, total)
    counts = [torch.bincount(p, minlength=n) for p, n in zip(places, size, strict=True)]
    return total, counts


def _last_wins(windows, rows, columns, size):
    total = windows.new_zeros(windows.shape[2], *size)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            total[:, row[:, None], column] = windows[i, j]
    return total


def _average_causes(windows, rows, columns, size):
    total, (tall, wide) = _summed(windows, rows, columns, size)
    tall = tall[:, None]
    return {
        "these are sums: divide by how many windows cover each pixel": total,
        "halved at every seam: a row that three windows cover is divided by 4 there; count them"
        " and divide by 3": total / (2 ** (tall - 1) * 2 ** (wide - 1)),
        "the last window wins where windows overlap; sum them and divide":
            _last_wins(windows, rows, columns, size),
        "only the rows have been counted; columns overlap as well": total / tall,
        "only the columns have been counted; rows overlap as well": total / wide,
        "row and column counts are multiplied, not added: where two seams cross, four windows"
        " meet": total / (tall + wide - 1),
        "divided by the number of all windows; a pixel is covered by a few":
            total / (windows.shape[0] * windows.shape[1]),
    }


@check("catanet.overlap_average", reference=overlap_average)
def _(fn):
    generator = torch.Generator().manual_seed(0)
    # with windows of 8, row 7 of 15 and column 13 of 21 are covered three times
    for size, window in (((15, 21), 8), ((9, 14), 6)):
        rows, columns = (catanet.patch_rows(side, window) for side in size)
        shape = (len(rows), len(columns), 2, window, window)
        args = (torch.randn(shape, generator=generator), rows, columns, size)
        what = f"the map of {size[0]} x {size[1]}"
        expect(fn(*args), overlap_average(*args), what=what, mistakes=_average_causes(*args))
