"""Plausible wrong answers to the CATANet exercises of notebook 07b, with what the check must say."""

ROUND = '''
import torch
import torch.nn.functional as F
def center_round(unit, centres):
    belong = (unit @ centres.T).%s(1)
    sums = torch.zeros_like(centres).index_add(0, belong, unit)
    count = torch.bincount(belong, minlength=len(centres))
    return %s
'''
KEEP = "torch.where(count[:, None] == 0, centres, F.normalize(sums, dim=1))"

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

WRONG = {
    "07b.center_round": [
        ("empty centre lost", ROUND % ("argmax", "F.normalize(sums, dim=1)"), "stays where it was"),
        ("not normalised", ROUND % ("argmax", "torch.where(count[:, None] == 0, centres, sums)"), "have length 1"),
        ("mean", ROUND % ("argmax", "torch.where(count[:, None] == 0, centres, sums / count[:, None].clamp(min=1))"), "these are means"),
        ("farthest", ROUND % ("argmin", KEEP), "argmax, not argmin"),
        ("unchanged", ROUND % ("argmax", "centres"), "did not move"),
    ],
    "07b.piece_positions": [
        ("clamped", PIECES % ("return at.clamp(0, n - 1)", AHEAD), "last token is repeated"),
        ("wrapped", PIECES % ("return at % n", AHEAD), "starts anew"),
        ("reflected", PIECES % ("at = at % (2 * n - 2); return torch.minimum(at, 2 * n - 2 - at)", AHEAD), "leaves out the last"),
        ("no look-ahead", PIECES % (MIRROR, "torch.arange(size)"), "next piece is missing"),
        ("looks back", PIECES % (MIRROR, "torch.arange(-size, size)"), "look back"),
        ("one tensor", "def piece_positions(n, size):\n    return None\n", "two tensors"),
    ],
}
