"""What a pruner reads of a vision tower of transformers: hooks on its projections, and what is
computed of queries and keys beside it.

Nothing in the tower is replaced: its own attention runs, so its output stays the same to the last
bit and fast kernels stay in use. Hooks record queries and keys where the projections make them,
each thread for itself, and what was asked for is computed beside the tower: the [CLS] row (O(N)
memory), mean keys, or whole maps.

A `Family` knows one kind of model: `llava.Llava`, `qwen.Qwen`; `general.General` knows any, and
reads nothing of the tower.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..tokens import VisionOutputs
from .hooks import Hooks, Own

Found = list[tuple[list[int], VisionOutputs]]
"""(images, what was read of them); images of one size share an entry."""


WATCHED = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
"""Modules of a decoder layer that transitions are read of, in the order in which they run."""


@dataclass(frozen=True)
class Reads:
    """What is wanted of a tower beside the features. need: of "cls_row", "keys"; attention: layers
    whose maps are wanted, 0-based; hidden: hidden states that are wanted, 0 for the embeddings."""

    need: frozenset[str] = frozenset()
    attention: tuple[int, ...] = ()
    hidden: tuple[int, ...] = ()


def cls_row(query: Tensor, key: Tensor) -> Tensor:
    """(B, heads, S): weights of the first query. query, key (B, heads, S, P)."""
    return full_map(query[:, :, :1], key)[:, :, 0]


def full_map(query: Tensor, key: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(P)), (B, heads, Q, S), of query (B, heads, Q, P) and key (B, heads, S,
    P)."""
    scaled = query * query.shape[-1] ** -0.5
    return (scaled @ key.transpose(-2, -1)).float().softmax(dim=-1)


class Recording(Own):
    """seen: what the hooks record of the tower's forward that this thread is in, by key; None
    between forwards."""

    seen: dict[Any, Any] | None = None


class Family:
    """What this package knows of one kind of model.

    model, core: with and without its head; tower, language: its two parts. image_token: the id of a
    placeholder. num_layers, num_prefix: of the tower; deep: the layer (0-based) that made the
    features. default_positions: see `prune`; position_parts: how many parts position ids of three
    axes may have. reads_tower: whether the tower is read; own_features: whether `read` runs it, in
    place of get_image_features. video_token: the id of a placeholder of videos, or None.
    """

    default_positions: str
    position_parts: tuple[int, ...] = ()
    reads_tower = True
    own_features = True
    image_token: int
    video_token: int | None = None
    num_layers: int
    num_prefix: int
    selected: int
    tower: nn.Module
    language: nn.Module
    attentions: list[nn.Module]

    def __init__(self, model: Any):
        self.model, self.core = model, getattr(model, "model", model)
        self.own = Recording()

    @property
    def deep(self) -> int:
        return self.selected - 1

    @property
    def has_sliding_layers(self) -> bool:
        """Whether the decoder's config says layer by layer which ones have sliding windows
        (`layer_types`), and at least one has; also True where all have."""
        return "sliding_attention" in (getattr(self.language.config, "layer_types", None) or ())

    @property
    def window(self) -> int | None:
        """How many places some layer of the decoder sees at most, the config's `sliding_window` (or
        `attention_chunk_size`); None for all, as where `layer_types` names no such layer."""
        config = self.language.config
        types = getattr(config, "layer_types", None)
        if types and "chunked_attention" in types:
            return getattr(config, "attention_chunk_size", None)
        if types and not self.has_sliding_layers:
            return None
        return getattr(config, "sliding_window", None)

    def whole_images(self, sizes: list[int] | None) -> list[int] | None:
        """How many tokens each image has, of what get_image_features said of its parts; None: a
        block of neighbours is an image."""
        return sizes

    def check_inside(self) -> None:
        """ValueError where cuts inside the decoder cannot be."""

    def check_watched(self) -> None:
        """ValueError where the decoder's layers lack the modules that transitions are read of."""
        layer = self.language.layers[0]
        missing = [name for name in WATCHED if not hasattr(layer, name)]
        if missing:
            raise ValueError(
                f"{type(layer).__name__} has no {', '.join(missing)}: methods that watch a layer's "
                "transitions (TransPrune) do not run on it"
            )

    def record(self, key: Any, of: Callable[..., Any]) -> Callable[..., None]:
        """A hook that keeps of(args, kwargs, output) under `key` while this thread reads."""

        def hook(module: nn.Module, args: tuple, kwargs: dict, *output: Any) -> None:
            if self.own.seen is not None:
                self.own.seen[key] = of(args, kwargs, *output)

        return hook

    def watched(self, reads: Reads) -> set[int]:
        """The layers whose queries and keys `read` uses."""
        return {*reads.attention, *([self.deep] if reads.need else [])}

    def run(self, *args: Any, **kwargs: Any) -> tuple[Any, dict]:
        """(the tower's output, what the hooks recorded of it)."""
        self.own.seen = seen = {}
        try:
            return self.tower(*args, **kwargs, return_dict=True), seen
        finally:
            self.own.seen = None

    def listen(self, features: Callable[[], Any], inputs: Any, reads: Reads) -> tuple[Any, Any]:
        """(the result of get_image_features or get_video_features, what was read meanwhile).

        Args:
            features: the call.
            inputs: its arguments, by name.
            reads: what is wanted.
        """
        return features(), None

    # -------------------------------------------------------------------- what each family knows
    @classmethod
    def knows(cls, model: Any) -> bool:
        """Whether the tower of a model of this family's type is one that it reads."""
        return True

    def attach(self, hooks: Hooks, reads: Reads) -> None:
        """Hang on the tower what `read` needs for the same."""
        raise NotImplementedError

    def read(self, inputs: dict[str, Any], reads: Reads) -> Found:
        """What the tower says of a forward's images. inputs: keyword arguments of the forward."""
        raise NotImplementedError

    def delta(self, positions: Tensor, mask: Tensor | None, draft: int) -> Tensor | None:
        """By how much words behind a prompt are shifted against their places, (B, 1): an image's
        three-part positions end sooner than its tokens. None where positions count places.

        Args:
            positions: (..., B, S) of the prompt.
            mask: its attention_mask.
            draft: how many of its last tokens are guesses.
        """
        if positions.dim() == 2:
            return None
        size = positions.shape[-1] - draft
        last = positions[-3:, :, :size].amax(dim=(0, 2))
        real = size if mask is None else mask[:, :size].sum(dim=1)
        return (last + 1 - real)[:, None]

    def after(self, past: int, new: Tensor, mask: Tensor | None, delta: Tensor) -> Tensor:
        """Position ids (3, B, n) of new tokens behind a prompt with three-part positions.

        Args:
            past: how many tokens are before them.
            new: (B, n, ...) the tokens.
            mask: the attention_mask of all.
            delta: what `delta` gave for the prompt.
        """
        place = torch.arange(past, past + new.shape[1], device=new.device).expand(len(new), -1)
        if mask is not None:
            place = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -new.shape[1] :]
        return (place + delta.to(place.device)).expand(3, -1, -1)
