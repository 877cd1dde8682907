"""Dimension-wise quantisation after training: each channel of a trained VAE's latents on its own.

Wang et al., "Bridging Continuous and Discrete Tokens for Autoregressive Visual Generation"
(TokenBridge), 2025, arXiv 2503.16430. Nothing is trained and nothing is fitted: a KL term has made
the latents about Gaussian, so the values that a channel may take are those of a Gaussian cut into B
bins of equal probability (Phi, phi: distribution and density of N(0, 1)).

    b_i = Phi^-1(i / B) clamped to [-r, r],  i = 0 ... B                         `gaussian_bins`
    g_i = E[n | b_i < n < b_i+1] = (phi(b_i) - phi(b_i+1)) / (Phi(b_i+1) - Phi(b_i))
    value_i = low + (g_i + r) / (2 r) (high - low)
    index = argmin over i of |g_i - n|,  n = 2 r (x - low) / (high - low) - r    the lower in a tie

The bins are of equal probability for latents of deviation (high - low) / (2 r), so 5/3 for the
paper's range of -5 ... 5 and r = 3; what is beyond the range takes the outermost value. The nearest
value is taken, which near an edge of a bin need not be the bin's own.

Each channel keeps its own index: indices are (..., C), since 64^16 vectors of a picture's place
have no number in 64 bits. Where they have one, `digits_to_index(indices, (levels,) * dim)` gives
it. Encoding a decoded value gives its index again.

Different from the release: bins are computed in float64, where in float32 the halves differ by
rounding; the nearest value is found by bisection, with no number for each latent and each value;
B so large that a bin has no width is an error (741 for r = 3; the release then gives a value of 0).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.checks import check_index, check_int, check_list, check_number, check_numbers, is_several
from ..tokens.precision import widen
from .contract import (
    Quantized,
    check_counted,
    check_digits,
    check_latents,
    straight_through,
    used,
)


def gaussian_bins(levels: int, r: float = 3.0) -> tuple[Tensor, Tensor]:
    """Edges (levels + 1,) of bins of N(0, 1) with equal probability, clamped to [-r, r], and the
    mean (levels,) of N(0, 1) in each, in float64. Both are antisymmetric to the bit.

    ValueError: fewer than 2 levels, or so many that a bin lies beyond r.
    """
    levels = check_int(levels, "levels", 2)
    r = check_number(r, "r", above=0)
    tail = math.erfc(r / math.sqrt(2)) / 2
    if levels * tail >= 1:
        raise ValueError(
            f"levels={levels}: the outermost bin lies beyond r={r}, at most "
            f"{math.ceil(1 / tail) - 1} levels have a width"
        )
    share = torch.arange(levels + 1, dtype=torch.float64, device="cpu") / levels
    edges = torch.special.ndtri(share).clamp(-r, r)
    edges = (edges - edges.flip(0)) / 2
    density = torch.exp(-edges.square() / 2) / math.sqrt(2 * math.pi)
    means = -density.diff() / torch.special.ndtr(edges).diff()
    return edges, (means - means.flip(0)) / 2


class DimensionWise(nn.Module):
    """Latents (..., C) -> `Quantized` with indices (..., C), without a parameter and with loss 0.

    Args:
        dim: C, the latents' channels.
        levels: B, how many values a channel may take; the paper uses 8 to 64.
        limits: (low, high) of all channels, or one pair for each, in the latents' own units. For
            latents that are far from unit Gaussians, mean +- r times the deviation of each channel
            gives bins of equal probability.
        r: where the Gaussian is cut, in deviations.

    `codebook_size` is B, of one channel; `usage` is the share of all C * B pairs of channel and
    value. Codes have the dtype of the module (`.to(dtype)`), whatever the latents'; distances are
    computed in float32 at least. ValueError: sizes out of range, limits that
    do not grow, an x that is not floating, not finite or has other channels, indices that are not
    long (..., C) or out of range.
    """

    values: Tensor
    _middle: Tensor
    _pairs: Tensor

    def __init__(
        self,
        dim: int,
        levels: int = 64,
        limits: Sequence[float] | Sequence[Sequence[float]] | Tensor = (-5.0, 5.0),
        r: float = 3.0,
    ) -> None:
        super().__init__()
        self.dim = check_int(dim, "dim", 1)
        self.r = check_number(r, "r", above=0)
        self.codebook_size = check_int(levels, "levels", 2)
        means = gaussian_bins(self.codebook_size, self.r)[1]
        self.limits = _limits(limits, self.dim)
        pairs = torch.tensor(self.limits, dtype=torch.float64, device="cpu").T      # (2, C)
        low, high = pairs[:, :, None]
        values = low + (means + self.r) / (2 * self.r) * (high - low)               # (C, B)
        device = torch.empty(0).device                         # where a parameter would be made
        self.register_buffer("values", values.float().to(device), persistent=False)
        # bits of float32 numbers: `.to(dtype)` is for the codes, the search is in float32 at least
        middle = means[:-1] + means.diff() / 2
        middle, pairs = (t.float().view(torch.int32).to(device) for t in (middle, pairs))
        self.register_buffer("_middle", middle, persistent=False)
        self.register_buffer("_pairs", pairs, persistent=False)

    @property
    def bits(self) -> float:
        """Bits of a vector, dim * log2(levels)."""
        return self.dim * math.log2(self.codebook_size)

    def extra_repr(self) -> str:
        return f"{self.dim}, levels={self.codebook_size}, r={self.r}"

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """x (..., C), mask (...) bool: False where a token is not to count in `usage`."""
        check_latents(x, self.dim)
        indices = self._nearest(x.detach())
        codes = straight_through(self.decode(indices), x)
        pairs = indices + self.codebook_size * torch.arange(self.dim, device=x.device)
        if mask is not None:
            check_counted(mask, x.shape[:-1])
            mask = mask[..., None].expand(pairs.shape)
        usage = used(pairs, self.dim * self.codebook_size, mask)
        return Quantized(codes, indices, codes.new_zeros(()), usage)

    def _nearest(self, x: Tensor) -> Tensor:
        x = widen(x)
        low, high = self._pairs.view(torch.float32).to(x.dtype)
        middle = self._middle.view(torch.float32).to(x.dtype)
        x = (x - low) / (high - low) * (2 * self.r) - self.r                        # in deviations
        return torch.bucketize(x.contiguous(), middle)                # on an edge: the lower index

    def decode(self, indices: Tensor) -> Tensor:
        """indices (..., C) long -> codes (..., C), bit for bit those that forward returned."""
        check_index(indices, "indices", stop=self.codebook_size)
        check_digits(indices, self.dim, "indices")
        return self.values[torch.arange(self.dim, device=indices.device), indices]


def _limits(limits: Any, dim: int) -> list[tuple[float, ...]]:
    """One (low, high) for each channel."""
    entries = limits.tolist() if isinstance(limits, Tensor) and not limits.is_meta else limits
    listed = check_list(entries, "limits", "(low, high), or one pair a channel")
    several = any(is_several(entry) for entry in listed)
    pairs = listed if several else [listed] * dim
    if len(pairs) != dim:
        raise ValueError(f"limits has {len(pairs)} pairs but dim={dim}: needs one, or one each")
    checked = [check_numbers(pair, "limits", length=2) for pair in pairs]
    for low, high in checked:
        if not low < high:
            raise ValueError(f"limits={low, high}: needs low < high")
    return checked
