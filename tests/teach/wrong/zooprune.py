"""Plausible wrong answers to the exercises of zooprune.py, with what the check must say."""

ZOO = '''
import torch
import torch.nn.functional as F
def sensitivity(features, project, directions, step):
    u = %s
    x = features[:, :, None]
    move = (project(x + step * u) - project(%s)) / (%s)
    return %s
'''

DIRECTIONS, BACK, BY, MEAN = "F.normalize(directions, dim=1)", "x - step * u", "2 * step", "move.norm(dim=-1).mean(dim=2)"

WRONG = {
    "zooprune.sensitivity": [
        ("length of the mean", ZOO % (DIRECTIONS, BACK, BY, "move.mean(dim=2).norm(dim=-1)"), "length of the MEAN"),
        ("by h", ZOO % (DIRECTIONS, BACK, "step", MEAN), "2 h apart"),
        ("not divided", ZOO % (DIRECTIONS, BACK, "1", MEAN), "not divided"),
        ("long directions", ZOO % ("directions", BACK, BY, MEAN), "not normalised"),
        ("wrong axis", ZOO % ("F.normalize(directions, dim=0)", BACK, BY, MEAN), "each ROW is a direction"),
        ("forward", ZOO % (DIRECTIONS, "x", "step", MEAN), "forward difference"),
        ("squares", ZOO % (DIRECTIONS, BACK, BY, "move.square().sum(dim=-1).mean(dim=2)"), "squared"),
        ("sum", ZOO % (DIRECTIONS, BACK, BY, "move.norm(dim=-1).sum(dim=2)"), "the sum over directions"),
    ],
}
