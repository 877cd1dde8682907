"""What the generators are asked for: each check returns the argument in plain types or raises a
ValueError that names it."""

from collections.abc import Iterable
from typing import Any

import torch

from ..nn.checks import check_device, check_int, check_number


def bounds(value: Any, name: str, low: float, high: float) -> tuple[float, float]:
    """A number or (smallest, largest) as an ordered pair inside [low, high].

    Args:
        value: a number or two.
        name: what the message calls it.
        low: the least either may be.
        high: the most either may be.
    """
    try:
        least, most = (check_number(v, name, low, high) for v in _as_pair(value))
        if least <= most:
            return least, most
    except ValueError:
        pass
    needs = f"a number or (smallest, largest) between {low} and {high}"
    raise ValueError(f"{name}={value!r}: needs {needs}")


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
    if isinstance(value, (str, bytes)) or not is_several(value):
        raise ValueError(f"{name}={value!r}: needs {what}")
    return list(value)


def is_several(value: Any) -> bool:
    """Whether it has entries: a list, say; an array or a tensor without axes has none."""
    return isinstance(value, Iterable) and getattr(value, "ndim", None) != 0


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
