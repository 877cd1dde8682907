"""What goes into a pruning method: values that are not finite, what is no floating tensor, integers
of NumPy, halves that overflow inside, and torch's global settings. Each either makes a plan of
exactly `keep` real tokens or raises a ValueError that names the argument."""

import numpy as np
import pytest
import torch

from tests.pruning.examples import BATCH, DIM, GRID, KEEP, N, seeded, vision_of
from tests.settings import default_dtype
from vtlib.pruning import (
    aim,
    baselines,
    crossget,
    divprune,
    fastervlm,
    fastv,
    hiprune,
    holov,
    recoverable,
    transprune,
    visiondrop,
    zooprune,
)
from vtlib.tokens import VisionOutputs, entropy
from vtlib.tokens.greedy import greedy_maxmin

CROPS = torch.arange(N).view(4, 9)


def recover(vision, keep):
    patches = vision.features
    return recoverable.prune(vision, keep, query=vision.selected, key=vision.selected,
                             patches=patches, text=patches[:, 0])


def zoo(vision, keep):
    return zooprune.prune(vision, keep, generator=torch.Generator("cpu").manual_seed(3))


PRUNE = {
    "fastervlm": fastervlm.prune,
    "divprune": divprune.prune,
    "hiprune": hiprune.prune,
    "holov": holov.prune,
    "visiondrop": visiondrop.prune,
    "zooprune": zoo,
    "aim": aim.prune,
    "recoverable": recover,
    "tome": baselines.tome,
    "crossget": crossget.prune,
}
READS_TOKENS = (
    "divprune", "holov", "visiondrop", "zooprune", "aim", "recoverable", "tome", "crossget"
)
methods = pytest.mark.parametrize("name", PRUNE)


def check_plan(plan, keep=KEEP):
    assert plan.index.shape == (BATCH, keep)
    assert (plan.index >= 0).all()
    assert all(len(set(row.tolist())) == keep for row in plan.index)


# ---------------------------------------------------------------- values that are not finite
@pytest.mark.parametrize("value", [7e4, -torch.inf, torch.nan])
@pytest.mark.parametrize("flat", [False, True])
@methods
def test_one_token_overflows(name, flat, value):
    """7e4 is infinite in half precision: refused, or the method reads no tokens."""
    tokens = seeded(BATCH, N, DIM).half()
    tokens[0, 30, 3] = value
    vision = vision_of(tokens, flat)
    if name in READS_TOKENS:
        with pytest.raises(ValueError, match="non-finite"):
            PRUNE[name](vision, KEEP)
    else:
        check_plan(PRUNE[name](vision, KEEP))


@methods
def test_scores_that_are_not_finite(name):
    vision = vision_of(seeded(BATCH, N, DIM))
    vision.cls_row = vision.cls_row.clone()
    vision.cls_row[1, 0, 5] = torch.nan
    vision.attention[8][0, 0, 2, 7] = torch.nan
    if name in ("fastervlm", "holov", "visiondrop", "hiprune"):
        with pytest.raises(ValueError, match="non-finite"):
            PRUNE[name](vision, KEEP)


def test_scores_inside_a_decoder():
    good, bad = torch.rand(2, 5), torch.rand(2, 5)
    bad[1, 2] = torch.inf
    with pytest.raises(ValueError, match=r"^ttv .*non-finite"):
        transprune.score(bad, good)
    with pytest.raises(ValueError, match=r"^iga .*non-finite"):
        transprune.score(good, bad)
    alive = torch.ones(2, 5, dtype=torch.bool)
    alive[1, 2] = False                                             # dropped: nobody reads it
    assert transprune.score(bad, good, alive).isfinite().all()


