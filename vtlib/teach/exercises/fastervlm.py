"""The exercise on FasterVLM: the row of [CLS]."""

import torch

from vtlib.pruning import fastervlm
from vtlib.teach.exercises import check, expect, untouched


def keep_by_cls(attention, keep):
    """attention (B, heads, 1 + N, 1 + N) -> (B, keep): the patches [CLS] looks at most, ascending."""
    return fastervlm.select(fastervlm.score(attention[:, :, 0, 1:]), keep).index


def _maps():
    """Two images, two heads, six patches: every classic mistake picks other patches than the right answer."""
    maps = torch.rand(2, 2, 7, 7, generator=torch.Generator().manual_seed(359)) ** 2
    maps[:, :, 0, 0] += torch.tensor([0.3, 3])                                   # the heads give [CLS] itself different shares
    return maps / maps.sum(dim=-1, keepdim=True)


@check("fastervlm.keep_by_cls", reference=keep_by_cls)
def _(fn):
    maps = _maps()
    with untouched(maps):
        got = fn(maps, 3)
    row = maps[:, :, 0]

    def top(score, keep=3):
        return score.topk(keep, dim=1).indices

    def sort(index):
        return index.sort(dim=1).values

    score = row[:, :, 1:].mean(1)
    causes = {
        "the indices are in the order of their scores; sort them: tokens stay in raster order": top(score),
        "off by one: [CLS] is key 0, and patch 0 is key 1; cut key 0 away before topk": sort(top(torch.cat([torch.zeros(2, 1), score], 1))),
        "[CLS] itself was allowed to win a place; cut key 0 away": sort(top(row.mean(1))),
        "max over heads; the score is the mean over heads": sort(top(row[:, :, 1:].amax(1))),
        "the first head alone; take the mean over heads": sort(top(row[:, 0, 1:])),
        "the row was normalised again after [CLS] was cut, which weighs the heads differently": sort(top((row[:, :, 1:] / row[:, :, 1:].sum(-1, keepdim=True)).mean(1))),
        "that is the column: what patches give to [CLS]. Take the query of [CLS], attention[:, :, 0]": sort(top(maps[:, :, 1:, 0].mean(1))),
        "the lowest scores were kept": sort(score.topk(3, dim=1, largest=False).indices),
        "the first image's choice was used for the whole batch": sort(top(score[:1])).expand(2, -1)}
    expect(got, keep_by_cls(maps, 3), what="the kept patches", mistakes=causes)
    expect(fn(maps, 6), torch.arange(6).expand(2, -1), what="with keep = N every patch stays: the indices")
