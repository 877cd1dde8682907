"""The exercise on HoloV: how many tokens each crop keeps."""

import torch

from vtlib.pruning import holov
from vtlib.teach.exercises import check, expect


def quotas(weight, keep):
    """weight (B, C) -> (B, C) long: floor(w K), the rest one each to the largest weights."""
    room = torch.full((weight.shape[1],), keep, device=weight.device)
    return holov.quotas(weight, room, keep, allocate="release")


def _ranks(values, descending=True):
    return values.argsort(dim=1, descending=descending, stable=True).argsort(dim=1)


def _causes(weight, keep):
    floor = (weight * keep).floor().long()
    rest = keep - floor.sum(dim=1, keepdim=True)
    order = weight.argsort(dim=1, descending=True, stable=True)
    return {
        "the rest went to the largest REMAINDER; here it goes to the largest WEIGHT":
            floor + (_ranks(weight * keep - floor) < rest),
        "the whole rest went to one crop; it goes one each":
            floor + rest * (_ranks(weight) == 0),
        "the rest is missing: the quotas must sum to K": floor,
        "rounded; it is floor, and then the rest": (weight * keep).round().long(),
        "rounded up: the quotas exceed K": (weight * keep).ceil().long(),
        "the rest went to the crops with the SMALLEST weight":
            floor + (_ranks(weight, descending=False) < rest),
        "one argsort gives the crops in order of weight, not the rank of each crop; sort twice":
            floor + (order < rest),
    }


_TIES = (
    "ties went elsewhere (`topk` and a plain `argsort` promise no order); use argsort(dim=1,"
    " descending=True, stable=True)"
)


@check("holov.quotas", reference=quotas)
def _(fn):
    weight = torch.tensor([[0.52, 0.24, 0.24], [0.33, 0.28, 0.39]])
    got = fn(weight, 10)
    expect(got, quotas(weight, 10), what="the quotas of 10", mistakes=_causes(weight, 10))
    got, want = fn(torch.full((1, 4), 0.25), 6), torch.tensor([[2, 2, 1, 1]])
    causes = {}
    if isinstance(got, torch.Tensor) and got.shape == want.shape:
        fair = got.sum() == 6 and (got >= 1).all()
        causes = {_TIES: got} if fair else {}
    what = "equal weights, 6 tokens for 4 crops (ties to the lower index): the quotas"
    expect(got, want, what=what, mistakes=causes)
