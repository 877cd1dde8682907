"""What holds for all methods at once: identity at keep = N, the number of tokens, repeatability,
and one call for all."""

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vlm.tiny import make_tinyvlm
from vtlib.pruning import bench
from vtlib.pruning.registry import KINDS, METHODS
from vtlib.tokens import Plan, Stage
from vtlib.vlm import exam

QUESTIONS = ["is there a crab?", "how many times does the key appear?"]


@pytest.fixture(scope="module")
def model():
    return make_tinyvlm()


@pytest.fixture(scope="module")
def vision(model):
    images = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))  # 6 x 8 patches
    with torch.no_grad():
        return bench.encode(model, images)


def run(model, vision, name, keep, seed=0, positions=None):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        done = bench.reduce(model, vision, name, keep, QUESTIONS, g, positions)
        return done, model.answer(done.tokens, QUESTIONS, done.stages, done.positions)


def test_all_ten_papers_five_baselines_and_seven_rivals_are_there():
    papers = {m.paper for m in METHODS.values()} - {None}
    assert papers == {"fastervlm", "divprune", "hiprune", "visiondrop", "holov", "zooprune",
                      "transprune", "aim", "crossget", "recoverable-compression"}
    kinds = [m.kind for m in METHODS.values()]
    assert {kind: kinds.count(kind) for kind in kinds} == dict(baseline=5, paper=11, rival=7)
    assert kinds == sorted(kinds, key=KINDS.index)
    assert all(re.fullmatch(r"\d{4}\.\d{5}", m.arxiv) for m in METHODS.values() if m.arxiv)


@pytest.mark.parametrize("name", METHODS)
def test_keep_all_changes_nothing(model, vision, name):
    with torch.no_grad():
        plain = model.prefill(vision.tokens, QUESTIONS)[0]
        for keep, positions in ((48, None), (1.0, "renumber"), (48, "keep")):
            done = bench.reduce(model, vision, name, keep, QUESTIONS, positions=positions)
            logits = model.prefill(done.tokens, QUESTIONS, done.stages, done.positions)[0]
            assert torch.equal(logits, plain)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("keep", [1, 7, 24, 47])
def test_so_many_are_left(model, vision, name, keep):
    done, answers = run(model, vision, name, keep)
    ran = answers.prefill
    others = ran.hidden.shape[1] - len(ran.plan.index[0])
    left = [n - others for n in ran.cache.lengths]
    whole = done.whole(ran)
    if name == "aim":
        # its ramp ends at none
        assert done.tokens.shape[1] == keep and len(whole) == 0
    elif name == "visiondrop":
        # keep is the mean of the stages
        assert 0.55 * keep - 1 <= len(whole) <= keep
        assert done.tokens.shape[1] >= keep or keep > 0.6 * 49
    else:
        assert len(whole) == keep
    assert answers.probability.isfinite().all() and done.tokens.isfinite().all()
    index = whole.index[whole.index >= 0] if name == "recoverable" else whole.index
    assert (index >= 0).all() and (index < whole.num_tokens).all()
    if METHODS[name].where != "before":
        assert left[0] > left[-1]


@pytest.mark.parametrize("name", METHODS)
def test_repeatable_and_one_is_as_many(model, vision, name):
    first, second = (run(model, vision, name, 12)[0] for _ in range(2))
    assert torch.equal(first.tokens, second.tokens)
    if name in ("random",):                                   # draws for the whole batch at once
        return
    alone = vision.rows(torch.tensor([1]))
    g = torch.Generator().manual_seed(0)
    one = bench.reduce(model, alone, name, 12, QUESTIONS[1:], g)
    assert torch.equal(one.plan.index[0], first.plan.index[1])
    torch.testing.assert_close(one.tokens[0], first.tokens[1], atol=1e-5, rtol=1e-4)


@settings(max_examples=15, deadline=None)
@given(keep=st.integers(1, 48), name=st.sampled_from(sorted(METHODS)), tied=st.booleans())
def test_any_keep_with_or_without_ties(model, keep, name, tied):
    """All patches alike is the worst case for ties, distances and outliers: nothing may be chosen
    twice, nothing may be NaN."""
    if tied:
        images = torch.full((2, 3, 48, 64), 0.5)
    else:
        images = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(keep))
    with torch.no_grad():
        vision = bench.encode(model, images, [name])
        done, answers = run(model, vision, name, keep)
    assert done.tokens.isfinite().all() and answers.first.isfinite().all()
    for row in done.plan.index:
        real = row >= 0
        if name == "recoverable" and done.plan.role is not None:
            real &= done.plan.role[0] < 3
        there = row[real]
        assert len(there.unique()) == len(there)


