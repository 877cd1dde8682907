"""OneFormer's weights by other names: the release's, and those of transformers (both ways)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

OFFICIAL = (
    ("sem_seg_head.predictor.", "predictor."),
    ("task_mlp.", "task_mlp."),
    ("text_encoder.", "text.text_encoder."),
    ("text_projector.", "text.text_projector."),
    ("prompt_ctx.", "text.prompt_ctx."),
    ("criterion.logit_scale", "logit_scale"),
)
# names of transformers' OneFormerForUniversalSegmentation; a later one sees what earlier ones made
TRANSFORMERS = (
    ("model.task_encoder.", ""),
    ("model.text_mapper.", "text."),
    ("model.transformer_module.", "predictor."),
    ("criterion.logit_scale", "logit_scale"),
)
TRANSFORMERS_PARTS = (
    ("predictor.queries_embedder.", "predictor.query_embed."),
    ("predictor.decoder.", "predictor."),
    (".query_transformer.", ".class_transformer."),
    (".query_input_projection.", ".class_input_proj."),
    (".transformer.layers.", ".transformer.resblocks."),
    (".layer_norm", ".ln_"),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)
LAYER_PARTS = {
    "cross_attn": "transformer_cross_attention_layers",
    "self_attn": "transformer_self_attention_layers",
    "ffn": "transformer_ffn_layers",
}


def _renamed(key: str, pairs: Sequence[tuple[str, str]]) -> str | None:
    for old, new in pairs:
        if key.startswith(old):
            return new + key[len(old):]
    return None


def convert_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The release's weights under the names of `OneFormer`, those of backbone and pixel decoder
    left out. ValueError if nothing is left."""
    named = {_renamed(key, OFFICIAL): value for key, value in state.items()}
    found = {key: value for key, value in named.items() if key is not None}
    if not found:
        raise ValueError(f"state holds none of the release's names but {sorted(state)[:3]}")
    return found


def convert_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of transformers' `OneFormerForUniversalSegmentation` under the names of `OneFormer`,
    those of backbone and pixel decoder left out. ValueError if nothing is left."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        name = _renamed(key, TRANSFORMERS)
        if name is None or ".pixel_level" in key:
            continue
        for old, new in TRANSFORMERS_PARTS:
            name = name.replace(old, new)
        found[_layer_name(name)] = value
    if not found:
        raise ValueError(f"state holds none of transformers' names but {sorted(state)[:3]}")
    return _fuse(found)


def _layer_name(name: str) -> str:
    """layers.2.ffn.linear1 -> transformer_ffn_layers.2.linear1; mlp.layers.0.0 -> mlp.layers.0."""
    parts = name.split(".")
    if parts[:2] == ["predictor", "layers"]:
        parts[1:4] = [LAYER_PARTS[parts[3]], parts[2]]
    if "text_encoder" in parts and "resblocks" in parts:
        parts = ["attn" if part == "self_attn" else part for part in parts]
    if len(parts) > 3 and parts[-4] == "layers" and parts[-3].isdigit() and parts[-2] == "0":
        del parts[-2]
    return ".".join(parts)


def _fuse(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """q_proj, k_proj, v_proj joined to in_proj."""
    out = dict(state)
    for key in state:
        stem, split, kind = key.rpartition("q_proj.")
        if split:
            parts = [out.pop(f"{stem}{letter}_proj.{kind}") for letter in "qkv"]
            out[f"{stem}in_proj_{kind}"] = torch.cat(parts)
    return out


# ------------------------------------------------------------------------------------ the way back
TEXT_BACK = (
    (".resblocks.", ".layers."),
    (".attn.", ".self_attn."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".c_fc.", ".fc1."),
    (".c_proj.", ".fc2."),
)
PREDICTOR_BACK = (
    ("predictor.query_embed.", "queries_embedder."),
    ("predictor.level_embed.", "level_embed."),
    ("predictor.class_transformer.", "decoder.query_transformer."),
    ("predictor.class_input_proj.", "decoder.query_input_projection."),
    ("predictor.", "decoder."),
)
STACKS = ("mask_embed.layers.", "task_mlp.layers.", "text_projector.layers.")


def to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of `OneFormer` under the names of transformers, `pixels` left out: the inverse of
    `convert_transformers`. ValueError if nothing is left."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        name = _transformers_name(key)
        if name is None:
            continue
        if ".self_attn.self_attn.in_proj_" in name:                 # of the masked decoder alone
            kind = name.rpartition("_")[2]
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                found[name.replace(f"in_proj_{kind}", f"{letter}_proj.{kind}")] = part
        else:
            found[name] = value
    if not found:
        raise ValueError(f"state holds none of OneFormer's names but {sorted(state)[:3]}")
    return found


def _transformers_name(key: str) -> str | None:
    """A name of `OneFormer` as transformers has it; None for those of `pixels`."""
    for stack in STACKS:                       # mlp.layers.0.weight -> mlp.layers.0.0.weight
        head, found, tail = key.partition(stack)
        if found:
            number, _, kind = tail.partition(".")
            key = f"{head}{stack}{number}.0.{kind}"
    if key == "logit_scale":
        return "criterion.logit_scale"
    if key.startswith("task_mlp."):
        return f"model.task_encoder.{key}"
    if key.startswith("text."):
        for old, new in TEXT_BACK:
            key = key.replace(old, new)
        return "model.text_mapper." + key.removeprefix("text.")
    for short, long in LAYER_PARTS.items():    # transformer_ffn_layers.2.x -> layers.2.ffn.x
        number, _, rest = key.removeprefix(f"predictor.{long}.").partition(".")
        if key.startswith(f"predictor.{long}."):
            return f"model.transformer_module.decoder.layers.{number}.{short}.{rest}"
    named = _renamed(key, PREDICTOR_BACK)
    return None if named is None else f"model.transformer_module.{named}"
