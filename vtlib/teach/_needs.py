"""Looks for the packages that a notebook imports.

On import it raises ImportError, with the pip command, when one is missing.
"""

import importlib.util
from collections.abc import Iterable

NEEDS = {
    "torch": "torch",
    "numpy": "numpy",
    "einops": "einops",
    "safetensors": "safetensors",
    "matplotlib": "matplotlib",
    "ipywidgets": "ipywidgets",
    "IPython": "ipython",
}  # import name -> name for pip


def require(modules: Iterable[str] | None = None) -> None:
    """Raise ImportError with the pip command that installs what is missing.

    modules: import names to look for (default: everything a notebook of this course imports).
    """
    modules = NEEDS if modules is None else modules
    modules = [modules] if isinstance(modules, str) else modules
    missing = [NEEDS.get(name, name) for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        named, command = ", ".join(missing), " ".join(missing)
        raise ImportError(f"the notebooks need {named}; run:  pip install {command}")


require()
