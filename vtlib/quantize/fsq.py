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

Quantising a code again may give another one: tanh squashes whatever it is given. Of all codes of
(8, 5, 5, 5) half come back the same. A channel of 3 or of 5 levels gives each of its codes again,
one of any other number of levels does not. `bound="linear"` takes the same codes and squashes
nothing between the outermost two, so that every code of any levels comes back (not in the paper):

    y = floor(L / 2) (c + tanh(x - c)),  c = x clamped to the outermost codes
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..nn.checks import check_index
from ..tokens.precision import widen
from .contract import (
    Quantized,
    check_digits,
    check_latents,
    check_levels,
    digits_to_index,
    index_to_digits,
    straight_through,
    used,
)

SQUEEZE = 1e-3
BOUNDS = "tanh", "linear"


class FSQ(nn.Module):
    """x (..., C) -> `Quantized`, without a parameter and with loss 0.

    Args:
        levels: (L_1, ..., L_C), how many values each channel takes, 2 at least. The paper uses
            (8, 6, 5) for about 2^8 codes, (8, 5, 5, 5) for 2^10, (7, 5, 5, 5, 5) for 2^12.
        bound: "tanh", the paper's, or "linear", which gives every decoded code again (a module in
            bfloat16: up to 512 levels a channel, more its numbers cannot tell apart). Its gradient
            is that of x between the outermost codes and falls as that of tanh beyond them.

    Codes have the dtype of the module (`.to(dtype)`), whatever the input's; they are computed in
    float32 at least. ValueError: levels below 2, more than 2^63 - 1 codes, an x that is not
    floating, not finite or has other channels, indices that are not long or out of range.
    """

    levels: Tensor
    scale: Tensor

    def __init__(self, levels: Sequence[int], bound: str = "tanh") -> None:
        super().__init__()
        self.counts = check_levels(levels, least=2)
        if bound not in BOUNDS:
            raise ValueError(f"bound={bound!r}: needs one of {', '.join(BOUNDS)}")
        self.kind = bound
        self.codebook_size = math.prod(self.counts)
        half = [count // 2 for count in self.counts]
        self.register_buffer("levels", torch.tensor(self.counts), persistent=False)
        self.register_buffer("scale", torch.tensor(half, dtype=torch.float32), persistent=False)

    @property
    def bits(self) -> float:
        """Bits of an index, log2 of the number of codes."""
        return math.log2(self.codebook_size)

    def extra_repr(self) -> str:
        return f"levels={self.counts}, bound={self.kind!r}"

    def bound(self, x: Tensor) -> Tensor:
        """x (..., C) -> y (..., C) in float32 at least: squashed into L units a channel."""
        check_latents(x, len(self.counts))
        x = widen(x)
        if self.kind == "linear":
            return self._bend(x)
        half = (self.levels - 1).to(x.dtype) * (1 + SQUEEZE) / 2
        offset = (1 - self.levels % 2).to(x.dtype) / 2
        return torch.tanh(x + torch.atanh(offset / half)) * half - offset

    def _bend(self, x: Tensor) -> Tensor:
        half = (self.levels // 2).to(x.dtype)
        high = (self.levels - 1 - self.levels // 2).to(x.dtype)
        inside = torch.minimum(x * half, high).maximum(-half)
        return inside + torch.tanh(x - inside / half) * half

    def codes(self, digits: Tensor) -> Tensor:
        """Digits (..., C) long, 0 ... L - 1 -> codes, from -1 up to 1 (below 1 for even L)."""
        check_digits(digits, len(self.counts))
        return (digits - self.levels // 2).to(self.scale.dtype) / self.scale

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """x (..., C), mask (...) bool: False where a token is not to count in `usage`."""
        y = self.bound(x)
        digits = y.detach().round().long() + self.levels // 2
        digits = torch.minimum(digits.clamp(min=0), self.levels - 1)
        indices = digits_to_index(digits, self.counts)
        codes = straight_through(self.codes(digits), y / self.scale)
        usage = used(indices, self.codebook_size, mask)
        return Quantized(codes, indices, codes.new_zeros(()), usage)

    def decode(self, indices: Tensor) -> Tensor:
        """indices (...) long -> codes (..., C), bit for bit those that forward returned."""
        check_index(indices, "indices", stop=self.codebook_size)
        return self.codes(index_to_digits(indices, self.counts))
