"""How smooth a latent space is, which HieraTok (arXiv 2509.23736) says becomes better with scales.
How it measures that is not known; this measure is ours, and fits any tokenizer."""

import torch
from torch import Tensor

from ..nn.checks import check_finite, check_float, check_generator, check_number
from ..tokens.precision import widen
from .base import Tokenizer


@torch.no_grad()
def roughness(
    tokenizer: Tokenizer,
    codes: Tensor,
    step: float = 0.1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """How much the picture changes where latents change a little, 0-dim:

        rms(decode(z + step * spread * noise) - decode(z)) / step

    with the spread of each channel over all latents. A smoother space has less. It compares
    tokenizers at the same step; how evenly latents lie is another question.

    Args:
        tokenizer: any whose `decode` takes the codes.
        codes: (B, ..., C), latents of several images.
        step: size of the change, in spreads.
        generator: of the noise, on the device of the codes.
    """
    check_float(codes, "codes")
    if codes.dim() < 3 or 0 in codes.shape:
        raise ValueError(f"codes has shape {tuple(codes.shape)} but needs (B, ..., C), not empty")
    check_finite(codes, "codes")
    step = check_number(step, "step", above=0)
    check_generator(generator, optional=True)
    wide = widen(codes)
    spread = wide.flatten(0, -2).std(dim=0, correction=0)                        # c
    noise = torch.empty_like(wide).normal_(generator=generator)
    moved = (wide + step * spread * noise).to(codes.dtype)
    change = widen(tokenizer.decode(moved)) - widen(tokenizer.decode(codes))
    return change.square().mean().sqrt() / step
