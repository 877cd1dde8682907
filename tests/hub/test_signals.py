"""What is read of any family's tower: which patches make a token, and what they say together."""

import contextlib
import functools
import sys

import pytest
import torch

from tests.hub import zoo
from vtlib.hub import prune, signals
from vtlib.hub.general import General
from vtlib.hub.hooks import Hooks
from vtlib.hub.tower import Reads
from vtlib.pruning.method import Method
from vtlib.pruning.registry import METHODS

TYPES = [name for names in signals.KINDS.values() for name in names]
INPUTS = ("pixel_values", "pixel_values_images", "image_sizes", "image_grid_thw")
GENERAL = [name for name in TYPES if name != "llava"] + ["llava_layers_list", "llava_pixtral"]


@functools.cache
def made(name):
    return zoo.build(name)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def features(model, inputs):
    """The flat tokens (T, D) of get_image_features."""
    given = {k: v for k, v in inputs.items() if k in INPUTS}
    out = model.base_model.get_image_features(**given, return_dict=True)
    tokens = getattr(out, "pooler_output", None)
    tokens = out.last_hidden_state if tokens is None else tokens
    flat = tokens if isinstance(tokens, torch.Tensor) else torch.cat(list(tokens))
    return flat.reshape(-1, flat.shape[-1]), out


def heard(model, inputs, reads):
    """(signals, family) of a call."""
    family, hooks = General(model), Hooks()
    given = {k: v for k, v in inputs.items() if k in INPUTS}
    try:
        family.attach(hooks, reads)
        _, found = family.listen(lambda: features(model, inputs)[1], given, reads)
    finally:
        hooks.remove()
    return found, family


@contextlib.contextmanager
def changed(layer, place):
    """The output of a layer with another state at one place, counted over the whole batch."""

    def hook(module, args, out):
        states = (out[0] if isinstance(out, tuple) else out).clone().contiguous()
        states.view(-1, states.shape[-1])[place] += 1.0 + torch.arange(states.shape[-1]) % 3
        return (states, *out[1:]) if isinstance(out, tuple) else states

    handle = layer.register_forward_hook(hook, prepend=True)  # before transformers notes it
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("name", GENERAL)
def test_a_token_depends_on_its_patches_alone(name):
    """Change one patch behind the layer that makes the features: those tokens change that have it
    in their source, and no others."""
    model, inputs, _ = made(name)
    deep = General(model).deep
    found, family = heard(model, inputs, Reads(hidden=(family_end(model),)))
    source, before = found.source, features(model, inputs)[0]
    assert len(source) == len(before)
    shape = places(family, inputs)
    for patch in range(0, len(shape), 3):
        with changed(family.layers[deep], int(shape[patch])):
            after = features(model, inputs)[0]
        moved = ((after - before).abs() > 1e-6).any(dim=1)
        assert torch.equal(moved, (source == patch).any(dim=1))


def family_end(model):
    return General(model).selected


