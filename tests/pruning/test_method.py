"""A method that is not in the package: registry, TinyVLM, and what is no method or no plan."""

import numpy as np
import pytest
import torch

from tests.vlm.tiny import make_tinyvlm
from vtlib.pruning import bench, registry
from vtlib.pruning.method import Method, as_method, as_plan
from vtlib.tokens import keep_all, top_tokens
from vtlib.tokens.merge import merge_to_targets

QUESTIONS = ["is there a crab?", "how many times does the key appear?"]


def looked_at(vision, keep):
    few = keep // 5
    dominant = top_tokens(vision.cls_row.mean(dim=1), keep - few)
    return merge_to_targets(vision.keys[:, vision.num_prefix :], dominant, few)


LOOKED_AT = Method("looked_at", "Looked at", prune=looked_at, reads=("cls_row", "keys"))


@pytest.fixture(scope="module")
def model():
    return make_tinyvlm()


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_own_method_by_name_and_as_it_is(model, images):
    with registry.register(LOOKED_AT):
        named = bench.reduce(model, images, "looked_at", 10)
        assert "looked_at" in registry.METHODS
    assert "looked_at" not in registry.METHODS
    given = bench.reduce(model, images, LOOKED_AT, 10)
    plan = looked_at(bench.encode(model, images, [LOOKED_AT]), 10)
    assert named.tokens.shape == (2, 10, 32) and torch.equal(named.tokens, given.tokens)
    assert torch.equal(named.plan.source(), plan.source())
    assert len(model.answer(named.tokens, QUESTIONS, named.stages, named.positions).texts) == 2


def test_register_replaces_its_own_and_refuses_the_packages():
    other = Method("looked_at", "Another", prune=looked_at)
    with registry.register(LOOKED_AT):
        with registry.register(other):
            assert registry.find("looked_at") is other
        assert registry.find("looked_at") is LOOKED_AT
    with pytest.raises(ValueError, match="package's own"):
        registry.register(Method("divprune", "Mine", prune=looked_at))
    with pytest.raises(ValueError, match="needs a vtlib.pruning.method.Method"):
        registry.register(looked_at)


@torch.no_grad()
def test_scores_and_indices_do(model, images):
    vision = bench.encode(model, images, [])
    size = vision.features.norm(dim=-1)
    made = bench.reduce(model, vision, lambda vision, keep: vision.features.norm(dim=-1), 7).plan
    assert torch.equal(made.index, top_tokens(size, 7))
    first = torch.tensor([[5, 2, 9]] * 2)
    assert torch.equal(bench.reduce(model, vision, lambda vision, keep: first, 3).plan.index, first)


def test_a_mask_does():
    """The marked tokens, rising; where rows mark unequally many, empty slots behind."""
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[0, [5, 1, 2]] = mask[1, [0, 7, 3]] = True
    assert torch.equal(as_plan(mask, 2, 8).index, torch.tensor([[1, 2, 5], [0, 3, 7]]))
    mask[1, 3] = False
    plan = as_plan(mask, 2, 8, 3)
    assert torch.equal(plan.index, torch.tensor([[1, 2, 5], [0, 7, -1]]))
    tokens = torch.rand(2, 8, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plan.apply(tokens)[1, 2], torch.zeros(4))
    assert torch.equal(plan.kept(), mask)
    assert len(as_plan(mask.zero_(), 2, 8, 3)) == 0


def test_a_mask_while_compiling():
    """Its values cannot be looked at: as many slots as the budget allows."""
    def index(x):
        return as_plan(x > 0.5, 1, 6, 3).index

    x = torch.tensor([[0.9, 0.1, 0.2, 0.8, 0.3, 0.4]])
    assert torch.equal(index(x), torch.tensor([[0, 3]]))
    got = torch.compile(index, backend="eager", fullgraph=True)(x)
    assert torch.equal(got, torch.tensor([[0, 3, -1]]))


