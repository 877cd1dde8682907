"""Bad scores, maps, grids and masks end here: a ValueError that names the argument, what it got and
what it needs."""

import numbers
from typing import Any

import torch
from torch import Tensor

from ..nn.checks import check_finite, check_float, check_ints, describe


def check_scores(
    scores: Tensor, name: str = "scores", shape: tuple[int, ...] | None = None
) -> None:
    """Raise unless `scores` is floating and finite, one number a token: (B, N) with B, N >= 1.

    Args:
        scores: what was given.
        name: what the message calls it.
        shape: (B, N) that it must have; None: any.
    """
    check_float(scores, name)
    if scores.dim() != 2 or scores.numel() == 0 or shape not in (None, tuple(scores.shape)):
        needs = "(B, N) with B, N >= 1" if shape is None else f"(B, N) = {shape}"
        raise ValueError(
            f"{name} has shape {tuple(scores.shape)} but needs {needs}: one number a token"
        )
    check_finite(scores, name)


def check_mask(mask: Any, name: str, shape: tuple[int, ...], axes: str = "(B, N)") -> None:
    """Raise unless `mask` is a boolean tensor of this shape.

    Args:
        mask: what was given.
        name: what the message calls it.
        shape: that it must have.
        axes: what each axis is, in brackets.
    """
    shape = tuple(shape)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or tuple(mask.shape) != shape:
        raise ValueError(
            f"{name} is {describe(mask)} but needs to be boolean, {axes} = {shape}"
        )


def check_grid(grid: Any, num_tokens: int | None = None, name: str = "grid") -> tuple[int, int]:
    """`grid` as (rows, columns), two integers of at least 1. ValueError for anything else.

    Args:
        grid: what was given.
        num_tokens: how many places it must have; None: any number.
        name: what the message calls it.
    """
    rows, columns = check_ints(grid, name, 1, 2)
    if num_tokens is not None and rows * columns != num_tokens:
        raise ValueError(
            f"{name}={(rows, columns)} has {rows * columns} places but there are {num_tokens} "
            f"tokens: they need one each"
        )
    return rows, columns


def is_fraction(keep: Any) -> bool:
    """Whether a budget is a fraction: a real number, of Python or NumPy, that is no integer."""
    return isinstance(keep, numbers.Real) and not isinstance(keep, numbers.Integral)
