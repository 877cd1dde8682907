"""Packages whose modules are imported on first use, and listed by nobody but the folder itself.

    __getattr__, __dir__, __all__ = lazy(__name__, __path__)
"""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def lazy(
    package: str, path: Iterable[str], exports: Mapping[str, Iterable[str]] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The `__getattr__`, `__dir__` and `__all__` (PEP 562) of a package.

    Args:
        package: its `__name__`.
        path: its `__path__`; every module and package there becomes an attribute, those with a
            leading underscore apart.
        exports: further names by the module they come from, both as `from ... import ...` takes
            them: {".plan": ("Plan",), "..checkpoints": ("path as checkpoint",)}.
    """
    found = (module.name for module in pkgutil.iter_modules(path))
    modules = [name for name in found if not name.startswith("_")]
    homes = {}
    for module, entries in (exports or {}).items():
        for entry in entries:
            attribute, _, alias = entry.partition(" as ")
            homes[alias or attribute] = module, attribute
    names = sorted([*modules, *homes])

    def get(name: str) -> Any:
        if name in homes:
            module, attribute = homes[name]
            value = getattr(importlib.import_module(module, package), attribute)
            setattr(sys.modules[package], name, value)
            return value
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(
            f"module {package!r} has no attribute {name!r}; it has {', '.join(names)}"
        )

    def listing() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names})

    return get, listing, names
