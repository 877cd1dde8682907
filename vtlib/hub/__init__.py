"""The real world: official checkpoints into vtlib's models. transformers is imported only inside the functions that need it."""

from .official import available, convert_crossformer, convert_timm_crossvit, load_official, resize_positions

__all__ = ["available", "convert_crossformer", "convert_timm_crossvit", "load_official", "resize_positions"]
