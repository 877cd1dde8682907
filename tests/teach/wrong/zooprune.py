"""Plausible wrong answers to the exercises of zooprune.py, with what the check must say."""

from tests.teach.slips import changed, slips

ZOO = '''
import torch
import torch.nn.functional as F
def sensitivity(features, project, directions, step):
    u = F.normalize(directions, dim=1)
    x = features[:, :, None]
    move = (project(x + step * u) - project(x - step * u)) / (2 * step)
    return move.norm(dim=-1).mean(dim=2)
'''
UNIT = "F.normalize(directions, dim=1)"
FORWARD = changed(ZOO, "(2 * step)", "step")
MEAN_LENGTH = "move.norm(dim=-1).mean(dim=2)"

WRONG = {
    "zooprune.sensitivity": [
        ("forward", changed(FORWARD, "x - step * u", "x"), "forward difference"),
        *slips(
            ZOO,
            (
                "length of the mean",
                MEAN_LENGTH,
                "move.mean(dim=2).norm(dim=-1)",
                "length of the MEAN",
            ),
            ("by h", "(2 * step)", "step", "2 h apart"),
            ("not divided", " / (2 * step)", "", "not divided"),
            ("long directions", UNIT, "directions", "not normalised"),
            ("wrong axis", "directions, dim=1", "directions, dim=0", "each ROW is a direction"),
            ("squares", MEAN_LENGTH, "move.square().sum(dim=-1).mean(dim=2)", "squared"),
            ("sum", ".mean(dim=2)", ".sum(dim=2)", "the sum over directions"),
        ),
    ],
}
