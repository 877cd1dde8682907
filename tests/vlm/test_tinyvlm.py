"""TinyVLM untrained: packing equals separate runs, reduction goes in where it should, words and
their errors."""

import numpy as np
import pytest
import torch

from tests.settings import default_dtype
from vtlib.tokens import Plan, Stage, keep_all, take
from vtlib.vlm import TinyVLM
from vtlib.vlm.tinyvlm import words

QUESTIONS = ["is there a crab?", "is there a key left of the owl?", "there"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    vocabulary = "is there a crab owl ? yes no left of the key".split()
    encoder = dict(embed_dim=32, num_layers=3, num_heads=4, place_dim=8)
    decoder = dict(embed_dim=32, num_layers=3, num_heads=4, hidden_dim=48)
    return TinyVLM(vocabulary, encoder, decoder).eval()


@pytest.fixture(scope="module")
def vision(model):
    with torch.no_grad():
        images = torch.rand(3, 3, 24, 32, generator=torch.Generator("cpu").manual_seed(0))
        return model.encode(images, need=("cls_row", "keys"))


@torch.no_grad()
def test_packed_equals_separate_runs(model, vision):
    ids, valid = model.tokenize(QUESTIONS)
    packed = model.packed(vision.tokens, ids.expand(3, -1, -1))
    for q, question in enumerate(QUESTIONS):
        alone, _ = model.prefill(vision.tokens, [question] * 3)
        torch.testing.assert_close(packed[:, q, valid[q].sum() - 1], alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_packed_with_kept_positions_equals_separate_runs(model, vision):
    num_visual, kept = vision.tokens.shape[1], torch.tensor([[7, 2], [0, 11], [3, 4]])
    tokens = take(vision.tokens, kept)
    ids, valid = model.tokenize(QUESTIONS)
    packed = model.packed(tokens, ids.expand(3, -1, -1), kept, num_visual)
    cut = Stage(0, 2, lambda state, keep: Plan(kept, num_visual))
    for q, question in enumerate(QUESTIONS):
        alone, _ = model.prefill(vision.tokens, [question] * 3, [cut], "keep")
        last = packed[:, q, valid[q].sum() - 1]
        torch.testing.assert_close(last, alone, atol=1e-5, rtol=1e-4)
    assert (packed - model.packed(tokens, ids.expand(3, -1, -1))).abs().max() > 1e-3
    for message, *wrong in (
        (r"positions is torch.int64 \(1, 2\) .*\(B, T\) = \(3, 2\)", kept[:1], num_visual),
        (r"positions\[1, 1\]=11 is no place: it must lie in 0 ... 10", kept, 11),
        ("num_visual=None", kept, None),
    ):
        with pytest.raises(ValueError, match=message):
            model.packed(tokens, ids.expand(3, -1, -1), *wrong)


@torch.no_grad()
def test_packed_without_positions_starts_the_texts_behind_num_visual(model, vision):
    tokens, ids = vision.tokens[:, :5], model.tokenize(QUESTIONS)[0].expand(3, -1, -1)
    places = torch.arange(5).expand(3, -1)
    for num_visual in (5, 12, np.int64(12)):
        packed = model.packed(tokens, ids, num_visual=num_visual)
        assert torch.equal(packed, model.packed(tokens, ids, places, num_visual))
    assert (packed - model.packed(tokens, ids)).abs().max() > 1e-3
    for wrong in (4, 12.0):
        with pytest.raises(ValueError, match=f"num_visual={wrong}.*: needs an integer of at least"):
            model.packed(tokens, ids, num_visual=wrong)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["renumber", "keep"])
def test_packed_with_cuts_equals_separate_runs_with_stages(model, vision, positions):
    num_visual = vision.tokens.shape[1]
    first = torch.tensor([[7, 2, 5, 11], [0, 11, 3, 4], [3, 4, 1, 0]])
    second = torch.tensor([[0, 3], [1, 2], [2, 3]])
    stages = [
        Stage(1, 4, lambda state, keep: Plan(first, num_visual)),
        Stage(2, 2, lambda state, keep: Plan(second, 4)),
    ]
    ids, valid = model.tokenize(QUESTIONS)
    ids, recount = ids.expand(3, -1, -1), positions == "renumber"
    packed = model.packed(vision.tokens, ids, cuts={2: second, 1: first}, recount=recount)
    for q, question in enumerate(QUESTIONS):
        alone, _ = model.prefill(vision.tokens, [question] * 3, stages, positions)
        last = packed[:, q, valid[q].sum() - 1]
        torch.testing.assert_close(last, alone, atol=1e-5, rtol=1e-4)
    assert (packed - model.packed(vision.tokens, ids)).abs().max() > 1e-3
    for message, cuts in (
        (r"cuts\[2\]\[0, 1\]=6 is no place: .* 0 ... 3", {1: first, 2: second + 3}),
        (r"cuts\[1\] is torch.int64 \(2, 4\)", {1: first[:2]}),
        ("cuts' key=3", {3: first}),
        ("cuts is a list.*: needs a dict", [first]),
    ):
        with pytest.raises(ValueError, match=message):
            model.packed(vision.tokens, ids, cuts=cuts)


@torch.no_grad()
def test_padding_changes_nothing(model, vision):
    together, _ = model.prefill(vision.tokens, QUESTIONS)
    for b, question in enumerate(QUESTIONS):
        alone, _ = model.prefill(vision.tokens[b : b + 1], [question])
        torch.testing.assert_close(together[b : b + 1], alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["renumber", "keep"])
def test_answer_is_what_full_runs_would_say(model, vision, positions):
    """Greedy decoding with the cache against running the whole sequence again for each word, with
    cuts inside the decoder."""
    def cuts(score):
        return [
            Stage(1, 7, lambda state, keep: state.top(score, keep)),
            Stage(2, 3, lambda state, keep: state.top(score[:, :7], keep)),
        ]

    score = torch.randn(3, vision.tokens.shape[1])
    answers = model.answer(vision.tokens, QUESTIONS, cuts(score), positions, max_words=3)
    assert answers.prefill.cache.lengths[-1] < answers.prefill.cache.lengths[0]
    for b, question in enumerate(QUESTIONS):
        text, probability = question, 1.0
        for _ in range(4):
            mine = cuts(score[b : b + 1])
            logits, _ = model.prefill(vision.tokens[b : b + 1], [text], mine, positions)
            p, best = logits.softmax(-1).max(-1)
            probability *= p.item()
            if model.vocabulary[best] == "<end>":
                break
            text += " " + model.vocabulary[best]
            if model.vocabulary[best].startswith("<"):       # the tokenizer cannot feed it back
                return
        assert answers.probability[b].item() == pytest.approx(probability, rel=1e-4)


@torch.no_grad()
def test_reduce_before_and_after_the_projector(model, vision):
    assert torch.equal(model.reduce(vision), vision.tokens)
    n = vision.tokens.shape[1]
    for space in ("features", "tokens"):
        assert torch.equal(model.reduce(vision, keep_all(3, n), space), vision.tokens)
    index = torch.tensor([[0, 3, 5]]).expand(3, -1)
    fewer = model.reduce(vision, Plan(index, n), "features")
    torch.testing.assert_close(fewer, vision.tokens[:, [0, 3, 5]])
    with_cls = model.reduce(vision, Plan(index, n + 1, num_prefix=1), "selected")
    torch.testing.assert_close(with_cls[:, 1:], vision.tokens[:, [2, 4]])
    with pytest.raises(ValueError, match="space='patches'"):
        model.reduce(vision, keep_all(3, n), "patches")


def test_words():
    text = 'How many objects are of the category "Food & Drink"?'
    assert words(text) == "how many objects are of the category food & drink ?".split()


@pytest.mark.parametrize("questions, message", [
    (["is there a zebra?"] * 3, "does not know 'zebra'"),
    (["is there", "...", "crab"], "there is no word"),
    (["is there"], "1 entries but there are 3 pictures"),
    ("is there a crab?", "1 entries but there are 3 pictures"),
])
def test_bad_questions(model, vision, questions, message):
    with pytest.raises(ValueError, match=message):
        model.prefill(vision.tokens, questions)


@pytest.mark.parametrize("ask", [
    lambda model, tokens: model.prefill(tokens, QUESTIONS),
    lambda model, tokens: model.answer(tokens, QUESTIONS),
])
def test_tokens_that_are_not_finite(model, vision, ask):
    tokens = vision.tokens.clone()
    tokens[1, 3, 2] = torch.inf
    with pytest.raises(ValueError, match=r"tokens .* the first inf at \[1, 3, 2\]"):
        ask(model, tokens)


@pytest.mark.parametrize("ask", [
    lambda model, tokens: model.prefill(tokens, QUESTIONS),
    lambda model, tokens: model.answer(tokens, QUESTIONS),
    lambda model, tokens: model.packed(tokens, torch.zeros(3, 1, 2, dtype=torch.long)),
])
def test_tokens_of_another_dtype(model, vision, ask):
    with pytest.raises(ValueError, match="tokens is torch.float64 .* weights are torch.float32"):
        ask(model, vision.tokens.double())


@pytest.mark.parametrize("call, words", [
    (lambda m, v: m.encode(torch.rand(1, 3, 32, 32).double()), "images is torch.float64"),
    (lambda m, v: m.encode(torch.rand(1, 3, 32, 32), attention=1), "attention=1: needs a sequence"),
    (lambda m, v: m.encode(torch.rand(1, 3, 32, 32), attention=("1",)), "attention='1'"),
    (lambda m, v: m.encode(torch.rand(1, 3, 32, 32), need=3), "need=3: needs a set"),
    (lambda m, v: m.encode(torch.rand(1, 3, 32, 32), need="keys"), "need='keys': needs a set"),
    (lambda m, v: m.reduce(v.tokens), "vision is torch.float32 .* VisionOutputs"),
    (lambda m, v: m.reduce(v, 3), "plan is a int but needs to be a Plan"),
    (lambda m, v: m.tokenize(None), "texts=None: needs a list"),
    (lambda m, v: m.tokenize(["crab", 3]), "text=3: needs to be a str"),
    (lambda m, v: m.prefill(v.tokens, None), "questions has 1 entries but there are 3 pictures"),
    (lambda m, v: m.packed(v.tokens, [[1]]), "ids is a list"),
    (lambda m, v: m.packed(v.tokens, torch.zeros(2, 1, 2, dtype=torch.long)),
     r"ids is torch.int64 \(2, 1, 2\)"),
])
def test_arguments_that_are_none(model, vision, call, words):
    with pytest.raises(ValueError, match=words):
        call(model, vision)


@torch.no_grad()
def test_answers_do_not_depend_on_the_default_dtype(model):
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def run():
        seen = model.encode(images, ("cls_row", "keys"), (1,))
        said = model.answer(seen.tokens, QUESTIONS)
        return seen.tokens, seen.cls_row, seen.keys, said.probability, said.first

    want = run()
    with default_dtype():
        got = run()
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)


def test_vocabulary_twice():
    with pytest.raises(ValueError, match="twice"):
        TinyVLM(["a", "a"])


def test_meta_and_bfloat16(model):
    with torch.device("meta"):
        sizes = dict(embed_dim=32, num_layers=2, num_heads=4)
        far, ids = TinyVLM(["a", "?"], sizes, sizes), torch.zeros(2, 3, 4, dtype=torch.long)
        vision = far.encode(torch.rand(2, 3, 16, 24), need=("cls_row", "keys"), attention=(0,))
        assert vision.tokens.shape == (2, 6, 32) and vision.cls_row.device.type == "meta"
        assert far.packed(vision.tokens, ids).shape == (2, 3, 4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.rand(1, 3, 16, 16), ["is there a crab?"])
    assert logits.isfinite().all()
    loss = model(torch.rand(2, 3, 16, 16), ["is there a crab?", "no"]).square().mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        if not name.startswith(("encoder.blocks.2", "encoder.norm")):        # behind select=-2
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    model.zero_grad()
