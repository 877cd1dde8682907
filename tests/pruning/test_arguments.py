"""Every public function of vtlib.pruning, given what none of its arguments is: a ValueError or a
result, never an error from deep inside."""

import pytest
import torch

from tests.pruning.examples import BATCH, GRID, KEEP, N, seeded, vision_of
from tests.wrong import raw_errors
from vtlib.pruning import (
    aim,
    baselines,
    bench,
    crossget,
    divprune,
    fastervlm,
    fastv,
    hiprune,
    holov,
    method,
    recoverable,
    registry,
    transprune,
    visiondrop,
    zooprune,
)
from vtlib.tokens import Plan

DIM = 4
TOKENS, SCORES = seeded(BATCH, N, DIM), seeded(BATCH, N, seed=1).softmax(dim=-1)
MAPS, ROW = seeded(BATCH, 2, N, N).softmax(dim=-1), seeded(BATCH, 2, N).softmax(dim=-1)
INDEX, ROWS = torch.tensor([[0, 3, 5], [1, 2, 7]]), torch.tensor([1, 0])
MASK, CROPS = torch.ones(BATCH, N, dtype=torch.bool), torch.arange(N).view(4, 9)
COUNTS, PROJECT = torch.ones(BATCH, 3, dtype=torch.long), torch.nn.Linear(DIM, 3)
VISION, PLAN = vision_of(TOKENS), Plan(INDEX, N)
ONE = dict(vision=VISION, keep=KEEP)
GENERATOR = torch.Generator("cpu")
AIM = dict(num_layers=6, keep=None, num_visual=12)
LAYERS = dict(object_layer=9, deep_layer=10)
TRANSPRUNE = dict(num_layers=8, num_visual=9, budget="final", direction="abs", support="image")

