"""Bad scores end here: a ValueError that names the argument, what it got and what it needs."""

import numbers
from typing import Any

from torch import Tensor

from ..nn.checks import check_finite, check_float


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


def is_fraction(keep: Any) -> bool:
    """Whether a budget is a fraction: a real number, of Python or NumPy, that is no integer."""
    return isinstance(keep, numbers.Real) and not isinstance(keep, numbers.Integral)
