"""What stands beside input_ids in a forward: it follows the pruned prompt, or is refused by name,
and the model is the same afterwards to the last bit."""

import numpy as np
import pytest
import torch

from tests.hub.tiny import CLOSE, PROMPT, greedy, hooks, prompt, qwen_prompt
from vtlib.hub import prune

QWEN = qwen_prompt((8, 8))


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(params=["llava", "qwen"])
def case(request, llava, qwen):
    """(model, inputs); behind the test the model gives what it gave before."""
    model, inputs = (llava, PROMPT) if request.param == "llava" else (qwen, QWEN)
    full, before = model(**inputs).logits, hooks(model)
    yield model, inputs
    assert hooks(model) == before and torch.equal(model(**inputs).logits, full)


def ones(*shape):
    return torch.ones(shape, dtype=torch.long)


def unknown(size):
    """Arguments nobody knows that go with `size` tokens, by their name, and the name to be told."""
    return {
        "a matrix": (dict(spans=ones(2, size)), "spans"),
        "a vector": (dict(order=ones(size)), "order"),
        "parts": (dict(parts=ones(3, 2, size)), "parts"),
        "channels": (dict(weights=torch.ones(2, size, 8)), "weights"),
        "an additive mask": (dict(bias=torch.zeros(2, 1, size, size)), "bias"),
        "numpy": (dict(spans=np.ones((2, size))), "spans"),
        "a list": (dict(spans=[[1] * size] * 2), "spans"),
        "positions of a cache": (dict(cache_position=torch.arange(size)), "cache_position"),
    }


@pytest.mark.parametrize("method", ["divprune", "fastv"])
@pytest.mark.parametrize("name", unknown(1))
def test_unknown_arguments_along_the_prompt_are_refused(case, method, name):
    model, inputs = case
    given, word = unknown(inputs["input_ids"].shape[1])[name]
    with prune(model, method, 4):
        with pytest.raises(ValueError, match=f"^{word} of shape .* cannot follow"):
            model(**inputs, **given)
        assert model(**inputs).logits.isfinite().all()


@pytest.mark.parametrize("method", ["divprune", "fastv"])
def test_other_unknown_arguments_pass(case, method):
    """What does not go with the tokens is the model's business, as without pruning."""
    model, inputs = case
    with prune(model, method, 4):
        want = model(**inputs).logits
        for given in (dict(scale=2.0), dict(table=torch.ones(5, 4)), dict(names=["a", "b"])):
            assert torch.equal(model(**inputs, **given).logits, want)


def wrong_shapes(size):
    """Arguments of a prompt (2, size) in a shape or of a kind that does not fit."""
    return [
        (dict(attention_mask=ones(2, size - 1)), r"attention_mask has shape \(2, "),
        (dict(attention_mask=ones(1, size)), r"attention_mask has shape \(1, "),
        (dict(attention_mask=ones(size)), r"attention_mask must be \(B, S\)"),
        (dict(attention_mask=ones(2, size).numpy()), r"attention_mask must be \(B, S\)"),
        (dict(attention_mask=dict(full_attention=None)), r"attention_mask must be \(B, S\)"),
        (dict(attention_mask=ones(2, 1, size, size)), r"attention_mask must be \(B, S\)"),
        (dict(position_ids=ones(2, size - 1)), r"position_ids has shape \(2, "),
        (dict(position_ids=ones(size)), r"position_ids has shape \("),
        (dict(position_ids=ones(3, size)), r"position_ids has shape \(3, "),
        (dict(position_ids=ones(5, 2, size)), r"position_ids has shape \(5, 2, "),
        (dict(position_ids=ones(1, 3, 2, size)), r"position_ids has shape \(1, 3, 2, "),
        (dict(position_ids=ones(2, size).tolist()), "position_ids is a list"),
        (dict(input_ids=ones(size)), "input_ids has shape"),
        (dict(input_ids=ones(1, 2, size)), "input_ids has shape"),
        (dict(input_ids=torch.ones(2, size)), "input_ids has shape .* and dtype torch.float32"),
        (dict(input_ids=ones(2, size).numpy()), "input_ids is a ndarray"),
        (dict(pixel_values=np.ones((2, 3, 56, 56))), "pixel_values is a ndarray"),
        (dict(pixel_values=[torch.ones(3, 56, 56)] * 2), "pixel_values is a list"),
        (dict(token_type_ids=ones(2, size - 1)), "token_type_ids has shape"),
        (dict(token_type_ids=ones(size)), "token_type_ids has shape"),
        (dict(token_type_ids=ones(2, size).numpy()), "token_type_ids is a ndarray"),
        (dict(mm_token_type_ids=ones(1, size)), "mm_token_type_ids has shape"),
        (dict(labels=ones(2, size - 1)), "labels is torch.int64 "),
        (dict(labels=ones(size)), "labels is torch.int64 "),
        (dict(labels=ones(2, size).numpy()), "labels is a numpy.ndarray"),
        (dict(labels=torch.ones(2, size)), "labels is torch.float32"),
    ]


@pytest.mark.parametrize("method", ["divprune", "fastv"])
def test_wrong_shapes_are_refused(case, method):
    model, inputs = case
    with prune(model, method, 4):
        for given, message in wrong_shapes(inputs["input_ids"].shape[1]):
            with pytest.raises(ValueError, match=message):
                model(**{**inputs, **given})


