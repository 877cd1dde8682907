"""The plain Vision Transformer, where everything starts."""

from .pretrained import vit_emoji
from .vit import ViT, deit_small, deit_tiny, tiny, vit_base

__all__ = ["ViT", "deit_small", "deit_tiny", "tiny", "vit_base", "vit_emoji"]