# ---------------------------------------------------------------- halves that overflow inside
@methods
def test_large_halves(name):
    """Squares of 6e4 overflow in half precision; the choice is that of float32."""
    tokens = seeded(BATCH, N, DIM).clamp(-3, 3)
    tokens = (tokens * 2e4).half()
    half = vision_of(tokens)
    wide = vision_of(tokens.float())
    wide.cls_row = half.cls_row.float()
    wide.attention = {layer: weights.float() for layer, weights in half.attention.items()}
    assert tokens.isfinite().all() and tokens.square().isinf().any()
    plan = PRUNE[name](half, KEEP)
    check_plan(plan)
    assert torch.equal(plan.index, PRUNE[name](wide, KEEP).index)


def test_holov_scores_large_halves_as_float32():
    tokens = (seeded(BATCH, N, DIM).clamp(-3, 3) * 2e4).half()
    attention = seeded(BATCH, N, seed=1).softmax(dim=1).half()
    got = holov.score(tokens, attention, CROPS)
    want = holov.score(tokens.double(), attention.double(), CROPS)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


HALVES = {
    "fastervlm.score": (fastervlm.score, (2, 5, 30)),
    "hiprune.received": (hiprune.received, (2, 5, 30, 30)),
    "hiprune.received_merged": (hiprune.received_merged, (2, 5, 32, 32)),
    "fastv.score": (lambda x: fastv.score(x, torch.tensor([3, 0])), (2, 5, 4, 30)),
    "crossget.importance_attention": (crossget.importance_attention, (2, 30, 30)),
    "zooprune.importance": (zooprune.importance, (2, 30)),
    "holov.crop_scores": (lambda x: holov.crop_scores(x, CROPS), (2, N)),
    "holov.crop_weights": (lambda x: holov.crop_weights(x, CROPS, 0.5), (2, N)),
    "transprune.iga": (lambda x: transprune.iga(x, slice(2, 20), ASKING), (2, 5, 6, 30)),
    "transprune.score": (lambda x: transprune.score(x, x.flip(1)), (2, 30)),
    "visiondrop.score": (lambda x: visiondrop.score(seen(cls_row=x)), (2, 5, N)),
    "visiondrop.score, no [CLS]": (
        lambda x: visiondrop.score(seen(num_prefix=0, attention={1: x})), (2, 5, 1 + N, 1 + N)
    ),
    "entropy": (entropy, (2, 5, 30)),
}
ASKING = torch.ones(2, 6, dtype=torch.bool)


def seen(num_prefix=1, **parts):
    grid = (6, 6) if num_prefix else (1, 1 + N)
    return VisionOutputs(torch.zeros(2, 1 + N, 4), grid, torch.nn.Identity(), num_prefix, **parts)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", HALVES)
