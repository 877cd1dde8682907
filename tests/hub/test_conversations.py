"""A cache of a pruned prompt over several turns, prompts in pieces, drafts: right, or refused by
name, and the model is the same afterwards to the last bit."""

import copy

import pytest
import torch

from tests.hub.tiny import (
    CLOSE,
    PROMPT,
    greedy,
    last_token,
    make_llava,
    make_qwen,
    prompt,
    qwen_prompt,
    top_cls,
)
from vtlib.hub import prune

KINDS = [("llava", "divprune"), ("llava", "fastv"), ("qwen", "divprune"), ("qwen", "fastv")]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def models(llava, qwen):
    return {"llava": (llava, PROMPT), "qwen": (qwen, qwen_prompt((8, 8)))}


def first_row(inputs, model):
    """The first prompt of a batch with one image each."""
    half = {k: v[:1] for k, v in inputs.items()}
    if "image_grid_thw" in inputs:
        half["pixel_values"] = inputs["pixel_values"][: inputs["pixel_values"].shape[0] // 2]
    return half


def fed(model):
    """Lengths of what enters the decoder from now on, and the handle that ends it."""
    seen = []
    decoder = model.model.language_model
    handle = decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].shape[1]),
        with_kwargs=True,
    )
    return seen, handle


def go_on(model, words, cache, steps):
    """Greedy decoding by hand behind a cache."""
    new = []
    for _ in range(steps):
        out = model(input_ids=words, past_key_values=cache)
        words = out.logits[:, -1:].argmax(-1)
        new.append(words)
    return torch.cat(new, dim=1)


# ------------------------------------------------------------------------------------ turns
@pytest.mark.parametrize("kind, method", KINDS)
def test_the_returned_sequence_feeds_only_what_is_new(models, kind, method):
    model, inputs = models[kind]
    words = torch.tensor([[11, 12], [13, 14]])
    with prune(model, method, 4):
        first = greedy(model, inputs, 6, return_dict_in_generate=True)
        cache = copy.deepcopy(first.past_key_values)
        ids = torch.cat([first.sequences, words], dim=1)
        seen, handle = fed(model)
        second = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=first.past_key_values,
            max_new_tokens=5,
            do_sample=False,
        )
        handle.remove()
        assert seen == [3, 1, 1, 1, 1]
        by_hand = go_on(model, ids[:, -3:], cache, 5)
    assert torch.equal(second[:, -5:], by_hand)
    assert torch.equal(second[:, : ids.shape[1]], ids)


def test_three_turns_in_blocks_of_their_own(llava):
    """A cache goes on in any block of its model, whatever that block's method."""
    ids, cache, answers = PROMPT["input_ids"], None, []
    for options in (dict(method="fastv", keep=4), dict(method="divprune", keep=2)) * 2:
        new = {"pixel_values": PROMPT["pixel_values"]} if cache is None else {}
        with prune(llava, **options):
            out = llava.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=cache,
                max_new_tokens=3,
                do_sample=False,
                return_dict_in_generate=True,
                **new,
            )
        cache = out.past_key_values
        answers.append(out.sequences[:, -3:])
        ids = torch.cat([out.sequences, torch.tensor([[20], [21]])], dim=1)
    with prune(llava, "fastv", 4):
        state = llava(**PROMPT)
        for answer in answers:
            found = [state.logits[:, -1:].argmax(-1)]
            for _ in range(2):
                state = llava(input_ids=found[-1], past_key_values=state.past_key_values)
                found.append(state.logits[:, -1:].argmax(-1))
            assert torch.equal(torch.cat(found, dim=1), answer)
            words = torch.cat([found[-1], torch.tensor([[20], [21]])], dim=1)
            state = llava(input_ids=words, past_key_values=state.past_key_values)


def test_two_conversations_on_one_qwen(qwen):
    """Images of two sizes shift the words behind them differently: each cache knows its own."""
    one, two = qwen_prompt((8, 12)), qwen_prompt((4, 8), seed=1)
    word = torch.tensor([[3], [4]])
    with prune(qwen, "divprune", 4):
        alone = qwen(input_ids=word, past_key_values=qwen(**one).past_key_values).logits
        cache = qwen(**one).past_key_values
        qwen(**two)
        assert torch.equal(qwen(input_ids=word, past_key_values=cache).logits, alone)