@torch.no_grad()
def test_a_signal_by_its_name(model, images):
    """An argument `text` is the question, without a word about it."""
    def by_words(vision, keep, text):
        return (vision.tokens @ text[:, :, None])[..., 0]

    method = Method("words", "By the words", prune=by_words, space="tokens")
    assert method.asks and method.signals == ("text",)
    vision = bench.encode(model, images, [method])
    plan = bench.reduce(model, vision, method, 6, QUESTIONS).plan
    score = by_words(vision, 6, bench.asking_vector(model, QUESTIONS))
    assert torch.equal(plan.index, top_tokens(score, 6))
    with pytest.raises(ValueError, match="questions is None"):
        bench.reduce(model, vision, method, 6)


@torch.no_grad()
def test_forgotten_reads_are_named(model, images):
    forgot = Method("forgot", "Forgot", prune=looked_at)
    with pytest.raises(ValueError, match="'forgot' reads what it did not ask for.*cls_row, keys"):
        bench.reduce(model, images, forgot, 10)


@pytest.mark.parametrize("made, message", [
    (torch.tensor([[1, 48]] * 2), "index.*48"),
    (torch.tensor([[1, -2]] * 2), "index.*-2"),
    (torch.tensor([[3, 3]] * 2), "index.*3"),
    (torch.tensor([[3, 4]]), "one row for each of 2 images"),
    (keep_all(2, 9), "a plan for 9 tokens; needs a Plan for 48"),
    (keep_all(2, 48), "made 48 slots although keep=12"),
    (torch.rand(2, 47), "needs a Plan for 48 tokens"),
    (torch.ones(2, 47).bool(), r"the method: made a torch.bool tensor \(2, 47\); .* or a mask "),
    (torch.ones(3, 48).bool(), r"a mask \(2, 48\) bool"),
    (torch.arange(48).expand(2, -1) < 13, "made 13 slots although keep=12"),
    (torch.zeros(2, 48, dtype=torch.uint8), "uint8 tensor.* or a mask"),
    ([1, 2], "made a list"),
])
def test_wrong_plans(made, message):
    with pytest.raises(ValueError, match=message):
        as_plan(made, 2, 48, 12)


@pytest.mark.parametrize("keep", [12, np.int64(12), torch.tensor(12), 0.25, np.float32(0.25)])
def test_every_kind_of_budget_is_a_limit(keep):
    index = torch.arange(13).expand(2, -1)
    assert len(as_plan(index[:, :12], 2, 48, keep)) == 12
    with pytest.raises(ValueError, match="made 13 slots although keep="):
        as_plan(index, 2, 48, keep)


@pytest.mark.parametrize("keep", ["12", 1.5, True, torch.tensor(0.25)])
def test_a_budget_is_a_number_of_tokens_or_a_fraction(keep):
    with pytest.raises(ValueError, match="keep="):
        as_plan(torch.arange(12).expand(2, -1), 2, 48, keep)


def test_what_is_a_method():
    class Own:
        def prune(self, vision, keep):
            return vision.features.norm(dim=-1)

    assert as_method(Own()).prune is not None and as_method(LOOKED_AT) is LOOKED_AT
    with pytest.raises(ValueError, match=r"a class: pass an object of it, Own\(...\)"):
        as_method(Own)
    with pytest.raises(ValueError, match="neither `prune` nor `stages`"):
        as_method(3)
    for wrong, message in (
        (dict(reads=("cls",)), "needs a tuple of"),
        (dict(space="keys"), "space="),
        (dict(positions="new"), "positions="),
        (dict(prune=3), "prune of method .* is a int but needs to be a function"),
        (dict(keep_before=3), "keep_before of method .* is a int"),
    ):
        with pytest.raises(ValueError, match=message):
            Method("wrong", "Wrong", **{"prune": looked_at, **wrong})


def test_every_method_is_found():
    papers = {method.paper for method in registry.METHODS.values()} - {None}
    assert len(papers) == 10 and all(name == m.name for name, m in registry.METHODS.items())
