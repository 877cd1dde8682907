"""`with prune(...)` on transformers' LLaVA and Qwen2.5-VL: tiny random models made from
configurations alone, nothing is downloaded."""

import contextlib
import subprocess
import sys
import time

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from tests.hub.tiny import (
    CLOSE,
    IMAGE,
    PROMPT,
    QUESTION,
    L,
    N,
    by_hand,
    greedy,
    hooks,
    last_token,
    lengths,
    make_llava,
    prompt,
    qwen_prompt,
    top_cls,
)
from vtlib.hub import encoders, prune
from vtlib.hub import llava as llava_family
from vtlib.hub.clip import question_signals
from vtlib.pruning import aim, crossget, fastv, transprune, visiondrop
from vtlib.pruning.crossget_encoder import CrossGETCLIP
from vtlib.pruning.method import Method
from vtlib.pruning.registry import register
from vtlib.tokens import Plan, Stage, keep_all, top_tokens
from vtlib.tokens.merge import merge_to_targets
from vtlib.vlm import Decoder


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def by_last_layer(state, keep):
    """A plan by the last token's attention in the layer that has run, in reverse order: slots that
    are not where they were."""
    score = state.attention(slice(-1, None), "last")[:, :, 0, state.visual].mean(1)
    return Plan(state.top(score, keep).index.flip(1), score.shape[1])


EVERYTHING = [
    ("fastervlm", {}),
    ("divprune", {}),
    ("hiprune", dict(object_layer=2)),
    ("holov", {}),
    ("zooprune", {}),
    ("aim", {}),
    ("random", {}),
    ("uniform", {}),
    ("pool", {}),
    ("tome", {}),
    ("crossget", {}),
    ("fastv", {}),
    ("transprune", {}),
]
NEED_CLS = ("fastervlm", "holov", "crossget")
ON_QWEN = [(method, options) for method, options in EVERYTHING if method not in NEED_CLS]


# --------------------------------------------------------------------------- inputs and logits
def without_mask(inputs):
    return {name: value for name, value in inputs.items() if name != "attention_mask"}


def row_alone(inputs, row, images=1):
    """One row of a batch of LLaVA's inputs, with its `images` images."""
    alone = {name: value[row : row + 1] for name, value in inputs.items()}
    alone["pixel_values"] = inputs["pixel_values"][row * images : (row + 1) * images]
    return alone


def at_columns(logits, columns):
    """Of logits (B, S, V) those at columns (B, S') -> (B, S', V)."""
    return logits.gather(1, columns[..., None].expand(-1, -1, logits.shape[-1]))


# -------------------------------------------------------------------- keep = all, every method
@pytest.mark.parametrize("method, options", EVERYTHING)
def test_keep_all_changes_no_bit(llava, method, options):
    full, words = llava(**PROMPT).logits, greedy(llava, PROMPT)
    for positions in ("renumber", "keep"):
        with prune(llava, method, N, positions=positions, **options) as pruned:
            assert torch.equal(llava(**PROMPT).logits, full)
            assert torch.equal(greedy(llava, PROMPT), words)
            assert pruned.lengths == [23] * L
    with prune(llava, stages=[last_token(2, N)]):
        assert torch.equal(llava(**PROMPT).logits, full)


@pytest.mark.parametrize("method, options", ON_QWEN + [("visiondrop", {})])
def test_keep_all_on_qwen(qwen, method, options):
    inputs = qwen_prompt((8, 12))
    full, words = qwen(**inputs).logits, greedy(qwen, inputs)
    with prune(qwen, method, 24, **options):
        assert torch.equal(qwen(**inputs).logits, full)
        assert torch.equal(greedy(qwen, inputs), words)


@pytest.mark.parametrize("method, options", EVERYTHING + [("visiondrop", {})])
def test_every_method_prunes(llava, method, options):
    with prune(llava, method, 5, **options) as pruned:
        logits = llava(**PROMPT).logits
        assert logits.shape == (2, 12, 100) and logits.isfinite().all()
        assert pruned.lengths[-1] == 12
        words = greedy(llava, PROMPT)
    assert torch.equal(words[:, :23], PROMPT["input_ids"]) and words.shape == (2, 27)


# ------------------------------------------------------------------- before the language model
def masked(inputs, kept):
    """Zeros in the mask at the placeholders that are not kept: (B, N) bool."""
    mask = inputs["attention_mask"].clone()
    mask[inputs["input_ids"] == IMAGE] = kept.flatten().to(mask.dtype)
    return {**inputs, "attention_mask": mask}


def test_kept_positions_equal_masking(llava):
    with prune(llava, top_cls, 5, positions="keep") as pruned:
        logits = llava(**PROMPT).logits
        hidden = masked(PROMPT, pruned.plan.kept())
        columns = pruned.columns
    full = llava(**hidden).logits
    torch.testing.assert_close(logits, at_columns(full, columns), **CLOSE)
    assert (columns[:, 3:8] - 3).equal(pruned.plan.index)


def test_renumbered_positions_equal_a_shorter_prompt(llava):
    with prune(llava, top_cls, 5) as pruned:
        logits, plan = llava(**PROMPT).logits, pruned.plan
    tokens = torch.stack(list(llava.model.get_image_features(PROMPT["pixel_values"]).pooler_output))
    words = llava.get_input_embeddings()(PROMPT["input_ids"])
    short = torch.cat([words[:, :3], plan.apply(tokens), words[:, 19:]], dim=1)
    torch.testing.assert_close(logits, llava(inputs_embeds=short).logits, **CLOSE)
    with prune(llava, top_cls, 5, positions="keep"):
        assert not torch.allclose(llava(**PROMPT).logits, logits, atol=1e-3)


@pytest.mark.parametrize("positions", ["renumber", "keep"])
@pytest.mark.parametrize("method", [top_cls, "aim", "visiondrop"])
def test_decoding_with_and_without_a_cache(llava, positions, method):
    with prune(llava, method, 5, positions=positions):
        cached = greedy(llava, PROMPT)
        assert torch.equal(cached, greedy(llava, PROMPT, use_cache=False))
        words, cache = by_hand(llava, without_mask(PROMPT))
    assert torch.equal(words, cached[:, 23:]) and lengths(cache) == [15] * L


def test_no_mask_no_cache_is_not_taken_for_packed_sequences(llava):
    with prune(llava, top_cls, 5, positions="keep"):
        logits = llava(**without_mask(PROMPT), use_cache=False).logits
        torch.testing.assert_close(logits, llava(**PROMPT).logits, **CLOSE)


def test_gaps_do_not_reach_flash_attention(llava):
    """It would take them for several sequences in one: layers get rotary tables, and no
    position_ids."""
    seen = []

    def note(module, args, kwargs):
        seen.append(kwargs.get("position_ids"))

    handles = [
        layer.self_attn.register_forward_pre_hook(note, with_kwargs=True)
        for layer in llava.model.language_model.layers
    ]
    try:
        with prune(llava, top_cls, 5, stages=[last_token(2, 3)], positions="keep"):
            llava(**PROMPT)
    finally:
        for handle in handles:
            handle.remove()
    assert seen == [None] * L


