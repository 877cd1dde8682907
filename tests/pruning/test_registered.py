"""Every method that the registry has, before the language model and inside it, given what goes
wrong: each keeps exactly `keep` real tokens, or raises a ValueError that names what it got."""


import numpy as np
import pytest
import torch

from tests.pruning.examples import BATCH, DIM, KEEP, N, seeded, vision_of
from tests.settings import default_dtype, deterministic, meta_device
from vtlib.pruning import baselines
from vtlib.pruning.method import Method
from vtlib.pruning.registry import METHODS
from vtlib.tokens import Plan, keep_all
from vtlib.vlm.decoder import Decoder

TEXT, LAYERS = 4, 16
ORACLE = Method(
    "oracle", "Oracle", prune=lambda vision, keep: baselines.oracle(marks(vision), vision, keep)
)
ALL = {**METHODS, "oracle": ORACLE}
BEFORE = [name for name, method in ALL.items() if method.prune is not None]
INSIDE = [name for name, method in ALL.items() if method.stages is not None]
before = pytest.mark.parametrize("name", BEFORE)
inside = pytest.mark.parametrize("name", INSIDE)


def marks(vision):
    """The oracle's mask: half of the patches."""
    return (torch.arange(N, device="cpu") % 2 == 0).expand(len(vision.features), -1)


def options_of(name, vision):
    """What a method takes beside `vision` and `keep`: its signals, a generator."""
    method = ALL[name]
    patches = vision.features
    given = {"query": vision.selected, "key": vision.selected, "patches": patches}
    given["text"] = seeded(len(patches), DIM, seed=5).to(patches.dtype)
    options = {signal: given[signal] for signal in method.signals}
    if method.draws:
        options["generator"] = torch.Generator("cpu").manual_seed(3)
    return options


def plan_of(name, vision, keep=KEEP, **changed):
    return ALL[name].prune(vision, keep, **{**options_of(name, vision), **changed})


def check_plan(name, plan, keep=KEEP):
    """Exactly keep slots, all real, none twice, and what comes out is finite."""
    assert plan.index.shape == (BATCH, keep)
    assert (plan.index >= 0).all() and (plan.index < plan.num_tokens).all()
    for row, roles in zip(plan.index, plan.role if plan.role is not None else plan.index,
                          strict=True):
        own = row if name != "recoverable" else row[roles < 3]       # a merged slot has no place
        assert len(own.unique()) == len(own)


def refused_or_whole(name, run, keep=KEEP):
    """A plan of `keep` real tokens, or a ValueError that says non-finite."""
    try:
        plan = run()
    except ValueError as error:
        assert "non-finite" in str(error), error
        return False
    check_plan(name, plan, keep)
    return True


# --------------------------------------------------------------------- values that are not finite
@before
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("value", [7e4, torch.inf, -torch.inf, torch.nan])
def test_a_token_overflows_in_half_precision(name, value, flat):
    """7e4 is infinite there. Methods that read tokens refuse, the others don't see it."""
    tokens = seeded(BATCH, N, DIM).half()
    tokens[0, 30, 3] = value
    vision = vision_of(tokens, flat)
    passed = refused_or_whole(name, lambda: plan_of(name, vision))
    reads_none = {"random", "uniform", "pool", "oracle", "fastervlm", "hiprune"}
    assert passed == (name in reads_none)


@before
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("part", ["cls_row", "keys", "attention"])
def test_what_was_read_is_not_finite(name, part, value):
    vision = vision_of(seeded(BATCH, N, DIM))
    vision.cls_row, vision.keys = vision.cls_row.clone(), vision.keys.clone()
    vision.attention = {layer: weights.clone() for layer, weights in vision.attention.items()}
    if part == "cls_row":
        vision.cls_row[1, 0, 5] = value
    elif part == "keys":
        vision.keys[1, 7, 2] = value
    else:
        for weights in vision.attention.values():
            weights[1, 0, 3, 7] = value
    passed = refused_or_whole(name, lambda: plan_of(name, vision))
    if part in ALL[name].reads:
        assert not passed


