"""The registry of exercises and the comparison that explains what is off.

One module per paper (`divprune.py` holds the exercises on DivPrune; `basics.py` those of notebook 00), imported when one of
its names is first asked for; its name is the prefix of theirs:

    @check("divprune.greedy", reference=greedy)
    def _(fn):
        causes = {"the indices are sorted; the order of choice is wanted here": want.sort().values}
        expect(fn(tokens, 6), want, what="the choice of 6", mistakes=causes)
"""

import importlib
import importlib.util
import math
import pkgutil
import re
import sys
import types
from collections.abc import Callable
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

__all__ = ["Wrong", "check", "expect", "expect_error", "get", "names", "untouched"]


class _Entry(NamedTuple):
    reference: Callable
    check: Callable
    module: str
    body: types.CodeType


_REGISTRY: dict[str, _Entry] = {}


class Wrong(AssertionError):
    """A learner's answer that a check turned down; the message says what was found, what was expected and the likely cause."""


# ---------------------------------------------------------------------------------------------------------------- registry


def check(name: str, reference: Callable):
    """Decorator that registers a check under `name` ("paper.topic"): it gets the learner's function and raises `Wrong`.

    reference: what `teach.exercise` hands back while the exercise is not attempted. A module that runs again (`reload`, a
    notebook's cell) replaces its own entries. ValueError for a malformed name, or one that is registered already.
    """
    if not re.fullmatch(r"[a-z]\w*\.[a-z]\w*", name):
        raise ValueError(f"name={name!r}: needs the paper's module, a dot and a topic, like 'divprune.greedy'")
    caller = sys._getframe(1)
    module, body = caller.f_globals.get("__name__"), caller.f_code
    known = _REGISTRY.get(name)
    if known is not None:
        # a module's code is another object each time it runs, and twice the same one where a name stands in it twice
        again = body.co_name.startswith("<") and known.module == module and known.body is not body
        if not again:
            raise ValueError(
                f"name={name!r} is registered already, by {known.module}; each exercise needs a name of its own"
            )

    def register(run):
        _REGISTRY[name] = _Entry(reference, run, module, body)
        return run

    return register


def _load(paper: str) -> None:
    module = f"{__name__}.{paper}"
    if importlib.util.find_spec(module) is not None:
        importlib.import_module(module)


def names(paper: str | None = None) -> list[str]:
    """Names of the exercises of one paper ("divprune"), or of all papers, in the order of their registration."""
    if paper is None:
        for module in pkgutil.iter_modules(__path__):
            _load(module.name)
        return list(_REGISTRY)
    _load(paper)
    return [name for name in _REGISTRY if name.startswith(f"{paper}.")]


def get(name: str) -> tuple[Callable, Callable]:
    """(reference, check) of the exercise called `name`. ValueError lists the names there are when it is unknown."""
    if name not in _REGISTRY:
        known = names(name.partition(".")[0])
        if name not in _REGISTRY:
            raise ValueError(f"name={name!r}: no such exercise; there are: {', '.join(known or names()) or 'none'}")
    entry = _REGISTRY[name]
    return entry.reference, entry.check


# -------------------------------------------------------------------------------------------------------------- comparison


