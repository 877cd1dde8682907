"""The exercise on HiPrune: anchors, buffers and registers."""

import torch

from vtlib.pruning import hiprune
from vtlib.teach.exercises import check, expect


def three_roles(object_score, deep_score, keep, grid, alpha):
    """Scores (N,), grid (h, w) -> (keep,): anchors, their neighbours and registers, ascending."""
    return hiprune.select(object_score[None], deep_score[None], keep, grid, alpha).index[0]


def _roles(objects, deep, keep, grid, alpha, anchors=None, exclude=True, registers=None):
    """`three_roles` with one thing done differently."""
    count = round(keep * alpha / 5) if anchors is None else anchors
    chosen = _crosses(objects, count, grid)
    score = deep if registers is None else registers
    rest = score.masked_fill(chosen, -torch.inf) if exclude else score
    return _with(chosen, rest, keep - int(chosen.sum()))


def _crosses(objects, count, grid):
    return hiprune.neighbourhood(objects.topk(count).indices[None], grid)[0]


def _with(chosen, score, count):
    """The chosen patches and the `count` best of the score, ascending."""
    more = score.topk(min(max(0, count), len(score))).indices
    return chosen.index_fill(0, more, True).nonzero()[:, 0]


def _causes(objects, deep, keep, grid, alpha):
    args = (objects, deep, keep, grid, alpha)
    count = round(keep * alpha / 5)
    crosses = _crosses(objects, count, grid)
    alone = torch.zeros_like(crosses).index_fill(0, objects.topk(count).indices, True)
    others = deep.masked_fill(crosses, -torch.inf)
    return {
        "alpha keep anchors: an anchor may cost five tokens, so there are round(keep alpha / 5)":
            _roles(*args, anchors=round(keep * alpha)),
        "patches that are chosen already were chosen again as registers, so some places stay"
        " empty; give them a score of -inf": _roles(*args, exclude=False),
        "keep registers on top of anchors and buffers; all three together are keep":
            _with(crosses, others, min(keep, int((~crosses).sum()))),
        "registers are counted as if each anchor cost five tokens; a cross at the border is"
        " smaller, crosses overlap: keep - chosen.sum()": _with(crosses, others, keep - 5 * count),
        "registers come from the deep score, not from the object score":
            _roles(*args, registers=objects),
        "anchors come from the object score, not from the deep one":
            _roles(deep, deep, keep, grid, alpha),
        "the buffers are missing: use cross(anchors, grid)":
            _with(alone, deep.masked_fill(alone, -torch.inf), keep - count),
        "anchors and buffers alone: the registers are missing": crosses.nonzero()[:, 0],
        "alpha = 0.5 is written in; use the argument": _roles(objects, deep, keep, grid, 0.5),
    }


def _registers_again(got, deep, keep, chosen):
    """{cause: got} where chosen patches took part in the choice of registers and came twice."""
    again = deep.topk(keep - int(chosen.sum())).indices
    twice = torch.cat([chosen.nonzero()[:, 0], again])
    if isinstance(got, torch.Tensor) and torch.equal(got.sort().values, twice.sort().values):
        return {
            "patches that are chosen already were chosen again as registers, and come twice; give"
            " them a score of -inf before the choice": got
        }
    return {}


@check("hiprune.three_roles", reference=three_roles)
def _(fn):
    generator = torch.Generator().manual_seed(2)
    for keep, grid, alpha in ((20, (5, 7), 0.5), (12, (4, 6), 0.9)):
        size = grid[0] * grid[1]
        objects = torch.rand(size, generator=generator)
        deep = torch.rand(size, generator=generator)
        objects[grid[1] - 1] = 2.0  # an anchor at the right border
        deep[objects.topk(2).indices] = torch.tensor([1.5, 1.4])  # which would also be registers
        args = (objects, deep, keep, grid, alpha)
        got, want = fn(*args), three_roles(*args)
        causes = _causes(*args)
        if alpha == 0.5:
            del causes["alpha = 0.5 is written in; use the argument"]
        chosen = _crosses(objects, round(keep * alpha / 5), grid)
        causes |= _registers_again(got, deep, keep, chosen)
        if isinstance(got, torch.Tensor) and torch.equal(got.sort().values, want):
            causes = {"the right patches, not in raster order: sort them": got}
        expect(got, want, what=f"the {keep} kept patches, alpha = {alpha}", mistakes=causes)
    got, want = fn(objects, deep, keep, grid, 0.0), deep.topk(keep).indices.sort().values
    expect(got, want, what="with alpha = 0 there are registers alone: the patches")
