"""torch's global defaults of device, dtype, grad mode and determinism change no result."""


import pytest
import torch

from tests.hub.test_pruning import captions
from tests.hub.test_training import fits, options
from tests.hub.tiny import PROMPT, greedy, hooks, qwen_prompt
from tests.settings import default_dtype, deterministic, meta_device
from vtlib.hub import merge_tokens, prune
from vtlib.pruning.registry import METHODS

SETTINGS = {
    "meta": meta_device,
    "float64": default_dtype,
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "grad": torch.enable_grad,
    "deterministic": deterministic,
}


def answers(model, inputs, method):
    """Logits and words; methods that draw draw the same each time."""
    given = {} if method == "recoverable" else options(method)
    torch.manual_seed(0)
    with prune(model, method, 5, **given):
        logits = model(**inputs).logits.detach()
    torch.manual_seed(0)
    with prune(model, method, 5, **given):
        return logits, greedy(model, inputs, 2)


# Recoverable Compression needs a second model: its CLIP is tried below
METHODS_ALONE = [method for method in METHODS if method != "recoverable"]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", ["llava", "qwen"])
def test_every_method_under(llava, qwen, kind, name):
    model, inputs = (llava, PROMPT) if kind == "llava" else (qwen, qwen_prompt((8, 8)))
    with torch.no_grad():
        full = model(**inputs).logits
    before = hooks(model)
    if kind == "qwen" and name == "meta":
        # transformers itself cannot run there: its window index is made on the default device
        with SETTINGS[name](), torch.no_grad(), pytest.raises(NotImplementedError):
            model(**inputs)
        return
    for method in METHODS_ALONE:
        if not fits(kind, method, model):
            continue
        with torch.no_grad():
            want = answers(model, inputs, method)
        with SETTINGS[name]():
            found = answers(model, inputs, method)
        assert all(torch.equal(a, b) for a, b in zip(want, found, strict=True)), method
        assert found[0].dtype == torch.float32
    assert hooks(model) == before
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, full)


@pytest.mark.parametrize("name", SETTINGS)
def test_merging_in_a_clip_under(clip, name):
    inputs = captions()

    def logits():
        with merge_tokens(clip, r=3, r_text=2):
            return clip(**inputs).logits_per_image.detach()

    want = logits()
    with SETTINGS[name]():
        assert torch.equal(logits(), want)


@pytest.mark.parametrize("name", ["meta", "float64", "inference mode"])
def test_recoverable_with_a_clip_under(llava, name):
    given = options("recoverable")  # a CLIP made under the usual settings

    def words():
        with prune(llava, "recoverable", 5, **given):
            return greedy(llava, PROMPT, 2)

    want = words()
    with SETTINGS[name]():
        assert torch.equal(words(), want)
