"""What the generators are asked for: each check returns the argument in plain types or raises a
ValueError that names it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ..nn.checks import check_device, check_int, check_number, is_several


def bounds(value: Any, name: str, low: float, high: float) -> tuple[float, float]:
    """A number or (smallest, largest) as an ordered pair inside [low, high].

    Args:
        value: a number or two.
        name: what the message calls it.
        low: the least either may be.
        high: the most either may be.
    """
    needs = f"{name}={value!r}: needs a number or (smallest, largest) between {low} and {high}"
    return _ordered(lambda v: check_number(v, name, low, high), value, needs)


def count_bounds(value: Any, name: str, low: int, high: int) -> tuple[int, int]:
    """An integer or (fewest, most) as an ordered pair of ints inside [low, high].

    Args:
        value: an integer or two.
        name: what the message calls it.
        low: the least either may be.
        high: the most either may be.
    """
    needs = f"{name}={value!r}: needs an integer or (fewest, most) between {low} and {high}"
    return _ordered(lambda v: check_int(v, name, low, high), value, needs)


def _ordered(check: Callable[[Any], Any], value: Any, needs: str) -> tuple[Any, Any]:
    """One value twice, or two that do not fall, each as `check` returns it.

    Args:
        check: of one value; raises a ValueError.
        value: a value or two.
        needs: the message for anything else.
    """
    try:
        least, most = map(check, _as_pair(value))
        if least <= most:
            return least, most
    except ValueError:
        pass
    raise ValueError(needs)


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


def as_device(device: Any) -> torch.device:
    """Where values can be put: None is the CPU, whatever the default device is; "cuda" is the
    current GPU, so equal devices compare as equal. ValueError for the meta device too: data is
    its values."""
    device = check_device(device)
    if device.type == "meta":
        raise ValueError("device='meta' holds no values: data needs a device that does")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device


def _as_pair(value: Any) -> list:
    """One value twice, two values as they are."""
    if isinstance(value, (str, bytes)):
        return []
    return list(value) if is_several(value) else [value, value]
