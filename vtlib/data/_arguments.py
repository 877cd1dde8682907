"""What the generators are asked for: each check returns the argument in plain types or raises a
ValueError that names it."""

import math
from collections.abc import Iterable
from typing import Any

import torch

from ..nn.checks import check_int


def as_number(value: Any) -> float | None:
    """A number of Python, NumPy or torch as a float; None for anything else."""
    if isinstance(value, (str, bytes)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def number(value: Any, name: str, low: float = -math.inf, high: float = math.inf) -> float:
    """`value` as a float.

    Args:
        value: a number of Python, NumPy or torch, finite.
        name: what the message calls it.
        low: the smallest value allowed.
        high: the largest value allowed.
    """
    found = as_number(value)
    if found is not None and low <= found <= high and math.isfinite(found):
        return found
    if math.isinf(low):
        needs = "a finite number"
    elif math.isinf(high):
        needs = f"a finite number of at least {low}"
    else:
        needs = f"a number from {low} to {high}"
    raise ValueError(f"{name}={value!r}: needs {needs}")


def bounds(value: Any, name: str, low: float, high: float) -> tuple[float, float]:
    """A number or (smallest, largest) as an ordered pair inside [low, high].

    Args:
        value: a number or two.
        name: what the message calls it.
        low: the least either may be.
        high: the most either may be.
    """
    pair = [as_number(v) for v in _as_pair(value)]
    if len(pair) != 2 or None in pair or not low <= pair[0] <= pair[1] <= high:
        needs = f"a number or (smallest, largest) between {low} and {high}"
        raise ValueError(f"{name}={value!r}: needs {needs}")
    return pair[0], pair[1]


def count_bounds(value: Any, name: str, low: int, high: int) -> tuple[int, int]:
    """An integer or (fewest, most) as an ordered pair of ints inside [low, high].

    Args:
        value: an integer or two.
        name: what the message calls it.
        low: the least either may be.
        high: the most either may be.
    """
    try:
        few, many = (check_int(v, name, low, high) for v in _as_pair(value))
        if few <= many:
            return few, many
    except ValueError:
        pass
    needs = f"an integer or (fewest, most) between {low} and {high}"
    raise ValueError(f"{name}={value!r}: needs {needs}")


def image_size(size: Any, name: str = "size") -> tuple[int, int]:
    """An int or (H, W) as two positive ints."""
    try:
        height, width = (check_int(s, name, 1) for s in _as_pair(size))
    except ValueError:
        message = f"{name}={size!r}: needs a positive int or (height, width)"
        raise ValueError(message) from None
    return height, width


def one_of(value: Any, name: str, known: Iterable[str]) -> str:
    """`value`, if it is one of the words in `known`.

    Args:
        value: what was given.
        name: what the message calls it.
        known: the words allowed.
    """
    known = list(known)
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name}={value!r}: needs one of {', '.join(known)}")
    return value


def as_list(value: Any, name: str, what: str = "a list of names") -> list:
    """A list, tuple or the like of things; a string is none.

    Args:
        value: what was given.
        name: what the message calls it.
        what: what the message asks for.
    """
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise ValueError(f"{name}={value!r}: needs {what}")
    return list(value)


def as_device(device: Any) -> torch.device:
    """None is the CPU, whatever the default device is; "cuda" is the current GPU.

    So equal devices compare as equal.
    """
    try:
        device = torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={device!r}: {str(error).splitlines()[0]}") from None
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device


def _as_pair(value: Any) -> list:
    """One value twice, two values as they are."""
    if isinstance(value, (str, bytes)):
        return []
    if getattr(value, "ndim", None) == 0 or not isinstance(value, Iterable):
        return [value, value]
    return list(value)