@pytest.mark.parametrize("method", ["divprune", "fastv"])
def test_a_cache_outside_of_its_block(llava, method):
    word = torch.tensor([[3], [4]])
    full = llava(**PROMPT).logits
    with prune(llava, method, 4):
        cache = llava(**PROMPT).past_key_values
        inside = copy.deepcopy(cache)
        assert cache.get_seq_length() == 23 and cache.layers[-1].keys.shape[2] == 11
        llava(input_ids=word, past_key_values=cache)
        for wrong in (cache, copy.deepcopy(cache)):
            with pytest.raises(ValueError, match="holds a pruned prompt"):
                llava.model.language_model(input_ids=word, past_key_values=wrong)
    for wrong in (cache, copy.deepcopy(cache)):
        for inputs in (
            dict(input_ids=word),
            dict(input_ids=word, attention_mask=torch.ones(2, 25)),
            dict(input_ids=word, position_ids=torch.tensor([[12], [12]])),
        ):
            with pytest.raises(ValueError, match="only go on inside `with prune"):
                llava(**inputs, past_key_values=wrong)
        with pytest.raises(ValueError, match="only go on inside `with prune"):
            llava.generate(torch.cat([PROMPT["input_ids"], word], 1), past_key_values=wrong)
    with prune(llava, method, 4):  # and it is as it was
        again = llava(input_ids=word, past_key_values=inside).logits
        fresh = llava(**PROMPT).past_key_values
        assert torch.equal(again, llava(input_ids=word, past_key_values=fresh).logits)
    assert torch.equal(llava(**PROMPT).logits, full)


def test_a_cache_keeps_to_its_model_and_its_rows(llava):
    word = torch.tensor([[3], [4]])
    other = make_llava()
    with prune(llava, "divprune", 4), prune(other, "divprune", 4):
        cache = llava(**PROMPT).past_key_values
        with pytest.raises(ValueError, match="another model has pruned"):
            other(input_ids=word, past_key_values=cache)
        for change in (
            lambda: cache.batch_repeat_interleave(2),
            lambda: cache.batch_select_indices(torch.tensor([1, 0])),
        ):
            with pytest.raises(ValueError, match="rows of a pruned prompt's cache stay"):
                change()
        llava(input_ids=word, past_key_values=cache)
        cache.crop(-2)
        with pytest.raises(ValueError, match="cropped 1 tokens into its pruned prompt"):
            llava(input_ids=word, past_key_values=cache)
        cache.reset()
        text = {k: v for k, v in prompt([1, 5, 6, 7], [1, 5, 6, 8]).items() if "pix" not in k}
        want = llava(**text).logits
        assert torch.equal(llava(**text, past_key_values=cache).logits, want)
        assert type(cache).__name__ == "DynamicCache"
    step = llava(input_ids=word, past_key_values=cache)
    assert step.past_key_values.get_seq_length() == 5


# --------------------------------------------------------------------------- prompts in pieces
@pytest.mark.parametrize("kind, method", KINDS)
def test_an_image_behind_a_cached_prefix(models, kind, method):
    model, inputs = models[kind]
    full = model(**inputs).logits
    with prune(model, method, 4):
        cache = model(input_ids=inputs["input_ids"][:, :2], use_cache=True).past_key_values
        for run in (
            lambda: model.generate(**inputs, past_key_values=cache, max_new_tokens=2),
            lambda: model(**inputs, past_key_values=cache),
        ):
            with pytest.raises(ValueError, match="images together with a cache.*holds 2 tokens"):
                run()
        second = model(**inputs).past_key_values
        with pytest.raises(ValueError, match="images together with a cache"):
            model(**inputs, past_key_values=second)
    assert torch.equal(model(**inputs).logits, full)


@pytest.mark.parametrize("kind, method", KINDS)
def test_a_prompt_in_chunks(models, kind, method):
    """Pieces are refused, whether the image is in the first, in a later one or in several; one
    piece is a whole prompt."""
    model, inputs = models[kind]
    size = inputs["input_ids"].shape[1]
    with prune(model, method, 4):
        for chunk in (2, 3, 4, 8, size - 1):
            with pytest.raises(ValueError, match=f"prefill_chunk_size={chunk}"):
                greedy(model, inputs, prefill_chunk_size=chunk)
        words = greedy(model, inputs)
        assert torch.equal(greedy(model, inputs, prefill_chunk_size=size), words)
        config = copy.deepcopy(model.generation_config)
        config.prefill_chunk_size = 3
        with pytest.raises(ValueError, match="prefill_chunk_size=3"):
            model.generate(**inputs, generation_config=config)
        text = {k: inputs[k][:, -3:] for k in ("input_ids", "attention_mask")}
        assert greedy(model, text, prefill_chunk_size=2).shape == (2, 7)


