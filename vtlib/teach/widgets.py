"""Widgets that redraw a picture, on what ipywidgets 7.7.1 (Colab) and 8 share."""

import html
import time
from collections.abc import Callable, Mapping

import ipywidgets
import torch
from matplotlib.figure import Figure

from vtlib.nn.checks import check_callable
from vtlib.teach.figures import picture_html, png, publish, require_alt

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def _check_control(name: str, control) -> None:
    if not isinstance(control, ipywidgets.Widget) or not control.has_trait("value"):
        kind = type(control).__name__
        raise ValueError(f"{name}: got {kind}, needs an ipywidgets control with a value")
    if not getattr(control, "description", "").strip():
        raise ValueError(
            f"{name}: the control needs a description, which is its label on the screen"
        )


def _settle(control) -> None:
    """One redraw when a slider is let go, or per key; labels are not cut."""
    if control.has_trait("continuous_update"):
        control.continuous_update = False
    if hasattr(control, "style") and control.style.has_trait("description_width"):
        control.style.description_width = "initial"


class Panel:
    """Controls above a picture that `draw` makes from their values.

    Panel.image: the ipywidgets.Image; Panel.frame: the bytes of its PNG; Panel.controls: {name:
    control}; Panel.values: {name: value}; Panel.milliseconds: the time of each redraw; Panel.box:
    the whole widget. The first frame is drawn at construction, with the values the controls start
    with. Gradients are recorded while it draws, or not, as they were then.

    Args:
        draw: called with the controls' values by name; returns a Figure or the bytes of a PNG.
        alt: what the first frame shows, at least 20 characters (ValueError otherwise).
        controls: {name: ipywidgets control with a description} (ValueError otherwise).
        dpi: of the picture, at most 110.
    """

    def __init__(self, draw: Callable, alt: str, controls: dict, dpi: float = 85):
        check_callable(draw, "draw", "a function of the controls' values")
        self.alt, self.draw, self.dpi = require_alt(alt), draw, dpi
        self.controls = dict(controls) if isinstance(controls, Mapping) else {}
        if not self.controls:
            raise ValueError(
                "controls: got none, needs at least one widget by name, like keep=IntSlider(...)"
            )
        for name, control in self.controls.items():
            _check_control(name, control)
            _settle(control)
        place = ipywidgets.Layout(max_width="100%", align_self="flex-start")
        self.image = ipywidgets.Image(format="png", layout=place)
        self.message = ipywidgets.HTML()
        self.box = self._boxed()
        self.milliseconds: list[float] = []
        self._hold = False
        self._grad = torch.is_grad_enabled()
        self.redraw()
        self._first = self.frame
        for control in self.controls.values():
            control.observe(self._changed, names="value")

    def _boxed(self) -> ipywidgets.VBox:
        flow = ipywidgets.Layout(display="flex", flex_flow="row wrap", align_items="center")
        row = ipywidgets.Box(list(self.controls.values()), layout=flow)
        caption = ipywidgets.HTML(f"<p>{html.escape(self.alt)}</p>")
        return ipywidgets.VBox([row, self.image, caption, self.message])

    @property
    def values(self) -> dict:
        """The controls' values by name: what `draw` is called with."""
        return {name: control.value for name, control in self.controls.items()}

    def redraw(self) -> None:
        """Call `draw` and put its picture in place in one go.

        An error is written under the old picture and raised again.
        """
        start = time.perf_counter()
        try:
            data = self._drawn()
        except Exception as error:
            told = html.escape(f"{type(error).__name__}: {error}")
            self.message.value = f"<pre>{told}</pre>"
            raise
        self.frame = data
        self.image.value = data
        self.message.value = ""
        self.milliseconds.append(1000 * (time.perf_counter() - start))

    def _drawn(self) -> bytes:
        # JupyterLab moves controls in a thread of their own, where torch's switch stands on again
        with torch.set_grad_enabled(self._grad):
            drawn = self.draw(**self.values)
        if isinstance(drawn, bytes):
            return drawn
        if not isinstance(drawn, Figure):
            kind = type(drawn).__name__
            raise ValueError(
                f"draw returned {kind}, needs a matplotlib Figure or the bytes of a PNG"
            )
        return png(drawn, self.dpi, level=1)

    def _changed(self, change) -> None:
        if not self._hold:
            self.redraw()

    def set(self, **values) -> None:
        """Move controls from code, with one redraw; errors of `draw` reach the caller.

        ValueError for a name that is no control's and for a value that the control does not take;
        then all stay where they were.
        """
        unknown = [name for name in values if name not in self.controls]
        if unknown:
            there_are = ", ".join(self.controls)
            raise ValueError(f"{unknown[0]}: no such control; there are: {there_are}")
        before = self.values
        self._hold = True
        try:
            for name, value in values.items():
                self._move(name, value)
        except ValueError:
            for name, value in before.items():
                self.controls[name].value = value
            raise
        finally:
            self._hold = False
        self.redraw()

    def _move(self, name: str, value) -> None:
        control = self.controls[name]
        try:
            control.value = value
        except Exception as error:  # traitlets.TraitError: not an option, not a number
            raise ValueError(f"{name}={value!r}: {error}") from error
        if control.value != value:  # a slider clamps without a word
            raise ValueError(
                f"{name}={value!r}: the control took {control.value!r} instead; is it within its"
                " range?"
            )

    def bundle(self) -> dict:
        """The one output of `show`: the live widget, and the first frame for other places."""
        view = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        picture = picture_html(self._first, self.alt)
        return {WIDGET_VIEW: view, "text/html": picture, "text/plain": self.alt}

    def show(self) -> None:
        """Publish the panel: live where widgets work, a picture with alt text everywhere else."""
        publish(self.bundle())

    def _ipython_display_(self) -> None:
        self.show()


def panel(draw: Callable, alt: str, dpi: float = 85, **controls) -> Panel:
    """A picture that follows its controls.

        panel(draw, alt="...", keep=IntSlider(8, 1, 16, description="keep")).show()

    Args:
        draw: called with the value of each control by name; returns a matplotlib Figure or the
            bytes of a PNG.
        alt: what the first frame shows, at least 20 characters.
        dpi: of the picture, at most 110.
        controls: ipywidgets with a description (ValueError otherwise); they redraw when let go,
            not while they move.
    """
    return Panel(draw, alt, controls, dpi=dpi)