def test_scores_of_halves_lose_no_digits(name, dtype):
    """Means and sums of half precision are taken in float32."""
    score, shape = HALVES[name]
    x = seeded(*shape).softmax(dim=-1).to(dtype)
    got = score(x)
    assert got.dtype == torch.float32 and torch.equal(got, score(x.float()))
    torch.testing.assert_close(got.double(), score(x.double()), rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------- what is no floating tensor
SCORES, TOKENS = torch.rand(BATCH, N), seeded(BATCH, N, DIM)
CALLS = {
    "scores fastervlm": lambda x: fastervlm.select(x, KEEP),
    "scores concentration": lambda x: fastervlm.concentration(x),
    "row": lambda x: fastervlm.score(x),
    "tokens divprune": lambda x: divprune.select(x, KEEP),
    "tokens score": lambda x: divprune.score(x),
    "tokens coverage": lambda x: divprune.coverage(x, torch.zeros(BATCH, 1, dtype=torch.long)),
    "tokens greedy": lambda x: greedy_maxmin(x, KEEP),
    "weight": lambda x: greedy_maxmin(TOKENS, KEEP, x),
    "attention received": lambda x: hiprune.received(x),
    "object_score": lambda x: hiprune.select(x, SCORES, KEEP, GRID),
    "deep_score": lambda x: hiprune.select(SCORES, x, KEEP, GRID),
    "token_score": lambda x: holov.select(x, SCORES, CROPS, KEEP),
    "attention": lambda x: holov.select(SCORES, x, CROPS, KEEP),
    "tokens holov": lambda x: holov.score(x, SCORES, CROPS),
    "score": lambda x: visiondrop.reduce(x, TOKENS, KEEP),
    "keys": lambda x: visiondrop.reduce(SCORES, x, KEEP),
    "features": lambda x: zooprune.sensitivity(x, torch.nn.Identity()),
    "sensitivity": lambda x: zooprune.select(x, TOKENS, KEEP),
    "tokens zooprune": lambda x: zooprune.select(SCORES, x, KEEP),
    "directions": lambda x: zooprune.sensitivity(TOKENS, torch.nn.Identity(), directions=x),
    "ttv": lambda x: transprune.score(x, SCORES),
    "iga": lambda x: transprune.score(SCORES, x),
    "tokens aim": lambda x: aim.merge_step(x, 3),
    "logits": lambda x: aim.page_rank(x),
    "visual": lambda x: recoverable.select(x, SCORES, TOKENS, KEEP),
    "text": lambda x: recoverable.select(SCORES, x, TOKENS, KEEP),
    "keys recoverable": lambda x: recoverable.select(SCORES, SCORES, x, KEEP),
    "query": lambda x: recoverable.visual_score(x, TOKENS),
    "patches": lambda x: recoverable.text_score(TOKENS[:, 0], x),
}
NO_FLOATS = {
    "numpy": lambda: np.zeros((BATCH, N)),
    "list": lambda: [[0.5] * N] * BATCH,
    "integers": lambda: torch.zeros(BATCH, N, dtype=torch.long),
}


@pytest.mark.parametrize("kind", NO_FLOATS)
@pytest.mark.parametrize("call", CALLS)
def test_no_floating_tensor(call, kind):
    with pytest.raises(ValueError, match=f"^{call.split()[0]} .*floating"):
        CALLS[call](NO_FLOATS[kind]())


# ---------------------------------------------------------------- integers, global settings
@pytest.mark.parametrize("keep", [np.int64(KEEP), torch.tensor(KEEP), np.float32(0.25)])
@methods
def test_numbers_of_numpy_and_torch(name, keep):
    vision = vision_of(seeded(BATCH, N, DIM))
    number = 0.25 if isinstance(keep, np.floating) else KEEP
    assert torch.equal(PRUNE[name](vision, keep).index, PRUNE[name](vision, number).index)


@methods
def test_global_settings_change_nothing(name):
    vision = vision_of(seeded(BATCH, N, DIM))
    want = PRUNE[name](vision, KEEP)
    with torch.device("meta"):
        on_meta = PRUNE[name](vision, KEEP)
    with default_dtype():
        in_double = PRUNE[name](vision, KEEP)
    with torch.inference_mode():
        in_inference = PRUNE[name](vision, KEEP)
    for got in (on_meta, in_double, in_inference):
        assert torch.equal(got.index, want.index)
        assert torch.equal(got.apply(vision.selected[:, -got.num_tokens:]),
                           want.apply(vision.selected[:, -want.num_tokens:]))


def test_fractions_of_numpy_round_as_floats_do():
    """The releases' own roundings: down for ZOO-Prune and TransPrune, halves up for AIM."""
    tokens, scores = seeded(1, 39, DIM), torch.rand(1, 39)
    for share in (0.25, np.float32(0.25), np.float64(0.25)):
        assert len(zooprune.select(scores, tokens, share)) == 9     # int(9.75)
        assert transprune.counts(32, share, 39, (7, 9, 12))[-1] == 9
        assert aim.merge_counts(share, 39) == [19, 9]


def test_rope_bias_under_global_settings():
    def bias():
        generator = torch.Generator("cpu").manual_seed(0)
        return fastervlm.rope_bias(9, 8, samples=4, generator=generator, device="cpu")

    want = bias()
    with torch.device("meta"):
        assert torch.equal(bias(), want)
