"""What holds for all methods at once: identity at keep = N, the number of tokens, repeatability, and one call for all."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtlib.pruning import registry
from vtlib.pruning.registry import METHODS
from vtlib.vlm import TinyVLM, exam

QUESTIONS = ["is there a crab?", "how many times does the key appear?"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return TinyVLM(exam.VOCABULARY, dict(embed_dim=32, num_layers=4, num_heads=4, place_dim=8),
                   dict(embed_dim=32, num_layers=6, num_heads=4, hidden_dim=48)).eval()


@pytest.fixture(scope="module")
def vision(model):
    with torch.no_grad():
        return registry.look(model, torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0)))   # 6 x 8 patches


def run(model, vision, name, keep, seed=0):
    with torch.no_grad():
        done = registry.reduce(model, vision, name, keep, QUESTIONS, torch.Generator().manual_seed(seed))
        return done, model.answer(done.tokens, QUESTIONS, done.stages, done.positions)


def test_all_ten_papers_and_five_baselines_are_there():
    papers = {m.paper for m in METHODS.values()} - {None}
    assert papers == {"fastervlm", "divprune", "hiprune", "visiondrop", "holov", "zooprune", "transprune", "aim", "crossget", "recoverable-compression"}
    assert len(registry.BASELINES) == 5


@pytest.mark.parametrize("name", METHODS)
def test_keep_all_changes_nothing(model, vision, name):
    with torch.no_grad():
        plain = model.prefill(vision.tokens, QUESTIONS)[0]
        for keep in (48, 1.0):
            done = registry.reduce(model, vision, name, keep, QUESTIONS)
            assert torch.equal(model.prefill(done.tokens, QUESTIONS, done.stages, done.positions)[0], plain)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("keep", [1, 7, 24, 47])
def test_so_many_are_left(model, vision, name, keep):
    done, answers = run(model, vision, name, keep)
    left = [n - (answers.prefill.hidden.shape[1] - len(answers.prefill.plan.index[0])) for n in answers.prefill.cache.lengths]
    whole = done.whole(answers.prefill)
    if name == "aim":
        assert done.tokens.shape[1] == keep and len(whole) == 0                  # its ramp ends at none
    elif name == "visiondrop":
        assert 0.55 * keep - 1 <= len(whole) <= keep                             # keep is the mean of the stages
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
    if name in ("random",):
        return                                                                   # draws for the whole batch at once
    one = registry.reduce(model, vision.rows(torch.tensor([1])), name, 12, QUESTIONS[1:], torch.Generator().manual_seed(0))
    assert torch.equal(one.plan.index[0], first.plan.index[1])
    torch.testing.assert_close(one.tokens[0], first.tokens[1], atol=1e-5, rtol=1e-4)


@settings(max_examples=15, deadline=None)
@given(keep=st.integers(1, 48), name=st.sampled_from(sorted(METHODS)), tied=st.booleans())
def test_any_keep_with_or_without_ties(model, keep, name, tied):
    """All patches alike is the worst case for ties, distances and outliers: nothing may be chosen twice, nothing may be NaN."""
    images = torch.full((2, 3, 48, 64), 0.5) if tied else torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(keep))
    with torch.no_grad():
        vision = registry.look(model, images, [name])
        done, answers = run(model, vision, name, keep)
    assert done.tokens.isfinite().all() and answers.first.isfinite().all()
    for row in done.plan.index:
        there = row[row >= 0] if name != "recoverable" else row[(row >= 0) & (done.plan.role[0] < 3 if done.plan.role is not None else True)]
        assert len(there.unique()) == len(there)


def test_questions_matter_only_where_they_should(model, vision):
    for name, method in METHODS.items():
        with torch.no_grad():
            a = registry.reduce(model, vision, name, 12, QUESTIONS, torch.Generator().manual_seed(0))
            b = registry.reduce(model, vision, name, 12, QUESTIONS[::-1], torch.Generator().manual_seed(0))
        if not method.asks:
            assert torch.equal(a.tokens, b.tokens)


@pytest.mark.parametrize("name, keep, message", [
    ("fastervlm", 0, "keep=0"), ("divprune", 49, "keep=49 but there are 48"), ("holov", 1.5, "keep=1.5"), ("aim", True, "keep=True"),
    ("nothing", 4, "method='nothing'"),
])
def test_bad_keep(model, vision, name, keep, message):
    with pytest.raises(ValueError, match=message):
        registry.reduce(model, vision, name, keep, QUESTIONS)


def test_what_was_not_asked_for_is_missed(model, vision):
    bare = model.encode(torch.rand(2, 3, 48, 64))
    for name, word in (("fastervlm", "cls_row"), ("holov", "cls_row"), ("hiprune", "attention"), ("visiondrop", "keys")):
        with pytest.raises(ValueError, match=word):
            registry.reduce(model, bare, name, 12)
    with pytest.raises(ValueError, match="questions"):
        registry.reduce(model, vision, "recoverable", 12)


def test_grade_before_and_inside_agree_where_nothing_is_cut(model):
    taken = exam.exam(3, seed=5, n=3)
    with torch.no_grad():
        vision = registry.look(model, taken.images)
        plain = taken.right(model, vision.tokens)
        for name in ("fastervlm", "fastv", "recoverable"):
            assert torch.equal(registry.grade(model, vision, taken, name, 256), plain)