def test_left_padding(llava):
    both = prompt([1, 5, 6, "i", 7, 8, 9, 10], [1, "i", 7, 8])
    alone = {
        "input_ids": both["input_ids"][1:, 4:],
        "attention_mask": both["attention_mask"][1:, 4:],
        "pixel_values": both["pixel_values"][1:],
    }
    for method, options in (
        (top_cls, {}),
        ("fastv", {}),
        ("transprune", {}),
        ("aim", dict(stages=lambda layers, tokens: aim.stages(layers, None, tokens))),
    ):
        for positions in ("renumber", "keep"):
            with prune(llava, method, 6, positions=positions, **options) as pruned:
                one = greedy(llava, alone)
                cuts = [plan.index for plan in pruned.images[0].cuts]
                two = greedy(llava, both)
                assert torch.equal(two[1:, 4:], one)
                for alone_index, plan in zip(cuts, pruned.images[0].cuts, strict=True):
                    assert torch.equal(plan.index[1:], alone_index)


def test_right_padding(llava):
    row = [1, 5] + [IMAGE] * N + [7, 8]
    ids = torch.tensor([row + [9, 10], row + [0, 0]])
    inputs = {**PROMPT, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["attention_mask"][1, -2:] = 0
    short = {k: v[1:, :-2] if k != "pixel_values" else v[1:] for k, v in inputs.items()}
    for positions in ("renumber", "keep"):
        for options in (dict(method=top_cls, keep=6), dict(method="fastv", keep=6)):
            with prune(llava, positions=positions, **options) as pruned:
                padded = llava(**inputs).logits[1]
                assert pruned.valid.tolist() == [[True] * 12, [True] * 10 + [False] * 2]
                torch.testing.assert_close(padded[:-2], llava(**short).logits[0], **CLOSE)


@pytest.mark.parametrize("positions", ["renumber", "keep"])
def test_several_images(llava, positions):
    inputs = prompt([1, "i", 5, "i", 7, 8], [1, "i", 6, "i", 7, 9])
    with prune(llava, top_cls, 4, positions=positions) as pruned:
        words, logits = greedy(llava, inputs), llava(**inputs).logits
        assert pruned.lengths == [12] * L and len(pruned.plan.index) == 4
    if positions == "keep":
        full = llava(**masked(inputs, pruned.plan.kept())).logits
        torch.testing.assert_close(logits, at_columns(full, pruned.columns), **CLOSE)
    for row in range(2):
        single = row_alone(inputs, row, images=2)
        with prune(llava, top_cls, 4, positions=positions):
            assert torch.equal(greedy(llava, single), words[row : row + 1])


@pytest.mark.parametrize("positions", ["renumber", "keep"])
def test_different_numbers_of_images(llava, positions):
    rows = [1, "i", 5, "i", 7, 8], [1, 6, "i", 7, 9], [1, 7, 9]
    inputs = prompt(*rows)
    with prune(llava, top_cls, 4, positions=positions) as pruned:
        words = greedy(llava, inputs)
        assert pruned.lengths == [12] * L
        assert pruned.valid.sum(1).tolist() == [12, 8, 3]
        for number, (row, images) in enumerate(zip(rows, ([0, 1], [2], []), strict=True)):
            alone = prompt(row)
            alone["pixel_values"] = inputs["pixel_values"][images] if images else None
            one = greedy(llava, {k: v for k, v in alone.items() if v is not None})
            assert torch.equal(words[number, -4:], one[0, -4:])


@pytest.mark.parametrize("positions", ["renumber", "keep"])
def test_a_row_without_image_and_no_mask(llava, positions):
    """The text row keeps its length, the other one is filled up, and what fills it is not seen."""
    both = prompt([1, 5, "i", 7, 8], list(range(2, 22)))
    both.pop("attention_mask")
    with prune(llava, top_cls, 4, positions=positions) as pruned:
        words, cache = by_hand(llava, both)
        assert lengths(cache) == [23] * L and pruned.valid.sum(1).tolist() == [8, 20]
        ids, pixels = both["input_ids"], both["pixel_values"]
        alone, _ = by_hand(llava, {"input_ids": ids[:1], "pixel_values": pixels})
        text, _ = by_hand(llava, {"input_ids": ids[1:]})
    assert torch.equal(words, torch.cat([alone, text]))


def test_beams_and_several_answers(llava):
    inputs = prompt([1, "i", 5, "i", 7, 8], [1, 6, "i", 7, 9])
    rows = [
        {**prompt([1, "i", 5, "i", 7, 8]), "pixel_values": inputs["pixel_values"][:2]},
        {**prompt([1, 6, "i", 7, 9]), "pixel_values": inputs["pixel_values"][2:]},
    ]
    with prune(llava, top_cls, 4):
        both = greedy(llava, inputs, num_beams=3)
        for row, alone in enumerate(rows):
            assert torch.equal(both[row, -4:], greedy(llava, alone, num_beams=3)[0, -4:])
        words = greedy(llava, inputs, num_beams=1)[:, -4:]
        assert torch.equal(words, torch.cat([greedy(llava, row)[:, -4:] for row in rows]))
    with prune(llava, "fastv", 4):
        alone = greedy(llava, PROMPT, num_beams=3, num_return_sequences=2)
    assert alone.shape == (4, 27)


@pytest.mark.parametrize("positions", ["renumber", "keep"])
def test_several_new_tokens_at_once(llava, positions):
    """Guessed tokens are checked together, and the cache is shortened where a guess was wrong."""
    alone = row_alone(PROMPT, 0)
    before, inside = dict(method=top_cls, keep=5), dict(stages=[last_token(2, 6), last_token(3, 2)])
    for options in (before, inside):
        with prune(llava, positions=positions, **options):
            words = greedy(llava, alone, 12)
            assert torch.equal(words, greedy(llava, alone, 12, prompt_lookup_num_tokens=3))


def test_merging_and_cls(llava):
    """What comes out is what the plans say, in the space they are for: merged before the projector,
    [CLS] through it."""
    words = llava.get_input_embeddings()(PROMPT["input_ids"])

    def with_image(tokens):
        projected = llava.model.multi_modal_projector(tokens)
        embeds = torch.cat([words[:, :3], projected, words[:, 19:]], dim=1)
        return llava(inputs_embeds=embeds).logits

    with prune(llava, "visiondrop", 6) as pruned:
        logits, plan, vision = llava(**PROMPT).logits, pruned.plan, pruned.images[0].vision
    assert plan.merges and plan.index[0, 0] == 0 and plan.num_tokens == N + 1
    with prune(llava, "visiondrop", 6, positions="keep") as pruned:
        llava(**PROMPT)
        assert torch.equal(pruned.columns[:, 3:9], 3 + (plan.index - 1).clamp(min=0))
        assert torch.equal(pruned.last.levels[0].positions, pruned.columns)
    torch.testing.assert_close(logits, with_image(plan.apply(vision.selected)), **CLOSE)
    with prune(llava, "tome", 6) as pruned:
        logits, plan, vision = llava(**PROMPT).logits, pruned.plan, pruned.images[0].vision
    assert plan.merges
    torch.testing.assert_close(logits, with_image(plan.apply(vision.features)), **CLOSE)


def test_empty_slots_take_no_place(llava):
    def holes(vision, keep):
        index = torch.tensor([[2, 4, 9, -1], [1, 3, -1, -1]])
        return Plan(index, N)

    with prune(llava, holes, 4) as pruned:
        words = greedy(llava, PROMPT)
        assert pruned.valid.sum(1).tolist() == [10, 9]
        logits, valid = llava(**PROMPT).logits, pruned.valid
        assert valid.sum(1).tolist() == [10, 9]
    for row, kept in enumerate(([2, 4, 9], [1, 3])):
        plan = Plan(torch.tensor([kept]), N)
        with prune(llava, lambda vision, keep, plan=plan: plan, len(kept)):
            one = greedy(llava, row_alone(PROMPT, row))
            want = llava(**row_alone(PROMPT, row)).logits
        assert torch.equal(one[0], words[row])
        torch.testing.assert_close(logits[row : row + 1][:, valid[row]], want, **CLOSE)


def test_a_text_prompt_and_an_old_cache_pass_through(llava):
    text = prompt([1, 5, 6, 7], [1, 5, 6, 8])
    text.pop("pixel_values")
    words = greedy(llava, text)
    with prune(llava, top_cls, 4) as pruned:
        assert torch.equal(greedy(llava, text), words)
        with pytest.raises(ValueError, match="no prompt with images"):
            _ = pruned.lengths
    out = llava(**PROMPT)
    step = torch.tensor([[3], [4]])
    with prune(llava, top_cls, 4):
        inside = llava(input_ids=step, past_key_values=out.past_key_values).logits
    out = llava(**PROMPT)
    assert torch.equal(inside, llava(input_ids=step, past_key_values=out.past_key_values).logits)


# ------------------------------------------------------------------- inside the language model
def as_decoder(model):
    """vtlib's decoder with the weights of transformers' Llama."""
    text = model.model.language_model
    base, eps = text.config.rope_parameters["rope_theta"], text.config.rms_norm_eps
    decoder = Decoder(48, L, 4, 2, 96, rope_base=base, eps=eps).eval()
    weights = text.state_dict()
    del weights["embed_tokens.weight"]
    decoder.load_state_dict(weights)
    return decoder


def embedded(model, inputs):
    """What goes into the decoder: words and all visual tokens of one image a row."""
    features = model.model.get_image_features(inputs["pixel_values"])
    tokens = torch.stack(list(features.pooler_output))
    words = model.get_input_embeddings()(inputs["input_ids"])
    start = int((inputs["input_ids"][0] == IMAGE).int().argmax())
    end = start + N
    return torch.cat([words[:, :start], tokens, words[:, end:]], dim=1), slice(start, end)


STAGES = {
    "last token": lambda: [last_token(0, 12), last_token(2, 6), last_token(4, 2)],
    "none are left": lambda: [last_token(2, 6), last_token(3, 0)],
    "fastv": lambda: fastv.stages(L, 5, N),
    "transprune": lambda: transprune.stages(L, 4, N),
    "aim": lambda: aim.stages(L, None, N, l1=1, l2=5),
    "visiondrop": lambda: visiondrop.stages([10, 7, 3], L),
    "two at once": lambda: [last_token(2, 10), Stage(2, 4, by_last_layer)],
}


@pytest.mark.parametrize("positions", ["renumber", "keep"])
@pytest.mark.parametrize("name", STAGES)
def test_the_same_method_on_both_decoders(llava, name, positions):
    """Same stages, same numbers as vtlib's decoder: plans, hidden states, logits, cache lengths,
    and the words that follow."""
    x, visual = embedded(llava, PROMPT)
    decoder = as_decoder(llava)
    with prune(llava, stages=STAGES[name](), positions=positions) as pruned:
        out = llava(**PROMPT, output_hidden_states=True)
        words, cache = by_hand(llava, without_mask(PROMPT))
        generated = greedy(llava, PROMPT)
    want = decoder.prefill(x, visual, STAGES[name](), positions=positions)
    cuts = pruned.images[0].cuts
    assert len(want.plans) == len(cuts) or name == "none are left"
    for ours, theirs in zip(want.plans, cuts, strict=name != "none are left"):
        assert torch.equal(ours.index, theirs.index)
    torch.testing.assert_close(out.hidden_states[-1], want.hidden, **CLOSE)
    assert lengths(out.past_key_values) == pruned.lengths == want.cache.lengths
    picked = []
    logits = llava.lm_head(want.hidden[:, -1:])
    for _ in range(4):
        picked.append(logits.argmax(-1))
        word = llava.get_input_embeddings()(picked[-1])
        logits = llava.lm_head(decoder.step(word, want.cache))
    assert torch.equal(torch.cat(picked, dim=1), words)
    assert torch.equal(generated[:, 23:], words)
    assert lengths(cache) == [n + 3 for n in pruned.lengths]


TENSORS_OF_A_STATE = (
    "hidden",
    "entered",
    "positions",
    "valid",
    "running",
    "tokens",
    "alive",
    "asking",
)


def test_state_is_the_same(llava):
    """Everything a stage can ask for, on both decoders."""
    x, visual = embedded(llava, PROMPT)
    seen = []

    def look(state, keep):
        seen.append(state)
        return state.top(state.tokens[..., 0], keep)

    stages = [Stage(1, 12, look, (1,)), Stage(3, 5, look, (1, 3))]
    as_decoder(llava).prefill(x, visual, stages, positions="keep")
    with prune(llava, stages=stages, positions="keep"):
        llava(**PROMPT)
    for ours, theirs in zip(seen[:2], seen[2:], strict=True):
        for name in ("visual", "num_visual", "after"):
            assert getattr(ours, name) == getattr(theirs, name)
        for name in TENSORS_OF_A_STATE:
            torch.testing.assert_close(getattr(theirs, name), getattr(ours, name), **CLOSE)
        for layer in ("next", "last"):
            for a, b in zip(ours.qk(layer), theirs.qk(layer), strict=True):
                torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-4)
            weights = ours.attention(ours.visual, layer)
            torch.testing.assert_close(theirs.attention(ours.visual, layer), weights, **CLOSE)
        assert torch.equal(ours.plan.index, theirs.plan.index)
        assert ours.transitions.keys() == theirs.transitions.keys()
        for number, a in ours.transitions.items():
            b = theirs.transitions[number]
            assert torch.equal(a.now, b.now) and a.visual == b.visual
            for old, new in zip((*a.attention, *a.mlp), (*b.attention, *b.mlp), strict=True):
                torch.testing.assert_close(new, old, **CLOSE)


