"""The exercise on HoloV: how many tokens each crop keeps."""

import torch

from vtlib.pruning import holov
from vtlib.teach.exercises import check, expect, untouched


def quotas(weight, keep):
    """weight (B, C) -> (B, C) long: floor(w K), the rest one each to the largest weights."""
    return holov.quotas(weight, torch.full((weight.shape[1],), keep), keep, allocate="release")


@check("holov.quotas", reference=quotas)
def _(fn):
    weight = torch.tensor([[0.52, 0.24, 0.24], [0.33, 0.28, 0.39]])
    with untouched(weight):
        got = fn(weight, 10)
    floor = (weight * 10).floor().long()
    rest = 10 - floor.sum(1, keepdim=True)
    remainder = (weight * 10 - floor).argsort(dim=1, descending=True, stable=True).argsort(1)
    first = torch.nn.functional.one_hot(weight.argmax(1), 3)
    causes = {
        "the rest went to the largest REMAINDER; here it goes to the largest WEIGHT": floor + (remainder < rest),
        "the whole rest went to one crop; it goes one each": floor + rest * first,
        "the rest is missing: the quotas must sum to K": floor,
        "rounded; it is floor, and then the rest": (weight * 10).round().long(),
        "rounded up: the quotas exceed K": (weight * 10).ceil().long(),
        "the rest went to the crops with the SMALLEST weight": floor + (weight.argsort(dim=1, stable=True).argsort(1) < rest),
        "one argsort gives the crops in order of weight, not the rank of each crop; sort twice": floor + (weight.argsort(dim=1, descending=True, stable=True) < rest)}
    expect(got, quotas(weight, 10), what="the quotas of 10", mistakes=causes)
    even = torch.full((1, 4), 0.25)
    got, want = fn(even, 6), torch.tensor([[2, 2, 1, 1]])
    causes = {}
    if isinstance(got, torch.Tensor) and got.shape == want.shape and got.sum() == 6 and (got >= 1).all():
        causes = {"ties went elsewhere (`topk` and a plain `argsort` promise no order); use argsort(dim=1, descending=True, stable=True)": got}
    expect(got, want, what="equal weights, 6 tokens for 4 crops (ties to the lower index): the quotas", mistakes=causes)
