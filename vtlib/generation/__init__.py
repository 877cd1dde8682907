"""Pictures token by token: how the next token is drawn, and one small decoder that all families
share. `vtlib.generation.sampling` and `vtlib.generation.autoregressive` belong to no paper.
"""

from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__, {
    ".autoregressive": ("AutoregressiveModel",),
    ".sampling": (
        "filter_logits", "guidance_ramp", "guidance_steps", "guide", "sample",
    ),
})
