"""Any of transformers' vision-language models that merges visual tokens into its decoder's input.

Nothing here knows a model's forward. What is asked of a type:

    config.image_token_id            which places of input_ids hold visual tokens
    model.base_model                 sees input_ids, the mask and the cache
    model.get_decoder()              has `layers` and is given `inputs_embeds`, images merged in

The rows of `inputs_embeds` at those places ARE the visual tokens, whatever made them: a scatter, an
addition, codes, pooling. Methods that read those alone, and all cuts inside the decoder, run on all
types at once. What the vision tower knows ([CLS], keys, attention) only `llava` and `qwen` read.

An image is a set of places: its tokens may stand in several runs (rows of Pixtral with breaks
between, tiles with separators). `TILED` types give no list of images but of tiles: there an image
is a block of neighbouring placeholders. Types that are not in `TESTED` warn once.
"""

import warnings
from typing import Any

from torch import nn

from .tower import Family

TESTED = frozenset(
    """aria aya_vision cohere2_vision deepseek_vl emu3 fuyu gemma3 gemma4 glm46v glm4v got_ocr2
    granite4_vision idefics2 idefics3 internvl janus kimi_k25 lfm2_vl lighton_ocr llama4 llava
    llava_next llava_next_video llava_onevision minicpmv4_6 mistral3 molmo2 ovis2 paddleocr_vl
    paligemma qwen2_5_omni_thinker qwen2_5_vl qwen2_vl qwen3_5 qwen3_vl qwen3_vl_moe smolvlm
    video_llama_3 video_llava vipllava""".split()
)
"""model_type of the models that tests/hub/test_matrix.py holds against masking."""

TILED = frozenset("internvl aya_vision cohere2_vision perception_lm ovis2 llama4".split())
"""Types whose images come as tiles, several an image."""

_CROSS = "its decoder reads images by cross-attention; there are no visual tokens in its sequence"
_FEW = "its Q-Former leaves a few learned queries of an image: there is nothing to prune"
REFUSED = {
    "mllama": _CROSS,
    "idefics": _CROSS,
    "evolla": _CROSS,
    "blip-2": _FEW,
    "instructblip": _FEW,
    "instructblipvideo": _FEW,
    "chameleon": "its decoder is the multimodal model itself: nothing can be cut between them",
}
"""model_type -> why not."""

_WARNED: set[str] = set()


def decoder_of(model: Any) -> nn.Module | None:
    """The module with the decoder's layers; None where there is none."""
    found = model.get_decoder() if hasattr(model, "get_decoder") else None
    while found is not None and not hasattr(found, "layers"):
        inner = getattr(found, "model", None)
        found = inner if inner is not found else None
    return found


class General(Family):
    """A model of which nothing is known but its decoder's input."""

    default_positions = "keep"
    position_parts = (1, 3, 4)
    reads_tower = False
    num_layers = num_prefix = selected = 0

    def __init__(self, model: Any):
        super().__init__(model)
        config = model.config
        self.kind = config.model_type
        self.core, self.language = model.base_model, decoder_of(model)
        self.image_token = config.image_token_id
        self.video_token = getattr(config, "video_token_id", None)
        if self.kind not in TESTED and self.kind not in _WARNED:
            _WARNED.add(self.kind)
            warnings.warn(
                f"{type(model).__name__} (model_type {self.kind!r}) has the shape that pruning "
                "needs but is untested: compare with an unpruned run (keep=1.0) first",
                stacklevel=6,
            )

    def whole_images(self, sizes: list[int] | None) -> list[int] | None:
        return None if self.kind in TILED else sizes

    def check_inside(self) -> None:
        """ValueError for a decoder whose layers share keys, or have inputs of their own."""
        config = self.language.config
        names = ("hidden_size_per_layer_input", "num_kv_shared_layers")
        found = [name for name in names if getattr(config, name, None)]
        if found:
            raise ValueError(
                f"{type(self.model).__name__} has {', '.join(found)}: its layers cannot see fewer "
                "tokens than the first one; use a method that prunes before the decoder"
            )

    def check_reads(self, method: Any) -> None:
        """ValueError for a method that reads what the decoder's input does not say."""
        wanted = [*method.reads, *(["hidden"] if method.hidden else [])]
        if wanted:
            raise ValueError(
                f"method={method.name} reads {', '.join(wanted)} of the vision tower, which is "
                f"known for LLaVA 1.5 and Qwen2.5-VL alone, not for {type(self.model).__name__}: "
                "methods that read the tokens alone, or act inside the decoder, run on it"
            )

    def attach(self, hooks: Any, reads: Any) -> None:
        """Nothing: the tower is not read."""


def general(model: Any) -> General:
    """What can be known of a model of any type. ValueError for one that lacks what is needed, with
    the reason."""
    config = getattr(model, "config", None)
    kind, name = getattr(config, "model_type", None), type(model).__name__
    reason = REFUSED.get(kind)
    if reason is None and getattr(config, "is_encoder_decoder", False):
        reason = "it is an encoder-decoder: its decoder sees no visual tokens"
    if reason is None:
        reason = _missing(model, config)
    if reason is not None:
        raise ValueError(f"model={name} is not supported: {reason}")
    return General(model)


def _missing(model: Any, config: Any) -> str | None:
    """What a model lacks, or None."""
    needs = (
        "needs a vision-language model of transformers whose visual tokens stand in its decoder's "
        "input, or CLIPModel for CrossGET"
    )
    if not isinstance(model, nn.Module) or config is None:
        return needs
    if getattr(config, "image_token_id", None) is None:
        return f"its config has no image_token_id; {needs}"
    if not hasattr(model, "base_model") or decoder_of(model) is None:
        return f"its decoder (get_decoder) has no layers; {needs}"
    return None
