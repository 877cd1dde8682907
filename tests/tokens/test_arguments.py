"""Every public function of vtlib.tokens, given what none of its arguments is: a ValueError or a
result, never an error from deep inside."""

import pytest
import torch

from tests.wrong import raw_errors
from vtlib.tokens import (
    Plan,
    Stage,
    VisionOutputs,
    cosine,
    cost,
    greedy,
    keep_all,
    measure,
    merge,
    plan,
    select,
    views,
)
from vtlib.tokens.checks import check_scores

N = 12
GENERATOR = torch.Generator("cpu").manual_seed(0)
X, SCORES = torch.randn(2, N, 4, generator=GENERATOR), torch.rand(2, N, generator=GENERATOR)
INDEX, ROWS = torch.tensor([[0, 3, 5], [1, 2, 7]]), torch.tensor([1, 0])
PLAN, SLOTS = Plan(INDEX, N), torch.arange(3).expand(2, -1)
MERGING = Plan(INDEX, N, INDEX, SLOTS, torch.ones(2, 3))
VISION = VisionOutputs(X, (3, 4), torch.nn.Identity(), 0, SCORES[:, None], X, {0: X}, {1: X})
CALLS = {
    "resolve_keep": (select.resolve_keep, dict(keep=3, num_tokens=N)),
    "check_keep": (select.check_keep, dict(keep=3)),
    "top_tokens": (select.top_tokens, dict(score=SCORES, keep=3, num_prefix=1)),
    "take": (select.take, dict(x=X, index=INDEX)),
    "scatter_back": (
        select.scatter_back, dict(x=X[:, :3], index=INDEX, num_tokens=N, fill=0.0)
    ),
    "entropy": (measure.entropy, dict(attn=SCORES)),
    "redundancy": (measure.redundancy, dict(tokens=X)),
    "tokens_per_layer": (
        cost.tokens_per_layer, dict(num_layers=4, num_visual=9, num_text=2, cuts=[(1, 3)])
    ),
    "decoder_flops": (cost.decoder_flops, dict(num_tokens=[3, 2], dim=4, hidden_dim=5, gated=True)),
    "cache_bytes": (cost.cache_bytes, dict(num_tokens=[3, 2], kv_dim=4, bytes_per_value=2)),
    "greedy_maxmin": (
        greedy.greedy_maxmin, dict(tokens=X, keep=3, weight=SCORES, first=ROWS)
    ),
    "strided": (merge.strided, dict(num_tokens=9, count=2)),
    "merge_to_targets": (
        merge.merge_to_targets, dict(keys=X, kept=INDEX, num_targets=2, num_prefix=0)
    ),
    "Plan": (Plan, dict(
        index=INDEX, num_tokens=N, origin=INDEX, slot=SLOTS, weight=torch.ones(2, 3), role=INDEX,
        num_prefix=0,
    )),
    "Plan.apply": (PLAN.apply, dict(x=X)),
    "Plan.apply, merging": (MERGING.apply, dict(x=X)),
    "Plan.then": (PLAN.then, dict(other=Plan(torch.tensor([[0], [1]]), 3))),
    "keep_all": (keep_all, dict(batch=2, num_tokens=4, num_prefix=0)),
    "keep_best": (plan.keep_best, dict(score=SCORES, keep=3)),
    "Stage": (Stage, dict(after=1, keep=3, plan=print, watch=(1,))),
    "Stage.count": (Stage(1, 3, print).count, dict(num_visual=9)),
    "view_order": (views.view_order, dict(crops=(1, 1), grid=(3, 4))),
    "join_views": (views.join_views, dict(plan=PLAN, crops=(1, 1), grid=(3, 4))),
    "VisionOutputs": (
        VisionOutputs, dict(selected=X, grid=(3, 4), project=print, num_prefix=0)
    ),
    "VisionOutputs.rows": (VISION.rows, dict(index=ROWS)),
    "unit": (cosine.unit, dict(tokens=X)),
    "cosines": (cosine.cosines, dict(tokens=X)),
    "within_range": (cosine.within_range, dict(tokens=X)),
    "check_scores": (check_scores, dict(scores=SCORES)),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_error_from_deep_inside(name):
    assert raw_errors(*CALLS[name]) == []
