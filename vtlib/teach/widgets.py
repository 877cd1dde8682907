"""Widgets that redraw a picture, on what ipywidgets 7.7.1 (Colab) and 8 share."""

import html
import time

import ipywidgets
from matplotlib.figure import Figure

from vtlib.teach.show import _require_alt, picture_html, png, publish

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


class Panel:
    """Controls above a picture that `draw` makes from their values.

    Panel.image: the ipywidgets.Image; Panel.frame: the bytes of its PNG; Panel.controls: {name: control}; Panel.values: {name:
    value}; Panel.milliseconds: the time of each redraw; Panel.box: the whole widget. The first frame is drawn at construction,
    with the values the controls start with.
    """

    def __init__(self, draw, alt: str, controls: dict, dpi: float = 85):
        self.alt, self.draw, self.dpi, self.controls = _require_alt(alt), draw, dpi, dict(controls)
        if not self.controls:
            raise ValueError("controls: got none, needs at least one widget by name, like keep=IntSlider(...)")
        for name, control in self.controls.items():
            if not isinstance(control, ipywidgets.Widget) or not control.has_trait("value"):
                raise ValueError(f"{name}: got {type(control).__name__}, needs an ipywidgets control with a value")
            if not getattr(control, "description", "").strip():
                raise ValueError(f"{name}: the control needs a description, which is its label on the screen")
            if control.has_trait("continuous_update"):
                control.continuous_update = False  # one redraw when the slider is let go, or per key
            if hasattr(control, "style") and control.style.has_trait("description_width"):
                control.style.description_width = "initial"  # labels are not cut
        self.image = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="100%", align_self="flex-start"))
        self.message = ipywidgets.HTML()
        row = ipywidgets.Layout(display="flex", flex_flow="row wrap", align_items="center")
        caption = ipywidgets.HTML(f"<p>{html.escape(self.alt)}</p>")
        self.box = ipywidgets.VBox([ipywidgets.Box(list(self.controls.values()), layout=row), self.image, caption, self.message])
        self.milliseconds: list[float] = []
        self._hold = False
        self.redraw()
        self._first = self.frame
        for control in self.controls.values():
            control.observe(self._changed, names="value")

    @property
    def values(self) -> dict:
        """The controls' values by name: what `draw` is called with."""
        return {name: control.value for name, control in self.controls.items()}

    def redraw(self) -> None:
        """Call `draw` and put its picture in place in one go. An error is written under the old picture and raised again."""
        start = time.perf_counter()
        try:
            drawn = self.draw(**self.values)
            if not isinstance(drawn, (Figure, bytes)):
                raise TypeError(f"draw returned {type(drawn).__name__}, needs a matplotlib Figure or the bytes of a PNG")
            data = png(drawn, self.dpi, level=1) if isinstance(drawn, Figure) else drawn
        except Exception as error:
            self.message.value = f"<pre>{html.escape(f'{type(error).__name__}: {error}')}</pre>"
            raise
        self.frame = self.image.value = data
        self.message.value = ""
        self.milliseconds.append(1000 * (time.perf_counter() - start))

    def _changed(self, change) -> None:
        if not self._hold:
            self.redraw()

    def set(self, **values) -> None:
        """Move controls from code, with one redraw. Errors of `draw` reach the caller; ValueError for a wrong name or value."""
        unknown = [name for name in values if name not in self.controls]
        if unknown:
            raise ValueError(f"{unknown[0]}: no such control; there are: {', '.join(self.controls)}")
        before = self.values
        self._hold = True
        try:
            for name, value in values.items():
                try:
                    self.controls[name].value = value
                except Exception as error:  # traitlets.TraitError: not an option, not a number
                    raise ValueError(f"{name}={value!r}: {error}") from error
                if self.controls[name].value != value:  # a slider clamps without a word
                    raise ValueError(
                        f"{name}={value!r}: the control took {self.controls[name].value!r} instead; is it within its range?"
                    )
        except ValueError:
            for name, value in before.items():
                self.controls[name].value = value
            raise
        finally:
            self._hold = False
        self.redraw()

    def bundle(self) -> dict:
        """The one output of `show`: the live widget, and for places without widgets the first frame with its alt text."""
        view = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        return {WIDGET_VIEW: view, "text/html": picture_html(self._first, self.alt), "text/plain": self.alt}

    def show(self) -> None:
        """Publish the panel: live where widgets work, a picture with alt text everywhere else."""
        publish(self.bundle())

    def _ipython_display_(self) -> None:
        self.show()


def panel(draw, alt: str, dpi: float = 85, **controls) -> Panel:
    """A picture that follows its controls: `panel(draw, alt="...", keep=IntSlider(8, 1, 16, description="keep")).show()`.

    draw: called with the value of each control by name, returns a matplotlib Figure or the bytes of a PNG. alt: what the first
    frame shows, at least 20 characters. controls: ipywidgets with a description (ValueError otherwise); they redraw when let
    go, not while they move.
    """
    return Panel(draw, alt, controls, dpi=dpi)
