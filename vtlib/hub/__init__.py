"""The real world: official checkpoints into vtlib's models, and vtlib's methods into transformers'
models.

transformers is imported only inside the functions that need it.
"""

from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__, {
    ".clip": ("merge_tokens", "question_signals"),
    ".dense": ("Dropping", "Merging", "hourglass"),
    ".dino": ("tinyvlm_dino",),
    ".official": (
        "available", "convert_crossformer", "convert_timm_crossvit", "load_official",
        "resize_positions",
    ),
    ".pruning": ("prune",),
    ".recogniser": ("ocr",),
    ".sentence": ("MiniLMText", "minilm_text"),
    ".teacher": ("dino_teacher",),
    ".weights": ("real", "real_missing", "real_tokenizer"),
})
