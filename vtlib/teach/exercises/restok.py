"""Exercise on ResTok: the residual pyramid."""

import torch
import torch.nn.functional as F

from vtlib.teach.exercises import check, expect


def residual_pyramid(maps, grids):
    """maps (B, C, H, W), grids [(h, w), ...] -> tokens (B, N, C): each level pools what the levels
    before it have left over."""
    return _pyramid(maps, grids)


def _pyramid(maps, grids, left="rest", up="nearest", order="rows", pool="mean", shape="tokens"):
    """`residual_pyramid`, or with one thing done differently."""
    size, rest, levels = maps.shape[-2:], maps, []
    for grid in grids:
        level = F.adaptive_avg_pool2d(rest, grid)
        if pool == "max":
            level = F.adaptive_max_pool2d(rest, grid)
        seen = level if order == "rows" else level.mT
        levels.append(seen.flatten(2))
        if left == "maps":
            rest = maps - F.interpolate(level, size=size)
        elif left == "rest":
            options = {} if up == "nearest" else {"align_corners": False}
            rest = rest - F.interpolate(level, size=size, mode=up, **options)
    tokens = torch.cat(levels, dim=2)
    return tokens if shape == "channels" else tokens.mT


def _pyramid_causes(*args):
    def other(**change):
        return lambda: _pyramid(*args, **change)

    return {
        "nothing is subtracted: every level pools the map itself, so this is a plain pyramid":
            other(left="none"),
        "only the last level is subtracted from the map; subtract each level from what was left "
        "before it": other(left="maps"),
        "the level is enlarged smoothly; each cell gets back its own value: mode='nearest'":
            other(up="bilinear"),
        "a level is read column by column: row by row": other(order="columns"),
        "the largest value of a cell: its mean": other(pool="max"),
        "the tokens are (B, C, N): they are (B, N, C), one row a token": other(shape="channels"),
    }


@check("restok.residual_pyramid", reference=residual_pyramid)
def _(fn):
    generator = torch.Generator().manual_seed(0)
    several = [(1, 1), (1, 1), (1, 2), (2, 2)], [(1, 1), (1, 1), (1, 2), (2, 2), (2, 4), (4, 4)]
    for shape, grids in zip(((2, 3, 4, 8), (1, 5, 8, 8)), several, strict=True):
        maps = torch.randn(*shape, generator=generator, dtype=torch.float64)
        causes = _pyramid_causes(maps, grids)
        what = f"the pyramid of {len(grids)} levels"
        expect(fn(maps, grids), residual_pyramid(maps, grids), what=what, mistakes=causes)