@before
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_signals_that_are_not_finite(name, value):
    vision = vision_of(seeded(BATCH, N, DIM))
    for signal, given in options_of(name, vision).items():
        if isinstance(given, torch.Tensor):
            bad = given.clone()
            bad.view(BATCH, -1)[1, 3] = value
            changed = {signal: bad}
            assert not refused_or_whole(name, lambda c=changed: plan_of(name, vision, **c))


@before
@pytest.mark.parametrize("length", [1e18, 1e25, 1e37])
def test_huge_finite_tokens(name, length):
    """Squares overflow in float32. The choice is that of the same tokens, shorter."""
    tokens = seeded(BATCH, N, DIM).clamp(-3, 3)
    small, huge = vision_of(tokens), vision_of(tokens * length)
    for vision in (small, huge):                                # [CLS] as long as the patches
        vision.selected[:, 0] = vision.selected[:, 5]
        vision.keys[:, 0] = vision.keys[:, 5]
    text = {"text": seeded(BATCH, DIM, seed=5)} if "text" in ALL[name].signals else {}

    def chosen(vision):
        return plan_of(name, vision, **text)

    if refused_or_whole(name, lambda: chosen(huge)) and name not in ("zooprune", "recoverable"):
        assert torch.equal(chosen(huge).index, chosen(small).index)


# --------------------------------------------------------------------- what is no floating tensor
NO_FLOATS = {
    "numpy": lambda x: x.numpy(),
    "list": lambda x: x.tolist(),
    "integers": lambda x: x.long(),
}


@before
@pytest.mark.parametrize("kind", NO_FLOATS)
def test_no_floating_tensor(name, kind):
    """What a method reads, given as something else, is named."""
    parts = [*ALL[name].reads, *options_of(name, vision_of(seeded(BATCH, N, DIM)))]
    for part in parts:
        vision = vision_of(seeded(BATCH, N, DIM))
        options = options_of(name, vision)
        change = NO_FLOATS[kind]
        if part == "attention":
            vision.attention = {layer: change(w) for layer, w in vision.attention.items()}
        elif part in options and isinstance(options[part], torch.Tensor):
            options[part] = change(options[part])
        elif part in ("cls_row", "keys"):
            setattr(vision, part, change(getattr(vision, part)))
        else:
            continue
        with pytest.raises(ValueError, match=f"{part}.* (floating|needs)"):
            ALL[name].prune(vision, KEEP, **options)


# --------------------------------------------------------------------------------------- budgets
@before
@pytest.mark.parametrize("keep", [np.int64(KEEP), np.int32(KEEP), torch.tensor(KEEP)])
def test_integers_of_numpy_and_torch(name, keep):
    vision = vision_of(seeded(BATCH, N, DIM))
    plan = plan_of(name, vision, keep)
    check_plan(name, plan)
    assert torch.equal(plan.index, plan_of(name, vision, KEEP).index)


WRONG = [0, -1, N + 2, True, torch.nan, 0.0, 1.5, "9", np.bool_(True), torch.tensor(True)]


@before
@pytest.mark.parametrize("keep", WRONG, ids=repr)
def test_what_is_no_keep(name, keep):
    with pytest.raises(ValueError, match="keep"):
        plan_of(name, vision_of(seeded(BATCH, N, DIM)), keep)


@inside
@pytest.mark.parametrize("keep", WRONG, ids=repr)
def test_what_is_no_keep_inside(name, keep):
    if name == "aim":
        pytest.skip("its keep is what merging hands over; the ramp inside ends at none")
    if name == "transprune" and keep in (0, 0.0):
        pytest.skip("the last cut may leave none")
    if name == "visiondrop" and keep == N + 2:
        pytest.skip("a mean over stages; each is cut to the tokens there are")
    with pytest.raises(ValueError, match="keep"):
        ALL[name].stages(LAYERS, keep, N)


@inside
@pytest.mark.parametrize("keep", [np.int64(KEEP), np.int32(KEEP), torch.tensor(KEEP)])
def test_integers_inside(name, keep):
    def cuts(keep):
        return [(s.after, s.keep) for s in ALL[name].stages(LAYERS, keep, N)]

    assert cuts(keep) == cuts(KEEP)


