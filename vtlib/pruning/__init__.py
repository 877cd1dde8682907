"""Token pruning and merging for vision-language models: one file a paper, one interface.

The interface is score, select, apply. `vtlib.pruning.registry.METHODS` lists all methods,
baselines included; `vtlib.pruning.bench` runs them on TinyVLM.
"""

from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__)
