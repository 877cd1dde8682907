"""vtlib: reference implementations for the visual-tokens course.

Each sub-package is imported on first use (`vtlib.vit`, `vtlib.multiscale`, ...), so `import vtlib`
costs nothing and needs only torch, numpy, einops and safetensors. `vtlib.teach` is what the
notebooks use; it needs the extra `[course]`.
"""

from ._lazy import lazy

__version__ = "0.1.0"
__getattr__, __dir__, _ = lazy(__name__, __path__)     # no star: `teach` needs the extra [course]