def _kind(value) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"a numpy array of shape {value.shape}"
    if isinstance(value, (tuple, list, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _number(value) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _head(tensor: torch.Tensor, count: int = 5) -> str:
    values = tensor.flatten()[:count].tolist()
    return f"[{', '.join(_number(v) for v in values)}{', ...' if tensor.numel() > count else ''}]"


def _is_number(value) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _scalar(value):
    """A one-element tensor or a numpy number counts as the Python number it holds."""
    if isinstance(value, torch.Tensor) and value.ndim == 0:
        return value.item()
    return value.item() if isinstance(value, np.generic) else value


def _same(a, b, atol: float, rtol: float) -> bool:
    """Whether two values agree in structure, shape and numbers (dtype and device aside)."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.shape != b.shape:
            return False
        a, b = a.detach().cpu(), b.detach().cpu()
        if not (a.is_floating_point() or b.is_floating_point() or a.is_complex() or b.is_complex()):
            return torch.equal(a.long(), b.long())
        wide = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
        return torch.allclose(a.to(wide), b.to(wide), atol=atol, rtol=rtol, equal_nan=True)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(_same(x, y, atol, rtol) for x, y in zip(a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key], atol, rtol) for key in a)
    a, b = _scalar(a), _scalar(b)
    if _is_number(a) and _is_number(b):
        return math.isclose(a, b, rel_tol=rtol, abs_tol=atol) or (math.isnan(a) and math.isnan(b))
    return type(a) is type(b) and bool(a == b)


def _cause(got, mistakes, atol, rtol) -> str | None:
    for message, wrong in (mistakes or {}).items():
        if callable(wrong) and not isinstance(wrong, torch.Tensor):
            wrong = wrong()
        if _same(got, wrong, atol, rtol):
            return message
    return None


def _shape_cause(got: torch.Tensor, want: torch.Tensor) -> str | None:
    found, needed = tuple(got.shape), tuple(want.shape)
    if sorted(found) == sorted(needed):
        return "the axes are there, in another order"
    if [n for n in found if n != 1] == [n for n in needed if n != 1]:
        return "an axis of length 1 is too many or missing"
    if got.numel() == want.numel():
        return "the number of elements is right, they are grouped in another way"
    if len(found) != len(needed):
        return f"{len(found)} axes instead of {len(needed)}"
    off = [f"axis {i}: {a} instead of {b}" for i, (a, b) in enumerate(zip(found, needed)) if a != b]
    return "; ".join(off)


def _value_cause(got: torch.Tensor, want: torch.Tensor, atol: float, rtol: float) -> str | None:
    """A likely cause that needs no knowledge of the exercise: order, transposition, a constant factor or offset."""
    if got.numel() < 2 or want.is_complex() or got.is_complex():
        return None
    got, want = got.double(), want.double()
    if torch.equal(want, want.flatten()[0].expand_as(want)):
        return None
    for a in range(got.ndim):
        for b in range(a + 1, got.ndim):
            if got.shape[a] == got.shape[b] and _same(got.transpose(a, b), want, atol, rtol):
                return f"axes {a} and {b} are swapped"
    if _same(got.flatten().sort().values, want.flatten().sort().values, atol, rtol):
        return "the right values, in another order"
    if torch.isfinite(got).all() and torch.isfinite(want).all():
        factor = ((got * want).sum() / (want * want).sum().clamp_min(1e-30)).item()
        if abs(factor) > 1e-6 and _same(got, want * factor, atol * max(1.0, abs(factor)), rtol):
            return f"every value is {factor:.4g} times the expected one"
        offset = (got - want).mean().item()
        if _same(got, want + offset, atol, rtol):
            return f"every value is off by the same {offset:.4g}"
    return None


def _wrong(what: str, problem: str, found: str, expected: str, cause: str | None = None, where: str | None = None):
    lines = [f"{what}: {problem}", f"  found:    {found}", f"  expected: {expected}"]
    lines += [f"  {where}"] if where else []
    lines += [f"  likely cause: {cause}"] if cause else []
    raise Wrong("\n".join(lines))


def _expect_tensor(got, want, what, mistakes, atol, rtol):
    if got.shape != want.shape:
        cause = _cause(got, mistakes, atol, rtol) or _shape_cause(got, want)
        _wrong(what, "the shape is off", f"shape {tuple(got.shape)}", f"shape {tuple(want.shape)}", cause)
    if got.dtype != want.dtype:
        cause = _cause(got, mistakes, atol, rtol)
        _wrong(what, "the dtype is off", str(got.dtype), str(want.dtype), cause)
    if got.device != want.device:
        _wrong(what, "the device is off", str(got.device), str(want.device), "a tensor made without device=x.device")
    if _same(got, want, atol, rtol):
        return
    cause = _cause(got, mistakes, atol, rtol)
    got, want = got.detach().cpu(), want.detach().cpu()
    bad = ~torch.isfinite(got) & torch.isfinite(want)
    if bad.any():
        nan = int(got.isnan().sum())
        index = tuple(bad.nonzero()[0].tolist())
        cause = cause or "a division by zero, the log of zero, or a softmax over a row that is masked everywhere"
        _wrong(
            what,
            f"{int(bad.sum())} of {got.numel()} values are not finite ({nan} NaN)",
            _head(got),
            _head(want),
            cause,
            f"first at {list(index)}: found {_number(got[index].item())}, expected {_number(want[index].item())}",
        )
    wide = torch.complex128 if got.is_complex() else torch.float64
    gap = torch.nan_to_num((got.to(wide) - want.to(wide)).abs(), nan=math.inf)  # where one of the two is NaN the gap is infinite
    gap[(got == want) | (got.isnan() & want.isnan())] = 0  # inf - inf
    count = int((gap > atol + rtol * torch.nan_to_num(want.to(wide).abs())).sum())
    index = np.unravel_index(int(gap.argmax()), gap.shape)
    place = f" at {[int(i) for i in index]}" if gap.ndim else ""
    where = f"largest difference{place}: found {_number(got[index].item())}, expected {_number(want[index].item())}"
    _wrong(
        what,
        f"the values are off in {count} of {got.numel()} places",
        _head(got),
        _head(want),
        cause or _value_cause(got, want, atol, rtol),
        where,
    )


def _expect(got, want, what, mistakes, atol, rtol):
    if got is None and want is not None:
        raise Wrong(f"{what}: your function returned None - is a `return` missing?")
    if isinstance(want, np.ndarray) and isinstance(got, np.ndarray):
        got, want = torch.from_numpy(got), torch.from_numpy(want)
    if isinstance(want, (torch.Tensor, np.ndarray)):
        if not isinstance(got, torch.Tensor):
            _wrong(what, "the type is off", _kind(got), _kind(want), _cause(got, mistakes, atol, rtol))
        return _expect_tensor(got, want, what, mistakes, atol, rtol)
    if isinstance(want, (tuple, list)):
        if not isinstance(got, (tuple, list)) or (
            isinstance(want, tuple) and hasattr(want, "_fields") and type(got) is not type(want)
        ):
            _wrong(what, "the type is off", _kind(got), _kind(want), _cause(got, mistakes, atol, rtol))
        if len(got) != len(want):
            _wrong(what, "the length is off", _kind(got), _kind(want), _cause(got, mistakes, atol, rtol))
        cause = _cause(got, mistakes, atol, rtol)  # a mistake given for the whole explains the part that shows it
        for i, (a, b) in enumerate(zip(got, want)):
            _expect(a, b, f"{what}[{i}]", {cause: a} if cause else mistakes, atol, rtol)
        return None
    if isinstance(want, dict):
        if not isinstance(got, dict):
            _wrong(what, "the type is off", _kind(got), _kind(want), _cause(got, mistakes, atol, rtol))
        if got.keys() != want.keys():
            _wrong(
                what,
                "the keys are off",
                str(sorted(map(str, got))),
                str(sorted(map(str, want))),
                _cause(got, mistakes, atol, rtol),
            )
        cause = _cause(got, mistakes, atol, rtol)
        for key in want:
            _expect(got[key], want[key], f"{what}[{key!r}]", {cause: got[key]} if cause else mistakes, atol, rtol)
        return None
    value, needed = _scalar(got), _scalar(want)
    if _is_number(needed):
        if not _is_number(value):
            _wrong(what, "the type is off", _kind(got), f"{_kind(want)}: {_number(needed)}", _cause(got, mistakes, atol, rtol))
        if not _same(value, needed, atol, rtol):
            cause = _cause(value, mistakes, atol, rtol)
            problem = "not a finite number" if not math.isfinite(value) else "the value is off"
            _wrong(what, problem, _number(value), _number(needed), cause)
        return None
    if type(value) is not type(needed):
        _wrong(
            what,
            "the type is off",
            f"{_kind(got)}: {got!r:.80}",
            f"{_kind(want)}: {want!r:.80}",
            _cause(got, mistakes, atol, rtol),
        )
    if value != needed:
        _wrong(what, "the value is off", f"{value!r:.200}", f"{needed!r:.200}", _cause(got, mistakes, atol, rtol))


def expect(got, want, what: str = "the result", mistakes: dict | None = None, atol: float = 1e-5, rtol: float = 1e-4) -> None:
    """Raise `Wrong` unless `got` equals `want`: type, shape, dtype, finite numbers, values (|got - want| <= atol + rtol |want|).

    got, want: tensors, numbers, booleans, strings, or tuples, lists and dicts of these (a 0-d tensor counts as a number where
    one is wanted). what: the name of the thing in the message. mistakes: {message that names a likely cause: the value that
    this mistake gives, or a function without arguments that computes it}; the first one that `got` equals is quoted.
    """
    with torch.no_grad():
        _expect(got, want, what, mistakes, atol, rtol)


def expect_error(call: Callable, error: type[Exception] = ValueError, what: str = "bad input") -> None:
    """Raise `Wrong` unless `call()` raises `error`. NotImplementedError passes through: the exercise is then not attempted."""
    try:
        call()
    except error:
        return
    except NotImplementedError:
        raise
    except Exception as other:
        raise Wrong(f"{what}: found {type(other).__name__}: {other}\n  expected: {error.__name__}") from other
    raise Wrong(f"{what}: nothing was raised\n  expected: {error.__name__}")


@contextmanager
def untouched(*tensors: torch.Tensor):
    """`with untouched(x): got = fn(x)` raises `Wrong` when the block changed one of the tensors in place."""
    before = [t.detach().clone() for t in tensors]
    yield
    for i, (tensor, copy) in enumerate(zip(tensors, before)):
        if tensor.shape != copy.shape or not _same(tensor, copy, 0.0, 0.0):
            raise Wrong(
                f"your function changed its input in place (tensor {i} of {len(before)}, shape {tuple(copy.shape)})\n"
                "  likely cause: an operation ending in _ , += or an assignment to a slice; make a new tensor, or clone() first"
            )
