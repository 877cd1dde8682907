"""What the notebooks use and homework doesn't: set-up, checked exercises, figures, diagrams,
tables, widgets, measurements, live curves.

The only part of vtlib that imports matplotlib, ipywidgets and IPython. Importing it says which
package a notebook misses; a module is loaded when a name of it is first used.
"""

from .._lazy import lazy
from ._needs import require as require

__getattr__, __dir__, __all__ = lazy(__name__, __path__, {
    "._needs": ("require",),
    ".answers": ("Wrong", "exercise"),
    ".diagrams": ("diagram",),
    ".figures": ("CMAP", "CMAP_DIV", "PALETTE", "figure", "png", "show"),
    ".live": ("LiveCurve", "train"),
    ".meter": ("activation_bytes", "flops", "latency", "processor_seconds", "timed"),
    ".pictures": ("box", "grid", "image", "lines", "overlay", "picture_row", "seeds", "tiles"),
    ".plots": ("bars", "curves", "trade_off"),
    ".start": ("device", "setup"),
    ".tables": ("claims", "table"),
    ".widgets": ("Panel", "panel"),
})
