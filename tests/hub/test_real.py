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
