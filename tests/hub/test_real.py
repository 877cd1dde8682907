"""Real pretrained weights: what the loader says without them, and what they compute.

The numbers were recorded from other people's code on the packages' own files, as each test says.
Without the files (`make real`) a test is skipped, and says which are missing.
"""

import functools
import importlib.util

import pytest
import torch
from safetensors.torch import load_file

from tests.settings import default_dtype, meta_device
from vtlib import data, hub
from vtlib.hub import packages, weights
from vtlib.nn import load_weights


@functools.cache
def load(name):
    """The model; skips the test when its file is missing. Loaded once for the whole file."""
    told = hub.real_missing(name)
    if told:
        pytest.skip(told)
    return hub.real(name)


def stored(name):
    return load_file(weights.real_folder() / name / weights.FILE)


# --------------------------------------------------------------------------------- what is missing
def test_unknown_name():
    for ask in (hub.real, hub.real_missing):
        with pytest.raises(ValueError, match="name='dino': no such real model; there is dinov2, "):
            ask("dino")


@pytest.mark.parametrize("name", packages.MODELS)
def test_a_missing_file_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.setenv("VTLIB_REAL", str(tmp_path))
    path = tmp_path / name / "model.safetensors"
    told = (
        f"hub.real({name!r}) needs {path}, which is not there: "
        f"run `make real` or `python -m vtlib.hub.fetch {name}`"
    )
    assert hub.real_missing(name) == told
    with pytest.raises(FileNotFoundError) as raised:
        hub.real(name)
    assert str(raised.value) == told


def test_a_file_that_is_no_safetensors(tmp_path, monkeypatch):
    monkeypatch.setenv("VTLIB_REAL", str(tmp_path))
    (tmp_path / "dinov2").mkdir()
    (tmp_path / "dinov2" / "model.safetensors").write_bytes(b"not one")
    with pytest.raises(ValueError, match="is no safetensors file .*: delete it"):
        hub.real("dinov2")


def test_transformers_missing(monkeypatch):
    load("dinov2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert hub.real_missing("dinov2-saliency") == ""
    with pytest.raises(ImportError, match=r"needs transformers: pip install 'vtlib\[hub\]'"):
        hub.real("dinov2")


# ------------------------------------------------------------------------------------------ DINOv2
PHOTOS = ("astronaut", "cat", "coffee")
# onnxruntime on the package's own file, the three photographs at 224 px: the last LayerNorm's first
# four channels of [CLS], norms of patches 0, 99 and 255, and the map at every 112th pixel.
CLS = torch.tensor([
    [-1.7932, -0.0652, 1.5410, 0.0811],
    [0.3330, -0.6073, 0.2491, -2.7185],
    [-1.3216, -1.0216, 0.3046, -1.4731],
])  # fmt: skip
NORMS = torch.tensor([
    [42.9990, 38.6916, 33.1758], [50.5544, 52.7247, 35.0313], [48.2043, 41.4222, 46.6140],
])  # fmt: skip
MAP = torch.tensor([
    [0.28508, 0.11119, 0.17183, 0.72186],
    [0.51000, 0.81708, 0.76484, 0.97198],
    [0.26655, 0.18831, 0.36423, 0.94465],
])  # fmt: skip


@functools.cache
def normalised():
    images = torch.stack(list(data.photographs(224, PHOTOS).values()))
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    return (images - mean) / std


@functools.cache
def features():
    with torch.no_grad():
        return load("dinov2")(normalised(), output_attentions=True)


def saliency(tokens):
    with torch.no_grad():
        return load("dinov2-saliency")(tokens, (16, 16), (224, 224))


def test_dinov2_is_whole():
    model = load("dinov2")
    assert sum(p.numel() for p in model.parameters()) == 22_056_576
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}


def test_dinov2_computes_what_onnxruntime_does():
    tokens = features().last_hidden_state
    torch.testing.assert_close(tokens[:, 0, :4], CLS, atol=2e-4, rtol=0)
    torch.testing.assert_close(tokens[:, [1, 100, 256]].norm(dim=-1), NORMS, atol=1e-3, rtol=0)
    maps = features().attentions
    assert len(maps) == 12 and maps[0].shape == (3, 6, 257, 257)


def test_saliency_computes_what_onnxruntime_does():
    found = saliency(features().last_hidden_state[:, 1:])[:, 0]
    torch.testing.assert_close(found[:, ::112, ::112].flatten(1), MAP, atol=1e-4, rtol=0)


def test_forgotten_attention_keys_are_seen():
    """The old names of the attention's matrices, loaded without `strict`: no error, a plausible
    map, and another one. So loading is strict, and the numbers above are compared."""
    from transformers import Dinov2Model

    right = saliency(features().last_hidden_state[:, 1:])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Dinov2Model(load("dinov2").config).eval()
    missing, unexpected = model.load_state_dict(stored("dinov2"), strict=False)
    assert len(missing) == len(unexpected) == 96
    with torch.no_grad():
        tokens = model(normalised()).last_hidden_state[:, 1:]
    assert (saliency(tokens) - right).abs().max() > 0.5
    with pytest.raises(ValueError, match="does not fit: missing"):
        load_weights(model, stored("dinov2"))


