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


def visionzip(vision, keep):
    few = max(1, keep // 5)
    dominant = top_tokens(vision.cls_row.mean(dim=1), keep - few)
    return merge_to_targets(vision.keys[:, vision.num_prefix :], dominant, few)


VISIONZIP = Method("visionzip", "VisionZip", prune=visionzip, reads=("cls_row", "keys"))


@pytest.fixture(scope="module")
def model():
    return make_tinyvlm()


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_own_method_by_name_and_as_it_is(model, images):
    with registry.register(VISIONZIP):
        named = bench.reduce(model, images, "visionzip", 10)
        assert "visionzip" in registry.METHODS
    assert "visionzip" not in registry.METHODS
    given = bench.reduce(model, images, VISIONZIP, 10)
    plan = visionzip(bench.encode(model, images, [VISIONZIP]), 10)
    assert named.tokens.shape == (2, 10, 32) and torch.equal(named.tokens, given.tokens)
    assert torch.equal(named.plan.source(), plan.source())
    assert len(model.answer(named.tokens, QUESTIONS, named.stages, named.positions).texts) == 2


def test_register_replaces_its_own_and_refuses_the_packages():
    other = Method("visionzip", "Another", prune=visionzip)
    with registry.register(VISIONZIP):
        with registry.register(other):
            assert registry.find("visionzip") is other
        assert registry.find("visionzip") is VISIONZIP
    with pytest.raises(ValueError, match="package's own"):
        registry.register(Method("divprune", "Mine", prune=visionzip))
    with pytest.raises(ValueError, match="needs a vtlib.pruning.method.Method"):
        registry.register(visionzip)


@torch.no_grad()
def test_scores_and_indices_do(model, images):
    vision = bench.encode(model, images, [])
    size = vision.features.norm(dim=-1)
    made = bench.reduce(model, vision, lambda vision, keep: vision.features.norm(dim=-1), 7).plan
    assert torch.equal(made.index, top_tokens(size, 7))
    first = torch.tensor([[5, 2, 9]] * 2)
    assert torch.equal(bench.reduce(model, vision, lambda vision, keep: first, 3).plan.index, first)


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
    forgot = Method("forgot", "Forgot", prune=visionzip)
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

    assert as_method(Own()).prune is not None and as_method(VISIONZIP) is VISIONZIP
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
            Method("wrong", "Wrong", **{"prune": visionzip, **wrong})


def test_every_method_is_found():
    papers = {method.paper for method in registry.METHODS.values()} - {None}
    assert len(papers) == 10 and all(name == m.name for name, m in registry.METHODS.items())
