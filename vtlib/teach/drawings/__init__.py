"""One call, one drawing of a method: `teach.drawings.vit()`. No arguments; shapes are those of the
notebooks' small models.
"""

from ..._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__, {
    ".basics": ("vit",),
})
