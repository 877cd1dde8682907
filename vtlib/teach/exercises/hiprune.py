"""The exercise on HiPrune: anchors, buffers and registers."""

import torch

from vtlib.pruning import hiprune
from vtlib.teach.exercises import check, expect, untouched


def three_roles(object_score, deep_score, keep, grid, alpha):
    """Scores (N,), grid (h, w) -> (keep,): anchors, their neighbours and registers, ascending."""
    return hiprune.select(object_score[None], deep_score[None], keep, grid, alpha).index[0]


def _roles(o, d, keep, grid, alpha, anchors=None, exclude=True, registers=None, of=None):
    count = round(keep * alpha / 5) if anchors is None else anchors
    top = o.topk(count).indices
    chosen = hiprune.neighbourhood(top[None], grid)[0] if of is None else torch.zeros(len(o), dtype=torch.bool).index_fill(0, top, True)
    score = d if registers is None else registers
    rest = score.masked_fill(chosen, -float("inf")) if exclude else score
    more = rest.topk(max(0, keep - int(chosen.sum()))).indices
    return chosen.index_fill(0, more, True).nonzero()[:, 0]


@check("hiprune.three_roles", reference=three_roles)
def _(fn):
    generator = torch.Generator().manual_seed(2)
    grid, keep, alpha = (5, 7), 20, 0.5
    o, d = torch.rand(35, generator=generator), torch.rand(35, generator=generator)
    o[6] = 2.0                                                                   # an anchor at the right border
    d[o.topk(2).indices] = torch.tensor([1.5, 1.4])                              # anchors that would also be registers
    with untouched(o, d):
        got = fn(o, d, keep, grid, alpha)
    want = three_roles(o, d, keep, grid, alpha)
    crosses = hiprune.neighbourhood(o.topk(2).indices[None], grid)[0]
    causes = {
        "alpha keep anchors: an anchor may cost five tokens, so there are round(keep alpha / 5)": _roles(o, d, keep, grid, alpha, anchors=round(keep * alpha)),
        "patches that are chosen already were chosen again as registers, so some places stay empty; give them a score of -inf": _roles(o, d, keep, grid, alpha, exclude=False),
        "keep registers on top of anchors and buffers; all three together are keep": crosses.index_fill(0, d.masked_fill(crosses, -1).topk(keep).indices, True).nonzero()[:, 0],
        "registers are counted as if each anchor cost five tokens; a cross at the border is smaller, crosses overlap: keep - chosen.sum()":
            crosses.index_fill(0, d.masked_fill(crosses, -1).topk(keep - 10).indices, True).nonzero()[:, 0],
        "registers come from the deep score, not from the object score": _roles(o, d, keep, grid, alpha, registers=o),
        "anchors come from the object score, not from the deep one": _roles(d, d, keep, grid, alpha),
        "the buffers are missing: use cross(anchors, grid)": _roles(o, d, keep, grid, alpha, of="anchors"),
        "anchors and buffers alone: the registers are missing": crosses.nonzero()[:, 0]}
    if isinstance(got, torch.Tensor) and got.shape == want.shape and torch.equal(got.sort().values, want) and not torch.equal(got, want):
        causes = {"the right patches, not in raster order: sort them": got}
    expect(got, want, what="the kept patches", mistakes=causes)
    expect(fn(o, d, 20, grid, 0.0), d.topk(20).indices.sort().values, what="with alpha = 0 there are registers alone: the patches")
