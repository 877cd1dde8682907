"""The plain Vision Transformer, where everything starts."""

from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    __path__,
    {
        "ViT": "vtlib.vit.vit",
        "deit_small": "vtlib.vit.vit",
        "deit_tiny": "vtlib.vit.vit",
        "tiny": "vtlib.vit.vit",
        "vit_base": "vtlib.vit.vit",
        "vit_emoji": "vtlib.vit.pretrained",
    },
)