# --------------------------------------------------------------------------------- torch's settings
SETTINGS = {
    "device": meta_device,
    "dtype": default_dtype,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "deterministic": deterministic,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@before
@pytest.mark.parametrize("setting", SETTINGS)
def test_global_settings_change_nothing(name, setting):
    vision = vision_of(seeded(BATCH, N, DIM))
    want = plan_of(name, vision)
    with SETTINGS[setting]():
        got = plan_of(name, vision)
        out = got.apply(vision.selected[:, -got.num_tokens :])
    assert torch.equal(got.index, want.index)
    assert torch.equal(out, want.apply(vision.selected[:, -want.num_tokens :]))


# ------------------------------------------------------------------------------------- inside
@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    return Decoder(embed_dim=16, num_layers=LAYERS, num_heads=2, hidden_dim=24).eval()


def run_inside(decoder, name, x, keep=KEEP):
    with torch.no_grad():
        stages = ALL[name].stages(LAYERS, keep, N)
        return decoder.prefill(x, slice(1, 1 + N), stages, positions="keep")


@inside
def test_so_many_are_left_inside(name, decoder):
    """The last cut leaves `keep`; visiondrop's is a mean, aim's ramp ends at none."""
    run = run_inside(decoder, name, seeded(BATCH, 1 + N + TEXT, 16))
    left = {"aim": 0, "visiondrop": len(run.plan)}.get(name, KEEP)
    assert run.plan.index.shape == (BATCH, left)
    for row in run.plan.index:
        assert len(row.unique()) == left and (row >= 0).all()


@inside
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("place", [4, 1 + N + 1])
def test_states_that_are_not_finite(name, decoder, place, value):
    """A visual token, or a word behind the picture."""
    x = seeded(BATCH, 1 + N + TEXT, 16)
    x[1, place, 3] = value
    with pytest.raises(ValueError, match="non-finite"):
        run_inside(decoder, name, x)


@inside
@pytest.mark.parametrize("setting", SETTINGS)
def test_global_settings_change_nothing_inside(name, decoder, setting):
    if setting == "autocast":                                       # the layers around it change
        pytest.skip("autocast rounds the layers")
    x = seeded(BATCH, 1 + N + TEXT, 16)
    want = run_inside(decoder, name, x)
    with SETTINGS[setting]():
        got = run_inside(decoder, name, x)
    assert torch.equal(got.plan.index, want.plan.index)
    assert torch.equal(got.hidden, want.hidden)


# ------------------------------------------------------------------------------------- wrong plans
INDEX = torch.arange(KEEP)
WRONG_PLANS = {
    "out of range": (INDEX + N, "index.*is no place"),
    "negative": (INDEX - 5, "index.*is no place"),
    "duplicates": (INDEX // 2, "index holds token 0 of image 0 twice"),
    "floats": (INDEX.float(), "float|needs"),
    "one row for two images": (None, "one row for each of 2 images"),
}


@pytest.mark.parametrize("kind", WRONG_PLANS)
@pytest.mark.parametrize("as_plan", [False, True])
def test_a_method_that_makes_a_wrong_plan(kind, as_plan):
    index, message = WRONG_PLANS[kind]
    rows = INDEX[None] if index is None else index.expand(BATCH, -1)

    def prune(vision, keep):
        return Plan(rows, N) if as_plan else rows

    method = Method("wrong", "Wrong", prune=prune)
    with pytest.raises(ValueError, match=message):
        method.plan(vision_of(seeded(BATCH, N, DIM)), KEEP)


@before
def test_keep_all_is_what_it_says(name):
    vision = vision_of(seeded(BATCH, N, DIM))
    if name == "visiondrop":                                        # [CLS] is one of its tokens
        pytest.skip("hands [CLS] over as well")
    got = plan_of(name, vision, N).apply(vision.features)
    assert torch.equal(got, keep_all(BATCH, N).apply(vision.features))
