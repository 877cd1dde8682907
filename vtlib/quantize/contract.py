"""What every quantiser gives and takes: `Quantized`, and `decode(indices)`.

    result = quantizer(x)                                          x (..., C), channels last
    quantizer.decode(result.indices) == result.codes               bit for bit, training or not

A product quantiser gives each channel digits of its own; `digits_to_index` makes one number of
them, the same way in all of them: the first channel runs fastest.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..nn.checks import (
    at_hand,
    check_channels,
    check_finite,
    check_float,
    check_index,
    check_int,
    check_ints,
)
from ..tokens.checks import check_mask
from ..tokens.precision import widen


@dataclass(frozen=True)
class Quantized:
    """The result of every quantiser, for an input (..., C).

    Args:
        codes: (..., C), what stands for the input. Its values are those of the codes; gradients
            pass to the input.
        indices: (...) long in 0 ... codebook_size - 1, so `cross_entropy` and an embedding take it;
            (..., C) where every channel has a codebook of its own.
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
    _check_pair(codes, x)
    return codes.detach() + (x - x.detach()).to(codes.dtype)


def rotation(codes: Tensor, x: Tensor) -> Tensor:
    """The values of `codes` to the last bit, with the gradient of x turned and stretched onto them:
    codes = (|q| / |x|) R x, where R is the rotation in the plane of x and q = codes.

        R = 1 - 2 w w^T + 2 q^ x^^T,    x^ = x / |x|,  q^ = q / |q|,  w = (x^ + q^) / |x^ + q^|

    Fifty, Junkins, Duan, Iyengar, Liu, Amid, Thrun, Re, "Restructuring Vector Quantization with the
    Rotation Trick", 2024, arXiv 2410.06424, section 4.2. R and the factor get no gradient. A vector
    of zeros has no direction: there the gradient passes straight through. codes and x (..., C) are
    finite and of one shape. ValueError otherwise, and where they are not floating.
    """
    _check_pair(codes, x)
    if codes.dim() < 1:
        raise ValueError("codes and x are numbers but need channels: (..., C)")
    wide = widen(x)
    source, target = wide.detach(), codes.detach().to(wide.dtype)
    length = torch.linalg.vector_norm(source, dim=-1, keepdim=True)
    stretch = torch.linalg.vector_norm(target, dim=-1, keepdim=True) / length
    source, target = (torch.nn.functional.normalize(t, dim=-1) for t in (source, target))
    between = torch.nn.functional.normalize(source + target, dim=-1)
    turned = wide - 2 * between * (wide * between).sum(dim=-1, keepdim=True)
    turned = turned + 2 * target * (wide * source).sum(dim=-1, keepdim=True)
    known = stretch.isfinite()
    turned = torch.where(known, turned * torch.where(known, stretch, 0), wide)
    return straight_through(codes, turned)


def _check_pair(codes: Tensor, x: Tensor) -> None:
    check_float(codes, "codes")
    check_float(x, "x")
    if codes.shape != x.shape:
        raise ValueError(f"codes has shape {tuple(codes.shape)} and x {tuple(x.shape)}")


def used(indices: Tensor, codebook_size: int, mask: Tensor | None = None) -> Tensor:
    """Share of the codes 0 ... codebook_size - 1 that occur in `indices`, 0-dim.

    Args:
        indices: (...) long, at least one.
        codebook_size: how many codes there are.
        mask: (...) bool, True for the indices that count, at least one; None: all.
    """
    check_index(indices, "indices")
    codebook_size = check_int(codebook_size, "codebook_size", 1)
    if not indices.numel():
        raise ValueError(f"indices is empty: shape {tuple(indices.shape)}")
    given = indices.flatten()
    if mask is not None:
        check_counted(mask, indices.shape)
        given = given.masked_fill(~mask.flatten(), -1)
    ordered = given.sort().values
    first = ordered[:1] >= 0
    changes = (ordered[1:] != ordered[:-1]) & (ordered[1:] >= 0)
    return (first.sum() + changes.sum()).to(torch.float32) / codebook_size


