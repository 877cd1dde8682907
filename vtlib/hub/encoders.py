"""What transformers' vision towers hand to a pruner, as `VisionOutputs`.

    read(model, inputs, need, attention, hidden) -> [(images, VisionOutputs)]

Images of one size share an entry. How it is read, `tower` says; of what, `llava` and `qwen`.
"""

from collections.abc import Collection, Sequence
from typing import Any

from .general import general
from .hooks import Hooks
from .llava import Llava
from .qwen import Qwen
from .tower import Family, Found, Reads

FAMILIES = {"llava": Llava, "qwen2_5_vl": Qwen}


def family(model: Any) -> Family:
    """What this package knows of a model: `Llava` or `Qwen`, whose towers are read, or `General`.
    ValueError for one that cannot be pruned, with the reason."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind in FAMILIES and hasattr(getattr(model, "model", None), "language_model"):
        known = FAMILIES[kind]
        if known.knows(model):
            return known(model)
    return general(model)


def read(
    model: Any,
    inputs: dict[str, Any],
    need: Collection[str] = (),
    attention: Sequence[int] = (),
    hidden: Sequence[int] = (),
) -> Found:
    """`Family.read` of a model that no block prunes: hooks on, one forward of its tower, hooks off.

    Args:
        model: one that `family` knows.
        inputs: keyword arguments of its forward.
        need: of "cls_row", "keys".
        attention: layers whose maps are wanted, 0-based.
        hidden: hidden states that are wanted, 0 for the embeddings.
    """
    known, hooks = family(model), Hooks()
    reads = Reads(frozenset(need), tuple(attention), tuple(hidden))
    try:
        known.attach(hooks, reads)
        return known.read(inputs, reads)
    finally:
        hooks.remove()
