"""Queries and keys of any decoder layer of transformers, without a word about its architecture.

A layer is run on given states up to its attention function, which is where transformers hands over
rotated queries and keys, whatever norms, fused projections, rotary styles or latent attention
(MLA) came before. What runs is a shallow copy of the layer, which shares all weights, with an
attention whose configuration names `RECORD` as its function; the layer itself, its configuration
and its cache are not touched, so that other threads may run it meanwhile.
"""

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

RECORD = "vtlib_record"
LEFT_OUT = ("past_key_values", "past_key_value", "use_cache", "output_attentions")
"""Arguments of a layer that a probe leaves out: it reads no cache and writes none."""


class _Found(Exception):
    """Ends a probe's forward, with what it looked for."""

    def __init__(self, query: Tensor, key: Tensor, scaling: float | None):
        super().__init__()
        self.query, self.key, self.scaling = query, key, scaling


def _record(module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> None:
    raise _Found(query, key, kwargs.get("scaling"))


@functools.cache
def _register() -> None:
    """Let transformers know `RECORD`."""
    from transformers import AttentionInterface

    AttentionInterface.register(RECORD, _record)


def attention_of(layer: nn.Module) -> tuple[str, nn.Module] | None:
    """Name and module of a layer's softmax attention; None where it has none (a convolution, a
    linear attention)."""
    for name in ("self_attn", "attention", "attn", "self_attention"):
        module = getattr(layer, name, None)
        if isinstance(module, nn.Module) and hasattr(module, "config"):
            return name, module
    return None


def probe(layer: nn.Module) -> nn.Module:
    """A copy of a layer that shares its weights, to be run by `queries_and_keys` alone.

    ValueError for a layer without softmax attention.
    """
    found = attention_of(layer)
    if found is None:
        raise ValueError(
            f"{type(layer).__name__} has no softmax attention whose queries and keys a cut could "
            "read: cut behind a layer that has"
        )
    _register()
    name, attention = found
    attention, twin = copy.copy(attention), copy.copy(layer)
    attention.config = copy.copy(attention.config)
    attention.config._attn_implementation = RECORD
    attention._forward_hooks, attention._forward_pre_hooks = OrderedDict(), OrderedDict()
    vars(attention).pop("forward", None)  # accelerate's, which would run the layer's own attention
    twin._modules = {**layer._modules, name: attention}
    return twin


def queries_and_keys(
    twin: nn.Module, hidden: Tensor, arguments: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """(query (B, heads, S, P), key (B, kv heads, S, P)), rotated; the layer's weights are
    softmax(q k^T / sqrt(P)): another factor of its own is in the queries already.

    Args:
        twin: of `probe`.
        hidden: (B, S, D), the layer's input.
        arguments: of the layer's forward, for these S tokens.
    """
    given = {k: v for k, v in arguments.items() if k not in LEFT_OUT}
    if "attention_mask" in given:
        given["attention_mask"] = None
    try:
        type(twin).forward(twin, hidden, **given)
    except _Found as found:
        query, scaling = found.query, found.scaling
        usual = query.shape[-1] ** -0.5
        if scaling is not None and abs(scaling - usual) > 1e-6 * usual:
            query = query * (scaling / usual)
        return query, found.key
    raise ValueError(
        f"{type(twin).__name__} does not call transformers' attention functions: its queries and "
        "keys cannot be read"
    )


def tree(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`change` of each tensor in tuples, lists and dicts; all else as it is."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: tree(part, change) for key, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(tree(part, change) for part in value)
    return value


def along(value: Tensor, index: Tensor, size: int) -> Tensor:
    """A tensor that goes with the S = `size` tokens of B prompts, of index (B, L); any other one as
    it is. What goes with them has the shape (B or 1, S, ...), or (3 or 4, B or 1, S).

    Args:
        value: some tensor.
        index: (B, L) of 0 ... S - 1.
        size: S.
    """
    batch, length = index.shape
    if value.dim() == 3 and value.shape[0] in (3, 4) and value.shape[1] in (1, batch):
        if value.shape[2] == size:
            return value.expand(-1, batch, -1).gather(2, index.expand(value.shape[0], -1, -1))
    if value.dim() >= 2 and value.shape[0] in (1, batch) and value.shape[1] == size:
        value = value.expand(batch, *value.shape[1:])
        where = index.view(batch, length, *[1] * (value.dim() - 2))
        return value.gather(1, where.expand(-1, -1, *value.shape[2:]))
    return value
