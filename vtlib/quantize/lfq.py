"""Quantisation to signs, with nothing to look up: LFQ, and BSQ on the sphere.

LFQ: Yu, Lezama, Gundavarapu et al., "Language Model Beats Diffusion: Tokenizer is Key to Visual
Generation" (MAGVIT-v2), 2023, arXiv 2310.05737. BSQ: Zhao, Xiong, Kraehenbuehl, "Image and Video
Tokenization with Binary Spherical Quantization", 2024, arXiv 2406.07548.

    LFQ    u = x            code = sign(u)                  codes of -1 and 1
    BSQ    u = x / |x|      code = sign(u) / sqrt(D)        of length 1 too, never further away than
                                                            |u - code|^2 = 2 - 2 / sqrt(D)

D channels are D bits of an index, the first channel fastest, as in FSQ. sign(0) is -1, for -0.0
too. Encoding a decoded code gives the code again.

A sign alone would leave codes unused, so both papers add an entropy loss on a soft assignment of
temperature t. Since codes are all corners of a box, it falls into one probability a channel:

    q(c | u) = softmax over c of -|u - c|^2 / t = product over d of sigmoid(4 c_d u_d / t)
    loss = beta mean (u - sg(code))^2                                          commitment
           + weight (mean H(q(. | u)) - gamma H(mean q(. | u)))                entropies, in nats

H(q(. | u)) is the sum of the entropies of D bits, `bit_entropy`. H(mean q) is over 2^D codes:
`code_probabilities` finds them all by one product of two matrices with 2^(D/2) columns, so that no
number is kept for each vector and each code. For long codes BSQ adds up the entropies of groups of
`group_size` channels, which is never below the exact value.

Different from BSQ's release and from vector-quantize-pytorch: there the last channel runs fastest.
The release multiplies its entropies by t once more. The library's loss is 0 in evaluation, here it
is the same as in training; its t is 0.01, which leaves a fifth of standard normal vectors of 8
channels without any gradient of the entropies, and 1 here, where all have one.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.checks import check_axes, check_float, check_index, check_int, check_number, describe
from ..tokens.precision import exp_normal, full_precision, widen
from .contract import (
    Quantized,
    check_counted,
    check_digits,
    check_latents,
    digits_to_index,
    index_to_digits,
    straight_through,
    used,
)

MOST_BITS = 62
MOST_EXACT = 20


class Terms(NamedTuple):
    """Parts of the loss, each 0-dim and without its weight.

    Args:
        commitment: mean (u - code)^2 over tokens and channels.
        sample_entropy: mean H(q(. | u)), nats: low when each token is sure of its code.
        codebook_entropy: H(mean q(. | u)), nats: high when all codes are used.
    """

    commitment: Tensor
    sample_entropy: Tensor
    codebook_entropy: Tensor


class LFQ(nn.Module):
    """x (..., D) -> `Quantized` with codes of -1 and 1, without a parameter.

    Args:
        dim: D, channels and bits of an index, 1 to 62.
        group_size: channels whose codes' entropy is taken together, a divisor of dim, at most 20;
            None: all of them, which is exact.
        temperature: t of the soft assignment. For |u| far above t / 4 each sample is sure of its
            code, and for |u| above 26 t float32 has no gradient of the entropies left.
        commitment_weight: beta.
        entropy_weight: of both entropies.
        diversity_weight: gamma, of the codebook's entropy beside the samples'.

    The loss can be negative: it is at least -entropy_weight * diversity_weight * D * log(2). Codes
    have the dtype of the module (`.to(dtype)`), whatever the input's; losses are computed in
    float32 at least. ValueError: sizes or weights out of range, an x that is not floating, not
    finite or has other channels, indices that are not long or out of range.
    """

    scale: Tensor

    def __init__(
        self,
        dim: int,
        group_size: int | None = None,
        temperature: float = 1.0,
        commitment_weight: float = 0.25,
        entropy_weight: float = 0.1,
        diversity_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.dim = check_int(dim, "dim", 1, MOST_BITS)
        self.group_size = self._group(group_size)
        self.temperature = check_number(temperature, "temperature", above=0)
        self.commitment_weight = check_number(commitment_weight, "commitment_weight", 0)
        self.entropy_weight = check_number(entropy_weight, "entropy_weight", 0)
        self.diversity_weight = check_number(diversity_weight, "diversity_weight", 0)
        self.codebook_size = 2**self.dim
        self.counts = (2,) * self.dim
        self.length = self._length()
        scale = torch.tensor(self.length, dtype=torch.float32)
        self.register_buffer("scale", scale, persistent=False)

    def _group(self, group_size: int | None) -> int:
        if group_size is None and self.dim <= MOST_EXACT:
            return self.dim
        divisors = [g for g in range(1, MOST_EXACT + 1) if self.dim % g == 0]
        needs = f"dim={self.dim} needs a group_size of {', '.join(map(str, divisors))}"
        if group_size is None:
            raise ValueError(f"group_size=None is for {MOST_EXACT} channels at most: {needs}")
        size = check_int(group_size, "group_size", 1)
        if size not in divisors:
            raise ValueError(f"group_size={size}: {needs}")
        return size

    def _length(self) -> float:
        return 1.0

    @property
    def bits(self) -> float:
        """Bits of an index, log2 of the number of codes."""
        return float(self.dim)

    def extra_repr(self) -> str:
        return f"{self.dim}, group_size={self.group_size}, temperature={self.temperature}"

    def project(self, x: Tensor) -> Tensor:
        """x (..., D) -> u (..., D), what is compared with codes, in float32 at least."""
        check_latents(x, self.dim)
        return widen(x)

    def logits(self, u: Tensor) -> Tensor:
        """u (..., D) -> log of q(code > 0 | u) / q(code < 0 | u) of each channel, 4 c u / t."""
        return u * (4 * self.length / self.temperature)

    def codes(self, digits: Tensor) -> Tensor:
        """Digits (..., D) long, 0 or 1 -> codes."""
        check_index(digits, "digits", stop=2)
        check_digits(digits, self.dim)
        return (2 * digits - 1).to(self.scale.dtype) * self.scale

    def terms(self, x: Tensor, mask: Tensor | None = None) -> Terms:
        """Commitment and entropies of x (..., D), as they enter the loss but for their weights.

        mask: (...) bool, False where a token does not count, True at least once.
        """
        u = self.project(x)
        if mask is not None:
            check_counted(mask, x.shape[:-1])
        return self._terms(u, x.detach() > 0, mask)

    def _terms(self, u: Tensor, positive: Tensor, mask: Tensor | None) -> Terms:
        u, positive = u.reshape(-1, self.dim), positive.reshape(-1, self.dim)           # (N, D)
        weight = u.new_ones(u.shape[0]) if mask is None else mask.flatten().to(u.dtype)
        weight = weight / weight.sum()
        with full_precision(u.device):
            codes = (2 * positive.long() - 1).to(u.dtype) * self.length
            commitment = ((u - codes) ** 2).mean(dim=-1) @ weight
            logits = self.logits(u)
            sample = bit_entropy(logits).sum(dim=-1) @ weight
            codebook = entropy(code_probabilities(logits, self.group_size, weight)).sum()
        return Terms(commitment, sample, codebook)

    def loss(self, terms: Terms) -> Tensor:
        """The weighted sum of `terms`."""
        uncertainty = terms.sample_entropy - self.diversity_weight * terms.codebook_entropy
        return self.commitment_weight * terms.commitment + self.entropy_weight * uncertainty

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """x (..., D), mask (...) bool: False where a token is not to count in loss and usage."""
        u = self.project(x)
        if mask is not None:
            check_counted(mask, x.shape[:-1])
        positive = x.detach() > 0
        digits = positive.long()
        indices = digits_to_index(digits, self.counts)
        codes = straight_through(self.codes(digits), u)
        loss = self.loss(self._terms(u, positive, mask))
        return Quantized(codes, indices, loss, used(indices, self.codebook_size, mask))

    def decode(self, indices: Tensor) -> Tensor:
        """indices (...) long -> codes (..., D), bit for bit those that forward returned."""
        check_index(indices, "indices", stop=self.codebook_size)
        return self.codes(index_to_digits(indices, self.counts))


class BSQ(LFQ):
    """x (..., D) -> `Quantized` with codes of length 1 on the sphere, without a parameter.

    Args:
        dim: D, channels and bits of an index, 1 to 62. The paper uses 18 and 36.
        group_size: channels whose codes' entropy is taken together, a divisor of dim, at most 20;
            None: all of them, which is exact. The release uses 9 and 1.
        temperature: t of the soft assignment, 1 in the release.
        commitment_weight: beta, 0 in the release: on the sphere no latent is far from its code.
        entropy_weight: of both entropies.
        diversity_weight: gamma, of the codebook's entropy beside the samples'.

    The gradient passes through x / |x|; a zero vector stays zero and its gradient as it is. Losses,
    dtypes and errors as in `LFQ`.
    """

    def __init__(
        self,
        dim: int,
        group_size: int | None = None,
        temperature: float = 1.0,
        commitment_weight: float = 0.0,
        entropy_weight: float = 0.1,
        diversity_weight: float = 1.0,
    ) -> None:
        super().__init__(
            dim, group_size, temperature, commitment_weight, entropy_weight, diversity_weight
        )

    def _length(self) -> float:
        return 1 / math.sqrt(self.dim)

    def project(self, x: Tensor) -> Tensor:
        """x (..., D) -> x / |x|, in float32 at least; a zero vector stays zero."""
        x = super().project(x)
        peak = x.detach().abs().amax(dim=-1, keepdim=True)
        x = x / torch.where(peak > 0, peak, 1)             # no square over- or underflows
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x / torch.where(norm > 0, norm, 1)


# ------------------------------------------------------------------------------------- entropies
def bit_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of bits that are 1 with probability sigmoid(logits), the same shape.

        H = softplus(-a) + a sigmoid(-a),    a = |logit|

    Nothing cancels here: where 1 - sigmoid(a) is 1e-9, H and its gradient are still right.
    """
    check_float(logits, "logits")
    size = widen(logits).abs()
    return F.softplus(-size) + size * torch.sigmoid(-size)


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy in nats over the last axis: (..., K), each row adding up to 1 -> (...). 0 log 0 = 0,
    with a finite gradient."""
    check_float(probabilities, "probabilities")
    least = torch.finfo(probabilities.dtype).tiny
    return -(probabilities * probabilities.clamp_min(least).log()).sum(dim=-1)


def code_probabilities(logits: Tensor, group_size: int, weight: Tensor) -> Tensor:
    """The mean soft assignment to each code, group by group.

        q_g(c) = sum over n of weight_n product over d in group g of sigmoid(+-logit_nd)

    Args:
        logits: (N, D), of the bits.
        group_size: channels of a group, a divisor of D.
        weight: (N,), how much each vector counts, adding up to 1.

    Returns (D / group_size, 2^group_size), codes numbered with the first channel fastest. Memory is
    N * 2^(group_size / 2) for each group, never N * 2^group_size.
    """
    check_axes(logits, "logits", "(N, D)")
    check_axes(weight, "weight", "(N,)")
    if weight.shape[0] != logits.shape[0] or weight.dtype != logits.dtype:
        raise ValueError(f"weight is {describe(weight)} and logits {describe(logits)}: one each")
    size = check_int(group_size, "group_size", 1, MOST_EXACT)
    if logits.shape[1] % size:
        raise ValueError(f"group_size={size} does not divide D = {logits.shape[1]}")
    groups = logits.unflatten(1, (-1, size)).transpose(0, 1)                # (G, N, g)
    half = (size + 1) // 2
    low = _products(groups[..., :half]) * weight[:, None]                   # (G, N, 2^half)
    high = _products(groups[..., half:])                                    # (G, N, 2^(g - half))
    return (high.transpose(1, 2) @ low).flatten(1)                          # (G, 2^g)


def _products(logits: Tensor) -> Tensor:
    """(..., d) logits of bits -> (..., 2^d) probabilities of their combinations."""
    one, zero = F.logsigmoid(logits), F.logsigmoid(-logits)
    total = logits.new_zeros(*logits.shape[:-1], 1)
    for channel in range(logits.shape[-1]):
        ends = slice(channel, channel + 1)
        total = torch.cat([total + zero[..., ends], total + one[..., ends]], dim=-1)
    return exp_normal(total)
