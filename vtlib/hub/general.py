"""Any of transformers' vision-language models that merges visual tokens into its decoder's input.

Nothing here knows a model's forward. What is asked of a type:

    config.image_token_id            which places of input_ids hold visual tokens
    model.base_model                 sees input_ids, the mask and the cache
    model.get_decoder()              has `layers` and is given `inputs_embeds`, images merged in

The rows of `inputs_embeds` at those places ARE the visual tokens, whatever made them: a scatter, an
addition, codes, pooling. Methods that read those alone, and all cuts inside the decoder, run on all
types at once. What the vision tower knows beside ([CLS] row, keys, attention) is read where
`signals` knows which patches make a token; `features` are the visual tokens themselves.

An image is a set of places: its tokens may stand in several runs (rows of Pixtral with breaks
between, tiles with separators). `TILED` types give no list of images but of tiles: there an image
is a block of neighbouring placeholders. Types that are not in `TESTED` warn once.
"""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from . import signals
from .hooks import Hooks
from .tower import Family, Reads

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
    own_features = False
    num_layers = num_prefix = selected = 0

    def __init__(self, model: Any):
        super().__init__(model)
        config = model.config
        self.kind = config.model_type
        self.core, self.language = model.base_model, decoder_of(model)
        self.image_token = config.image_token_id
        self.video_token = getattr(config, "video_token_id", None)
        self.way = signals.kind_of(model)
        if self.way is not None:
            self.encoder = signals.tower_of(model)
            self.layers = signals.layers_of(self.encoder)
            self.num_layers = len(self.layers)
            self.num_prefix = signals.prefix_of(self.encoder)
            select = getattr(config, "vision_feature_layer", None)
            select = -1 if select is None else select
            listed = select if isinstance(select, (list, tuple)) else [select]
            self.selected = max(1, *(layer % (self.num_layers + 1) for layer in listed))
        if self.kind not in TESTED and self.kind not in _WARNED:
            _WARNED.add(self.kind)
            warnings.warn(
                f"{type(model).__name__} (model_type {self.kind!r}) has the shape that pruning "
                "needs but is untested: compare with an unpruned run (keep=1.0) first",
                stacklevel=6,
            )

    @property
    def reads_tower(self) -> bool:
        return self.way is not None

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
                f"method={method.name} reads {', '.join(wanted)} of the vision tower, and it is "
                f"not known which patches make a token of {type(self.model).__name__}: methods "
                "that read the tokens alone, or act inside the decoder, run on it"
            )

    # -------------------------------------------------------------------------------- the tower
    def attach(self, hooks: Hooks, reads: Reads) -> None:
        if reads == Reads():
            return
        needed = self.watched(reads) | {i for i in reads.hidden if i < self.num_layers}
        for layer in needed | {self.deep}:
            module = self.layers[layer]
            hooks.before(module, self.record(("layer", layer), signals.note(module)))
        if self.num_layers in reads.hidden:
            last = self.record("end", lambda args, kwargs, out: _first(out))
            hooks.behind(self.layers[-1], last)
        if self.way == "packed":
            hooks.method(self.core, "pack_image_features", self._packing)

    def _packing(self, original: Callable, *args: Any, **kwargs: Any) -> Any:
        """pack_image_features of the model: also the numbers of its patches are packed."""
        if self.own.seen is not None:
            self.own.seen["pack"] = (original, args, kwargs)
        return original(*args, **kwargs)

    def listen(
        self, features: Callable[[], Any], inputs: dict[str, Any], reads: Reads
    ) -> tuple[Any, signals.Signals | None]:
        """(the result of get_image_features, what was read of the tower meanwhile).

        Args:
            features: the call.
            inputs: its arguments, by name.
            reads: what is wanted; nothing of it: None.
        """
        self.own.seen = seen = {}
        try:
            out = features()
        finally:
            self.own.seen = None
        if reads == Reads():
            return out, None
        shape = self._shape(seen, out, inputs)
        return out, signals.gathered(reads, self.deep, seen, self.layers, shape)

    def _shape(self, seen: dict[Any, Any], out: Any, inputs: dict[str, Any]) -> signals.Shape:
        """How the tokens of a call are made.

        Args:
            seen: what the hooks recorded.
            out: what the call gave.
            inputs: its arguments, by name.
        """
        states, given = seen["layer", self.deep]
        vision = self.model.config.vision_config
        if self.way == "tiles":
            total = sum(signals.sizes_of(out) or [0])
            return signals.tiles(states, total, self.num_prefix, self.kind == "llama4")
        if self.way == "raster":
            sizes = inputs.get("image_sizes")
            grids = [(h // vision.patch_size, w // vision.patch_size) for h, w in _pairs(sizes)]
            ratio = getattr(self.model.config, "spatial_merge_size", 1)
            return signals.raster(states, grids, ratio)
        if self.way == "merged":
            ends = given["cu_seqlens"].tolist()
            return signals.merged(states, ends, vision.spatial_merge_size**2)
        original, args, kwargs = seen["pack"]
        return signals.packed(states, self.num_prefix, *_repacked(original, args, kwargs))


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def _pairs(sizes: Any) -> list[tuple[int, int]]:
    """(height, width) of each image, of a tensor or a list."""
    return [(int(h), int(w)) for h, w in sizes]


def _repacked(
    original: Callable, args: tuple, kwargs: dict[str, Any]
) -> tuple[Callable, list[int]]:
    """(the model's way to pack one number a patch, tiles of each image).

    Args:
        original: its pack_image_features.
        args: of its call.
        kwargs: likewise, by name.
    """
    given = inspect.signature(original).bind(*args, **kwargs).arguments
    features = given.pop("image_features")

    def pack(numbers: list[Tensor]) -> list[Tensor]:
        newline = None if given.get("image_newline") is None else numbers[0].new_full((1,), -1)
        return original(**{**given, "image_features": numbers, "image_newline": newline})[0]

    return pack, [tiles.shape[0] for tiles in features]


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
