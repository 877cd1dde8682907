"""Official state dicts, made to fit. Conversion is code one can read: each function lists what it renames or drops, and nothing else."""

import importlib.util
import re

import torch
from safetensors.torch import load_file

from ..nn import resize_pos_embed


def available():
    """"" when the extra [hub] is installed, else one line that says what is missing and how to get it (falsy = ready)."""
    if importlib.util.find_spec("transformers") is None:
        return "transformers is not installed: pip install 'vtlib[hub]'"
    return ""


def load_official(model, path, convert=None, strict=True):
    """Load a checkpoint file into a vtlib model and return the model.

    path: .safetensors, or an official .pth (read with weights_only=True). Wrapping keys "model" / "state_dict" are opened.
    convert: one of this module's functions, or None when the names agree. Raises ValueError that lists missing and unexpected keys.
    """
    state = load_file(path) if str(path).endswith(".safetensors") else torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("model", state.get("state_dict", state))
    state = convert(state) if convert else state
    missing, unexpected = model.load_state_dict(state, strict=False)
    if strict and (missing or unexpected):
        raise ValueError(f"path={str(path)!r} does not fit: missing {sorted(missing)[:5]} ({len(missing)}), "
                         f"unexpected {sorted(unexpected)[:5]} ({len(unexpected)})")
    return model


def convert_timm_crossvit(state):
    """timm's CrossViT -> official names: `pos_embed_0` -> `pos_embed.0`, `cls_token_0` -> `cls_token.0`. Official dicts pass through."""
    return {re.sub(r"^(pos_embed|cls_token)_(\d)$", r"\1.\2", key): value for key, value in state.items()}


def convert_crossformer(state):
    """Official CrossFormer -> vtlib: the names agree; buffers that older checkpoints saved (bias tables, indices, masks) are dropped."""
    buffers = ("biases", "relative_position_index", "attn_mask")
    return {key: value for key, value in state.items() if key.rsplit(".", 1)[-1] not in buffers}


def resize_positions(state, model):
    """Resize learned position tables (`pos_embed`, `pos_embed.i`) of a square grid to the model's, bicubic; [CLS] rows stay.

    For fine-tuning at higher resolution, e.g. CrossViT 240/224 -> 408/384. state and model: same architecture. Returns a new state dict.
    """
    want, out = model.state_dict(), dict(state)
    for key, table in state.items():
        if re.fullmatch(r"pos_embed(\.\d)?", key) and table.shape != want[key].shape:
            old, new = (round((t.shape[1] - 1) ** 0.5) for t in (table, want[key]))
            out[key] = resize_pos_embed(table, (old, old), (new, new))
    return out