def test_questions_matter_only_where_they_should(model, vision):
    for name, method in METHODS.items():
        with torch.no_grad():
            a, b = (bench.reduce(model, vision, name, 12, asked, torch.Generator().manual_seed(0))
                    for asked in (QUESTIONS, QUESTIONS[::-1]))
        if not method.asks:
            assert torch.equal(a.tokens, b.tokens)


@pytest.mark.parametrize("name, keep, message", [
    ("fastervlm", 0, "keep=0"), ("divprune", 49, "keep=49 but there are 48"),
    ("holov", 1.5, "keep=1.5"), ("aim", True, "keep=True"), ("nothing", 4, "method='nothing'"),
])
def test_bad_keep(model, vision, name, keep, message):
    with pytest.raises(ValueError, match=message):
        bench.reduce(model, vision, name, keep, QUESTIONS)


def test_what_was_not_asked_for_is_missed(model, vision):
    bare = model.encode(torch.rand(2, 3, 48, 64))
    missing = {"fastervlm": "cls_row", "holov": "cls_row", "hiprune": "attention",
               "visiondrop": "keys"}
    for name, word in missing.items():
        with pytest.raises(ValueError, match=word):
            bench.reduce(model, bare, name, 12)
    with pytest.raises(ValueError, match="questions"):
        bench.reduce(model, vision, "recoverable", 12)


# ---------------------------------------------------------------- kept positions
BEFORE = [name for name, method in METHODS.items() if method.where == "before"]


def seen_positions(model, done):
    """What the decoder's layers are given as positions: recorded where it makes its rotary
    tables."""
    told, rope = [], model.decoder.rope
    model.decoder.rope = lambda positions: (told.append(positions), rope(positions))[1]
    try:
        with torch.no_grad():
            logits, run = model.prefill(done.tokens, QUESTIONS, done.stages, done.positions)
    finally:
        del model.decoder.rope
    return told[-1], logits, run


@pytest.mark.parametrize("name", BEFORE)
@pytest.mark.parametrize("keep", [1, 7, 30])
def test_kept_positions_are_those_of_the_patches(model, vision, name, keep):
    done, plain = (run(model, vision, name, keep, positions=p)[0] for p in ("keep", None))
    told, _, ran = seen_positions(model, done)
    # <start> is 0, patch n is 1 + n; the question starts behind all patches
    assert torch.equal(told[:, 1 : 1 + keep], 1 + plain.plan.index)
    assert torch.equal(told[:, 1 + keep], torch.tensor([49, 49]))
    # and nothing longer ever ran
    assert ran.cache.lengths[0] == ran.hidden.shape[1] and ran.visual == slice(1, 1 + keep)
    assert torch.equal(ran.states[0].plan.index[0], torch.arange(48))
    assert torch.equal(done.whole(ran).index, plain.plan.index)
    # bit for bit, merged or not
    seats = plain.plan.index[..., None].expand_as(plain.tokens)
    assert torch.equal(done.tokens.gather(1, seats), plain.tokens)
    # the releases count anew
    anew = seen_positions(model, plain)[0]
    assert torch.equal(anew[0, 1 : 1 + keep], 1 + torch.arange(keep))


