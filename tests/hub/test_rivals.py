"""The rivals of `vtlib.pruning.others` on transformers' LLaVA and Qwen2.5-VL, tiny and random."""

import pytest
import torch

from tests.hub.test_methods import made
from tests.hub.tiny import (
    PROMPT,
    QUESTION,
    N,
    greedy,
    make_clip,
    make_llava,
    make_qwen,
    qwen_prompt,
)
from vtlib.hub import prune, question_signals
from vtlib.pruning.registry import METHODS

RIVALS = [name for name, method in METHODS.items() if method.kind == "rival"]
BEFORE = [name for name in RIVALS if METHODS[name].prune is not None]
INSIDE = [name for name in RIVALS if METHODS[name].prune is None]
MODELS = {
    "clip": (make_llava, PROMPT),
    "siglip": (lambda: make_llava("siglip"), PROMPT),
    "qwen": (make_qwen, qwen_prompt((8, 8))),
}


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param][0](), MODELS[request.param][1]


@pytest.mark.parametrize("name", BEFORE)
def test_before_the_decoder(model, name):
    """With what is received for [CLS], and the question that was found: the plan is the function's
    own."""
    text = torch.randn(2, 48, generator=torch.Generator().manual_seed(0))
    plan, tokens, vision = made(*model, name, 5, text=text, cls="received")
    assert len(plan) == 5 and tokens.shape == (2, 5, 48) and tokens.isfinite().all()
    if name == "cdpruner":
        want = METHODS[name].prune(vision, 5, patches=vision.tokens, text=text)
        assert torch.equal(plan.index, want.index)


@pytest.mark.parametrize("name", INSIDE)
def test_inside_the_decoder(model, name):
    """Cut in the prompt, and generate goes on from there."""
    model, inputs = model
    with prune(model, name, 5) as pruned:
        logits = model(**inputs).logits
        said = greedy(model, inputs)
        gone = N - 5
        assert pruned.lengths[0] - pruned.lengths[-1] == gone and logits.isfinite().all()
        assert said.shape[1] == inputs["input_ids"].shape[1] + 4
    whole = model(**inputs).logits
    with prune(model, name, N):
        torch.testing.assert_close(model(**inputs).logits, whole, atol=1e-5, rtol=1e-5)


def test_cdpruner_with_clip():
    """Its own space: of what `question_signals` gives it takes patches and text."""
    llava = make_llava()
    signals = question_signals(make_clip(), QUESTION)
    with prune(llava, "cdpruner", 5, signals=signals) as pruned:
        llava(**PROMPT)
        vision = pruned.images[0].vision
        given = {name: signals(PROMPT)[name] for name in ("patches", "text")}
        want = METHODS["cdpruner"].prune(vision, 5, **given)
        assert torch.equal(pruned.plan.index, want.index)


@pytest.mark.parametrize("name", ["visionzip", "prumerge", "vispruner"])
def test_by_name(name):
    llava = make_llava()
    with prune(llava, name, 5) as pruned:
        assert greedy(llava, PROMPT).shape[1] == PROMPT["input_ids"].shape[1] + 4
        assert len(pruned.plan) == 5
    with pytest.raises(ValueError, match=r"no \[CLS\]: cls='received'"):
        prune(make_llava("siglip"), name, 5)
