"""Plausible wrong answers to the exercise of restok.py, with what the check must say."""

from tests.teach.slips import slips

PYRAMID = '''
import torch
import torch.nn.functional as F
def residual_pyramid(maps, grids):
    rest, levels = maps, []
    for grid in grids:
        level = F.adaptive_avg_pool2d(rest, grid)
        levels.append(level.flatten(2).mT)
        rest = rest - F.interpolate(level, size=maps.shape[-2:])
    return torch.cat(levels, dim=1)
'''
SUBTRACT = "rest = rest - F.interpolate(level, size=maps.shape[-2:])"

WRONG = {
    "restok.residual_pyramid": slips(
        PYRAMID,
        ("plain", SUBTRACT, "rest = maps", "nothing is subtracted"),
        ("from the map", SUBTRACT, SUBTRACT.replace("rest - F", "maps - F"), "only the last level"),
        ("smooth", "size=maps.shape[-2:])", "size=maps.shape[-2:], mode='bilinear')", "smoothly"),
        ("columns", "level.flatten(2).mT", "level.mT.flatten(2).mT", "column by column"),
        ("largest", "F.adaptive_avg_pool2d", "F.adaptive_max_pool2d", "the largest value"),
        ("channels first", "torch.cat(levels, dim=1)", "torch.cat(levels, dim=1).mT", "(B, C, N)"),
    ),
}
