"""What a vision encoder hands to a pruner and to the language model: `VisionOutputs`."""

import functools
from dataclasses import dataclass, field
from typing import Any, Callable

from torch import Tensor

from ..nn.checks import check_callable, check_index, check_int, check_tokens, describe
from .checks import check_grid

SPACES = ("features", "selected", "tokens")
"""The tensors of `VisionOutputs` that a plan can be for."""


@dataclass
class VisionOutputs:
    """One forward of an encoder with L layers on B images: N patches on a grid, behind num_prefix
    other tokens ([CLS] first, then registers).

    selected (B, prefix + N, Dv): hidden state of the selected layer (LLaVA: the last but one).
    grid: (h, w) with h w = N.
    project: the projector, (..., Dv) -> (..., D).
    num_prefix: 0 means that there is no [CLS].

    The rest is None or empty unless it was asked for:
    cls_row (B, heads, N): weights of the [CLS] query over the patches in the selected layer; its
        softmax ran over all prefix + N keys.
    keys (B, prefix + N, head_dim): keys of the selected layer, mean over heads, without positions.
    attention {l: (B, heads, prefix + N, prefix + N)}: all weights of layer l, 0-based.
    hidden {l: (B, prefix + N, Dv)}: hidden state after l layers (0: the embeddings).

    ValueError for a selected that is not floating or empty, and for a grid that has another number
    of places than there are patches.
    """

    selected: Tensor
    grid: tuple[int, int]
    project: Callable[[Tensor], Tensor]
    num_prefix: int = 1
    cls_row: Tensor | None = None
    keys: Tensor | None = None
    attention: dict[int, Tensor] = field(default_factory=dict)
    hidden: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_tokens(self.selected, name="selected")
        check_callable(self.project, "project", "a function of (..., Dv)")
        size = self.selected.shape[1]
        self.num_prefix = check_int(self.num_prefix, "num_prefix", 0, size - 1)
        self.grid = check_grid(self.grid, size - self.num_prefix)

    @property
    def features(self) -> Tensor:
        """(B, N, Dv): the patches of the selected layer, the projector's input."""
        return self.selected[:, self.num_prefix :]

    @functools.cached_property
    def tokens(self) -> Tensor:
        """(B, N, D): the projected patches, what the language model reads."""
        return self.project(self.features)

    def rows(self, index: Tensor) -> "VisionOutputs":
        """The same for pictures `index` (K,) long of the batch, repeats allowed: one row for each
        question to a picture, say. ValueError for what is no such index."""
        check_index(index, "index", "(K,)", stop=self.selected.shape[0])
        out = VisionOutputs(
            self.selected[index],
            self.grid,
            self.project,
            self.num_prefix,
            cls_row=None if self.cls_row is None else self.cls_row[index],
            keys=None if self.keys is None else self.keys[index],
            attention={layer: t[index] for layer, t in self.attention.items()},
            hidden={layer: t[index] for layer, t in self.hidden.items()},
        )
        if "tokens" in self.__dict__:  # projected already
            out.__dict__["tokens"] = self.tokens[index]
        return out


def check_vision(vision: Any) -> None:
    """Raise unless `vision` is a `VisionOutputs`: the images themselves, say, are none."""
    if not isinstance(vision, VisionOutputs):
        raise ValueError(
            f"vision is {describe(vision)} but needs to be VisionOutputs: what an encoder made"
        )