def perplexity(indices: Tensor, codebook_size: int, mask: Tensor | None = None) -> Tensor:
    """exp(H) of how often each code occurs in `indices`, 0-dim: as many codes, all used alike,
    would be as hard to guess. From 1 up to codebook_size, where all codes are used alike.

    Args:
        indices: (...) long, at least one.
        codebook_size: how many codes there are.
        mask: (...) bool, True for the indices that count, at least one; None: all.
    """
    codebook_size = check_int(codebook_size, "codebook_size", 1)
    check_index(indices, "indices", stop=codebook_size)
    if not indices.numel():
        raise ValueError(f"indices is empty: shape {tuple(indices.shape)}")
    flat = indices.flatten()
    weight = torch.ones_like(flat, dtype=torch.float32)
    if mask is not None:
        check_counted(mask, indices.shape)
        weight = mask.flatten().to(torch.float32)
    hits = weight.new_zeros(codebook_size).index_add(0, flat, weight)
    return torch.special.entr(hits / hits.sum()).sum().exp()


def check_latents(x: Tensor, dim: int, name: str = "x") -> None:
    """Raise unless `x` is floating (..., dim), finite and not empty.

    Args:
        x: what was given.
        dim: the channels that are needed.
        name: what the message calls it.
    """
    check_channels(x, dim, name)
    if 0 in x.shape:
        raise ValueError(f"{name} has shape {tuple(x.shape)} but needs (..., {dim}), not empty")
    check_finite(x, name)


def check_counted(mask: Tensor, shape: torch.Size) -> None:
    """Raise unless `mask` is boolean, of this shape, and True somewhere (seen on the CPU only)."""
    check_mask(mask, "mask", shape, "(...)")
    if at_hand(mask) and not mask.any():
        raise ValueError("mask is False everywhere: needs one True at least")


# ------------------------------------------------------------------------ digits of a product
def check_levels(levels: Sequence[int], name: str = "levels", least: int = 1) -> tuple[int, ...]:
    """`levels` (L_1, ..., L_C) as a tuple, C >= 1. ValueError for an L below `least`, and for
    2^63 products or more: an int64 could not count them.

    Args:
        levels: how many values each channel takes.
        name: what the message calls it.
        least: the smallest L allowed.
    """
    counts = check_ints(levels, name, least)
    if not counts or math.prod(counts) >= 2**63:
        raise ValueError(f"{name}={counts} need 1 channel at least, < 2^63 codes in all")
    return counts


def check_digits(digits: Tensor, channels: int, name: str = "digits") -> None:
    """Raise unless `digits` is long (..., channels).

    Args:
        digits: what was given.
        channels: how many are needed.
        name: what the message calls it.
    """
    check_index(digits, name)
    if digits.dim() < 1 or digits.shape[-1] != channels:
        shape = tuple(digits.shape)
        raise ValueError(f"{name} has shape {shape}: needs (..., {channels}), one index a channel")


def digits_to_index(digits: Tensor, levels: Sequence[int]) -> Tensor:
    """Digits (..., C) long, the c-th in 0 ... L_c - 1 -> their number (...) long.

        index = d_1 + L_1 (d_2 + L_2 (d_3 + ...))            the first channel runs fastest

    It is counted in integers, so it is exact up to 2^63 - 1 (a sum in float32 goes wrong beyond
    2^24 codes). `index_to_digits` is its inverse. ValueError: digits of another shape or, on the
    CPU, out of range; levels as in `check_levels`.
    """
    counts = check_levels(levels)
    check_digits(digits, len(counts))
    for channel, count in enumerate(counts):
        check_index(digits[..., channel], f"digits[..., {channel}]", stop=count)
    index = digits[..., -1]
    for channel in range(len(counts) - 2, -1, -1):
        index = index * counts[channel] + digits[..., channel]
    return index


def index_to_digits(index: Tensor, levels: Sequence[int]) -> Tensor:
    """Numbers (...) long, below the product of the levels -> digits (..., C) long.

        d_1 = index mod L_1,  d_2 = (index div L_1) mod L_2, ...     the first channel runs fastest

    The inverse of `digits_to_index`. ValueError: no int64 or, on the CPU, out of range; levels as
    in `check_levels`.
    """
    counts = check_levels(levels)
    check_index(index, "index", stop=math.prod(counts))
    digits = []
    for count in counts:
        digits.append(index % count)
        index = index // count
    return torch.stack(digits, dim=-1)
