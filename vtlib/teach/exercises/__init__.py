"""The registry of exercises.

One module per paper (`divprune.py` holds the exercises on DivPrune; `basics.py` those of notebook
00), imported when one of its names is first asked for; its name is the prefix of theirs:

    @check("divprune.greedy", reference=greedy)
    def _(fn):
        causes = {"the indices are sorted; the order of choice is wanted": want.sort().values}
        expect(fn(tokens, 6), want, what="the choice of 6", mistakes=causes)

A check calls the answer with at least two values of every argument. `teach.exercise` runs it under
torch's own defaults, with a seed, and sees to it that the answer leaves its arguments as they were.
"""

import importlib
import importlib.util
import pkgutil
import re
import sys
import types
from collections.abc import Callable
from typing import NamedTuple

from vtlib.nn.checks import check_callable
from vtlib.teach.compare import Wrong, expect, expect_error, untouched

__all__ = ["Wrong", "check", "expect", "expect_error", "get", "names", "untouched"]


class _Entry(NamedTuple):
    reference: Callable
    check: Callable
    module: str
    body: types.CodeType  # of the module, which is another object each time the module runs


_REGISTRY: dict[str, _Entry] = {}


def _refuse_doubled(name: str, module: str, body: types.CodeType) -> None:
    """ValueError where `name` is taken, unless its own module, or notebook cell, runs again."""
    known = _REGISTRY.get(name)
    if known is None:
        return
    runs_again = known.module == module and known.body is not body and body.co_name[0] == "<"
    if not runs_again:
        raise ValueError(
            f"name={name!r} is registered already, by {known.module};"
            " each exercise needs a name of its own"
        )


def check(name: str, reference: Callable) -> Callable:
    """Decorator that registers a check: it gets the learner's function and raises `Wrong`.

    A module that runs again (`reload`, a notebook's cell) replaces its own entries. ValueError for
    a malformed name, and for one that is registered already.

    Args:
        name: the paper's module, a dot and a topic, like "divprune.greedy".
        reference: what `teach.exercise` hands back while the exercise is not attempted.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[a-z]\w*\.[a-z]\w*", name):
        raise ValueError(
            f"name={name!r}: needs the paper's module, a dot and a topic, like 'divprune.greedy'"
        )
    check_callable(reference, "reference")
    caller = sys._getframe(1)
    module, body = caller.f_globals.get("__name__", ""), caller.f_code
    _refuse_doubled(name, module, body)

    def register(run: Callable) -> Callable:
        _REGISTRY[name] = _Entry(reference, run, module, body)
        return run

    return register


def _load(paper: str) -> None:
    module = f"{__name__}.{paper}"
    if importlib.util.find_spec(module) is not None:
        importlib.import_module(module)


def names(paper: str | None = None) -> list[str]:
    """Names of the exercises of one paper ("divprune"), or of all papers."""
    if paper is None:
        for module in pkgutil.iter_modules(__path__):
            _load(module.name)
        return list(_REGISTRY)
    _load(paper)
    return [name for name in _REGISTRY if name.startswith(f"{paper}.")]


def get(name: str) -> tuple[Callable, Callable]:
    """(reference, check) of the exercise called `name`; ValueError lists the names there are."""
    if not isinstance(name, str):
        raise ValueError(f"name={name!r}: needs the name of an exercise, like 'divprune.greedy'")
    known = [] if name in _REGISTRY else names(name.partition(".")[0])
    if name not in _REGISTRY:
        there_are = ", ".join(known or names()) or "none"
        raise ValueError(f"name={name!r}: no such exercise; there are: {there_are}")
    entry = _REGISTRY[name]
    return entry.reference, entry.check
