"""Decoders with sliding windows: a window counts places of the pruned prompt."""

import copy

import pytest
import torch
from transformers import (
    MistralConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
)

from tests.hub.tiny import (
    PROMPT,
    N,
    greedy,
    hooks,
    make_llava,
    make_qwen,
    qwen_prompt,
    top_cls,
)
from vtlib.hub import prune


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def llava_of(kind, window, **text):
    """LLaVA with a text model of class `kind` and a window."""
    return make_llava(kind=kind, sliding_window=window, **text)


MODELS = {
    "every layer": lambda: llava_of(MistralConfig, 8),
    "wider than the pruned prompt": lambda: llava_of(MistralConfig, 14),
    "some layers": lambda: llava_of(
        Qwen2Config, 8, use_sliding_window=True, max_window_layers=2
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_before_a_decoder_with_windows(name):
    """Logits and words are those of the model on the shorter prompt, put together by hand, with a
    cache and without."""
    model = MODELS[name]()
    full, before = model(**PROMPT).logits, hooks(model)
    with prune(model, top_cls, 5) as pruned:
        logits, words = model(**PROMPT).logits, greedy(model, PROMPT, 8)
        assert torch.equal(greedy(model, PROMPT, 8, use_cache=False), words)
        plan = pruned.plan
    tokens = torch.stack(list(model.model.get_image_features(PROMPT["pixel_values"]).pooler_output))
    embedded = model.get_input_embeddings()(PROMPT["input_ids"])
    short = torch.cat([embedded[:, :3], plan.apply(tokens), embedded[:, 3 + N :]], dim=1)
    assert torch.equal(model(inputs_embeds=short).logits, logits)
    by_hand = model.generate(inputs_embeds=short, max_new_tokens=8, do_sample=False)
    assert torch.equal(by_hand, words[:, -8:])
    assert hooks(model) == before and torch.equal(model(**PROMPT).logits, full)


def test_windows_do_something():
    """The same weights without a window give other logits, so the tests above can fail."""
    narrow = llava_of(MistralConfig, 8)
    wide = llava_of(MistralConfig, None)
    wide.load_state_dict(narrow.state_dict())
    with prune(narrow, top_cls, 5), prune(wide, top_cls, 5):
        assert not torch.allclose(narrow(**PROMPT).logits, wide(**PROMPT).logits, atol=1e-2)


@pytest.mark.parametrize("method", ["fastv", "transprune"])
def test_inside_a_decoder_with_windows(method):
    """Refused by name where the window would count other places than without pruning."""
    model = llava_of(MistralConfig, 8)
    full, before = model(**PROMPT).logits, hooks(model)
    with prune(model, method, 5), pytest.raises(ValueError, match="a sliding window of 8 places"):
        model(**PROMPT)
    assert hooks(model) == before and torch.equal(model(**PROMPT).logits, full)
    model = MODELS["some layers"]()
    with prune(model, method, 5), pytest.raises(ValueError, match="a sliding window of 8 places"):
        model(**PROMPT)


@pytest.mark.parametrize("method", ["fastv", "transprune"])
def test_inside_until_the_window_is_full(method):
    """A window that is never full changes nothing; a sequence that grows out of it is refused."""
    narrow, wide = llava_of(MistralConfig, 30), llava_of(MistralConfig, None)
    wide.load_state_dict(narrow.state_dict())
    with prune(narrow, method, 5), prune(wide, method, 5):
        assert torch.equal(greedy(narrow, PROMPT, 8), greedy(wide, PROMPT, 8))
        with pytest.raises(ValueError, match="a sliding window of 30 places and the sequence 31"):
            greedy(narrow, PROMPT, 9)


def test_a_window_that_no_layer_uses():
    """Qwen2.5-VL names a window also where all its layers see everything."""
    config = copy.deepcopy(make_qwen().config)
    config.text_config.sliding_window = 8
    assert set(config.text_config.layer_types) == {"full_attention"}
    torch.manual_seed(0)
    model, plain = Qwen2_5_VLForConditionalGeneration(config), make_qwen()
    model.load_state_dict(plain.state_dict())
    inputs = qwen_prompt((8, 8))
    with prune(model.eval(), "fastv", 4), prune(plain, "fastv", 4):
        assert torch.equal(greedy(model, inputs), greedy(plain, inputs))
