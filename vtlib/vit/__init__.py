"""The plain Vision Transformer, where everything starts."""

from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__, {
    ".pretrained": ("vit_emoji",),
    ".vit": ("ViT", "deit_small", "deit_tiny", "tiny", "vit_base"),
})
