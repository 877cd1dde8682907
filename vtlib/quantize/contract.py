"""What every quantiser gives and takes: `Quantized`, and `decode(indices)`.

    result = quantizer(x)                                          x (..., C), channels last
    quantizer.decode(result.indices) == result.codes               bit for bit, training or not
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..nn.checks import check_float, check_index, check_int


@dataclass(frozen=True)
class Quantized:
    """The result of every quantiser, for an input (..., C).

    Args:
        codes: (..., C), what stands for the input. Its values are those of the codes; gradients
            pass to the input.
        indices: (...) long in 0 ... codebook_size - 1, so `cross_entropy` and an embedding take it.
        loss: 0-dim, what training adds to the loss of the model (0 where nothing is to be added).
        usage: 0-dim, the share of all codes that occur in `indices`.
    """

    codes: Tensor
    indices: Tensor
    loss: Tensor
    usage: Tensor


class Quantizer(Protocol):
    """A module whose forward gives `Quantized`, and that turns its indices back into its codes."""

    codebook_size: int

    def __call__(self, x: Tensor) -> Quantized: ...

    def decode(self, indices: Tensor) -> Tensor:
        """indices (...) long -> codes (..., C), bit for bit those that forward returned."""


def straight_through(codes: Tensor, x: Tensor) -> Tensor:
    """The values of `codes` to the last bit, with the gradient of x (finite, the same shape).

    The usual x + (codes - x).detach() is off by a rounding error, and then no longer a code.
    """
    check_float(codes, "codes")
    check_float(x, "x")
    if codes.shape != x.shape:
        raise ValueError(f"codes has shape {tuple(codes.shape)} and x {tuple(x.shape)}")
    return codes.detach() + (x - x.detach()).to(codes.dtype)


def used(indices: Tensor, codebook_size: int) -> Tensor:
    """Share of the codes 0 ... codebook_size - 1 that occur in `indices` (at least one), 0-dim."""
    check_index(indices, "indices")
    codebook_size = check_int(codebook_size, "codebook_size", 1)
    if not indices.numel():
        raise ValueError(f"indices is empty: shape {tuple(indices.shape)}")
    ordered = indices.flatten().sort().values
    distinct = 1 + (ordered[1:] != ordered[:-1]).sum()
    return distinct.to(torch.float32) / codebook_size
