"""Official state dicts, made to fit.

Conversion is code one can read: each function lists what it renames or drops, and nothing else.
"""

import importlib.util
import re

import torch
from safetensors.torch import load_file

from ..nn import check_callable, load_weights, resize_pos_embed, unwrap


def available():
    """"" when the extra [hub] is installed, else one line that says what is missing."""
    if importlib.util.find_spec("transformers") is None:
        return "transformers is not installed: pip install 'vtlib[hub]'"
    return ""


def load_official(model, path, convert=None, strict=True):
    """Load a checkpoint file into a vtlib model and return the model.

    Args:
        model: a vtlib model.
        path: .safetensors, or an official .pth (read with weights_only=True). Wrappers and prefixes
            of trainers go, see `vtlib.nn.unwrap`.
        convert: one of this module's functions, a paper's `convert_official`, or None when the
            names agree.
        strict: False lets names be missing or left over; see `vtlib.nn.load_weights`.

    ValueError that lists missing and unexpected keys.
    """
    if convert is not None:
        check_callable(convert, "convert", "a function of a state dict, or None")
    if str(path).endswith(".safetensors"):
        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    state = unwrap(state, f"path={str(path)!r}")
    state = convert(state) if convert else state
    load_weights(model, state, strict, f"path={str(path)!r}")
    return model


def convert_timm_crossvit(state):
    """timm's CrossViT -> official names: `pos_embed_0` -> `pos_embed.0`, `cls_token_0` likewise.

    Official dicts pass through.
    """
    rename = re.compile(r"^(pos_embed|cls_token)_(\d)$")
    return {rename.sub(r"\1.\2", key): value for key, value in unwrap(state).items()}


def convert_crossformer(state):
    """Official CrossFormer -> vtlib: the names agree.

    Buffers that older checkpoints saved (bias tables, indices, masks) are dropped.
    """
    buffers = ("biases", "relative_position_index", "attn_mask")
    return {
        key: value
        for key, value in unwrap(state).items()
        if key.rsplit(".", 1)[-1] not in buffers
    }


def resize_positions(state, model):
    """Resize learned position tables (`pos_embed`, `pos_embed.i`) of a square grid, bicubic.

    To the model's grid; [CLS] rows stay.

    For fine-tuning at higher resolution, e.g. CrossViT 240/224 -> 408/384. state and model: same
    architecture. Returns a new state dict.
    """
    want, out = model.state_dict(), dict(state)
    for key, table in state.items():
        if re.fullmatch(r"pos_embed(\.\d)?", key) and table.shape != want[key].shape:
            old, new = (round((t.shape[1] - 1) ** 0.5) for t in (table, want[key]))
            out[key] = resize_pos_embed(table, (old, old), (new, new))
    return out
