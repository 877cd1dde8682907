"""The real world: official checkpoints into vtlib's models, and vtlib's methods into transformers'
models.

transformers is imported only inside the functions that need it.
"""

from .._lazy import lazy

EXPORTS = {
    "prune": "vtlib.hub.pruning",
    "merge_tokens": "vtlib.hub.clip",
    "question_signals": "vtlib.hub.clip",
    "available": "vtlib.hub.official",
    "convert_crossformer": "vtlib.hub.official",
    "convert_timm_crossvit": "vtlib.hub.official",
    "load_official": "vtlib.hub.official",
    "resize_positions": "vtlib.hub.official",
}

__getattr__, __dir__, __all__ = lazy(__name__, __path__, EXPORTS)