def test_parts_of_positions_belong_to_qwen(llava, qwen):
    """(1, B, S), (3, B, S) and (4, B, S) are Qwen2.5-VL's own; LLaVA has no parts."""
    size = PROMPT["input_ids"].shape[1]
    with prune(llava, "divprune", 4):
        for parts in (1, 3, 4):
            given = torch.arange(size).expand(parts, 2, -1)
            with pytest.raises(ValueError, match=r"needs \(B, S\)$"):
                llava(**PROMPT, position_ids=given)
    size = QWEN["input_ids"].shape[1]
    with prune(qwen, "divprune", 4) as pruned:
        want = qwen(**QWEN, position_ids=torch.arange(size).expand(2, -1)).logits
        columns = pruned.columns
        for shape in ((1, size), (1, 1, size), (1, 2, size), (3, 1, size), (3, 2, size)):
            given = torch.arange(size).expand(shape)
            assert torch.equal(qwen(**QWEN, position_ids=given).logits, want)
            held = pruned.last.levels[0].positions.expand(3, -1, -1)
            assert torch.equal(held, columns.expand(3, -1, -1))


@pytest.mark.parametrize("method", ["divprune", "fastv"])
def test_own_positions_equal_the_models(case, method):
    """What the model would number itself, given by hand, and moved by a constant."""
    model, inputs = case
    with prune(model, method, 4, positions="keep") as pruned:
        want = model(**inputs).logits
        positions = pruned.last.levels[0].positions.clone()
    size = inputs["input_ids"].shape[1]
    given = torch.arange(size).expand(2, -1)
    if positions.dim() == 3:
        given, _ = model.model.get_rope_index(
            inputs["input_ids"],
            image_grid_thw=inputs["image_grid_thw"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
        )
    with prune(model, method, 4, positions="keep") as pruned:
        assert torch.equal(model(**inputs, position_ids=given).logits, want)
        moved = model(**inputs, position_ids=given + 7).logits
        assert torch.equal(pruned.last.levels[0].positions, positions + 7)
    torch.testing.assert_close(moved, want, atol=2e-4, rtol=1e-3)  # rotary: only distances count


def test_integers_of_32_bits(case):
    model, inputs = case
    with prune(model, "divprune", 4):
        want = model(**inputs).logits
        narrow = {**inputs, "input_ids": inputs["input_ids"].int()}
        assert torch.equal(model(**narrow).logits, want)
        for dtype in (torch.bool, torch.int32, torch.float32):
            mask = inputs["attention_mask"].to(dtype)
            assert torch.equal(model(**{**inputs, "attention_mask": mask}).logits, want)


# ----------------------------------------------------------------------------- packed sequences
@pytest.mark.parametrize("method", ["divprune", "fastv"])
def test_packed_sequences_are_refused(case, method):
    """transformers finds several sequences in a row by positions that begin anew: unpruned they do
    not see each other, pruned they would."""
    model, inputs = case
    size = inputs["input_ids"].shape[1]
    bare = {name: value for name, value in inputs.items() if name != "attention_mask"}
    anew = torch.cat([torch.arange(size - 3), torch.arange(3)]).expand(2, -1)
    with prune(model, method, 4):
        with pytest.raises(ValueError, match="position_ids begin anew within a row"):
            model(**bare, position_ids=anew, use_cache=False)
        for given in (
            dict(cu_seq_lens_q=torch.tensor([0, size])),
            dict(cu_seq_lens_k=torch.tensor([0, size])),
            dict(max_length_q=size),
            dict(seq_idx=torch.zeros(2, 5)),
        ):
            with pytest.raises(ValueError, match=f"{next(iter(given))} says where sequences"):
                model(**inputs, **given)


# ------------------------------------------------------------------------------ logits_to_keep
def test_logits_to_keep_in_every_form(case):
    model, inputs = case
    size = inputs["input_ids"].shape[1]
    last = torch.arange(size) >= size - 2
    with prune(model, "divprune", 4):
        want = model(**inputs).logits[:, -2:]
        for keep in (2, np.int64(2), [-2, -1], torch.tensor([size - 2, -1]), last):
            kept = model(**inputs, logits_to_keep=keep).logits
            torch.testing.assert_close(kept, want, **CLOSE)
        for keep, message in (
            (-1, "logits_to_keep=-1: needs an integer of at least 0"),
            (True, "logits_to_keep=True .bool.: needs an integer"),
            (1.5, "logits_to_keep=1.5 .float.: needs an integer"),
            (slice(-2, None), "logits_to_keep=slice"),
            (torch.tensor(2), r"logits_to_keep is a torch.int64 tensor of shape \(\)"),
            (torch.ones(1), "logits_to_keep is a torch.float32 tensor"),
            (torch.tensor([[1]]), r"logits_to_keep is a torch.int64 tensor of shape \(1, 1\)"),
            (torch.tensor([99]), r"logits_to_keep=\[99\] does not fit"),
            (last[1:], r"logits_to_keep=\[.*\] does not fit"),
        ):
            with pytest.raises(ValueError, match=message):
                model(**inputs, logits_to_keep=keep)


def test_a_prompt_without_images_is_not_looked_at(llava):
    """Its arguments are the model's business: nothing is cut."""
    text = prompt([1, 5, 6, 7], [1, 5, 6, 8])
    text.pop("pixel_values")
    want = llava(**text).logits
    with prune(llava, "divprune", 4):
        assert torch.equal(llava(**text, spans=ones(2, 4)).logits, want)
        assert torch.equal(greedy(llava, text), greedy(llava, text))
