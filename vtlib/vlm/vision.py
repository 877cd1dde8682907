"""What a vision encoder hands to a pruner, and to the language model."""

import functools
from dataclasses import dataclass, field
from typing import Callable

from torch import Tensor

SPACES = ("features", "selected", "tokens")
"""The tensors of `VisionOutputs` that a plan can be for."""


@dataclass
class VisionOutputs:
    """One forward of an encoder with L layers on B images: N patches on a grid, behind num_prefix other tokens ([CLS] first, registers).

    selected (B, prefix + N, Dv): hidden state of the selected layer (LLaVA: the last but one).
    project: the projector, (..., Dv) -> (..., D).  grid: (h, w), h w = N.  num_prefix: 0 means there is no [CLS].
    The rest is None or empty unless it was asked for:
    cls_row (B, heads, N): weights of the [CLS] query over the patches in the selected layer; its softmax ran over all prefix + N keys.
    keys (B, prefix + N, head_dim): keys of the selected layer, mean over heads, without positions.
    attention {l: (B, heads, prefix + N, prefix + N)}: all weights of layer l, 0-based.
    hidden {l: (B, prefix + N, Dv)}: hidden state after l layers (0: the embeddings).
    """

    selected: Tensor
    grid: tuple[int, int]
    project: Callable[[Tensor], Tensor]
    num_prefix: int = 1
    cls_row: Tensor | None = None
    keys: Tensor | None = None
    attention: dict[int, Tensor] = field(default_factory=dict)
    hidden: dict[int, Tensor] = field(default_factory=dict)

    @property
    def features(self) -> Tensor:
        """(B, N, Dv): the patches of the selected layer, the projector's input."""
        return self.selected[:, self.num_prefix :]

    def rows(self, index: Tensor) -> "VisionOutputs":
        """The same for pictures `index` (K,) long of the batch, repeats allowed: one row for each question to a picture, say."""
        def pick(t):
            return None if t is None else {k: v[index] for k, v in t.items()} if isinstance(t, dict) else t[index]

        out = VisionOutputs(self.selected[index], self.grid, self.project, self.num_prefix, pick(self.cls_row), pick(self.keys),
                            pick(self.attention), pick(self.hidden))
        if "tokens" in self.__dict__:
            out.__dict__["tokens"] = self.tokens[index]
        return out

    @functools.cached_property
    def tokens(self) -> Tensor:
        """(B, N, D): the projected patches, what the language model reads."""
        return self.project(self.features)
