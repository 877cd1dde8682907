"""OneFormer's weights by the names of the release and of transformers."""

import pytest
import torch

from vtlib.segmentation import OneFormer, Predictor, TextEncoder, TextMapper
from vtlib.segmentation.oneformer_weights import OFFICIAL, convert_official, convert_transformers


def make():
    """Without `pixels`, whose weights have no other names."""
    torch.manual_seed(0)
    text = TextMapper(TextEncoder(20, 8, 16, 1, 2), 2)
    return OneFormer(torch.nn.Identity(), Predictor(4, 7, 16, 2, 24, 2), text, 8)


def official_name(name):
    """The other way round than `convert_official`."""
    for official, own in OFFICIAL:
        if name.startswith(own):
            return official + name[len(own):]
    return None


def test_convert_official_there_and_back():
    state = make().state_dict()
    official = {official_name(key): value for key, value in state.items()}
    assert None not in official
    got = convert_official(official | {"backbone.patch_embed.proj.weight": torch.zeros(1)})
    assert got.keys() == state.keys() and all(torch.equal(got[k], state[k]) for k in state)
    with pytest.raises(ValueError, match="none of the release's names"):
        convert_official({"x": torch.zeros(1)})
    with pytest.raises(ValueError, match="none of transformers' names"):
        convert_transformers({"x": torch.zeros(1)})


def transformers_state(state):
    """What transformers would call it, q, k, v of the decoder's self attention apart."""
    layers = "predictor.transformer_"
    out = {}
    for key, value in state.items():
        if key.startswith(layers):
            kind, _, rest = key.removeprefix(layers).partition("_layers.")
            number, _, rest = rest.partition(".")
            short = {"cross_attention": "cross_attn", "self_attention": "self_attn", "ffn": "ffn"}
            key = f"predictor.decoder.layers.{number}.{short[kind]}.{rest}"
        elif key.startswith("predictor.query_embed."):
            key = key.replace("query_embed", "queries_embedder")
        elif key.startswith("predictor.") and "level_embed" not in key:
            key = key.replace("predictor.", "predictor.decoder.")
            key = key.replace("class_transformer", "query_transformer")
            key = key.replace("class_input_proj", "query_input_projection")
        for mlp in ("mask_embed", "task_mlp", "text_projector"):
            for number in range(3):
                key = key.replace(f"{mlp}.layers.{number}.", f"{mlp}.layers.{number}.0.")
        key = key.replace("resblocks", "layers").replace(".attn.", ".self_attn.")
        key = key.replace("ln_1", "layer_norm1").replace("ln_2", "layer_norm2")
        key = key.replace("c_fc", "fc1").replace("c_proj", "fc2")
        key = key.replace("predictor.", "model.transformer_module.", 1)
        key = key.replace("text.", "model.text_mapper.", 1) if key.startswith("text.") else key
        if key.startswith("task_mlp."):
            key = f"model.task_encoder.{key}"
        if ".self_attn.self_attn.in_proj_" in key:
            kind = key.rpartition("_")[2]
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                out[key.replace(f"in_proj_{kind}", f"{letter}_proj.{kind}")] = part
        else:
            out["criterion.logit_scale" if key == "logit_scale" else key] = value
    return out


def test_convert_transformers():
    state = make().state_dict()
    given = transformers_state(state)
    assert "model.transformer_module.decoder.layers.1.self_attn.self_attn.q_proj.bias" in given
    got = convert_transformers(given | {"model.pixel_level_module.x": torch.zeros(1)})
    assert got.keys() == state.keys() and all(torch.equal(got[k], state[k]) for k in state)
