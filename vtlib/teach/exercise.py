"""Checked exercises: a stub that is not attempted lets the notebook run on, a wrong answer stops it with a reason."""

import linecache
from collections.abc import Callable

import torch

from vtlib.teach.exercises import Wrong, get

__all__ = ["Wrong", "exercise"]


def _codes(fn) -> set:
    """Code objects the learner wrote: of the function itself, or of the methods of the class."""
    fn = getattr(fn, "__func__", getattr(fn, "func", fn))
    if hasattr(fn, "__code__"):
        return {fn.__code__}
    methods = vars(fn if isinstance(fn, type) else type(fn)).values()
    return {method.__code__ for method in methods if hasattr(method, "__code__")}


def _frames(error: BaseException) -> list:
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code, trace.tb_lineno))
        trace = trace.tb_next
    return frames


def _explain(name: str, fn, error: Exception) -> str:
    codes, said = _codes(fn), f"{type(error).__name__}: {error}"
    lines = [(code.co_filename, line) for code, line in _frames(error) if code in codes]
    if codes and not lines:
        return f"{name}: what your function returned cannot be used here: {said}"
    source = linecache.getline(*lines[-1]).strip() if lines else ""
    return f"{name}: your function raised {said}" + (f"\n  in line {lines[-1][1]} of its cell:  {source}" if source else "")


def exercise(name: str, fn: Callable) -> Callable:
    """Check the learner's `fn` (a function, a class or a module) against the exercise called `name`, like "divprune.greedy".

    Not attempted (it raises NotImplementedError): says so and returns the reference, so that the notebook runs on.
    Wrong: raises `Wrong`, an AssertionError that says what was found, what was expected and the likely cause.
    Right: says so and returns `fn`. ValueError for an unknown name, TypeError when `fn` cannot be called.
    """
    reference, run = get(name)
    if not callable(fn):
        raise TypeError(f"fn of {name}: found {type(fn).__name__}, needs a function or a class (pass it without calling it)")
    devices = range(torch.cuda.device_count())
    try:
        with torch.random.fork_rng(devices=devices):  # solved or not, the cells below draw the same random numbers
            torch.manual_seed(0)
            run(fn)
    except Wrong as wrong:
        raise Wrong(f"{name}: {wrong}") from wrong.__cause__
    except Exception as error:
        unsupported = any(said in str(error) for said in ("Could not run", "not implemented for"))  # torch's, not the stub's
        if isinstance(error, NotImplementedError) and not unsupported:
            print(f"{name}: not attempted yet - the reference takes its place, so the notebook runs on.")
            return reference
        raise Wrong(_explain(name, fn, error)) from error
    print(f"{name}: correct.")
    return fn
