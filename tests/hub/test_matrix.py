"""Pruning on tiny random models of all types that can be built here, against masking.

A dropped token and one that nobody attends to are the same to all others, where positions are kept:
the reference is the unpruned model with a mask added in its decoder's layers. Decoders with linear
attention or convolutions know no such mask; there it is the short prompt, handed to the decoder.
"""

import contextlib
import functools
import re
import warnings
from pathlib import Path

import pytest
import torch

from tests.hub import zoo
from tests.hub.tiny import greedy, hooks
from vtlib.hub import prune
from vtlib.hub.general import REFUSED, TESTED, decoder_of
from vtlib.hub.signals import KINDS
from vtlib.tokens import take

REFUSALS = {
    "blip2": "Q-Former",
    "instructblip": "Q-Former",
    "chameleon": "its decoder is the multimodal model itself",
    "florence2": "encoder-decoder",
    "mllama": "cross-attention",
}
"""Types of the zoo that are refused, with a word of the reason."""
NARROW = ("llava_mistral_sliding", "gemma3_narrow")
"""Windows shorter than the prompt: refused inside; before, where the model makes its own masks."""
HYBRID = ("lfm2_vl", "minicpmv4_6", "qwen3_5")
"""Every other layer has no softmax attention."""
OUTSIDE = {"gemma4": "hidden_size_per_layer_input"}
"""Types that cannot be cut inside, with a word of the reason."""
AFTER = {"qwen3_vl": 3, "qwen3_vl_moe": 3, "granite4_vision": 3}
"""Where the first cut may be: visual tokens are added until there."""
TYPES = [name for name in zoo.TYPES if name not in REFUSALS]
WIDE = [name for name in TYPES if name not in NARROW]
INSIDE = [name for name in WIDE if name not in OUTSIDE]
CLOSE = dict(atol=2e-5, rtol=1e-4)


@functools.cache
def made(name):
    return zoo.build(name)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def some(count):
    """The budget of an image of so many tokens."""
    return max(1, count // 4)


def stays(model, inputs, pruned):
    """(B, S) bool: all but the placeholders that were dropped."""
    ids = inputs["input_ids"]
    left = torch.zeros_like(ids, dtype=torch.bool)
    for row, (columns, valid) in enumerate(zip(pruned.columns, pruned.valid, strict=True)):
        left[row, columns[valid]] = True
    return left | (ids != model.config.image_token_id)


@contextlib.contextmanager
def masking(model, stay, after):
    """From layer `after` on nobody attends to what does not stay."""
    size = stay.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool).tril()

    def hook(layer, args, kwargs):
        mask = kwargs["attention_mask"]
        if mask is None:
            mask = causal & stay[:, None, None]
        elif mask.dtype == torch.bool:
            mask = mask & stay[:, None, None]
        else:
            mask = mask.masked_fill(~stay[:, None, None], torch.finfo(mask.dtype).min)
        return args, {**kwargs, "attention_mask": mask}

    layers = decoder_of(model).layers[after:]
    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def compare(logits, want, pruned):
    """Logits of what is left against those of the whole prompt."""
    for row, (columns, valid) in enumerate(zip(pruned.columns, pruned.valid, strict=True)):
        torch.testing.assert_close(logits[row, valid], want[row, columns[valid]], **CLOSE)


def short_prompt(model, inputs, pruned):
    """Logits of the short prompt, handed to the decoder by hand."""
    seen = {}

    def note(decoder, args, kwargs):
        seen.update(kwargs)

    decoder = decoder_of(model)
    handle = decoder.register_forward_pre_hook(note, with_kwargs=True)
    model(**inputs)
    handle.remove()
    columns, valid = pruned.columns, pruned.valid
    x = take(seen["inputs_embeds"], columns)
    positions = seen.get("position_ids")
    if positions is None:
        positions = torch.arange(inputs["input_ids"].shape[1]).expand(len(columns), -1)
    positions = positions.expand(*positions.shape[:-2], len(columns), -1)
    positions = positions.gather(-1, columns.expand(*positions.shape[:-1], -1))
    out = decoder(inputs_embeds=x, attention_mask=valid.long(), position_ids=positions)
    return model.lm_head(out.last_hidden_state)


@pytest.mark.parametrize("name", WIDE)
def test_before_the_decoder_equals_masking(name):
    model, inputs, counts = made(name)
    with prune(model, "divprune", some, positions="keep") as pruned:
        logits = model(**inputs).logits
        words = greedy(model, inputs)
        assert torch.equal(greedy(model, inputs, use_cache=False), words)
    left = inputs["attention_mask"].sum() - sum(counts)
    if name not in ("smolvlm", "idefics3", "granite4_vision"):
        assert pruned.valid.sum() == left + sum(map(some, counts))
    assert pruned.valid.sum() < inputs["attention_mask"].sum()
    if name in HYBRID:
        want = short_prompt(model, inputs, pruned)
        for row, valid in enumerate(pruned.valid):
            torch.testing.assert_close(logits[row, valid], want[row, valid], **CLOSE)
        return
    with masking(model, stays(model, inputs, pruned), after=0):
        compare(logits, model(**inputs).logits, pruned)


