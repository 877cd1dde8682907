"""The real world: official checkpoints into vtlib's models, and vtlib's methods into transformers' models.

transformers is imported only inside the functions that need it.
"""

from .clip import merge_tokens, question_signals
from .official import (
    available,
    convert_crossformer,
    convert_timm_crossvit,
    load_official,
    resize_positions,
)
from .pruning import prune

__all__ = [
    "available",
    "convert_crossformer",
    "convert_timm_crossvit",
    "load_official",
    "merge_tokens",
    "prune",
    "question_signals",
    "resize_positions",
]
