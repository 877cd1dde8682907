"""Packages whose modules are imported on first use, and listed by nobody but the folder itself.

    __getattr__, __dir__, __all__ = lazy(__name__, __path__)
"""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def lazy(
    package: str, path: Iterable[str], exports: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The `__getattr__`, `__dir__` and `__all__` (PEP 562) of a package.

    Args:
        package: its `__name__`.
        path: its `__path__`; every module and package there becomes an attribute, those with a
            leading underscore apart.
        exports: further names, and which module each is an attribute of.
    """
    found = (module.name for module in pkgutil.iter_modules(path))
    modules = [name for name in found if not name.startswith("_")]
    exports = dict(exports or {})
    names = sorted([*modules, *exports])

    def get(name: str) -> Any:
        if name in exports:
            value = getattr(importlib.import_module(exports[name]), name)
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
