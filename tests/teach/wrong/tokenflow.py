"""Plausible wrong answers to the exercises of notebook 02, with what the check must say."""

from tests.teach.slips import slips

LLOYD = '''
import torch
def lloyd_step(x, codes):
    distances = (x[:, None] - codes).square().sum(dim=-1)
    indices = distances.argmin(dim=1)
    moved = codes.clone()
    for k in range(len(codes)):
        mine = x[indices == k]
        if len(mine):
            moved[k] = mine.mean(dim=0)
    return indices, moved
'''

THROUGH = '''
def straight_through(codes, x):
    return x + (codes - x).detach()
'''

LOSS = '''
import torch.nn.functional as F
def vq_loss(x, codes, beta):
    move_codes = F.mse_loss(codes, x.detach())
    move_x = F.mse_loss(x, codes.detach())
    return move_codes + beta * move_x
'''

SHARED = '''
import torch
import torch.nn.functional as F
def shared_index(x, codes, cut, weight):
    total = 0
    for part, w in ((slice(None, cut), 1.0), (slice(cut, None), weight)):
        a = F.normalize(x[:, part], dim=1)
        b = F.normalize(codes[:, part], dim=1)
        total = total + w * torch.cdist(a, b).square()
    return total.argmin(dim=1)
'''

WRONG = {
    "tokenflow.lloyd_step": slips(
        LLOYD,
        ("empty code is NaN", "        if len(mine):\n            moved", "        if True:\n"
         "            moved", "NaN"),
        ("empty code at the origin", "codes.clone()", "torch.zeros_like(codes)", "origin"),
        ("sums", "mine.mean(dim=0)", "mine.sum(dim=0)", "sums"),
        ("farthest", "argmin", "argmax", "farthest"),
        ("codes stay", "            moved[k] = mine.mean(dim=0)", "            pass",
         "did not move"),
        ("only the codes", "return indices, moved", "return moved", "pair"),
    ),
    "tokenflow.straight_through": slips(
        THROUGH,
        ("all detached", "x + (codes - x).detach()", "(x + (codes - x)).detach()",
         "everything is detached"),
        ("no detach", "(codes - x).detach()", "(codes - x)", "x - x cancels"),
        ("of x", "x + (codes - x).detach()", "codes + (x - codes).detach()", "those of x"),
        ("both", "(codes - x).detach()", "codes - x.detach()", "codes get it as well"),
        ("codes alone", "x + (codes - x).detach()", "codes * 1", "x - x cancels"),
    ),
    "tokenflow.vq_loss": slips(
        LOSS,
        ("swapped", "move_codes + beta * move_x", "beta * move_codes + move_x", "swapped"),
        ("nothing detached", "F.mse_loss(codes, x.detach())\n    move_x = F.mse_loss(x, "
         "codes.detach())", "F.mse_loss(codes, x)\n    move_x = F.mse_loss(x, codes)",
         "nothing is detached"),
        ("beta on both", "move_codes + beta * move_x", "beta * (move_codes + move_x)",
         "beta weighs both"),
        ("no beta", "beta * move_x", "move_x", "beta is missing"),
        ("no commitment", "move_codes + beta * move_x", "move_codes", "commitment is missing"),
        ("no codebook term", "move_codes + beta * move_x", "beta * move_x", "codes: their term"),
    ),
    "tokenflow.shared_index": slips(
        SHARED,
        ("codes not scaled", "        a = F.normalize(x[:, part], dim=1)\n        b = F.normalize("
         "codes[:, part], dim=1)", "        a = x[:, part]\n        b = codes[:, part]",
         "not scaled"),
        ("not squared", ".square()", "", "without the square"),
        ("weight on meaning", "1.0), (slice(cut, None), weight)",
         "weight), (slice(cut, None), 1.0)", "belongs to the pixel half"),
        ("weight missing", "w * torch.cdist", "torch.cdist", "weight is missing"),
        ("farthest", "argmin", "argmax", "farthest"),
    ),
}