OF_AIM = {
    "match": (aim.match, dict(tokens=TOKENS)),
    "merge_step": (aim.merge_step, dict(tokens=TOKENS, r=2)),
    "merge": (aim.merge, dict(tokens=TOKENS, steps=[2, 1])),
    "halvings": (aim.halvings, dict(num_tokens=9, steps=2)),
    "merge_counts": (aim.merge_counts, dict(keep=3, num_tokens=9)),
    "page_rank": (
        aim.page_rank, dict(logits=MAPS, tau=0.1, iterations=2, damping=0.1, running=MASK)
    ),
    "rate": (aim.rate, dict(layer=2, l1=1, l2=4)),
    "scaled": (aim.scaled, dict(num_layers=6, schedule="video")),
    "mean_rate": (aim.mean_rate, dict(num_layers=6, l1=1, l2=3)),
    "ramp_for": (aim.ramp_for, dict(num_layers=6, mean=0.5, width=2)),
    "stages": (
        aim.stages,
        {**AIM, "keep": 5, "schedule": "image", "tau": 0.1, "iterations": 2, "damping": 0.1},
    ),
    "stages, a ramp": (aim.stages, dict(AIM, l1=2, l2=4)),
    "stages, rates": (aim.stages, dict(AIM, rates=(1, 1, 1, 0.5, 0.2, 0.1))),
    "split_budget": (
        aim.split_budget, dict(num_layers=6, keep=5, num_visual=12, schedule="video")
    ),
    "prune": (aim.prune, ONE),
}
OF_BASELINES = {
    "random": (baselines.random, dict(ONE, generator=GENERATOR)),
    "cells": (baselines.cells, dict(keep=3, grid=(3, 4))),
    "uniform": (baselines.uniform, ONE),
    "pool": (baselines.pool, ONE),
    "tome": (baselines.tome, dict(ONE, metric=TOKENS)),
    "spread_order": (baselines.spread_order, dict(grid=(3, 4))),
    "oracle": (baselines.oracle, dict(ONE, mask=MASK)),
}
OF_CROSSGET = {
    "importance_cosine": (crossget.importance_cosine, dict(key=TOKENS, query=TOKENS[:, 0])),
    "importance_attention": (crossget.importance_attention, dict(attn=MAPS[:, 0])),
    "merges": (crossget.merges, dict(r=2, num_tokens=9, num_protected=1)),
    "schedule": (
        crossget.schedule, dict(r=2, num_tokens=9, num_layers=3, num_protected=2)
    ),
    "rate": (crossget.rate, dict(keep=5, num_tokens=9, num_layers=3, num_protected=2)),
    "match": (crossget.match, dict(
        key=TOKENS, importance=SCORES, r=2, num_prefix=1, num_suffix=1, eot=torch.tensor([3, 4]),
        method="complete",
    )),
    "ensemble": (crossget.ensemble, dict(
        pairs=crossget.match(TOKENS, SCORES, 2), size=torch.ones(BATCH, N), guided=True
    )),
    "prune": (
        crossget.prune, dict(ONE, importance=SCORES, method="complete", guided=True)
    ),
    "prune, a layer": (crossget.prune, dict(ONE, layer=8)),
}
OF_DIVPRUNE = {
    "distances": (divprune.distances, dict(tokens=TOKENS)),
    "score": (divprune.score, dict(tokens=TOKENS)),
    "select": (divprune.select, dict(tokens=TOKENS, keep=3)),
    "prune": (divprune.prune, ONE),
    "smallest_distance": (divprune.smallest_distance, dict(tokens=TOKENS)),
    "coverage": (divprune.coverage, dict(tokens=TOKENS, index=INDEX)),
    "optimum": (divprune.optimum, dict(tokens=TOKENS[:, :5], keep=2, limit=200)),
}
OF_FASTERVLM = {
    "cls_row": (fastervlm.cls_row, dict(q=MAPS, k=MAPS, num_prefix=1, scale=0.5)),
    "score": (fastervlm.score, dict(row=ROW)),
    "select": (fastervlm.select, dict(scores=SCORES, keep=3)),
    "prune": (fastervlm.prune, ONE),
    "prune_views": (fastervlm.prune_views, dict(vision=VISION, keep=2, crops=(1, 1))),
    "concentration": (fastervlm.concentration, dict(scores=SCORES)),
    "rope_bias": (fastervlm.rope_bias, dict(
        num_visual=4, head_dim=4, agreement=1.0, samples=2, generator=GENERATOR,
        same_position=False,
    )),
    "fastv.score": (fastv.score, dict(attention=MAPS, last=ROWS)),
    "fastv.stages": (fastv.stages, dict(
        num_layers=4, keep=3, num_visual=9, after=2, layer="last", budget="final"
    )),
}
OF_HIPRUNE = {
    "attention_layers": (
        hiprune.attention_layers, dict(num_layers=4, object_layer=1, deep_layer=2)
    ),
    "received": (hiprune.received, dict(attention=MAPS, num_prefix=1)),
    "received_merged": (
        hiprune.received_merged, dict(attention=MAPS, order=torch.arange(9), merge=4)
    ),
    "score": (hiprune.score, dict(LAYERS, vision=VISION)),
    "num_anchors": (hiprune.num_anchors, dict(keep=9, alpha=0.3)),
    "neighbourhood": (hiprune.neighbourhood, dict(index=INDEX, grid=GRID, wrap=False)),
    "select": (hiprune.select, dict(
        object_score=SCORES, deep_score=SCORES, keep=5, grid=GRID, alpha=0.5, wrap=False, exact=True
    )),
    "prune": (hiprune.prune, dict(ONE, **LAYERS, alpha=0.1, wrap=False)),
    "prune_views": (
        hiprune.prune_views, dict(
            LAYERS, vision=VISION, total=4, crops=(1, 1), alpha=0.1, wrap=False
        )
    ),
    "object_iou": (hiprune.object_iou, dict(scores=SCORES, mask=MASK, top=3)),
    "spread": (hiprune.spread, dict(scores=SCORES, grid=GRID, top=3)),
    "layer_analysis": (hiprune.layer_analysis, dict(vision=VISION, mask=MASK, top=3)),
}
OF_HOLOV = {
    "default_crops": (holov.default_crops, dict(num_tokens=12, keep=3)),
    "bands": (holov.bands, dict(num_tokens=12, num_crops=3)),
    "rectangles": (holov.rectangles, dict(grid=(3, 4), num_crops=4)),
    "score": (holov.score, dict(
        tokens=TOKENS, attention=SCORES, crops=CROPS, variance_weight=0.1, raw_singles=False,
        runs=False,
    )),
    "crop_scores": (holov.crop_scores, dict(token_score=SCORES, crops=CROPS)),
    "crop_weights": (holov.crop_weights, dict(token_score=SCORES, crops=CROPS, tau=0.5)),
    "quotas": (holov.quotas, dict(
        weight=SCORES[:, :3], sizes=torch.tensor([4, 4, 4]), keep=5, allocate="paper"
    )),
    "select": (holov.select, dict(
        token_score=SCORES, attention=SCORES, crops=CROPS, keep=4, allocate="paper",
        rank_by="score", tau=1.0, order="raster",
    )),
    "prune": (holov.prune, dict(
        ONE, num_crops=3, layout="bands", allocate="paper", rank_by="score", variance_weight=0.1,
        tau=1.0, order="raster",
    )),
    "prune, rectangles": (holov.prune, dict(ONE, num_crops=(1, 2), layout="rectangles")),
    "refetch": (holov.refetch, dict(
        x=TOKENS, pruned=TOKENS, ffn=TOKENS, beta=0.2, activation=torch.nn.functional.silu
    )),
}
OF_RECOVERABLE = {
    "visual_score": (
        recoverable.visual_score, dict(query=TOKENS, key=TOKENS, num_prefix=1)
    ),
    "text_score": (recoverable.text_score, dict(text=TOKENS[:, 0], patches=TOKENS)),
    "local_outlier_factor": (
        recoverable.local_outlier_factor, dict(scores=SCORES, n_neighbors=3, mask=MASK)
    ),
    "local_outliers": (
        recoverable.local_outliers, dict(scores=SCORES, n_neighbors=3, mask=MASK)
    ),
    "filters": (recoverable.filters, dict(
        visual=SCORES, text=SCORES, n_neighbors=(3, 3, 3), counts=COUNTS, width=4,
        float_count=False,
    )),
    "quotas": (recoverable.quotas, dict(counts=COUNTS, keep=4)),
    "select": (recoverable.select, dict(
        visual=SCORES, text=SCORES, keys=TOKENS, keep=5, n_neighbors=(3, 3, 3), num_gathered=2,
        text_weight=5.0, released_center_count=3, released_key_index=False,
        released_float_count=False,
    )),
    "prune": (recoverable.prune, dict(
        ONE, query=VISION.selected, key=VISION.selected, patches=TOKENS, text=TOKENS[:, 0]
    )),
}
OF_TRANSPRUNE = {
    "transition": (transprune.transition, dict(token_in=TOKENS, token_out=TOKENS)),
    "ttv": (
        transprune.ttv, dict(magnitude=SCORES, cosine=SCORES, valid=MASK, direction="abs")
    ),
    "iga": (transprune.iga, dict(attention=MAPS, visual=slice(0, 4), asking=MASK)),
    "score": (transprune.score, dict(ttv=SCORES, iga=SCORES, alive=MASK, alpha=0.5)),
    "scaled_layers": (transprune.scaled_layers, dict(num_layers=8)),
    "counts": (transprune.counts, dict(
        num_layers=8, keep=3, num_visual=9, layers=(1, 2, 3), budget="final"
    )),
    "stages": (transprune.stages, dict(
        TRANSPRUNE, keep=3, layers=(1, 2, 3), accumulate=(1,), alpha=0.5
    )),
    "stages, ratios": (
        transprune.stages, dict(num_layers=8, keep=None, num_visual=9, ratios=(0.5, 0.4, 0.1))
    ),
}
OF_VISIONDROP = {
    "default_contextual": (visiondrop.default_contextual, dict(keep=9)),
    "schedule": (visiondrop.schedule, dict(average=9, num_stages=3)),
    "reduce": (
        visiondrop.reduce, dict(score=SCORES, keys=TOKENS, keep=5, contextual=1, num_prefix=0)
    ),
    "score": (visiondrop.score, dict(vision=VISION, layer=8)),
    "prune": (visiondrop.prune, dict(ONE, contextual=1, layer=8)),
    "stages": (visiondrop.stages, dict(
        budgets=[5, 3], num_layers=6, after=[1, 2], contextual=1, normalise="none"
    )),
}
OF_ZOOPRUNE = {
    "sensitivity": (zooprune.sensitivity, dict(
        features=TOKENS, project=PROJECT, num_directions=2, step=0.1,
        directions=seeded(2, DIM), generator=GENERATOR, chunk=2,
    )),
    "jacobian_norm": (zooprune.jacobian_norm, dict(features=TOKENS, project=torch.nn.GELU())),
    "low_rank": (zooprune.low_rank, dict(project=PROJECT, rank=2)),
    "importance": (zooprune.importance, dict(sensitivity=SCORES)),
    "sads": (zooprune.sads, dict(sensitivity=SCORES, tokens=TOKENS, keep=3)),
    "select": (zooprune.select, dict(sensitivity=SCORES, tokens=TOKENS, keep=3)),
    "anyres_layout": (zooprune.anyres_layout, dict(grid=(1, 2), tiles=(1, 2))),
    "sads_views": (
        zooprune.sads_views, dict(sensitivity=SCORES, tokens=TOKENS, views=CROPS, keep=6)
    ),
    "select_views": (zooprune.select_views, dict(
        sensitivity=SCORES, tokens=TOKENS, views=CROPS[:2], keep=4, newlines=torch.tensor([35])
    )),
    "prune": (
        zooprune.prune, dict(ONE, num_directions=2, step=0.1, generator=GENERATOR, chunk=2)
    ),
}
OF_METHODS = {
    "as_plan": (method.as_plan, dict(made=PLAN, batch=BATCH, num_tokens=N, keep=3)),
    "as_method": (method.as_method, dict(method=divprune)),
    "register": (
        lambda method: registry.register(method).close(),
        dict(method=method.Method("word", "Word", prune=divprune.prune)),
    ),
    "find": (registry.find, dict(method="divprune")),
    "Method": (method.Method, dict(
        name="word", title="Word", prune=divprune.prune, reads=("keys",), layers=(1,), hidden=(0,),
        space="features", positions="keep", asks=False, keep_before=max,
    )),
    "Method.plan": (divprune.METHOD.plan, ONE),
    "Method.attention": (
        hiprune.METHOD.attention, dict(num_layers=12, deep=3, num_prefix=1)
    ),
    "patch_positions": (bench.patch_positions, dict(plan=PLAN)),
    "Reduced": (bench.Reduced, dict(
        tokens=TOKENS, plan=PLAN, space="tokens", stages=[], positions="keep", scattered=False
    )),
    "at_positions": (
        bench.at_positions, dict(tokens=TOKENS[:, :3], index=INDEX, num_tokens=N)
    ),
}
ROOMS = {
    "aim": OF_AIM, "baselines": OF_BASELINES, "crossget": OF_CROSSGET, "divprune": OF_DIVPRUNE,
    "fastervlm": OF_FASTERVLM, "hiprune": OF_HIPRUNE, "holov": OF_HOLOV,
    "recoverable": OF_RECOVERABLE, "transprune": OF_TRANSPRUNE, "visiondrop": OF_VISIONDROP,
    "zooprune": OF_ZOOPRUNE, "methods": OF_METHODS,
}
CALLS = {f"{room}, {name}": call for room, of in ROOMS.items() for name, call in of.items()}


@pytest.mark.parametrize("name", CALLS)
def test_no_error_from_deep_inside(name):
    assert raw_errors(*CALLS[name]) == []
