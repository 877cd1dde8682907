"""Checked exercises: an untouched stub lets the notebook run on, a wrong answer says why."""

import dis
import functools
import inspect
import linecache
import os
import re
import sysconfig
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from vtlib.teach.compare import Wrong, untouched
from vtlib.teach.errors import plain_words
from vtlib.teach.exercises import get

__all__ = ["Wrong", "exercise"]

_GOES_ON = "the reference takes its place, so the notebook runs on."
_LIBRARIES = tuple(
    os.path.join(folder, "")
    for folder in (
        os.path.dirname(torch.__file__),
        sysconfig.get_path("stdlib"),
        sysconfig.get_path("platstdlib"),
    )
)

# --------------------------------------------------------------------- the learner's own lines


# where functools.wraps, methods, properties, torch.compile and torch.jit keep the function
_INSIDE = ("__wrapped__", "__func__", "fget", "_torchdynamo_orig_callable", "_torchdynamo_inline")


def _wrapped(fn) -> list:
    """What a decorated function, a partial or a bound method has inside."""
    inside = [getattr(fn, name, None) for name in _INSIDE]
    if isinstance(fn, functools.partial):
        inside.append(fn.func)
    if isinstance(fn, types.FunctionType):  # a decorator without functools.wraps
        inside += [cell.cell_contents for cell in fn.__closure__ or () if _is_filled(cell)]
    return [value for value in inside if callable(value)]


def _is_filled(cell) -> bool:
    try:
        return isinstance(cell.cell_contents, (types.FunctionType, functools.partial))
    except ValueError:
        return False


def _parts(fn) -> list:
    """The methods of a class, or of the class of a module or another callable object."""
    if inspect.isroutine(fn) or isinstance(fn, (functools.partial, property)):
        return []
    owner = fn if isinstance(fn, type) else type(fn)
    members = [member for base in owner.__mro__ for member in vars(base).values()]
    return [m for m in members if hasattr(m, "__code__") or _wrapped(m)]


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code, and that of the functions, lambdas and comprehensions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)


def _own_codes(fn) -> set[types.CodeType]:
    """The code that the learner wrote: under decorators, in methods; not torch's wrappers."""
    codes: set[types.CodeType] = set()
    seen: set[int] = set()
    todo = [fn]
    while todo:
        part = todo.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        code = getattr(part, "__code__", None)
        if isinstance(code, types.CodeType) and not code.co_filename.startswith(_LIBRARIES):
            codes.update(_nested(code))
        todo += _wrapped(part)
        if part is fn:
            todo += _parts(part)
    return codes


def _own_steps(error: BaseException, codes: set, check: types.CodeType) -> list:
    """The steps of the traceback in the learner's lines: the answer, and the rest of its cell."""
    files = {code.co_filename for code in codes} - {check.co_filename}
    steps, step = [], error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        if code in codes or code.co_filename in files:
            steps.append(step)
        step = step.tb_next
    return steps


def _is_stub(error: BaseException, steps: list) -> bool:
    """Whether the error is a `raise NotImplementedError` in the learner's own lines."""
    if not isinstance(error, NotImplementedError) or not steps or steps[-1].tb_next is not None:
        return False
    step = steps[-1]
    return step.tb_frame.f_code.co_code[step.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _explain(name: str, error: Exception, steps: list, found_codes: bool) -> str:
    said = f"{type(error).__name__}: {str(error).strip()}"
    words = plain_words(error)
    cause = f"\n  likely cause: {words}" if words else ""
    if found_codes and not steps:
        if re.match(r"\S+\(\) (takes|missing|got)\b.*argument", str(error)):
            return f"{name}: your function cannot be called like this: {said}"
        return f"{name}: what your function returned cannot be used here: {said}{cause}"
    where = ""
    if steps:
        line = steps[-1].tb_lineno
        source = linecache.getline(steps[-1].tb_frame.f_code.co_filename, line).strip()
        where = f"\n  in line {line} of its cell:  {source}" if source else ""
    return f"{name}: your function raised {said}{where}{cause}"


# -------------------------------------------------------------------------- the run of a check


@contextmanager
def _usual_settings():
    """torch's own defaults of device, dtype, grad mode and autocast, and a seed; all restored."""
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count())))
        stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        torch.set_default_dtype(torch.float32)
        try:
            torch.manual_seed(0)
            yield
        finally:
            torch.set_default_dtype(dtype)


def _guarded(fn: Callable) -> Callable:
    """`fn` with a look at its arguments after each call: they have to be as they were."""
    if isinstance(fn, type):
        return fn

    def guarded(*args, **kwargs):
        with untouched(args, kwargs):
            result = fn(*args, **kwargs)
        return result

    return guarded


def exercise(name: str, fn: Callable) -> Callable:
    """Check the learner's `fn` against the exercise called `name`, like "divprune.greedy".

    The check runs under torch's own defaults of device and dtype, whatever the notebook has set,
    and each call has to leave its arguments as they were.

    Not attempted (a `raise NotImplementedError` in the learner's lines): says so and returns the
    reference, so that the notebook runs on. Right: says so and returns `fn`. Wrong: raises `Wrong`,
    an AssertionError that says what was found, what was expected and the likely cause. ValueError
    for an unknown name, and when `fn` (a function, a class or a module) cannot be called.
    """
    reference, check = get(name)
    if not callable(fn):
        kind = type(fn).__name__
        raise ValueError(
            f"fn of {name}: found {kind}, needs a function or a class (pass it without calling it)"
        )
    try:
        with _usual_settings():
            check(_guarded(fn))
    except Wrong as wrong:
        raise Wrong(f"{name}: {wrong}") from wrong.__cause__
    except Exception as error:
        codes = _own_codes(fn)
        steps = _own_steps(error, codes, check.__code__)
        if not _is_stub(error, steps):
            raise Wrong(_explain(name, error, steps, bool(codes))) from error
        print(f"{name}: not attempted yet - {_GOES_ON}")
        return reference
    print(f"{name}: correct.")
    return fn