# -------------------------------------------------------------------------------------- drafts
@pytest.mark.parametrize("kind", ["llava", "qwen"])
@pytest.mark.parametrize("method", ["divprune", "fastv", "transprune"])
def test_assisted_decoding_is_lossless(models, kind, method):
    """The first forward holds the prompt and a draft: what is kept depends on the prompt alone."""
    model, inputs = models[kind]
    one = first_row(inputs, model)
    other = make_llava() if kind == "llava" else make_qwen()
    for parameter in other.parameters():
        parameter.add_(0.1 * parameter.std() * torch.randn_like(parameter))
    for keep in (3, 6):
        with prune(model, method, keep) as pruned:
            words = greedy(model, one, 12)
            index = pruned.images[0].total.index
            assert torch.equal(greedy(model, one, 12, assistant_model=other), words)
            assert torch.equal(pruned.images[0].total.index, index)
            assert torch.equal(greedy(model, one, 12, prompt_lookup_num_tokens=3), words)
        with prune(model, method, keep), prune(other, "divprune", 2):
            assert torch.equal(greedy(model, one, 12, assistant_model=other), words)
    full = greedy(model, one, 12)
    with prune(other, method, 4):  # a pruned draft of a full model
        assert torch.equal(greedy(model, one, 12, assistant_model=other), full)


def test_prompt_lookup_with_a_draft_in_the_first_forward(llava):
    """The prompt ends as it began, so that a draft is found at once."""
    inputs = prompt([1, 5, 6, 7, "i", 8, 9, 5, 6])
    with prune(llava, "fastv", 4) as pruned:
        words, index = greedy(llava, inputs, 8), pruned.images[0].total.index
        seen, handle = fed(llava)
        assert torch.equal(greedy(llava, inputs, 8, prompt_lookup_num_tokens=4), words)
        handle.remove()
        assert seen[0] > 24 and torch.equal(pruned.images[0].total.index, index)


@pytest.mark.parametrize("method", ["fastv", "transprune"])
def test_inside_without_a_cache(llava, method):
    """The prompt is run again for every word, and cut as it was for the first."""
    with prune(llava, method, 4):
        words = greedy(llava, PROMPT, 6)
        assert torch.equal(greedy(llava, PROMPT, 6, use_cache=False), words)


def test_signals_see_the_prompt_alone(llava):
    seen = []

    def signals(inputs):
        seen.append(inputs["input_ids"].clone())
        return {}

    with prune(llava, "divprune", 4, signals=signals):
        greedy(llava, PROMPT, 3, use_cache=False)
    assert len(seen) == 3
    assert all(torch.equal(ids, PROMPT["input_ids"]) for ids in seen)


# ------------------------------------------------------------------------- nothing on identities
def rebuilt(out):
    """What accelerate's hooks make of an output: new containers, new tensors."""
    return type(out)(**{k: v for k, v in copy.deepcopy(dict(out)).items()})


@pytest.mark.parametrize("options", [{}, dict(num_beams=3), dict(num_beams=2, do_sample=True)])
def test_features_are_known_by_their_numbers(llava, options):
    inputs = prompt([1, "i", 5, "i", 7, 8], [1, 6, "i", 7, 9])
    with prune(llava, "divprune", 4) as pruned:
        torch.manual_seed(0)
        words = llava.generate(**inputs, max_new_tokens=4, **options)
        index = pruned.plan.index
        inner = llava.model.get_image_features
        features = rebuilt(inner(inputs["pixel_values"]))
        rest = {k: v for k, v in inputs.items() if k != "pixel_values"}
        torch.manual_seed(0)
        again = llava.generate(
            **rest,
            mm_encoder_outputs={"image": features},
            max_new_tokens=4,
            **options,
        )
        assert torch.equal(again, words) and torch.equal(pruned.plan.index, index)
        changed = rebuilt(inner(inputs["pixel_values"]))
        changed.pooler_output[0][0, 0] += 1
        with pytest.raises(ValueError, match="not what get_image_features gave last"):
            llava(**rest, mm_encoder_outputs={"image": changed})


def test_the_last_words_can_be_asked_for(llava):
    with prune(llava, top_cls, 4, stages=[last_token(2, 2)]) as pruned:
        every = llava(**PROMPT).logits
        torch.testing.assert_close(llava(**PROMPT, logits_to_keep=4).logits, every[:, -4:], **CLOSE)
        assert pruned.lengths == [11, 11, 9, 9, 9]
