"""The exercise on FasterVLM: the row of [CLS]."""

import torch

from vtlib.pruning import fastervlm
from vtlib.teach.exercises import check, expect


def keep_by_cls(attention, keep):
    """attention (B, heads, 1 + N, 1 + N) -> (B, keep): the patches [CLS] looks at most, sorted."""
    return fastervlm.select(fastervlm.score(attention[:, :, 0, 1:]), keep).index


def _maps(seed, shares):
    """Two images, two heads, six patches: every classic mistake picks other patches."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(2, 2, 7, 7, generator=generator) ** 2
    maps[:, :, 0, 0] += torch.tensor(shares)  # the heads give [CLS] itself different shares
    return maps / maps.sum(dim=-1, keepdim=True)


def _causes(maps, keep):
    row = maps[:, :, 0]
    patches = row[:, :, 1:]
    score = patches.mean(dim=1)
    ranked = score.topk(keep, dim=1).indices

    def best(score):
        return score.topk(keep, dim=1).indices.sort(dim=1).values

    return {
        "the indices are in the order of their scores; sort them: tokens stay in raster order":
            ranked,
        "off by one: [CLS] is key 0, and patch 0 is key 1; cut key 0 away before topk":
            ranked.sort(dim=1).values + 1,
        "[CLS] itself was allowed to win a place; cut key 0 away": best(row.mean(dim=1)),
        "max over heads; the score is the mean over heads": best(patches.amax(dim=1)),
        "the first head alone; take the mean over heads": best(patches[:, 0]),
        "the row was normalised again after [CLS] was cut, which weighs the heads differently":
            best((patches / patches.sum(dim=-1, keepdim=True)).mean(dim=1)),
        "that is the column: what patches give to [CLS]. Take the query of [CLS],"
        " attention[:, :, 0]": best(maps[:, :, 1:, 0].mean(dim=1)),
        "the lowest scores were kept": best(-score),
        "the first image's choice was used for the whole batch": best(score[:1]).expand(2, -1),
    }


@check("fastervlm.keep_by_cls", reference=keep_by_cls)
def _(fn):
    maps = _maps(359, [0.3, 3.0])
    got, want = fn(maps, 3), keep_by_cls(maps, 3)
    expect(got, want, what="the kept patches", mistakes=_causes(maps, 3))
    maps = _maps(1, [0.1, 0.2])
    got = fn(maps, 6)
    expect(got, torch.arange(6).expand(2, -1), what="with keep = N every patch stays: the indices")
    expect(fn(maps, 2), keep_by_cls(maps, 2), what="the two patches kept of another picture")
