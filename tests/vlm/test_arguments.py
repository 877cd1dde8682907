"""Every public function of vtlib.vlm, given what none of its arguments is: a ValueError or a
result, never an error from deep inside."""

import pytest
import torch

from tests.wrong import raw_errors
from vtlib.tokens import Stage, keep_all
from vtlib.vlm import Decoder, Encoder, TinyVLM, exam
from vtlib.vlm.tinyvlm import words

ENCODER = dict(embed_dim=32, num_layers=2, num_heads=4, place_dim=8)
DECODER = dict(embed_dim=16, num_layers=2, num_heads=4, hidden_dim=24)
X, IMAGES = torch.rand(2, 9, 16), torch.rand(2, 3, 16, 16)
QUESTIONS, PLACES = ["crab", "a"], torch.arange(9).expand(2, -1)
CUT = Stage(1, 2, lambda state, keep: state.top(state.tokens.sum(-1), keep))


@pytest.fixture(scope="module")
def calls():
    decoder, encoder = Decoder(**DECODER), Encoder(**ENCODER)
    model = TinyVLM("is there a crab ?".split(), ENCODER, DECODER).eval()
    taken = exam.exam(2, seed=3)
    state = decoder.prefill(X, slice(1, 6), [CUT]).states[0]
    looked = dict(rows=slice(2, 5), layer="last", qk=state.qk("last"))
    asked = dict(tokens=X, questions=QUESTIONS, stages=[CUT], positions="keep", mode="drop")
    return {
        "Decoder": (Decoder, dict(
            DECODER, num_kv_heads=2, rope_base=10.0, eps=1e-5, qkv_bias=False
        )),
        "Decoder.forward": (decoder, dict(x=X, positions=PLACES[:1])),
        "Decoder.prefill": (decoder.prefill, dict(
            x=X, visual=slice(1, 6), stages=[CUT], valid=torch.ones(2, 9, dtype=torch.bool),
            positions="keep", mode="drop",
        )),
        "Decoder.step": (
            lambda x: decoder.step(x, decoder.prefill(X).cache), dict(x=X[:, :1])
        ),
        "Decoder.step, cache": (
            lambda cache: decoder.step(X[:, :1], cache), dict(cache=decoder.prefill(X).cache)
        ),
        "State.qk": (state.qk, dict(layer="next")),
        "State.logits": (state.logits, looked),
        "State.attention": (state.attention, looked),
        "State.top": (state.top, dict(score=state.tokens.sum(-1), keep=2)),
        "Encoder": (Encoder, dict(ENCODER, mlp_ratio=2.0, num_registers=1)),
        "Encoder.forward": (encoder, dict(
            images=IMAGES, select=-2, need=("keys", "cls_row"), attention=(1,), hidden=(0,)
        )),
        "TinyVLM": (TinyVLM, dict(
            vocabulary=["a"], encoder=ENCODER, decoder=DECODER, select=-2
        )),
        "encode": (
            model.encode, dict(images=IMAGES, need=("keys",), attention=(1,), hidden=(0,))
        ),
        "reduce": (
            model.reduce, dict(vision=model.encode(IMAGES), plan=keep_all(2, 4), space="tokens")
        ),
        "tokenize": (model.tokenize, dict(texts=QUESTIONS)),
        "prompt": (model.prompt, dict(tokens=X, questions=QUESTIONS)),
        "prefill": (model.prefill, asked),
        "answer": (model.answer, dict(asked, max_words=2)),
        "forward": (model, dict(images=IMAGES, questions=QUESTIONS)),
        "packed": (model.packed, dict(
            tokens=X, ids=torch.ones(2, 1, 3, dtype=torch.long), positions=PLACES, num_visual=12,
            cuts={1: PLACES[:, :2] % 2}, recount=True,
        )),
        "words": (words, dict(text="a crab")),
        "measures": (exam.measures, dict(
            plan=keep_all(2, 256), tokens=torch.rand(2, 256, 4), exam=taken, grid=(16, 16)
        )),
        "grade": (taken.grade, dict(logits=torch.rand(*taken.target.shape, 30))),
        "table": (taken.table, dict(right=taken.kind > 0)),
        "object_patches": (
            exam.object_patches, dict(scene=taken.scenes, patch=8, share=0.3)
        ),
        "covered": (exam.covered, dict(scene=taken.scenes, patch=8)),
        "oracle_mask": (exam.oracle_mask, dict(exam=taken, patch=8)),
        "exam": (exam.exam, dict(batch=1, seed=1, n=1, kinds=("presence",))),
        "scenes": (exam.scenes, dict(batch=1, seed=1, split="test", size=32)),
        "by_scale": (exam.by_scale, dict(batch=1, seed=1, n=1)),
        "world": (exam.world, dict(split="test", size=32)),
    }


NAMES = (
    "Decoder", "Decoder.forward", "Decoder.prefill", "Decoder.step", "Decoder.step, cache",
    "State.qk", "State.logits", "State.attention", "State.top",
    "Encoder", "Encoder.forward", "TinyVLM", "encode", "reduce", "tokenize", "prompt", "prefill",
    "answer", "forward", "packed", "words", "measures", "grade", "table", "object_patches",
    "covered", "oracle_mask", "exam", "scenes", "by_scale", "world",
)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_no_error_from_deep_inside(calls, name):
    assert raw_errors(*calls[name]) == []