def test_kept_positions_against_a_mask_over_all_tokens(model, vision):
    """Hiding the dropped tokens of an unpruned sequence leaves the others the numbers they have:
    the same logits."""
    for name in ("divprune", "fastervlm", "uniform"):
        done = run(model, vision, name, 9, positions="keep")[0]
        plan = done.plan
        hide = Stage(0, 9, lambda state, keep, plan=plan: plan)
        with torch.no_grad():
            kept = model.prefill(done.tokens, QUESTIONS, done.stages, done.positions)[0]
            masked = model.prefill(vision.tokens, QUESTIONS, [hide], "keep", "mask")[0]
            anew = model.prefill(plan.apply(vision.tokens), QUESTIONS)[0]
        torch.testing.assert_close(kept, masked, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(kept, anew, atol=1e-4)


def test_cuts_inside_go_on_from_kept_positions(model, vision):
    """AIM merges before and cuts inside: its tokens have the places of their seeds down to the
    last one; FastV's choice can be overruled."""
    done, plain = (run(model, vision, "aim", 24, positions=p)[0] for p in ("keep", None))
    told, _, ran = seen_positions(model, done)
    assert done.positions == plain.positions == "keep" and not plain.scattered
    assert [s.after for s in done.stages] == [0, *(s.after for s in plain.stages)]
    second = ran.states[1]
    assert torch.equal(second.positions[:, second.visual], 1 + plain.plan.index)
    whole, index = done.whole(ran), plain.plan.index
    for cut in ran.plans[1:]:
        index = index.gather(1, cut.index)
    assert torch.equal(whole.index, index) and whole.num_tokens == 48
    done, answers = run(model, vision, "fastv", 9, positions="renumber")
    assert done.positions == "renumber" and not done.scattered
    assert answers.prefill.cache.shift[-1] == 39


@pytest.mark.parametrize("name, positions, message", [
    ("visiondrop", "keep", r"positions='keep': \[CLS\] is among the tokens"),
    ("divprune", "old", "positions='old': needs one of renumber, keep"),
])
def test_positions_that_cannot_be(model, vision, name, positions, message):
    with pytest.raises(ValueError, match=message):
        bench.reduce(model, vision, name, 12, QUESTIONS, positions=positions)


def test_slots_without_a_place():
    prefixed = Plan(torch.tensor([[4, 2]]), 9, num_prefix=1)
    assert torch.equal(bench.patch_positions(prefixed), torch.tensor([[3, 1]]))
    with pytest.raises(ValueError, match="empty"):
        bench.patch_positions(Plan(torch.tensor([[3, -1]]), 9))
    entry = torch.tensor([[0, 1, 2]])
    merged = Plan(torch.tensor([[2, 5, 2]]), 9, entry, entry, torch.ones(1, 3))
    with pytest.raises(ValueError, match="two slots sit at one patch"):
        bench.patch_positions(merged)


@pytest.mark.parametrize("name", ["random", "divprune", "pool", "recoverable", "fastv"])
def test_grade_with_kept_positions(model, name):
    """Question by question, as by hand; random draws once for a picture, whatever is done with
    positions. Every other answer is made right."""
    taken = exam.exam(3, seed=5, n=3)
    vision = bench.encode(model, taken.images)
    asked, want = [list(row) for row in taken.asked], torch.zeros_like(taken.kind, dtype=torch.bool)
    for b, q in (taken.kind >= 0).nonzero().tolist():
        text = asked[b][q].text
        g = torch.Generator().manual_seed(3)
        with torch.no_grad():
            done = bench.reduce(model, vision, name, 40, [text] * 3, g, "keep")
            said = model.answer(done.tokens, [text] * 3, done.stages, done.positions).texts[b]
        other = "no" if said != "no" else "yes"
        want[b, q] = q % 2 == 0
        asked[b][q] = replace(asked[b][q], answer=said if q % 2 == 0 else other)
    ids, target, kind = exam.pack(model.ids, asked)
    target = target.masked_fill(target == model.ids["<end>"], -100)  # untrained, it never ends
    taken = replace(taken, asked=asked, ids=ids, target=target, kind=kind)
    g = torch.Generator().manual_seed(3)
    rows = 2 if name != "random" else 128
    right = bench.grade(model, vision, taken, name, 40, g, rows=rows, positions="keep")
    assert torch.equal(right, want) and want.any()
    everything = bench.grade(model, vision, taken, name, 256, positions="keep")
    assert torch.equal(everything, bench.grade(model, vision, taken, name, 256))


def test_grade_before_and_inside_agree_where_nothing_is_cut(model):
    taken = exam.exam(3, seed=5, n=3)
    with torch.no_grad():
        vision = bench.encode(model, taken.images)
        plain = taken.right(model, vision.tokens)
        for name in ("fastervlm", "fastv", "recoverable"):
            assert torch.equal(bench.grade(model, vision, taken, name, 256), plain)