def places(family, inputs):
    """Where patches stand in the tower's states, [CLS] left out."""
    captured = []
    layer = family.layers[family.deep]
    first = layer.register_forward_hook(
        lambda module, args, out: captured.append(out[0] if isinstance(out, tuple) else out)
    )
    features(family.model, inputs)
    first.remove()
    states = captured[0]
    every = torch.arange(states.numel() // states.shape[-1])
    if not family.num_prefix:
        return every
    rows = every.view(states.shape[0], -1)
    return (rows[:, :-1] if family.kind == "llama4" else rows[:, 1:]).flatten()


@contextlib.contextmanager
def weights_of(family, layer):
    """All attention weights (heads, Q, K) that a layer of the tower computes, by its eager code."""
    _, attention = signals.attention_of(family.layers[layer])
    module, seen, config = sys.modules[type(attention).__module__], [], attention.config
    names = ("vision_eager_attention_forward", "eager_attention_forward")  # Llama 4 has both
    name = next(name for name in names if hasattr(module, name))
    original = getattr(module, name)
    before = config._attn_implementation

    def eager(own, *args, **kwargs):
        out = original(own, *args, **kwargs)
        if own is attention:
            seen.extend(out[1])
        return out

    setattr(module, name, eager)
    config._attn_implementation = "eager"
    try:
        yield seen
    finally:
        setattr(module, name, original)
        config._attn_implementation = before


@pytest.mark.parametrize("name", GENERAL)
def test_signals_equal_the_towers_own_weights(name):
    """[CLS] row and maps against those of the eager code, token by token; keys are finite and none
    is read that nobody wants."""
    model, inputs, _ = made(name)
    layer = General(model).deep
    need = {"keys"} | ({"cls_row"} if General(model).num_prefix else set())
    found, family = heard(model, inputs, Reads(frozenset(need), (layer,)))
    with weights_of(family, layer) as seen:
        features(model, inputs)
    if family.way == "raster":  # one sequence: each image sees itself alone
        seen = [seen[0][:, a:b, a:b] for a, b in found.blocks]
    total = found.attention(layer, 0, len(found.source))
    assert found.keys.shape[0] == len(found.source) and found.keys.isfinite().all()
    for i in range(0, len(found.source), 5):
        sources = found.source[i]
        if (sources < 0).any():
            assert not total[:, i].any() and not total[:, :, i].any()
            continue
        block = next(n for n, (a, b) in enumerate(found.blocks) if a <= sources[0] < b)
        start, whole = found.blocks[block][0], seen[block]
        patches = without_cls(family, whole)
        for j in range(len(found.source)):
            others = found.source[j]
            inside = bool(((others >= start) & (others < found.blocks[block][1])).all())
            want = torch.zeros(whole.shape[0])
            if inside:
                want = patches[:, sources - start][:, :, others - start].mean(1).sum(1)
            torch.testing.assert_close(total[:, i, j], want, atol=1e-5, rtol=1e-4)
        if family.num_prefix:
            place = -1 if family.kind == "llama4" else 0
            row = whole[:, place].roll(1 if place else 0, dims=1)[:, 1:]
            want = row[:, sources - start].sum(dim=1)
            torch.testing.assert_close(found.cls_row[:, i], want, atol=1e-5, rtol=1e-4)


def without_cls(family, weights):
    if not family.num_prefix:
        return weights
    return weights[:, :-1, :-1] if family.kind == "llama4" else weights[:, 1:, 1:]


@pytest.mark.parametrize("name", GENERAL)
def test_methods_that_read_the_tower_run(name):
    """Plans are those of the function on what was read; images of a batch and beams keep theirs."""
    model, inputs, counts = made(name)
    index = []

    def looked_at(vision, keep):
        score = vision.attention[max(vision.attention)].mean(dim=(1, 2))
        index.append(score)
        return score + 1e-3 * vision.keys.norm(dim=-1)

    own = Method("looked", "Looked at", prune=looked_at, reads=("attention", "keys"))
    with prune(model, own, 2) as pruned:
        logits = model(**inputs).logits
        plans = [group.plan.index for group in pruned.images]
        words = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        again = [group.plan.index for group in pruned.images]
        if name != "llama4":  # its own generate does not repeat images for beams
            model.generate(**inputs, max_new_tokens=3, do_sample=False, num_beams=2)
            beams = [group.plan.index for group in pruned.images]
            for one, many in zip(plans, beams, strict=True):
                assert torch.equal(many, one.repeat_interleave(2, dim=0))
    assert logits.isfinite().all() and words.shape[1] == inputs["input_ids"].shape[1] + 3
    assert all(torch.equal(a, b) for a, b in zip(plans, again, strict=True))
    assert sum(len(group) for group in plans) == len(counts)


@pytest.mark.parametrize("method", ["fastervlm", "visionzip", "vispruner", "holov", "visiondrop"])
@pytest.mark.parametrize("name", ["internvl", "llava_next", "mistral3", "qwen3_vl", "gemma3"])
def test_readers_of_cls(name, method):
    """With a [CLS] by its row, without one by the stand-in, which must be asked for."""
    model, inputs, _ = made(name)
    with prune(model, method, 2, cls="received") as pruned:
        assert model(**inputs).logits.isfinite().all()
        assert all(len(group.total) <= 2 for group in pruned.images)
    if not General(model).num_prefix and "cls_row" in METHODS[method].needs(0):
        with pytest.raises(ValueError, match="has no .CLS.: cls='received'"):
            prune(model, method, 2)


def test_what_is_not_read():
    """Types whose tokens are not known patch by patch, videos, and features made elsewhere."""
    model, inputs, _ = made("got_ocr2")
    message = "hiprune reads attention, keys of the vision tower|hiprune reads"
    with pytest.raises(ValueError, match=message):
        prune(model, "hiprune", 2)
    model, inputs, _ = made("internvl")
    outside = model.get_image_features(inputs["pixel_values"], return_dict=True)
    rest = {k: v for k, v in inputs.items() if k != "pixel_values"}
    message = "made outside of this block"
    with prune(model, "fastervlm", 2), pytest.raises(ValueError, match=message):
        model(**rest, mm_encoder_outputs={"image": outside})
    with prune(model, "divprune", 2):
        assert model(**rest, mm_encoder_outputs={"image": outside}).logits.isfinite().all()
