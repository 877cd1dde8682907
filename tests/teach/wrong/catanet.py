"""Plausible wrong answers to the CATANet exercises of notebook 07b, with what the check must
say."""

ROUND = '''
import torch
import torch.nn.functional as F
def center_round(unit, centres):
    belong = (unit @ centres.T).%s(1)
    sums = torch.zeros_like(centres).index_add(0, belong, unit)
    count = torch.bincount(belong, minlength=len(centres))
    return %s
'''
KEEP_AS = "torch.where(count[:, None] == 0, centres, %s)"
KEEP = KEEP_AS % "F.normalize(sums, dim=1)"

PIECES = '''
import torch
def piece_positions(n, size):
    def mirror(at):
        %s
    start = torch.arange(0, n, size)[:, None]
    return mirror(start + torch.arange(size)), mirror(start + %s)
'''
MIRROR = "at = at % (2 * n); return torch.minimum(at, 2 * n - 1 - at)"
AHEAD = "torch.arange(2 * size)"

AVERAGE = '''
import torch
from einops import rearrange
def overlap_average(windows, rows, columns, size):
    (h, w), y, x = size, rows.flatten(), columns.flatten()
    wide = rearrange(windows, "n m c p q -> c (n p) (m q)")
    tall = wide.new_zeros(wide.shape[0], h, wide.shape[2]).index_add(1, y, wide)
    total = wide.new_zeros(wide.shape[0], h, w).index_add(2, x, tall)
    by_row, by_column = torch.bincount(y, minlength=h)[:, None], torch.bincount(x, minlength=w)
    return %s
'''
OVERWRITTEN = '''
import torch
def overlap_average(windows, rows, columns, size):
    out = torch.zeros(windows.shape[2], *size)
    for i, at in enumerate(rows):
        for j, across in enumerate(columns):
            out[:, at[:, None], across] = windows[i, j]
    return out
'''

WRONG = {
    "catanet.center_round": [
        (
            "old centre kept",
            (ROUND % ("argmax", KEEP)).replace("torch.zeros_like(centres)", "centres"),
            "start from zeros",
        ),
        ("empty centre lost", ROUND % ("argmax", "F.normalize(sums, dim=1)"), "stays where it was"),
        ("not normalised", ROUND % ("argmax", KEEP_AS % "sums"), "have length 1"),
        (
            "mean",
            ROUND % ("argmax", KEEP_AS % "sums / count[:, None].clamp(min=1)"),
            "these are means",
        ),
        ("farthest", ROUND % ("argmin", KEEP), "argmax, not argmin"),
        ("unchanged", ROUND % ("argmax", "centres"), "did not move"),
    ],
    "catanet.piece_positions": [
        ("clamped", PIECES % ("return at.clamp(0, n - 1)", AHEAD), "last token is repeated"),
        ("wrapped", PIECES % ("return at % n", AHEAD), "starts anew"),
        (
            "reflected",
            PIECES % ("at = at % (2 * n - 2); return torch.minimum(at, 2 * n - 2 - at)", AHEAD),
            "leaves out the last",
        ),
        ("no look-ahead", PIECES % (MIRROR, "torch.arange(size)"), "next piece is missing"),
        ("looks back", PIECES % (MIRROR, "torch.arange(-size, size)"), "look back"),
        ("one tensor", "def piece_positions(n, size):\n    return None\n", "two tensors"),
    ],
    "catanet.overlap_average": [
        ("sums", AVERAGE % "total", "these are sums"),
        (
            "halved at seams, as released",
            AVERAGE % "total / 2 ** (by_row - 1) / 2 ** (by_column - 1)",
            "divide by 3",
        ),
        ("last wins", OVERWRITTEN, "the last window wins"),
        ("rows alone", AVERAGE % "total / by_row", "only the rows"),
        ("columns alone", AVERAGE % "total / by_column", "only the columns"),
        ("counts added", AVERAGE % "total / (by_row + by_column - 1)", "multiplied, not added"),
        ("all windows", AVERAGE % "total / (windows.shape[0] * windows.shape[1])", "all windows"),
    ],
}
