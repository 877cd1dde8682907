"""What a pruner reads of a vision tower of transformers: hooks on its projections, and what is
computed of queries and keys beside it.

Nothing in the tower is replaced: its own attention runs, so its output stays the same to the last
bit and fast kernels stay in use. Hooks record queries and keys where the projections make them,
each thread for itself, and what was asked for is computed beside the tower: the [CLS] row (O(N)
memory), mean keys, or whole maps.

A `Family` knows one kind of model: `llava.Llava`, `qwen.Qwen`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..tokens import VisionOutputs
from .hooks import Hooks, Own

Found = list[tuple[list[int], VisionOutputs]]
"""(images, what was read of them); images of one size share an entry."""


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
    axes may have.
    """

    default_positions: str
    position_parts: tuple[int, ...] = ()
    image_token: int
    num_layers: int
    num_prefix: int
    selected: int
    tower: nn.Module
    language: nn.Module
    attentions: list[nn.Module]

    def __init__(self, model: Any):
        self.model, self.core = model, model.model
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
        """How many places each layer of the decoder sees, the config's `sliding_window`; None for
        all, as where `layer_types` names no sliding layer."""
        config = self.language.config
        if getattr(config, "layer_types", None) and not self.has_sliding_layers:
            return None
        return getattr(config, "sliding_window", None)

    def record(self, key: Any, of: Callable[..., Any]) -> Callable[..., None]:
        """A hook that keeps of(args, kwargs, output) under `key` while this thread reads."""

        def hook(module: nn.Module, args: tuple, kwargs: dict, *output: Any) -> None:
            if self.own.seen is not None:
                self.own.seen[key] = of(args, kwargs, *output)

        return hook

    def watched(self, reads: Reads) -> set[int]:
        """The layers whose queries and keys `read` uses."""
        return {*reads.attention, *([self.deep] if reads.need else [])}

    def parts(self, positions: Tensor) -> Tensor:
        """Position ids with all parts that the decoder's tables are made of."""
        return positions

    def run(self, *args: Any, **kwargs: Any) -> tuple[Any, dict]:
        """(the tower's output, what the hooks recorded of it)."""
        self.own.seen = seen = {}
        try:
            return self.tower(*args, **kwargs, return_dict=True), seen
        finally:
            self.own.seen = None

    # -------------------------------------------------------------------- what each family knows
    def attach(self, hooks: Hooks, reads: Reads) -> None:
        """Hang on the tower what `read` needs for the same."""
        raise NotImplementedError

    def read(self, inputs: dict[str, Any], reads: Reads) -> Found:
        """What the tower says of a forward's images. inputs: keyword arguments of the forward."""
        raise NotImplementedError

    def positions(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Position ids (..., B, S) as the model itself would number a prompt, and what `after`
        needs to go on."""
        raise NotImplementedError

    def delta(self, positions: Tensor, mask: Tensor | None, draft: int) -> Tensor | None:
        """What `after` needs behind a prompt.

        Args:
            positions: (..., B, S) of the prompt.
            mask: its attention_mask.
            draft: how many of its last tokens are guesses.
        """
        raise NotImplementedError

    def after(
        self, past: int, new: Tensor, mask: Tensor | None, delta: Tensor | None
    ) -> Tensor:
        """Position ids (..., B, n) of new tokens.

        Args:
            past: how many tokens are before them.
            new: (B, n, ...) the tokens.
            mask: the attention_mask of all.
            delta: what `positions` or `delta` gave for the prompt.
        """
        raise NotImplementedError
