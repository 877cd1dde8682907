"""What an exercise's check says about an answer: what is off, where, and the likely cause."""

import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from vtlib.nn.checks import check_callable

__all__ = ["Wrong", "expect", "expect_error", "untouched"]


class Wrong(AssertionError):
    """An answer that a check turned down: what was found, what was expected, the likely cause."""


# ---------------------------------------------------------------------------------------- words


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


def _around(tensor: torch.Tensor, index: tuple, count: int = 5) -> str:
    """The `count` values of the last axis around `index`, with the place where they stand."""
    if tensor.ndim == 0:
        return _number(tensor.item())
    row = tensor[index[:-1]]
    start = min(max(0, index[-1] - count // 2), max(0, len(row) - count))
    stop = min(len(row), start + count)
    values = ", ".join(_number(value) for value in row[start:stop].tolist())
    shown = f"[{'..., ' if start else ''}{values}{', ...' if stop < len(row) else ''}]"
    place = ", ".join([*map(str, index[:-1]), f"{start}:{stop}"])
    return shown if tensor.numel() <= count else f"{shown}  at [{place}]"


def _is_number(value) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _scalar(value):
    """A one-element tensor or a numpy number counts as the Python number it holds."""
    if isinstance(value, torch.Tensor) and value.ndim == 0:
        return value.item()
    return value.item() if isinstance(value, np.generic) else value


# --------------------------------------------------------------------------------------- sameness


def _same_tensors(a: torch.Tensor, b: torch.Tensor, atol: float, rtol: float) -> bool:
    if a.shape != b.shape:
        return False
    a, b = a.detach().cpu(), b.detach().cpu()
    complex_ = a.is_complex() or b.is_complex()
    if not (a.is_floating_point() or b.is_floating_point() or complex_):
        return torch.equal(a.long(), b.long())
    wide = torch.complex128 if complex_ else torch.float64
    return torch.allclose(a.to(wide), b.to(wide), atol=atol, rtol=rtol, equal_nan=True)


def _same(a, b, atol: float, rtol: float) -> bool:
    """Whether two values agree in structure, shape and numbers (dtype and device aside)."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return _same_tensors(a, b, atol, rtol)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(
            _same(x, y, atol, rtol) for x, y in zip(a, b, strict=True)
        )
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key], atol, rtol) for key in a)
    a, b = _scalar(a), _scalar(b)
    if _is_number(a) and _is_number(b):
        near = math.isclose(a, b, rel_tol=rtol, abs_tol=atol)
        return near or (math.isnan(a) and math.isnan(b))
    return type(a) is type(b) and bool(a == b)


# --------------------------------------------------------------------- causes that fit any exercise


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
    pairs = enumerate(zip(found, needed, strict=True))
    return "; ".join(f"axis {i}: {a} instead of {b}" for i, (a, b) in pairs if a != b)


def _order_cause(got: torch.Tensor, want: torch.Tensor, atol: float, rtol: float) -> str | None:
    for a in range(got.ndim):
        for b in range(a + 1, got.ndim):
            if got.shape[a] == got.shape[b] and _same(got.transpose(a, b), want, atol, rtol):
                return f"axes {a} and {b} are swapped"
    if _same(got.flatten().sort().values, want.flatten().sort().values, atol, rtol):
        return "the right values, in another order"
    return None


def _value_cause(got: torch.Tensor, want: torch.Tensor, atol: float, rtol: float) -> str | None:
    """Order, transposition, a constant factor or offset."""
    if got.numel() < 2 or want.is_complex() or got.is_complex():
        return None
    got, want = got.double(), want.double()
    if torch.equal(want, want.flatten()[0].expand_as(want)):
        return None
    cause = _order_cause(got, want, atol, rtol)
    if cause or not (torch.isfinite(got).all() and torch.isfinite(want).all()):
        return cause
    factor = ((got * want).sum() / (want * want).sum().clamp_min(1e-30)).item()
    scaled = _same(got, want * factor, atol * max(1.0, abs(factor)), rtol)
    if abs(factor) > 1e-6 and scaled:
        return f"every value is {factor:.4g} times the expected one"
    offset = (got - want).mean().item()
    if _same(got, want + offset, atol, rtol):
        return f"every value is off by the same {offset:.4g}"
    return None


# ------------------------------------------------------------------------------------- comparison


@dataclass
class _Comparison:
    """The known mistakes and the tolerance of one call of `expect`."""

    mistakes: dict
    atol: float
    rtol: float

    def same(self, a, b) -> bool:
        return _same(a, b, self.atol, self.rtol)

    def cause(self, got) -> str | None:
        for message, wrong in self.mistakes.items():
            if callable(wrong) and not isinstance(wrong, torch.Tensor):
                wrong = wrong()
            if self.same(got, wrong):
                return message
        return None

    def part(self, cause: str | None, got) -> "_Comparison":
        """The comparison of a part: a mistake of the whole explains the part that shows it."""
        return _Comparison({cause: got} if cause else self.mistakes, self.atol, self.rtol)

    def compare(self, got, want, what: str) -> None:
        if got is None and want is not None:
            raise Wrong(f"{what}: your function returned None - is a `return` missing?")
        if isinstance(want, np.ndarray) and isinstance(got, np.ndarray):
            got, want = torch.from_numpy(got), torch.from_numpy(want)
        if isinstance(want, (torch.Tensor, np.ndarray)):
            self.tensors(got, want, what)
        elif isinstance(want, (tuple, list)):
            self.sequences(got, want, what)
        elif isinstance(want, dict):
            self.mappings(got, want, what)
        else:
            self.scalars(got, want, what)

    def need(self, right: bool, got, want, what: str, problem: str = "the type is off") -> None:
        if not right:
            _wrong(what, problem, _kind(got), _kind(want), self.cause(got))

    def tensors(self, got, want, what: str) -> None:
        self.need(isinstance(got, torch.Tensor), got, want, what)
        if got.shape != want.shape:
            found, needed = f"shape {tuple(got.shape)}", f"shape {tuple(want.shape)}"
            cause = self.cause(got) or _shape_cause(got, want)
            _wrong(what, "the shape is off", found, needed, cause)
        if got.dtype != want.dtype:
            _wrong(what, "the dtype is off", str(got.dtype), str(want.dtype), self.cause(got))
        if got.device != want.device:
            cause = "a tensor made without device=x.device"
            _wrong(what, "the device is off", str(got.device), str(want.device), cause)
        if not self.same(got, want):
            self.values(got.detach().cpu(), want.detach().cpu(), what)

    def values(self, got: torch.Tensor, want: torch.Tensor, what: str) -> None:
        """Two tensors of one shape and dtype that differ: where most, and why."""
        cause = self.cause(got)
        wide = torch.complex128 if got.is_complex() else torch.float64
        strange = ~torch.isfinite(got) & torch.isfinite(want)
        if strange.any():
            index = tuple(strange.nonzero()[0].tolist())
            nan = int(got.isnan().sum())
            problem = f"{int(strange.sum())} of {got.numel()} values are not finite ({nan} NaN)"
            cause = cause or (
                "a division by zero, the log of zero, or a softmax over a row that is masked"
                " everywhere"
            )
            label = "first"
        else:
            # infinite where one of the two is NaN, 0 where both are the same infinity
            gap = torch.nan_to_num((got.to(wide) - want.to(wide)).abs(), nan=math.inf)
            gap[(got == want) | (got.isnan() & want.isnan())] = 0
            allowed = self.atol + self.rtol * torch.nan_to_num(want.to(wide).abs())
            index = tuple(int(i) for i in np.unravel_index(int(gap.argmax()), gap.shape))
            problem = f"the values are off in {int((gap > allowed).sum())} of {got.numel()} places"
            cause = cause or _value_cause(got, want, self.atol, self.rtol)
            label = "largest difference"
        found, needed = _number(got[index].item()), _number(want[index].item())
        place = f" at {list(index)}" if index else ""
        where = f"{label}{place}: found {found}, expected {needed}"
        _wrong(what, problem, _around(got, index), _around(want, index), cause, where)

    def sequences(self, got, want, what: str) -> None:
        right = isinstance(got, (tuple, list))
        if hasattr(want, "_fields"):  # a named tuple
            right = type(got) is type(want)
        self.need(right, got, want, what)
        self.need(len(got) == len(want), got, want, what, "the length is off")
        cause = self.cause(got)
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            self.part(cause, a).compare(a, b, f"{what}[{i}]")

    def mappings(self, got, want, what: str) -> None:
        self.need(isinstance(got, dict), got, want, what)
        cause = self.cause(got)
        if got.keys() != want.keys():
            found, needed = (str(sorted(map(str, keys))) for keys in (got, want))
            _wrong(what, "the keys are off", found, needed, cause)
        for key in want:
            self.part(cause, got[key]).compare(got[key], want[key], f"{what}[{key!r}]")

    def scalars(self, got, want, what: str) -> None:
        value, needed = _scalar(got), _scalar(want)
        if _is_number(needed) and _is_number(value):
            if not self.same(value, needed):
                finite = math.isfinite(value)
                problem = "the value is off" if finite else "not a finite number"
                _wrong(what, problem, _number(value), _number(needed), self.cause(value))
            return
        if type(value) is not type(needed):
            found, wanted = f"{_kind(got)}: {got!r:.80}", f"{_kind(want)}: {want!r:.80}"
            if isinstance(got, torch.Tensor):
                found = _kind(got)
            _wrong(what, "the type is off", found, wanted, self.cause(got))
        if value != needed:
            found, wanted = f"{value!r:.200}", f"{needed!r:.200}"
            _wrong(what, "the value is off", found, wanted, self.cause(got))


def _wrong(
    what: str,
    problem: str,
    found: str,
    expected: str,
    cause: str | None = None,
    where: str | None = None,
):
    lines = [f"{what}: {problem}", f"  found:    {found}", f"  expected: {expected}"]
    lines += [f"  {where}"] if where else []
    lines += [f"  likely cause: {cause.strip()}"] if cause else []
    raise Wrong("\n".join(lines))


def expect(
    got,
    want,
    what: str = "the result",
    mistakes: dict | None = None,
    atol: float = 1e-5,
    rtol: float = 1e-4,
) -> None:
    """Raise `Wrong` unless `got` equals `want`: type, shape, dtype, device, finite numbers, values.

    Args:
        got: the answer: a tensor, number, boolean, string, or a tuple, list or dict of these.
        want: the right value, alike; a 0-d tensor or numpy number counts as a number.
        what: the name of the thing in the message.
        mistakes: {message that names a likely cause: the value that this mistake gives, or a
            function without arguments that computes it}; the first that `got` equals is quoted.
        atol: values agree where |got - want| <= atol + rtol |want|.
        rtol: see atol.
    """
    with torch.no_grad():
        _Comparison(mistakes or {}, atol, rtol).compare(got, want, what)


def expect_error(
    call: Callable, error: type[Exception] = ValueError, what: str = "bad input"
) -> None:
    """Raise `Wrong` unless `call()` raises `error`. A NotImplementedError passes through.

    Args:
        call: the answer with bad input, as a function without arguments.
        error: the type of the error that is due.
        what: the name of the input in the message.
    """
    check_callable(call, "call", "a function without arguments")
    try:
        call()
    except error:
        return
    except NotImplementedError:
        raise
    except Exception as other:
        found = f"{type(other).__name__}: {other}"
        raise Wrong(f"{what}: found {found}\n  expected: {error.__name__}") from other
    raise Wrong(f"{what}: nothing was raised\n  expected: {error.__name__}")


# ------------------------------------------------------------------------ inputs stay as they are


def _leaves(values) -> list:
    """Tensors, and the lists that hold them, in order."""
    if isinstance(values, (torch.Tensor, np.ndarray)):
        return [values]
    if isinstance(values, torch.nn.Module):
        return list(values.state_dict(keep_vars=True).values())
    if isinstance(values, (tuple, list)):
        parts = [leaf for value in values for leaf in _leaves(value)]
        return [values, *parts] if isinstance(values, list) else parts
    if isinstance(values, dict):
        return [leaf for value in values.values() for leaf in _leaves(value)]
    return []


def _copy(leaf):
    if isinstance(leaf, torch.Tensor):
        return leaf.detach().clone()
    return list(leaf) if isinstance(leaf, list) else leaf.copy()


def _changed(leaf, copy) -> bool:
    if isinstance(leaf, list):
        return len(leaf) != len(copy) or any(
            a is not b for a, b in zip(leaf, copy, strict=True)
        )
    if isinstance(leaf, np.ndarray):
        return leaf.shape != copy.shape or not np.array_equal(leaf, copy)
    return leaf.shape != copy.shape or not _same(leaf, copy, 0.0, 0.0)


@contextmanager
def untouched(*values):
    """`with untouched(x): got = fn(x)` raises `Wrong` when the block changed x in place.

    values: tensors, arrays, modules (their weights), lists, tuples and dicts of these.
    """
    leaves = _leaves(values)
    copies = [_copy(leaf) for leaf in leaves]
    yield
    for leaf, copy in zip(leaves, copies, strict=True):
        if _changed(leaf, copy):
            kind = f"a list of {len(copy)}" if isinstance(copy, list) else _kind(copy)
            raise Wrong(
                f"your function changed its input in place ({kind})\n"
                "  likely cause: an operation ending in _ , +=, an assignment to a slice or an"
                " item; make a new tensor, or clone() first"
            )
