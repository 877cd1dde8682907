"""What a cut inside the decoder may look at (`State`), what decoding needs to go on (`Cache`), and
what reading a prompt leaves (`Prefill`)."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..nn.checks import check_float, describe
from ..tokens import Plan, resolve_keep, top_tokens
from ..tokens.precision import full_precision, widen

if TYPE_CHECKING:
    from .decoder import Decoder


@dataclass
class Transition:
    """What a watched layer did to every token that was there, S_l of them: attention and mlp as
    (magnitude, direction), (B, S_l).

    valid (B, S_l): no padding. visual: where the image's tokens were.
    now (B, n): for each visual token that is alive now its place among them.
    """

    attention: tuple[Tensor, Tensor]
    mlp: tuple[Tensor, Tensor]
    valid: Tensor
    visual: slice
    now: Tensor


@dataclass
class State:
    """The running decoder at a cut: `after` layers have run on text | n visual tokens | text.

    hidden (B, S, D): the residual stream.
    entered: what the last layer was given (None before the first layer), same shape.
    positions (B, S).
    valid (B, S) bool: what later layers may attend to; False for padding, and in mode "mask" for
        tokens dropped earlier.
    visual: slice of the sequence.
    num_visual: how many visual tokens there were at the start.
    plan: what happened to them so far.
    transitions {layer: Transition}, 1-based, of the layers that stages watch.
    running (B, S) bool: all but padding; the tokens that mode "mask" has hidden still run, as
        queries whose output nobody reads.
    """

    decoder: "Decoder"
    after: int
    hidden: Tensor
    entered: Tensor | None
    positions: Tensor
    valid: Tensor
    visual: slice
    num_visual: int
    plan: Plan
    transitions: dict[int, Transition] = field(default_factory=dict)
    running: Tensor | None = None

    @property
    def tokens(self) -> Tensor:
        """(B, n, D): the visual tokens' residual stream."""
        return self.hidden[:, self.visual]

    @property
    def alive(self) -> Tensor:
        """(B, n) bool: visual tokens that can still be kept (all of them unless mode is "mask")."""
        return self.valid[:, self.visual]

    @property
    def asking(self) -> Tensor:
        """(B, S) bool: the text behind the image, padding excluded."""
        behind = torch.arange(self.hidden.shape[1], device=self.hidden.device) >= self.visual.stop
        return self.valid & behind

    def qk(self, layer="next") -> tuple[Tensor, Tensor]:
        """Rotated q and k (B, heads, S, P), keys repeated for grouped heads: of the layer to come
        ("next", from the residual stream as it is) or of the one that has just run ("last").
        ValueError when there is no such layer."""
        if layer not in ("next", "last"):
            raise ValueError(f"layer={layer!r}: needs 'next' or 'last'")
        number = self.after if layer == "next" else self.after - 1
        if not 0 <= number < len(self.decoder.layers):
            raise ValueError(
                f"after={self.after}: there is no {layer} layer in a decoder with "
                f"{len(self.decoder.layers)}"
            )
        return self.layer_qk(number)

    def layer_qk(self, number: int) -> tuple[Tensor, Tensor]:
        """`qk` of the layer `number`, 0-based: the one to come or the one that has just run."""
        block = self.decoder.layers[number]
        x = self.hidden if number == self.after else self.entered
        q, k = block.qk(x, self.decoder.rope(self.positions))
        return q, block.self_attn.repeat(k)

    def causal(self, rows: slice = slice(None)) -> Tensor:
        """(B, 1, rows, S) bool: what the rows may attend to."""
        return causal(self.valid, rows)

    def logits(self, rows=slice(None), layer="next", qk=None) -> Tensor:
        """Causal attention logits q k^T / sqrt(P) of the rows (a slice), in float32 at least:
        (B, heads, rows, S).

        -inf where a key is later or not valid. Rows of padding and of tokens that mode "mask" has
        hidden are there too, with what they see.

        Args:
            rows: which queries.
            layer: see `qk`.
            qk: what `qk(layer)` gave, for those who have it.
        """
        if not isinstance(rows, slice):
            raise ValueError(f"rows={rows!r}: needs a slice")
        q, k = self.qk(layer) if qk is None else _pair(qk)
        with full_precision(q.device):
            logits = (widen(q[:, :, rows]) * q.shape[-1] ** -0.5) @ widen(k).transpose(-2, -1)
        return logits.masked_fill(~self.causal(rows), float("-inf"))

    def attention(self, rows=slice(None), layer="next", qk=None) -> Tensor:
        """Softmax of `logits` over all keys: (B, heads, rows, S).

        Args:
            rows: which queries.
            layer: see `qk`.
            qk: what `qk(layer)` gave, for those who have it.
        """
        return self.logits(rows, layer, qk).softmax(dim=-1)

    def top(self, score, keep) -> Plan:
        """The plan that keeps the `keep` best of score (B, n), in their order; dropped tokens are
        never chosen. keep may be 0."""
        check_float(score, "score")
        if score.shape != self.alive.shape:
            raise ValueError(
                f"score has shape {tuple(score.shape)} but needs (B, n) = "
                f"{tuple(self.alive.shape)}: one number a visual token"
            )
        keep = resolve_keep(keep, score.shape[1], least=0)
        score = score.masked_fill(~self.alive, float("-inf"))
        if keep:
            index = top_tokens(score, keep)
        else:
            index = torch.zeros(score.shape[0], 0, dtype=torch.long, device=score.device)
        return Plan(index, score.shape[1])


def _pair(qk):
    """(q, k), as `State.qk` gives them."""
    listed = isinstance(qk, (tuple, list)) and len(qk) == 2
    if not listed or not all(isinstance(t, Tensor) and t.dim() == 4 for t in qk):
        raise ValueError(f"qk is {describe(qk)} but needs to be (q, k), each (B, heads, S, P)")
    return qk


@dataclass
class Cache:
    """Keys and values of each layer, (B, kv heads, n_l, P) with its own n_l, and what decoding
    needs to go on.

    valid: per layer (B, n_l) bool.
    shift: per layer, by how much positions are lower than in layer 0 (0 when they are kept).
    next (B,): position of the next token in layer 0.
    """

    keys: list[Tensor]
    values: list[Tensor]
    valid: list[Tensor]
    shift: list[int]
    next: Tensor

    @property
    def lengths(self) -> list[int]:
        """n_l of each layer."""
        return [k.shape[2] for k in self.keys]

    @property
    def bytes(self) -> int:
        """Memory of all keys and values."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))


@dataclass
class Prefill:
    """hidden (B, S', D) after the last norm; valid (B, S'); visual: slice of S'; cache.

    plan: from the first visual tokens to the last ones.
    states: one `State` a stage, as its plan saw it.
    plans: one `Plan` a stage, over the tokens that were alive (all, in mode "mask").
    """

    hidden: Tensor
    valid: Tensor
    visual: slice
    cache: Cache
    plan: Plan
    states: list[State]
    plans: list[Plan]


def causal(valid, rows=slice(None)):
    """(B, 1, rows, S) bool, True = attend: earlier or same place, and a valid key. A row without
    any such key sees itself."""
    order = torch.arange(valid.shape[1], device=valid.device)
    alone = (valid.long().cumsum(dim=1) == 0)[:, None, rows, None]      # b 1 rows 1
    row = order[rows, None]
    return ((row >= order) & valid[:, None, None, :]) | (alone & (row == order))
