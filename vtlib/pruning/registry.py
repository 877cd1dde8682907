"""All methods and baselines of the package by name, and the door for one of your own.

    METHODS["divprune"].title       "DivPrune"; what a `Method` says: `vtlib.pruning.method`
    METHODS["visionzip"].kind       "rival": of `others`; DivPrune is a "paper", Random a "baseline"
    register(METHOD)                one of your own, for good, or as a context

Nothing here is typed by hand: every `Method` that a module of vtlib.pruning holds is in METHODS.
`vtlib.pruning.bench` runs them on TinyVLM, `vtlib.hub.prune` on transformers' models.
"""

import contextlib
import importlib
import pkgutil
from typing import Any

from .. import pruning
from .method import Method, as_method

KINDS = ("baseline", "paper", "rival")
"""What a method can be, in the order of METHODS."""
TOOLS = ("bench", "method", "pretrained", "registry")
"""Modules of vtlib.pruning that run methods and hold none."""


def discover() -> dict[str, Method]:
    """Every `Method` that a module of vtlib.pruning holds, by its name, in the order of KINDS."""
    found = []
    for info in pkgutil.iter_modules(pruning.__path__):
        if info.name in TOOLS:
            continue
        module = importlib.import_module(f"{pruning.__name__}.{info.name}")
        found += [value for value in vars(module).values() if isinstance(value, Method)]
    found.sort(key=lambda method: KINDS.index(method.kind))
    return {method.name: method for method in found}


METHODS: dict[str, Method] = discover()
"""What the package has, and what `register` has added."""
OWN = frozenset(METHODS)


def register(method: Method) -> contextlib.ExitStack:
    """Make a method known by its name, for `find`, `METHODS`, the hub and the widgets.

    For good, or as a context: `with register(METHOD): ...`; `close()` of what is returned takes it
    out again, too. A method of the same name that was registered before is replaced, and comes back
    then.
    ValueError for what is no `Method` and for a name that belongs to the package.
    """
    if not isinstance(method, Method):
        raise ValueError(f"method={method!r}: needs a vtlib.pruning.method.Method, with its name")
    if method.name in OWN:
        raise ValueError(f"method={method.name!r} is the package's own: choose another name")
    before = METHODS.get(method.name)
    METHODS[method.name] = method
    stack = contextlib.ExitStack()
    stack.callback(_put_back, method, before)
    return stack


def _put_back(method: Method, before: Method | None) -> None:
    if METHODS.get(method.name) is not method:                           # replaced since then
        return
    if before is None:
        del METHODS[method.name]
    else:
        METHODS[method.name] = before


def find(method: Any) -> Method:
    """A name of METHODS, a `Method`, or what `as_method` makes one of -> Method.

    ValueError for an unknown name.
    """
    if not isinstance(method, str):
        return as_method(method)
    if method not in METHODS:
        raise ValueError(f"method={method!r} is not known; there is {', '.join(sorted(METHODS))}. "
                         "`register` adds one of your own")
    return METHODS[method]
