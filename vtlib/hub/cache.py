"""A cache that knows that it holds a pruned prompt: its layers are shorter than the sequence it
stands for, and each may have a length of its own.

`hold` gives transformers' cache object a class made of its own one, so that it goes through
`generate`, copies and beams as before. Between forwards it tells the length of the whole sequence,
which is what `generate` reckons with when it looks for the new tokens in a returned sequence; and
where no `prune` block leads a forward it refuses to be used, since masks and positions would be
those of the whole sequence.
"""

import functools
from typing import Any, NoReturn

import torch
from torch import Tensor

from .cuts import Run


def held(cache: Any) -> int:
    """How many tokens the first layer of a cache, or of None, really holds."""
    if cache is None:
        return 0
    run = run_of(cache)
    kind = type(cache) if run is None else type(cache).__base__
    return int(kind.get_seq_length(cache))


def run_of(cache: Any) -> Run | None:
    """The prompt that a cache holds; None for a cache that is as transformers made it."""
    return getattr(cache, "pruned_run", None)


def hold(cache: Any, run: Run) -> None:
    """From now on `cache` belongs to `run`."""
    if run_of(cache) is None:
        cache.__class__ = _pruned(type(cache))
    cache.pruned_run = run


def release(cache: Any) -> None:
    """Make an emptied cache what it was."""
    if run_of(cache) is not None:
        cache.__class__ = type(cache).__base__
        del cache.pruned_run


def _refuse_rows(name: str) -> NoReturn:
    raise ValueError(
        f"past_key_values.{name}: the rows of a pruned prompt's cache stay as they are, "
        "since each has lost tokens of its own; repeat the prompt's rows instead"
    )


@functools.cache
def _pruned(kind: type) -> type:
    """The class of a cache of class `kind` that holds a pruned prompt."""

    class PrunedCache(kind):
        def _check(self) -> None:
            if self.pruned_run.turn is None:
                raise ValueError(
                    "past_key_values holds a pruned prompt "
                    f"({held(self)} tokens in its first layer, {self.get_seq_length()} in the "
                    "sequence): it can only go on inside `with prune(...)` of the same model"
                )

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any):
            self._check()
            return super().update(key_states, value_states, *args, **kwargs)

        def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
            """In the decoder those of what a layer holds; otherwise of the whole sequence."""
            length, offset = super().get_mask_sizes(query_length, layer_idx)
            run = self.pruned_run
            inside = run.turn is not None and run.turn.inside
            return (length if inside else length + run.gone(layer_idx)), offset

        def get_seq_length(self, layer_idx: int = 0) -> int:
            """In the decoder what a layer holds; otherwise the length of the sequence."""
            here, run = super().get_seq_length(layer_idx), self.pruned_run
            if not here or (run.turn is not None and run.turn.inside):
                return here
            return here + run.gone(layer_idx)

        def batch_repeat_interleave(self, repeats: int) -> NoReturn:
            _refuse_rows("batch_repeat_interleave")

        def batch_select_indices(self, indices: torch.Tensor) -> NoReturn:
            _refuse_rows("batch_select_indices")

    PrunedCache.__name__ = PrunedCache.__qualname__ = f"Pruned{kind.__name__}"
    return PrunedCache
