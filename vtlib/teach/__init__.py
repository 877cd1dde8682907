"""What the notebooks use and homework doesn't: set-up, checked exercises, figures, tables, widgets,
measurements, live curves.

The only part of vtlib that imports matplotlib, ipywidgets and IPython.
"""

from vtlib.teach import (  # _needs first: it names a missing package and the pip command
    _needs,
    exercises,
)
from vtlib.teach.exercise import Wrong, exercise
from vtlib.teach.live import LiveCurve, train
from vtlib.teach.meter import activation_bytes, flops, latency
from vtlib.teach.setup import device, setup
from vtlib.teach.show import (
    CMAP,
    CMAP_DIV,
    PALETTE,
    box,
    claims,
    figure,
    grid,
    image,
    lines,
    overlay,
    png,
    seeds,
    show,
    table,
    tiles,
)
from vtlib.teach.widgets import Panel, panel

require = _needs.require

__all__ = [
    "CMAP",
    "CMAP_DIV",
    "PALETTE",
    "LiveCurve",
    "Panel",
    "Wrong",
    "activation_bytes",
    "box",
    "claims",
    "device",
    "exercise",
    "exercises",
    "figure",
    "flops",
    "grid",
    "image",
    "latency",
    "lines",
    "overlay",
    "panel",
    "png",
    "require",
    "seeds",
    "setup",
    "show",
    "table",
    "tiles",
    "train",
]
