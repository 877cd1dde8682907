"""Finite scalar quantisation: every channel is rounded to a few levels, and there is no codebook.

Mentzer, Minnen, Agustsson, Tschannen, "Finite Scalar Quantization: VQ-VAE Made Simple", 2023,
arXiv 2309.15505. A channel with L levels is squashed into L units of length and rounded:

    y = tanh(x + s) h - o,    h = (L - 1)(1 + 0.001) / 2,    o = 1/2 for even L, else 0
    s = atanh(o / h), so that x = 0 gives y = 0
    code = round(y) / floor(L / 2)

The number of a code counts its digits round(y) + floor(L / 2) with the first channel fastest, as
the paper's appendix does. Differences from its code: digits are counted in integers (a sum in
float32 goes wrong beyond 2^24 codes) and numbers are int64; from about a thousand levels on, where
(1 + 0.001) h passes the last level by more than half a unit, digits stay in 0 ... L - 1.

Quantising a code again may give another one: forward squashes whatever it is given.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..nn.checks import check_finite, check_float, check_index, check_ints
from ..tokens.precision import widen
from .contract import Quantized, straight_through, used

SQUEEZE = 1e-3


class FiniteScalar(nn.Module):
    """x (..., C) -> `Quantized`, without a parameter and with loss 0.

    Args:
        levels: (L_1, ..., L_C), how many values each channel takes, 2 at least. The paper uses
            (8, 6, 5) for about 2^8 codes, (8, 5, 5, 5) for 2^10, (7, 5, 5, 5, 5) for 2^12.

    Codes have the dtype of the module (`.to(dtype)`), whatever the input's; they are computed in
    float32 at least. ValueError: levels below 2, more than 2^63 - 1 codes, an x that is not
    floating, not finite or has other channels, indices that are not long or out of range.
    """

    levels: Tensor
    steps: Tensor
    scale: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        counts = check_ints(levels, "levels", 2)
        self.codebook_size = math.prod(counts)
        if not counts or self.codebook_size >= 2**63:
            raise ValueError(f"levels={counts} need 1 channel at least, < 2^63 codes in all")
        steps = [math.prod(counts[:i]) for i in range(len(counts))]
        half = [count // 2 for count in counts]
        self.register_buffer("levels", torch.tensor(counts), persistent=False)
        self.register_buffer("steps", torch.tensor(steps), persistent=False)
        self.register_buffer("scale", torch.tensor(half, dtype=torch.float32), persistent=False)

    def bound(self, x: Tensor) -> Tensor:
        """x (..., C) -> y (..., C) in float32 at least: squashed into L units a channel."""
        check_float(x, "x")
        if x.dim() < 1 or x.shape[-1] != self.levels.shape[0] or 0 in x.shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)} but needs (..., {self.levels.shape[0]}), not empty: "
                f"one channel for each of the levels, channels last"
            )
        check_finite(x, "x")
        x = widen(x)
        half = (self.levels - 1).to(x.dtype) * (1 + SQUEEZE) / 2
        offset = (1 - self.levels % 2).to(x.dtype) / 2
        return torch.tanh(x + torch.atanh(offset / half)) * half - offset

    def codes(self, digits: Tensor) -> Tensor:
        """Digits (..., C) long, 0 ... L - 1 -> codes, from -1 up to 1 (below 1 for even L)."""
        check_index(digits, "digits")
        if digits.dim() < 1 or digits.shape[-1] != self.levels.shape[0]:
            needs = f"needs (..., {self.levels.shape[0]})"
            raise ValueError(f"digits has shape {tuple(digits.shape)}: {needs}")
        return (digits - self.levels // 2).to(self.scale.dtype) / self.scale

    def forward(self, x: Tensor) -> Quantized:
        y = self.bound(x)
        digits = y.detach().round().long() + self.levels // 2
        digits = torch.minimum(digits.clamp(min=0), self.levels - 1)
        indices = (digits * self.steps).sum(dim=-1)
        codes = straight_through(self.codes(digits), y / self.scale)
        return Quantized(codes, indices, codes.new_zeros(()), used(indices, self.codebook_size))

    def decode(self, indices: Tensor) -> Tensor:
        """indices (...) long -> codes (..., C), bit for bit those that forward returned."""
        check_index(indices, "indices", stop=self.codebook_size)
        return self.codes(indices[..., None] // self.steps % self.levels)