@pytest.mark.parametrize("name", INSIDE)
def test_inside_the_decoder_equals_masking(name):
    model, inputs, _ = made(name)
    after = AFTER.get(name, 2)
    with prune(model, "fastv", some, after=after) as pruned:
        logits = model(**inputs).logits
        words = greedy(model, inputs)
        assert torch.equal(greedy(model, inputs, use_cache=False), words)
        assert pruned.lengths[after - 1] == inputs["input_ids"].shape[1]
        assert pruned.lengths[after] < pruned.lengths[after - 1]
    if name not in HYBRID:
        with masking(model, stays(model, inputs, pruned), after):
            compare(logits, model(**inputs).logits, pruned)


@pytest.mark.parametrize("name", WIDE)
def test_nothing_changes_and_nothing_stays_behind(name):
    """keep=1.0 is the unpruned model bit for bit, and so is the model behind a block."""
    model, inputs, _ = made(name)
    full, before = model(**inputs).logits, hooks(model)
    methods = [("divprune", {})]
    if name not in OUTSIDE:
        methods.append(("fastv", dict(after=AFTER.get(name, 2))))
    for method, options in methods:
        with prune(model, method, 1.0, **options):
            assert torch.equal(model(**inputs).logits, full)
        with prune(model, method, some, **options):
            assert not torch.equal(model(**inputs).logits[:, -1], full[:, -1])
        assert hooks(model) == before and torch.equal(model(**inputs).logits, full)


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    model, _, _ = made(name)
    for method in ("divprune", "fastv"):
        with pytest.raises(ValueError, match=f"{type(model).__name__} is not supported: .*"):
            prune(model, method, 4)
        with pytest.raises(ValueError, match=REFUSALS[name]):
            prune(model, method, 4)


def test_decoders_that_cannot_be_cut_inside():
    for name, reason in OUTSIDE.items():
        with pytest.raises(ValueError, match=reason):
            prune(made(name)[0], "fastv", 2)
    for name in HYBRID:
        model, inputs, _ = made(name)
        with prune(model, "fastv", 2, after=3), pytest.raises(ValueError, match="no softmax"):
            model(**inputs)
    for name, after in AFTER.items():
        model, inputs, _ = made(name)
        message = f"cuts must come after {after} layers or more"
        with prune(model, "fastv", 2, after=after - 1), pytest.raises(ValueError, match=message):
            model(**inputs)
    for name in NARROW:
        model, inputs, _ = made(name)
        with prune(model, "fastv", 2), pytest.raises(ValueError, match="a sliding window of 12"):
            greedy(model, inputs)
    model, inputs, _ = made("gemma3_narrow")
    with prune(model, "divprune", 2), pytest.raises(ValueError, match="makes its masks for whole"):
        greedy(model, inputs)


def test_enough_types():
    """What the README says: so many model_types before the decoder, and inside."""
    before = {made(name)[0].config.model_type for name in WIDE}
    inside = {made(name)[0].config.model_type for name in INSIDE}
    assert len(before) >= 40 and len(inside) >= 38
    assert before == TESTED
    assert not TESTED & set(REFUSED)


def test_untested_types_warn_once(monkeypatch):
    from vtlib.hub import general

    model = made("internvl")[0]
    monkeypatch.setattr(general, "TESTED", TESTED - {"internvl"})
    monkeypatch.setattr(general, "_WARNED", set())
    with pytest.warns(UserWarning, match="model_type 'internvl'.* is untested"):
        prune(model, "divprune", 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune(model, "divprune", 2)


def test_the_readme_names_the_types():
    """Its table has every tested and every refused type, and those whose tower is read."""
    text = (Path(__file__).parents[2] / "README.md").read_text()
    section = text.split("### Which models")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")][1:]
    named = [set(re.findall(r"`([\w-]+)`", row)) for row in rows]
    assert set().union(*named[:-1]) == TESTED and named[-1] == set(REFUSED)
    assert named[1] == set(AFTER) and named[2] == set(HYBRID) and named[3] == set(OUTSIDE)
    read = section.split("run on ")[1].split(";")[0]
    kinds = {name for names in KINDS.values() for name in names}
    assert set(re.findall(r"`([\w-]+)`", read)) == kinds | {"qwen2_5_vl"}
