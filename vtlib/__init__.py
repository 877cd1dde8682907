"""vtlib: reference implementations for the visual-tokens course.

Each sub-package is imported on first use (`vtlib.vit`, `vtlib.multiscale`, ...), so `import vtlib` costs nothing and needs only
torch, numpy, einops and safetensors. `vtlib.teach` is what the notebooks use; it needs the extra `[course]`.
"""

import importlib

__version__ = "0.1.0"
_PACKAGES = ("nn", "tokens", "vit", "multiscale", "vlm", "pruning", "data", "hub", "teach")


def __getattr__(name):
    if name in _PACKAGES:
        return importlib.import_module(f"vtlib.{name}")
    raise AttributeError(f"module 'vtlib' has no attribute {name!r}; it has {', '.join(_PACKAGES)}")


def __dir__():
    return sorted([*globals(), *_PACKAGES])
