"""CrossGET in a CLIPModel: threads, copies, gradients, torch's defaults, integers of any kind."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch

from tests.hub.test_pruning import captions, official_names
from tests.hub.test_threads import in_threads
from tests.hub.tiny import CLOSE, PROMPT, QUESTION, hooks, make_clip
from vtlib.hub import merge_tokens, prune, question_signals
from vtlib.pruning.crossget_encoder import CrossGETCLIP


def run(clip, inputs):
    with torch.no_grad():
        return clip(**inputs).logits_per_image


# ------------------------------------------------------------------------------- nothing is shared
def test_threads_in_one_block(clip):
    one = captions()
    two = {name: value[:2].flip(0) for name, value in one.items()}
    full, before = run(clip, one), hooks(clip)
    with merge_tokens(clip, r=3, r_text=2) as merged:
        want = [run(clip, one), run(clip, two)]

        def often(inputs, rows):
            found = [run(clip, inputs) for _ in range(5)]
            assert merged.image.size.shape[0] == merged.text.size.shape[0] == rows
            return found

        both = in_threads(lambda: often(one, 3), lambda: often(two, 2))
    for found, logits in zip(both, want, strict=True):
        assert isinstance(found, list), found
        assert all(torch.equal(a, logits) for a in found)
    assert hooks(clip) == before and torch.equal(run(clip, one), full)


def test_a_thread_that_was_there_before(clip):
    go, out = threading.Event(), []

    def outside():
        go.wait()
        try:
            out.append(run(clip, captions()))
        except ValueError as error:
            out.append(error)

    thread = threading.Thread(target=outside)
    thread.start()
    with merge_tokens(clip, r=2):
        go.set()
        thread.join()
        [refused] = in_threads(lambda: merge_tokens(clip, r=2).__enter__())
    assert isinstance(out[0], ValueError) and "was running before" in str(out[0])
    assert isinstance(refused, ValueError) and "is merging already" in str(refused)


def test_copies_in_a_block_do_not_merge():
    clip, inputs = make_clip(), captions()
    full = run(make_clip(), inputs)
    with merge_tokens(clip, r=3, r_text=2):  # before transformers hangs hooks of its own on it
        copies = [copy.deepcopy(clip), pickle.loads(pickle.dumps(clip))]
        merging = run(clip, inputs)
        for model in copies:
            assert torch.equal(run(model, inputs), full)
            with merge_tokens(model, r=3, r_text=2):  # a copy is free to merge
                assert torch.equal(run(model, inputs), merging)
    for model in (clip, *copies):
        assert torch.equal(run(model, inputs), full)


def test_a_question_hangs_nothing_on_the_model(clip):
    """Its four signals are those of hooks on the last layer, in two threads at once, too."""
    pixels = [PROMPT["pixel_values"], PROMPT["pixel_values"].flip(0)]
    signals = question_signals(clip, QUESTION)
    want = []
    attention = clip.vision_model.encoder.layers[-1].self_attn
    for given in pixels:
        seen = {}
        handles = [
            module.register_forward_hook(lambda m, args, out, k=k, s=seen: s.update({k: out}))
            for k, module in (("query", attention.q_proj), ("key", attention.k_proj))
        ]
        with torch.no_grad():
            clip.vision_model(given)
        for handle in handles:
            handle.remove()
        want.append(seen)
    found = in_threads(*(lambda p=p: signals({"pixel_values": p}) for p in pixels))
    for seen, given in zip(want, found, strict=True):
        assert torch.equal(given["query"], seen["query"]) and torch.equal(given["key"], seen["key"])
        assert given["patches"].shape == (2, 16, 20) and given["text"].shape == (2, 20)
    before = hooks(clip)
    with pytest.raises(ValueError, match=r"pixel_values has shape \(8, 12\) but CLIPModel needs"):
        signals({"pixel_values": torch.ones(8, 12)})
    assert hooks(clip) == before


# --------------------------------------------------------------------------------------- gradients
def test_gradients_are_those_of_its_own_dual_encoder():
    inputs = captions()
    clip = make_clip().train()
    ours = CrossGETCLIP(56, 14, 32, 4, 60, 12, 24, 4, 3, 20, 3, 2).train()
    ours.load_state_dict(official_names(clip), strict=False)
    with merge_tokens(clip, r=3, r_text=2):
        out = clip(**inputs)
        (out.image_embeds.pow(3) * 3 + out.text_embeds.sin()).sum().backward()
    image, text = ours.encode_image(inputs["pixel_values"]), ours.encode_text(inputs["input_ids"])
    a, b = (torch.nn.functional.normalize(x.feature, dim=-1) for x in (image, text))
    (a.pow(3) * 3 + b.sin()).sum().backward()
    pairs = [
        (clip.visual_projection.weight.grad, ours.visual.proj.grad.T),
        (clip.text_projection.weight.grad, ours.text_projection.grad.T),
        (clip.text_model.final_layer_norm.weight.grad, ours.ln_final.weight.grad),
        (clip.vision_model.pre_layrnorm.weight.grad, ours.visual.ln_pre.weight.grad),
        (
            clip.vision_model.embeddings.patch_embedding.weight.grad,
            ours.visual.conv1.weight.grad,
        ),
        (clip.text_model.embeddings.token_embedding.weight.grad, ours.token_embedding.weight.grad),
    ]
    for found, want in pairs:
        assert want.abs().max() > 1e-6
        torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_is_refused(reentrant):
    """A layer that is run again would merge again: one kind would fail without a name, the other
    one lose gradients without a word."""
    clip, inputs = make_clip(), captions()
    full = run(clip, inputs)
    clip.train().gradient_checkpointing_enable({"use_reentrant": reentrant})
    before = hooks(clip)  # with those that let gradients into the first layer
    with merge_tokens(clip, r=2, r_text=1):
        with pytest.raises(ValueError, match="gradient checkpointing runs a layer a second time"):
            clip(**inputs)
        clip.eval()  # nothing is checkpointed there
        assert run(clip, inputs).isfinite().all()
    assert hooks(clip) == before
    clip.gradient_checkpointing_disable()
    assert torch.equal(run(clip, inputs), full)


# ---------------------------------------------------------------------------- arguments, defaults
def test_integers_are_integers(clip):
    inputs = captions()
    with merge_tokens(clip, r=3, r_text=2):
        want = run(clip, inputs)
    for kind in (np.int64, np.int32, torch.tensor):
        with merge_tokens(clip, r=kind(3), r_text=kind(2)):
            assert torch.equal(run(clip, inputs), want)
    for kind in (np.int64, torch.tensor):
        with merge_tokens(clip, keep=6) as plain, merge_tokens(make_clip(), keep=kind(6)) as other:
            assert plain.image.merging.r == other.image.merging.r
    for wrong in (3.0, "3", True, -1, np.float32(3), torch.tensor(3.0)):
        for name in ("r", "r_text"):
            given = {"r": 1, name: wrong}
            with pytest.raises(ValueError, match=f"^{name}=.*needs an integer of at least 0"):
                merge_tokens(clip, **given)


def test_nothing_has_run(clip):
    with merge_tokens(clip, r=2) as merged, pytest.raises(ValueError, match="nothing has run"):
        assert merged.image.plans


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_in_another_dtype(dtype):
    """The cross tokens follow the tower."""
    inputs = captions()
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    clip = make_clip().to(dtype)
    with merge_tokens(clip, r=3, r_text=2) as merged:
        logits = run(clip, inputs)
    assert logits.dtype == dtype and logits.isfinite().all()
    assert merged.image.cross.dtype == merged.text.cross.dtype == dtype
    if dtype == torch.float64:
        plain = make_clip()
        with merge_tokens(plain, r=3, r_text=2):
            single = run(plain, captions())
        torch.testing.assert_close(logits.float(), single, atol=1e-5, rtol=1e-4)


def test_trained_cross_tokens_in_any_form(clip):
    inputs = captions()
    cross = torch.randn(3, 32, generator=torch.Generator("cpu").manual_seed(0))
    found = []
    for given in (cross, cross[:, None], cross.double()):
        with prune(clip, "crossget", r=3, cross_image=given):
            found.append(run(clip, inputs))
    for logits in found[1:]:
        torch.testing.assert_close(logits, found[0], **CLOSE)
