"""Pictures token by token: how the next token is drawn, and one small decoder that all families
share; and out of noise: one small denoiser. `vtlib.generation.sampling`, `.autoregressive` and
`.diffusion` belong to no paper.
"""

from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__, {
    ".autoregressive": ("AutoregressiveModel",),
    ".diffusion": ("Denoiser", "add_noise", "ddim", "diffusion_loss"),
    ".sampling": (
        "filter_logits", "guidance_ramp", "guidance_steps", "guide", "sample",
    ),
})