def test_a_weight_too_few_is_refused(tmp_path, monkeypatch):
    """transformers only warns, and draws it at random."""
    from safetensors.torch import save_file

    load("dinov2")
    folder = weights.real_folder() / "dinov2"
    (tmp_path / "dinov2").mkdir()
    state, metadata = stored("dinov2"), weights.header(folder / weights.FILE)
    del state["encoder.layer.3.mlp.fc1.bias"]
    save_file(state, tmp_path / "dinov2" / weights.FILE, metadata)
    (tmp_path / "dinov2" / "config.json").write_text((folder / "config.json").read_text())
    monkeypatch.setenv("VTLIB_REAL", str(tmp_path))
    with pytest.raises(ValueError, match=r"does not fit Dinov2Model.*missing_keys.*3.mlp.fc1.bias"):
        hub.real("dinov2")


@pytest.mark.parametrize("setting", [default_dtype, meta_device])
def test_loading_minds_no_default_and_draws_no_number(setting):
    load("dinov2-saliency")
    before = torch.get_rng_state()
    with setting():
        models = [hub.real("dinov2"), hub.real("dinov2-saliency")]
    assert torch.equal(torch.get_rng_state(), before)
    for model in models:
        kinds = {(p.dtype, p.device.type) for p in model.parameters()}
        assert kinds == {(torch.float32, "cpu")}


def test_saliency_needs_tokens_that_fill_the_grid():
    head = load("dinov2-saliency")
    with pytest.raises(ValueError, match=r"there are 255 tokens: grid=\(16, 16\) needs 256"):
        head(torch.zeros(1, 255, 384), (16, 16), (224, 224))


def test_no_tokenizer_of_a_picture_model():
    load("dinov2")
    with pytest.raises(ValueError, match="name='dinov2' has no tokenizer"):
        hub.real_tokenizer("dinov2")


# ---------------------------------------------------------------------------------------- SmolLM2
SENTENCE = "The quick brown fox jumps over the lazy dog."
CHAT = [{"role": "user", "content": "What is the capital of France?"}]


def perplexity(text):
    ids = hub.real_tokenizer("smollm2")(text, return_tensors="pt").input_ids
    with torch.no_grad():
        return load("smollm2")(ids, labels=ids).loss.exp().item()


def test_smollm2_computes_what_transformers_reads_from_the_file():
    """transformers 5.23 with gguf 0.19 and accelerate: the same weights bit for bit."""
    model, tokenizer = load("smollm2"), hub.real_tokenizer("smollm2")
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    ids = tokenizer(SENTENCE, return_tensors="pt").input_ids
    assert ids.tolist() == [[504, 2365, 6354, 16438, 27003, 690, 260, 23790, 2767, 30]]
    with torch.no_grad():
        out = model(ids, labels=ids)
    assert abs(out.loss.item() - 4.01165) < 1e-4
    wanted = torch.tensor([9.5614, 9.9729, 17.7804, 7.4373, 7.4425, 7.6307, 1.0893, 7.6272])
    torch.testing.assert_close(out.logits[0, -1, :8], wanted, atol=2e-3, rtol=0)


def test_smollm2_answers():
    model, tokenizer = load("smollm2"), hub.real_tokenizer("smollm2")
    asked = tokenizer.apply_chat_template(
        CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        said = model.generate(**asked, max_new_tokens=12, do_sample=False)
    answer = said[0, asked.input_ids.shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


def test_smollm2_prefers_a_sentence_to_its_words_shuffled():
    assert perplexity(SENTENCE) < 60
    assert perplexity("fox lazy over The dog. jumps quick the brown") > 1000


def test_rows_in_the_order_of_the_file_are_worse():
    """Queries and keys in the wrong order fit every shape and make plausible text: perplexity 121
    in place of 55. So the numbers above are compared."""
    right, model = perplexity(SENTENCE), load("smollm2")
    layers = [layer.self_attn for layer in model.model.layers]
    projections = [(at.q_proj, 9) for at in layers] + [(at.k_proj, 3) for at in layers]
    before = [projection.weight.data for projection, _ in projections]
    try:
        for projection, heads in projections:
            rows = projection.weight.data.unflatten(0, (heads, 2, -1))
            projection.weight.data = rows.transpose(1, 2).flatten(0, 2).contiguous()
        assert perplexity(SENTENCE) > 2 * right
    finally:
        for (projection, _), weight in zip(projections, before, strict=True):
            projection.weight.data = weight


@pytest.mark.parametrize("text", [
    "In 2024, 12345 cats (and 7 dogs) \u2014 na\u00efve caf\u00e9 \u65e5\u672c \n\n  tabs\t x",
    "<|im_start|>user\nhi<|im_end|>\n",
])  # fmt: skip
def test_smollm2_reads_back_what_it_tokenised(text):
    load("smollm2")
    tokenizer = hub.real_tokenizer("smollm2")
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer("<|im_start|>").input_ids == [1] and tokenizer.eos_token_id == 2


# ----------------------------------------------------------------------------------------- MiniLM
def test_minilm_gives_the_similarities_of_its_documentation():
    """sentence-transformers' first example: mean of the tokens, length one, cosines."""
    model, tokenizer = load("minilm"), hub.real_tokenizer("minilm")
    sentences = [
        "The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium.",
    ]  # fmt: skip
    batch = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        tokens = model(**batch).last_hidden_state
    real_tokens = batch.attention_mask[..., None]
    vectors = torch.nn.functional.normalize((tokens * real_tokens).sum(1), dim=-1)
    wanted = torch.tensor([[1, 0.6660, 0.1046], [0.6660, 1, 0.1411], [0.1046, 0.1411, 1]])
    torch.testing.assert_close(vectors @ vectors.T, wanted, atol=6e-5, rtol=0)
    assert sum(p.numel() for p in model.parameters()) == 22_713_216