@contextlib.contextmanager
def masking(layers, cuts, valid):
    """The reference for kept positions: from layer `after` on, nobody attends to the columns that a
    cut dropped."""
    size = valid.shape[1]
    see = torch.ones(size, size, dtype=torch.bool).tril() & valid[:, None, None, :]
    handles = []
    for number, layer in enumerate(layers):
        kept = valid.clone()
        for after, columns in cuts:
            if number >= after:
                kept &= torch.zeros_like(kept).scatter(1, columns, True)
        mask = see & kept[:, None, None, :]

        def give(module, args, kwargs, mask=mask):
            return args, {**kwargs, "attention_mask": mask}

        handles.append(layer.register_forward_pre_hook(give, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("kind", ["llava", "qwen"])
def test_dropping_equals_masking(llava, qwen, kind):
    model, inputs = qwen, qwen_prompt((8, 12))
    if kind == "llava":
        model, inputs = llava, prompt([1, 5, "i", 7, 8, 9], [1, 5, "i", 4, 3, 2])
    with prune(model, stages=[last_token(2, 9), last_token(4, 4)], positions="keep") as pruned:
        logits = model(**inputs).logits
        levels = [level.columns for level in pruned.last.levels]
    layers, valid = model.model.language_model.layers, inputs["attention_mask"].bool()
    with masking(layers, [(2, levels[1]), (4, levels[2])], valid):
        full = model(**inputs).logits
    torch.testing.assert_close(logits, at_columns(full, levels[2]), **CLOSE)


def test_eager_and_sdpa_agree():
    rows = prompt([1, 5, 6, "i", 7, 8, 9, 10], [1, "i", 7, 8])
    fast, slow = make_llava(), make_llava(decoder="eager")
    stages = [last_token(2, 6), last_token(3, 3)]
    for positions in ("renumber", "keep"):
        for inputs in (PROMPT, rows):
            valid = inputs["attention_mask"][:, -1:]
            logits, words = [], []
            for model in (fast, slow):
                with prune(model, top_cls, 12, stages=stages, positions=positions):
                    logits.append(model(**inputs).logits[:, -1] * valid)
                    words.append(greedy(model, inputs, output_attentions=model is slow))
            torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-4)
            assert torch.equal(*words)


def test_several_images_inside(llava):
    """Each image is cut on its own: dropping equals masking, and `asking` leaves the other image
    out."""
    inputs, asked = prompt([1, "i", 5, "i", 7, 8], [1, "i", 6, "i", 7, 9]), []

    def look(state, keep):
        asked.append(state.asking.sum(1).tolist())
        weights = state.attention(slice(-1, None))[:, :, 0, state.visual]
        return state.top(weights.mean(1), keep)

    stages = [Stage(1, 8, look), Stage(3, 3, look)]
    with prune(llava, stages=stages, positions="keep") as pruned:
        logits = llava(**inputs).logits
        words = greedy(llava, inputs)
        levels = [level.columns for level in pruned.last.levels]
        assert pruned.lengths == [36, 20, 20, 10, 10]
    assert asked[0] == [3, 2, 3, 2]
    layers, valid = llava.model.language_model.layers, inputs["attention_mask"].bool()
    with masking(layers, [(1, levels[1]), (3, levels[2])], valid):
        full = llava(**inputs).logits
    torch.testing.assert_close(logits, at_columns(full, levels[2]), **CLOSE)
    for row in range(2):
        single = row_alone(inputs, row, images=2)
        with prune(llava, stages=stages, positions="keep"):
            assert torch.equal(greedy(llava, single), words[row : row + 1])


def test_before_and_inside(llava):
    """AIM's two parts: merged before, dropped inside."""

    def stages(layers, tokens):
        return aim.stages(layers, None, tokens, l1=1, l2=4)

    with prune(llava, "aim", 0.5, stages=stages) as pruned:
        words = greedy(llava, PROMPT)
        assert pruned.last.renumber is False and pruned.plan.merges and len(pruned.plan) == 8
        assert pruned.lengths == [15, 15, 12, 9, 7] and words.shape == (2, 27)
    total = pruned.images[0].total
    assert total.num_tokens == N and len(total) == 0


# -------------------------------------------------------------------------------- what is read
def test_probe_equals_eager(llava):
    [(images, vision)] = encoders.read(llava, PROMPT, {"cls_row", "keys"}, (0, 2), (0, 3, 4))
    tower, pixels = llava.model.vision_tower, PROMPT["pixel_values"]
    assert tower.config._attn_implementation == "sdpa"
    assert images == [0, 1] and vision.grid == (4, 4)
    fast = tower(pixels, output_hidden_states=True).hidden_states
    assert torch.equal(vision.selected, fast[-2])
    assert all(torch.equal(vision.hidden[i], fast[i]) for i in (0, 3, 4))
    tower.set_attn_implementation("eager")
    try:
        maps = tower(pixels, output_attentions=True).attentions
    finally:
        tower.set_attn_implementation("sdpa")
    torch.testing.assert_close(vision.cls_row, maps[-2][:, :, 0, 1:], **CLOSE)
    for layer in (0, 2):
        torch.testing.assert_close(vision.attention[layer], maps[layer], **CLOSE)
    layer = tower.encoder.layers[2]
    keys = layer.self_attn.k_proj(layer.layer_norm1(fast[2])).unflatten(-1, (4, 8)).mean(2)
    torch.testing.assert_close(vision.keys, keys, **CLOSE)
    tokens = torch.stack(list(llava.get_image_features(pixels).pooler_output))
    torch.testing.assert_close(vision.tokens, tokens)


def test_nothing_is_recorded_that_nobody_asked_for(llava):
    [(_, vision)] = encoders.read(llava, PROMPT)
    assert vision.cls_row is None and vision.keys is None
    assert not vision.attention and not vision.hidden


def test_qwen_signals(qwen):
    """Merged maps, keys and features in raster order, images of two sizes in one batch."""
    inputs, family = qwen_prompt((8, 12), (4, 8), rows=1), encoders.family(qwen)
    tower = qwen.model.visual
    before = []
    qkv = tower.blocks[3].attn.qkv
    handle = qkv.register_forward_hook(lambda module, args, out: before.append(out))
    groups = encoders.read(qwen, inputs, {"keys"}, (0, 1), (0, 4))
    handle.remove()
    assert [(images, vision.grid) for images, vision in groups] == [([0], (4, 6)), ([1], (2, 4))]
    out = tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    raster = family._order(inputs["image_grid_thw"]).argsort()
    keys = before[0].unflatten(-1, (3, 4, 8))[:, 1].mean(1)  # of patches, mean over heads
    keys = keys.unflatten(0, (-1, 4)).mean(1)[raster]
    start = 0
    for _, vision in groups:
        n = vision.features.shape[1]
        end = start + n
        assert torch.equal(vision.tokens[0], out.pooler_output[start:end])
        torch.testing.assert_close(family.project(vision.features), vision.tokens, **CLOSE)
        for layer in (0, 1):
            sums = vision.attention[layer].sum(-1)
            torch.testing.assert_close(sums, torch.ones(1, 4, n), **CLOSE)
        # windows of 2 x 2 merged tokens in block 0: a token sees those of its own window alone
        h, w = vision.grid
        row, col = torch.arange(n) // w // 2, torch.arange(n) % w // 2
        same = (row[:, None] == row) & (col[:, None] == col)
        assert torch.equal((vision.attention[0][0] > 0).all(0), same)
        assert (vision.attention[1] > 0).all()
        torch.testing.assert_close(vision.keys[0], keys[start:end], **CLOSE)
        start = end


def test_qwen_full_map_by_hand(qwen):
    inputs, tower = qwen_prompt((8, 8), rows=1), qwen.model.visual
    seen = {}

    def catch(module, args, kwargs):
        x = args[0] if args else kwargs["hidden_states"]
        seen.update(x=x, rope=kwargs["position_embeddings"])

    handle = tower.blocks[3].attn.register_forward_pre_hook(catch, with_kwargs=True)
    [(_, vision)] = encoders.read(qwen, inputs, (), (3,))
    handle.remove()
    attn = tower.blocks[3].attn
    q, k, _ = attn.qkv(seen["x"]).unflatten(-1, (3, 4, 8)).unbind(1)
    cos, sin = (t[:, None] for t in seen["rope"])
    q, k = (t * cos + torch.cat([-t[..., 4:], t[..., :4]], -1) * sin for t in (q, k))
    scores = q.transpose(0, 1) @ k.permute(1, 2, 0) * 8**-0.5
    full = scores.softmax(-1)  # heads 64 64, order of the windows
    back = encoders.family(qwen)._order(inputs["image_grid_thw"]).argsort()
    merged = full.unflatten(1, (16, 4)).unflatten(3, (16, 4)).mean(2).sum(-1)[:, back][:, :, back]
    torch.testing.assert_close(vision.attention[3][0], merged, **CLOSE)


def test_qwen_kept_positions_equal_masking(qwen):
    inputs = qwen_prompt((8, 12), (4, 8))
    with prune(qwen, "divprune", 5) as pruned:
        logits, columns = qwen(**inputs).logits, pruned.columns
        assert pruned.lengths == [18] * L
        assert [len(g.plan.index) for g in pruned.images] == [2, 2]
        words = greedy(qwen, inputs)
        by, cache = by_hand(qwen, inputs)
    assert torch.equal(by, words[:, -4:]) and lengths(cache) == [21] * L
    layers, valid = qwen.model.language_model.layers, inputs["attention_mask"].bool()
    with masking(layers, [(0, columns)], valid):
        full = qwen(**inputs).logits
    torch.testing.assert_close(logits, at_columns(full, columns), **CLOSE)
    with prune(qwen, "divprune", 5):
        assert torch.equal(greedy(qwen, inputs, num_beams=2)[:, :-4], words[:, :-4])


@pytest.mark.parametrize("method", ["fastv", "transprune"])
def test_qwen_inside(qwen, method):
    inputs = qwen_prompt((8, 12))
    with prune(qwen, method, 6) as pruned:
        words = greedy(qwen, inputs)
        assert pruned.lengths[0] == 30 and pruned.lengths[-1] == 12
        by, _ = by_hand(qwen, inputs)
        assert torch.equal(by, words[:, -4:])
    padded = dict(inputs)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        padded[name] = torch.nn.functional.pad(inputs[name], (3, 0))
    with prune(qwen, method, 6):
        assert torch.equal(greedy(qwen, padded)[:, 3:], words)


def test_siglip_has_no_cls():
    model = make_llava("siglip")
    full = model(**PROMPT).logits
    for method in ("divprune", "visiondrop"):
        with prune(model, method, N):
            assert torch.equal(model(**PROMPT).logits, full)
        with prune(model, method, 5) as pruned:
            greedy(model, PROMPT)
            assert pruned.lengths == [12] * L
    kind = "LlavaForConditionalGeneration"
    for method in ("fastervlm", "holov"):
        message = f"{method} reads the .CLS. row, but the encoder of {kind} has no .CLS."
        with pytest.raises(ValueError, match=message):
            prune(model, method, 5)


# ------------------------------------------------------------------------ nothing stays behind
def test_everything_is_removed(llava):
    llava(**PROMPT, output_hidden_states=True)  # transformers' own hooks come with the first use
    before, features = hooks(llava), vars(llava.model).keys()

    def broken(vision, keep):
        raise RuntimeError("broken plan")

    def broken_stage(state, keep):
        raise RuntimeError("broken plan")

    before_decoder = dict(method=broken, keep=3)
    inside = dict(stages=[Stage(2, 3, broken_stage, (1,))])
    for options in (before_decoder, inside):
        for run in (lambda: llava(**PROMPT), lambda: greedy(llava, PROMPT)):
            with pytest.raises(RuntimeError, match="broken plan"):
                with prune(llava, **options):
                    assert hooks(llava) != before
                    run()
            assert hooks(llava) == before and vars(llava.model).keys() == features
    attention = llava_family.full_map
    llava_family.full_map = broken_stage
    try:
        with pytest.raises(RuntimeError), prune(llava, "hiprune", 3, object_layer=2):
            llava(**PROMPT)
    finally:
        llava_family.full_map = attention
    assert hooks(llava) == before
    assert llava.model.vision_tower.config._attn_implementation == "sdpa"
    full = llava(**PROMPT).logits
    with prune(llava, "transprune", 4):
        assert greedy(llava, PROMPT).shape == (2, 27)
    assert hooks(llava) == before and torch.equal(llava(**PROMPT).logits, full)


def test_the_towers_own_attention_comes_back():
    model = make_llava()
    model.model.vision_tower.set_attn_implementation("eager")
    with prune(model, top_cls, 4):
        a = model(**PROMPT).logits
    assert model.model.vision_tower.config._attn_implementation == "eager"
    model.model.vision_tower.set_attn_implementation("sdpa")
    with prune(model, top_cls, 4):
        torch.testing.assert_close(model(**PROMPT).logits, a, atol=1e-5, rtol=1e-4)


def test_bfloat16():
    model = make_llava().to(torch.bfloat16)
    inputs = {**PROMPT, "pixel_values": PROMPT["pixel_values"].bfloat16()}
    full = model(**inputs).logits
    for method in ("fastervlm", "transprune", "zooprune", "tome"):
        with prune(model, method, N):
            assert torch.equal(model(**inputs).logits, full)
        with prune(model, method, 5):
            logits = model(**inputs).logits
            assert logits.dtype == torch.bfloat16 and logits.shape[1] == 12
            assert logits.isfinite().all()


# ----------------------------------------------------------------------------------- bad input
def test_what_does_not_fit(llava, qwen):
    for model in (torch.nn.Linear(2, 2), llava.model.language_model, None):
        needs = "is not supported: .*needs a vision-language model of transformers"
        with pytest.raises(ValueError, match=f"model={type(model).__name__} {needs}"):
            prune(model, "fastervlm", 4)
    for options, message in (
        (
            dict(method="fastervlmm"),
            "method='fastervlmm' is not known; there is aim.*fastervlm.*random",
        ),
        (dict(method=3), "method=3 has neither"),
        (dict(), "nothing to do"),
        (dict(method="fastervlm", positions="new"), "positions='new'.*renumber or keep"),
        (dict(method="hiprune"), "object_layer=9 counts from 1 and must lie in 1 ... 4"),
        (dict(method=top_cls, attention=(4,)), r"attention=\(4,\): the encoder has 0 ... 3"),
        (dict(method=top_cls, hidden=(5,)), r"hidden=\(5,\): the encoder has 0 ... 4"),
    ):
        with pytest.raises(ValueError, match=message):
            prune(llava, **options)
    with pytest.raises(ValueError, match="Qwen2_5_VLForConditionalGeneration needs 'keep'"):
        prune(qwen, "divprune", 4, positions="renumber")
    kind = "Qwen2_5_VLForConditionalGeneration"
    message = f"fastervlm reads the .CLS. row, but the encoder of {kind} has no .CLS."
    with pytest.raises(ValueError, match=message):
        prune(qwen, "fastervlm", 4)
    with prune(llava, top_cls, 4), pytest.raises(ValueError, match="is being pruned already"):
        with prune(llava, top_cls, 4):
            pass


def test_forwards_that_cannot_be_pruned(llava):
    ids, pixels = PROMPT["input_ids"], PROMPT["pixel_values"]
    before = dict(method=top_cls, keep=4)
    for inputs, message in (
        (
            {**PROMPT, "input_ids": ids.masked_fill(torch.arange(23) == 4, 1)},
            "Image features and image tokens do not match, tokens: 30",  # transformers' own
        ),
        (
            {"inputs_embeds": torch.zeros(2, 23, 48), "pixel_values": pixels},
            "input_ids is missing",
        ),
        (
            {**PROMPT, "attention_mask": torch.ones(2, 1, 23, 23)},
            r"attention_mask must be \(B, S\)",
        ),
        (
            {**PROMPT, "vision_feature_layer": -1},
            "vision_feature_layer=-1 in a forward call",
        ),
    ):
        with prune(llava, **before), pytest.raises(ValueError, match=message):
            llava(**inputs)
    outside = llava.get_image_features(pixels)
    with prune(llava, **before), pytest.raises(ValueError, match="made outside of this block"):
        llava(input_ids=ids, mm_encoder_outputs={"image": outside})


def test_plans_and_stages_that_do_not_fit(llava):
    for method in ("fastervlm", "divprune", "fastv"):
        for keep, message in (
            (17, "keep=17 but there are 16 tokens"),
            (0, "keep=0"),
            (1.5, "keep=1.5"),
        ):
            with prune(llava, method, keep), pytest.raises(ValueError, match=message):
                llava(**PROMPT)
    for options, message in (
        (
            dict(method=lambda vision, keep: vision),
            "needs a Plan for 16 tokens",
        ),
        (
            dict(method=lambda vision, keep: keep_all(2, 9)),
            "a plan for 9 tokens; needs a Plan for 16",
        ),
        (
            dict(method="visiondrop", keep=17),
            "the plan leaves 17 tokens but an image has 16 places",
        ),
        (
            dict(stages=[last_token(L, 4)]),
            "a stage after layer 5 is outside 0 ... 4",
        ),
        (
            dict(stages=[Stage(2, 4, last_token(2, 4).plan, (3,))]),
            "watches layer 3: layers 1 ... 2 have run",
        ),
        (
            dict(stages=[Stage(2, 4, lambda state, keep: keep_all(2, 7))]),
            "from 7 to 7 tokens; 16 are there",
        ),
    ):
        with prune(llava, **options), pytest.raises(ValueError, match=message):
            llava(**PROMPT)


def with_holes(rows, merging):
    """A stage after layer 2 whose plan has slots without a token."""

    def plan(state, keep):
        index, n = torch.tensor(rows), state.num_visual
        if not merging:
            return Plan(index, n)
        origin, slot = index.clamp(min=0), torch.arange(index.shape[1]).expand(index.shape)
        return Plan(index, n, origin, slot, (index >= 0).float())

    return [Stage(2, 4, plan)]


@pytest.mark.parametrize("merging", [False, True])
@pytest.mark.parametrize("positions", ["renumber", "keep"])
def test_a_stage_leaves_no_empty_slot(llava, positions, merging):
    """It would be attended to as a token of zeros. The message tells the stage and the slot, and
    the next prompt runs as if nothing had been."""
    full = llava(**PROMPT).logits
    for rows, place in (
        ([[2, 4, 9, -1], [1, 3, -1, -1]], r"index\[0, 3\] = -1"),
        ([[2, 4, 9], [-1, 3, 5]], r"index\[1, 0\] = -1"),
    ):
        message = f"the stage after layer 2 made a plan with an empty slot, {place}"
        with prune(llava, stages=with_holes(rows, merging), positions=positions):
            with pytest.raises(ValueError, match=message):
                llava(**PROMPT)
    torch.testing.assert_close(llava(**PROMPT).logits, full, rtol=0, atol=0)


def test_arguments_of_another_kind_are_named_at_the_door(llava):
    for given, message in (
        (dict(signals="text"), "signals is a str but needs to be a function"),
        (dict(stages=3), "stages=3: needs a list of Stages"),
        (dict(attention=1), "attention=1: needs a sequence of integers"),
        (dict(hidden=(0.5,)), r"hidden\[0\]=0.5"),
    ):
        with pytest.raises(ValueError, match=message), prune(llava, "divprune", 4, **given):
            pass
    with prune(llava, stages=[3]), pytest.raises(ValueError, match="stages has 3: needs Stages"):
        llava(**PROMPT)


ROWS = ([1, 5, 6, "i", 7, "i", 8, 9, 10], [1, "i", 7, 8], [1, 4, 5])


@pytest.mark.parametrize("decoder", ["sdpa", "eager"])
@pytest.mark.parametrize("positions", ["renumber", "keep"])
@pytest.mark.parametrize("method", ["fastv", "transprune", "both"])
def test_rows_keep_different_counts_inside(method, positions, decoder):
    """Two images, one, and none in a batch: each row is what it is alone, and so are its words."""
    model, inputs = make_llava(decoder=decoder), prompt(*ROWS)
    given = dict(method=method, keep=4)
    if method == "both":
        given = dict(method=top_cls, keep=9, stages=[last_token(2, 4)])
    with prune(model, positions=positions, **given) as pruned:
        out, words = model(**inputs), greedy(model, inputs)
        valid, start = pruned.valid, 0
        assert valid.sum(1).tolist() == [15, 7, 3]
        for number, row in enumerate(ROWS):
            count = row.count("i")
            one = prompt(row)
            one["pixel_values"] = inputs["pixel_values"][start : start + count]
            if not count:
                del one["pixel_values"]
            start += count
            alone = model(**one).logits
            torch.testing.assert_close(out.logits[number][valid[number]], alone[0], **CLOSE)
            assert torch.equal(words[number, -4:], greedy(model, one)[0, -4:])


def test_caches_that_do_not_fit(llava):
    with prune(llava, top_cls, 4):
        cache = llava(**PROMPT).past_key_values
        with pytest.raises(ValueError, match="images together with a cache"):
            llava(**PROMPT, past_key_values=cache)
        word = torch.ones(2, 1, dtype=torch.long)
        mask = torch.ones(2, 12)
        message = r"attention_mask has shape \(2, 12\), but prompt and new tokens are \(2, 24\)"
        with pytest.raises(ValueError, match=message):
            llava(input_ids=word, attention_mask=mask, past_key_values=cache)
        with pytest.raises(ValueError, match="1 rows go on from a cache of 2"):
            llava(input_ids=word[:1], past_key_values=cache)
    with prune(llava, "fastv", 4):
        with pytest.raises(ValueError, match="past_key_values is a static cache"):
            greedy(llava, PROMPT, cache_implementation="static")
        with pytest.raises(ValueError, match="prefill_chunk_size"):
            greedy(llava, PROMPT, prefill_chunk_size=4)


@pytest.mark.parametrize("positions", ["renumber", "keep"])
def test_a_static_cache_before_the_decoder(llava, positions):
    """The same words as with a dynamic one, also where rows keep different counts."""
    for rows in (ROWS[:2], ROWS, [[1, "i", 7, 8], [1, 5, "i", 7, 9]]):
        inputs = prompt(*rows)
        with prune(llava, top_cls, 4, positions=positions):
            words = greedy(llava, inputs)
            assert torch.equal(greedy(llava, inputs, cache_implementation="static"), words)


def llava_last(model, inputs):
    """The first row's last logits, unpruned."""
    with prune(model, "divprune", 1.0):
        return model(**inputs).logits[0, -1]


def test_keep_for_each_image(llava):
    """A list, a function and a limit, before the decoder and inside; each image is pruned as it is
    with that number alone."""
    inputs = prompt(*ROWS)
    full = llava_last(llava, inputs)
    for method in (top_cls, "fastv"):
        with prune(llava, method, [5, 0.5, 7]) as pruned:
            words = greedy(llava, inputs, num_beams=2)
            llava(**inputs)
            assert sorted(len(group.total) for group in pruned.images) == [5, 7, 8]
            assert pruned.valid.sum(1).tolist() == [7 + 5 + 8, 3 + 7, 3]
            both = pruned.columns
        assert words.shape[1] > both.shape[1]
        with prune(llava, method, lambda n: n // 4) as pruned:
            llava(**inputs)
            assert pruned.valid.sum(1).tolist() == [15, 7, 3]
        with prune(llava, method, 99, clip=True):
            assert torch.equal(llava(**inputs).logits[0, -1], full)
        for keep, message in (
            ([5, 5], r"keep=\[5, 5\] has 2 entries, but the prompts 3 images"),
            ([], "0 entries"),
            (lambda n: n + 1, "keep=17 but there are 16 tokens"),
            ([5, 5, 0], "keep=0"),
        ):
            with prune(llava, method, keep), pytest.raises(ValueError, match=message):
                llava(**inputs)
        with pytest.raises(ValueError, match="clip=2"):
            prune(llava, method, 4, clip=2)


def test_import_without_transformers():
    lines = (
        "import sys",
        "sys.modules['transformers'] = None",
        "import vtlib.hub",
        "print(vtlib.hub.prune.__name__)",
    )
    command = [sys.executable, "-c", "; ".join(lines)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["prune"]


# ----------------------------------------------------------------------------------- the clock
def llava_for_timing(side):
    """A LLaVA of side x side visual tokens whose decoder does nearly all the work."""
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=1,
        image_size=side * 2,
        patch_size=2,
    )
    text = LlamaConfig(
        vocab_size=100,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=3,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE, vision_feature_layer=-2
    )
    return LlavaForConditionalGeneration(config).eval()


def fastest(model, inputs, runs=4):
    """The shortest time of a forward, in seconds."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        model(**inputs, use_cache=False)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def test_prefill_gets_faster_as_tokens_grow():
    """784 tokens, an eighth kept: the decoder's prefill takes less than half the time; the share
    falls as the picture grows."""
    torch.manual_seed(0)
    ratio = []
    for side in (14, 28):
        model = llava_for_timing(side)
        n = side * side
        ids = torch.tensor([[1] + [IMAGE] * n + [5, 6, 7]])
        inputs = dict(input_ids=ids, pixel_values=torch.randn(1, 3, side * 2, side * 2))
        model(**inputs)
        full = fastest(model, inputs)
        with prune(model, top_cls, n // 8):
            model(**inputs)
            ratio.append(fastest(model, inputs) / full)
    print("pruned / full prefill at 196 and 784 tokens:", [round(r, 2) for r in ratio])
    assert ratio[1] < 0.5


# ------------------------------------------------------------------------- CLIP, for questions
NORMS = {
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
    "text_model.final_layer_norm": "ln_final",
}
PARTS_OF_A_BLOCK = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def official_names(clip):
    """A CLIPModel's weights under the names of OpenAI's CLIP."""
    state = clip.state_dict()
    vision, text = "vision_model.embeddings.", "text_model.embeddings."
    out = {
        "logit_scale": clip.logit_scale.data,
        "visual.class_embedding": state[vision + "class_embedding"],
        "visual.conv1.weight": state[vision + "patch_embedding.weight"],
        "visual.positional_embedding": state[vision + "position_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T,
        "text_projection": state["text_projection.weight"].T,
        "token_embedding.weight": state[text + "token_embedding.weight"],
        "positional_embedding": state[text + "position_embedding.weight"],
    }
    for part in ("weight", "bias"):
        for old, new in NORMS.items():
            out[f"{new}.{part}"] = state[f"{old}.{part}"]
    for i in range(3):
        for old, new in (("vision_model", "visual.transformer"), ("text_model", "transformer")):
            block = official_block(state, f"{old}.encoder.layers.{i}.")
            out |= {f"{new}.resblocks.{i}.{name}": weight for name, weight in block.items()}
    return out


def official_block(state, layer):
    """One block's weights under OpenAI's names; layer: how its own names begin."""
    out = {}
    for part in ("weight", "bias"):
        qkv = [state[f"{layer}self_attn.{name}_proj.{part}"] for name in "qkv"]
        out[f"attn.in_proj_{part}"] = torch.cat(qkv)
        for old, new in PARTS_OF_A_BLOCK.items():
            out[f"{new}.{part}"] = state[f"{layer}{old}.{part}"]
    return out


def captions():
    ids = torch.randint(1, 57, (3, 12), generator=torch.Generator("cpu").manual_seed(3))
    ids[:, 0] = 58
    for row, end in enumerate((6, 11, 4)):
        ids[row, end], ids[row, end + 1 :] = 59, 0
    pixels = torch.randn(3, 3, 56, 56, generator=torch.Generator("cpu").manual_seed(4))
    return dict(pixel_values=pixels, input_ids=ids)


MERGED = [(3, 0, False), (3, 2, False), (2, 1, True), (0, 0, True), (7, 4, True)]


@pytest.mark.parametrize("r, r_text, trained", MERGED)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_crossget_equals_its_own_dual_encoder(clip, r, r_text, trained, attention):
    ours = CrossGETCLIP(56, 14, 32, 4, 60, 12, 24, 4, 3, 20, r, r_text).eval()
    loaded = ours.load_state_dict(official_names(clip), strict=False)
    cross_tokens = {"visual.transformer.cross_image", "transformer.cross_text"}
    assert set(loaded.missing_keys) == cross_tokens and not loaded.unexpected_keys
    inputs, options = captions(), {}
    if trained:
        cross_image, cross_text = ours.visual.transformer.cross_image, ours.transformer.cross_text
        for cross in (cross_image, cross_text):
            generator = torch.Generator("cpu").manual_seed(5)
            torch.nn.init.normal_(cross, std=0.5, generator=generator)
        options = dict(cross_image=cross_image.data, cross_text=cross_text.data)
    clip.set_attn_implementation(attention)
    try:
        with prune(clip, "crossget", r=r, r_text=r_text, **options) as merged:
            out = clip(**inputs, attention_mask=(inputs["input_ids"] > 0).long())
            features = clip.get_image_features(inputs["pixel_values"]).pooler_output
    finally:
        clip.set_attn_implementation("sdpa")
    pixels = inputs["pixel_values"]
    image, text = ours.encode_image(pixels), ours.encode_text(inputs["input_ids"])
    unit = torch.nn.functional.normalize(image.feature, dim=-1)
    torch.testing.assert_close(out.image_embeds, unit, **CLOSE)
    torch.testing.assert_close(features, image.feature, atol=1e-5, rtol=1e-5)
    for tower, encoded in ((merged.image, image), (merged.text, text)):
        if tower is not None:
            for a, b in zip(tower.plans, encoded.plans, strict=True):
                assert (a is None) == (b is None) and (a is None or torch.equal(a.slot, b.slot))
            torch.testing.assert_close(tower.size, encoded.size)
    if merged.text is not None:
        unit = torch.nn.functional.normalize(text.feature, dim=-1)
        torch.testing.assert_close(out.text_embeds, unit, **CLOSE)


def test_crossget_keep(clip):
    inputs = captions()
    full = clip(**inputs)
    with prune(clip, "crossget", 16):
        out = clip(**inputs)
    assert torch.equal(out.logits_per_image, full.logits_per_image)
    # transformers' own hooks are there first
    clip.vision_model(inputs["pixel_values"], output_hidden_states=True)
    with prune(clip, crossget, keep=6) as merged:
        out = clip.vision_model(inputs["pixel_values"], output_hidden_states=True)
        assert merged.text is None and merged.image.lengths == [14, 10, 6]
        assert [h.shape[1] for h in out.hidden_states[1:]] == [14, 10, 6]
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    assert torch.equal(clip(**inputs).logits_per_image, full.logits_per_image)


def test_crossget_leaves_nothing_behind(clip):
    clip(**captions(), output_hidden_states=True)
    before, state = hooks(clip), set(vars(clip))
    with pytest.raises(RuntimeError, match="stop"), prune(clip, "crossget", keep=6, r_text=1):
        clip(**captions())
        assert hooks(clip) != before
        raise RuntimeError("stop")
    assert hooks(clip) == before and set(vars(clip)) == state
    for options, message in (
        (dict(method="fastervlm", keep=4), "method='fastervlm'.*needs 'crossget'"),
        (dict(), "keep=None, r=None: needs one of the two"),
        (dict(keep=4, r=2), "keep=4, r=2: needs one of the two"),
        (dict(keep=17), "keep=17 but there are 16 tokens"),
        (dict(r=-1), "r=-1: needs an integer of at least 0"),
        (dict(r=1, r_text=0.5), "r_text=0.5 .float.: needs an integer of at least 0"),
        (dict(r=1, matching="all"), "matching='all' must be one of"),
        (
            dict(r=1, cross_image=torch.zeros(3, 9)),
            r"cross_image has shape \(3, 9\) but the tower needs \(3, 32\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            prune(clip, **options)
    with prune(clip, r=1), pytest.raises(ValueError, match="merging already"), prune(clip, r=1):
        pass


def test_recoverable_with_a_clip(llava, clip):
    question = QUESTION
    signals = question_signals(clip, question)
    full = llava(**PROMPT).logits
    with prune(llava, "recoverable", N, signals=signals):
        assert torch.equal(llava(**PROMPT).logits, full)
    with prune(llava, "recoverable", 6, signals=signals) as pruned:
        words = greedy(llava, PROMPT)
        assert pruned.lengths == [13] * L and words.shape == (2, 27)
        first = pruned.plan.index
    # the paper's adaptive number, a batch of two
    with prune(llava, "recoverable", signals=signals) as pruned:
        words = greedy(llava, PROMPT)
        counts = pruned.valid.sum(1)
    for row in range(2):
        with prune(llava, "recoverable", signals=signals) as pruned:
            alone = greedy(llava, row_alone(PROMPT, row))
            assert torch.equal(alone[0], words[row]) and pruned.valid.sum() == counts[row]
    vision = clip.vision_model(PROMPT["pixel_values"]).last_hidden_state
    given = signals(PROMPT)
    torch.testing.assert_close(given["patches"], clip.visual_projection(vision[:, 1:]))
    last_word = clip.text_model(question).last_hidden_state[:, -1]
    torch.testing.assert_close(given["text"], clip.text_projection(last_word).expand(2, -1))
    assert given["query"].shape == given["key"].shape == (2, N + 1, 32)
    assert first.shape == (2, 6)
    with pytest.raises(ValueError, match="question has 3 rows but there are 2 images"):
        question_signals(clip, question.expand(3, -1))(PROMPT)


def test_a_method_of_ones_own_by_name(llava):
    """One that the package does not have: the plan is the function's, by name as by value."""

    def looked_at(vision, keep):
        dominant = top_tokens(vision.cls_row.mean(1), keep - 1)
        return merge_to_targets(vision.keys[:, vision.num_prefix :], dominant, 1)

    own = Method("looked_at", "Looked at", prune=looked_at, reads=("cls_row", "keys"))
    with register(own), torch.no_grad(), prune(llava, "looked_at", 5) as pruned:
        named = llava(**PROMPT).logits
        assert len(pruned.plan) == 5 and pruned.plan.merges
    with torch.no_grad(), prune(llava, own, 5):
        assert torch.equal(llava(**PROMPT).logits, named)
    forgot = Method("forgot", "Forgot", prune=looked_at)
    with prune(llava, forgot, 5), pytest.raises(ValueError, match="did not ask for"):
        llava(**PROMPT)


def test_the_question_is_found_in_the_prompt(llava, qwen):
    """CDPruner and Recoverable ask the words; another question leaves other tokens (of
    CDPruner here), in a batch, with beams and where each image keeps its own number."""
    other = {**PROMPT, "input_ids": PROMPT["input_ids"].clone()}
    other["input_ids"][:, -3:] = torch.tensor([40, 41, 42])
    for method in ("cdpruner", "recoverable"):
        with prune(llava, method, 5) as pruned:
            llava(**PROMPT)
            plan = pruned.plan.index
            llava(**other)
            assert method == "recoverable" or not torch.equal(pruned.plan.index, plan)
            assert greedy(llava, PROMPT, num_beams=2).shape[1] == 27
        with prune(llava, method, [5, 3]) as pruned:
            llava(**PROMPT)
            assert torch.equal(pruned.images[0].plan.index, plan[:1])
    with prune(qwen, "recoverable", 3), pytest.raises(ValueError, match="needs query, key"):
        qwen(**qwen_prompt((8, 8)))
