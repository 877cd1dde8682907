"""Three answers to "which scale should a token have?": CrossViT, CrossFormer, TokenFormer.

Import the paper's module: `from vtlib.multiscale import crossvit`.
"""

from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__)
