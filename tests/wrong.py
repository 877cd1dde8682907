"""What no argument of a function is: whatever comes in, a ValueError comes out, or a result. For a
flag and for a function only flags and functions give one."""

import numpy as np
import torch

WRONG = {
    "None": None,
    "an int": 3,
    "a negative int": -1,
    "a float": 2.5,
    "NaN": float("nan"),
    "a str": "x",
    "a bool": True,
    "a list": [1, 2],
    "a list of floats": [0.5, 0.5],
    "a tuple of str": ("a", "b"),
    "a dict": {},
    "an object": object(),
    "an array": np.ones((2, 3)),
    "a number": torch.tensor(1.5),
    "an empty tensor": torch.zeros(0),
    "no tokens": torch.zeros(2, 0, 4),
    "no channels": torch.zeros(2, 3, 0),
    "bools": torch.ones(2, 3, dtype=torch.bool),
}


def changed(value):
    """{what: value} like a tensor that fits, and not quite."""
    if not isinstance(value, torch.Tensor):
        return {}
    return {
        "float64": value.double(),
        "halves": value.half(),
        "integers": value.long(),
        "int32": value.int(),
        "complex": value.to(torch.complex64),
        "an axis less": value[0] if value.dim() else value,
        "an axis more": value[None],
        "fewer images": value[:1],
        "shorter": value[..., :-1],
        "NaN inside": torch.full_like(value, torch.nan) if value.is_floating_point() else value,
        "far away": value + 999 if value.dtype == torch.long else value,
        "negative": -1 - value if value.dtype == torch.long else value,
    }


def raw_errors(function, fits, part=False):
    """[(argument, what it got, the error)]: errors that are no ValueError, each argument of a call
    that fits replaced by what does not; flags and functions that may be anything.

    part: it is a part of a net: the net has asked for the dtype at its door.
    """
    function(**fits)
    found = []
    for name, value in fits.items():
        if isinstance(value, bool):
            function(**{**fits, name: np.bool_(value)})
        for what, wrong in {**WRONG, **changed(value)}.items():
            if part and what in ("float64", "halves"):
                continue
            try:
                function(**{**fits, name: wrong})
            except ValueError:
                continue
            except Exception as error:
                found.append((name, what, f"{type(error).__name__}: {error}"[:100]))
            else:
                if isinstance(value, bool) and not isinstance(wrong, bool):
                    found.append((name, what, "passes for a flag"))
                if callable(value) and wrong is not None and not callable(wrong):
                    found.append((name, what, "passes for a function"))
    return found
