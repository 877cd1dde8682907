"""Panels and live curves, without a browser."""

import base64
import html
import re
import threading

import ipywidgets
import numpy as np
import pytest
import torch

from vtlib import teach
from vtlib.teach import live, widgets

FALLS = "The loss falls steadily from 3 to 0."
ALT = "A bar that grows with keep & nothing else."


def slider(**kw):
    return ipywidgets.IntSlider(value=3, min=1, max=9, description="keep", **kw)


def draw(keep, mode="a"):
    fig, ax = teach.figure(size=(2, 1))
    ax.bar([0], [keep], color=teach.PALETTE[0 if mode == "a" else 1])
    return fig


@pytest.fixture
def panel():
    mode = ipywidgets.Dropdown(options=["a", "b"], description="mode")
    return teach.panel(draw, alt=ALT, keep=slider(), mode=mode)


@pytest.mark.parametrize("switch", [True, False])
def test_gradients_are_as_they_were_in_another_thread_too(switch):
    """JupyterLab moves controls in a thread of its own, and torch's switch is one a thread."""
    seen = []

    def note(keep):
        seen.append(torch.is_grad_enabled())
        return draw(keep)

    with torch.set_grad_enabled(switch):
        panel = teach.panel(note, alt=ALT, keep=slider())
    mover = threading.Thread(target=panel.set, kwargs={"keep": 5})
    mover.start()
    mover.join()
    panel.set(keep=6)
    assert seen == [switch] * 3


def test_the_first_frame_stands_at_once(panel):
    assert panel.frame.startswith(b"\x89PNG") and panel.image.value == panel.frame
    assert len(panel.milliseconds) == 1
    assert panel.values == {"keep": 3, "mode": "a"}
    assert panel.controls["keep"].continuous_update is False


def test_moving_a_control_changes_the_picture_once(panel):
    seen = []
    panel.image.observe(lambda change: seen.append(change["new"]), names="value")
    panel.controls["keep"].value = 7
    assert len(seen) == 1 and len(panel.milliseconds) == 2
    panel.set(keep=2, mode="b")
    assert len(seen) == 2 and seen[0] != seen[1] and panel.values == {"keep": 2, "mode": "b"}
    panel.set(keep=3, mode="a")
    assert panel.image.value == panel._first  # the same values draw the same picture


def test_set_refuses_what_the_control_cannot_hold(panel):
    before = panel.image.value
    for values, said in [
        ({"kepe": 2}, "kepe: no such control; there are: keep, mode"),
        ({"keep": 99}, "keep=99: the control took 9"),
        ({"mode": "z"}, "mode='z'"),
        ({"keep": 5, "mode": "z"}, "mode='z'"),
        ({"keep": "many"}, "keep='many'"),
    ]:
        with pytest.raises(ValueError, match=re.escape(said)):
            panel.set(**values)
        assert panel.values == {"keep": 3, "mode": "a"} and panel.image.value == before


def test_an_error_is_written_below_the_picture_and_reaches_the_caller():
    def fragile(keep):
        if keep > 5:
            raise ZeroDivisionError("no tokens <left>")
        return draw(keep)

    panel = teach.panel(fragile, alt=ALT, keep=slider())
    before = panel.image.value
    with pytest.raises(ZeroDivisionError):
        panel.set(keep=8)
    assert panel.message.value == "<pre>ZeroDivisionError: no tokens &lt;left&gt;</pre>"
    assert panel.image.value == before
    with pytest.raises(ZeroDivisionError):
        panel.controls["keep"].value = 7
    panel.set(keep=2)
    assert panel.message.value == "" and panel.image.value != before
    with pytest.raises(ValueError, match="draw returned NoneType"):
        teach.panel(lambda keep: None, alt=ALT, keep=slider())


def test_what_a_panel_needs():
    for controls, said in [
        ({}, "got none"),
        ({"keep": 3}, "got int, needs an ipywidgets control"),
        ({"keep": ipywidgets.IntSlider()}, "needs a description"),
        ({"go": ipywidgets.Button(description="go")}, "with a value"),
    ]:
        with pytest.raises(ValueError, match=said):
            teach.panel(draw, alt=ALT, **controls)
    with pytest.raises(ValueError, match="alt="):
        teach.panel(draw, alt="short", keep=slider())
    with pytest.raises(ValueError, match="draw is a str but needs to be a function of the"):
        teach.panel("draw", alt=ALT, keep=slider())


@pytest.mark.parametrize(
    "control",
    [
        slider(),
        ipywidgets.FloatSlider(description="x"),
        ipywidgets.IntRangeSlider(description="x"),
        ipywidgets.SelectionSlider(options=[1, 2], description="x"),
        ipywidgets.FloatLogSlider(description="x"),
        ipywidgets.Checkbox(description="x"),
        ipywidgets.Dropdown(options=[1, 2], description="x"),
        ipywidgets.ToggleButtons(options=[1, 2], description="x"),
        ipywidgets.RadioButtons(options=[1, 2], description="x"),
        ipywidgets.Text(description="x"),
        ipywidgets.BoundedIntText(description="x"),
        ipywidgets.Select(options=[1, 2], description="x"),
        ipywidgets.ToggleButton(description="x"),
    ],
    ids=lambda c: type(c).__name__,
)
def test_every_kind_of_control(control):
    frame = teach.png(draw(1))
    panel = teach.panel(lambda keep: frame, alt=ALT, keep=control)
    assert panel.image.value == frame
    if control.has_trait("continuous_update"):
        assert control.continuous_update is False


def test_show_is_one_bundle_for_all_places(panel, monkeypatch, capsys):
    bundles = []
    monkeypatch.setattr(widgets, "publish", bundles.append)
    panel.set(keep=9)
    panel.show()
    panel._ipython_display_()
    assert len(bundles) == 2
    bundle = bundles[0]
    assert list(bundle) == ["application/vnd.jupyter.widget-view+json", "text/html", "text/plain"]
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == panel.box.model_id
    match = re.match(r'<img alt="([^"]*)" src="data:image/png;base64,([^"]*)"', bundle["text/html"])
    assert html.unescape(match[1]) == ALT == bundle["text/plain"]
    assert base64.b64decode(match[2]) == panel._first != panel.frame


# -------------------------------------------------------------------------------------- live curves


@pytest.fixture
def outputs(monkeypatch):
    calls = []

    def publish(bundle, display_id, update):
        calls.append((bundle, display_id, update))

    monkeypatch.setattr(live, "publish", publish)
    return calls


def test_train_is_the_plain_loop():
    torch.manual_seed(0)
    model, x, seen = torch.nn.Linear(3, 1), torch.randn(64, 3), []
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]])

    def loss(step):
        return (model(x) - y).square().mean()

    def each(step, value):
        seen.append((step, value))

    losses = teach.train(model, loss, steps=80, rate=0.1, decay=0, each=each)
    assert len(losses) == 80 and losses[-1] < 0.05 * losses[0] and not model.training
    assert seen == list(enumerate(losses))


def test_a_live_curve_updates_one_output(outputs):
    with teach.LiveCurve(30, "It falls", "loss", alt=FALLS, every=0) as curve:
        for step in range(5):
            curve.update(step, train=3 - step, test=torch.tensor(4.0 - step))
    assert len(outputs) == 6 and [update for _, _, update in outputs] == [False] + [True] * 5
    assert len({display_id for _, display_id, _ in outputs}) == 1
    assert outputs[-1][0]["text/plain"] == f"{FALLS} Last values: train -1, test 0."
    assert set(outputs[-1][0]) == {"text/html", "text/plain"}
    steps = [0, 1, 2, 3, 4]
    assert curve.history == {"train": (steps, [3, 2, 1, 0, -1]), "test": (steps, [4, 3, 2, 1, 0])}


def test_a_live_curve_redraws_now_and_then_only(outputs):
    with teach.LiveCurve(500, "It falls", "loss", alt=FALLS, every=60) as curve:
        for step in range(500):
            curve.update(step, train=1 / (step + 1))
    assert len(outputs) == 2  # the first point and the end


def test_a_curve_that_lies_on_another_is_dashed(outputs):
    with teach.LiveCurve(4, "Two are one", "loss", alt=FALLS, every=60) as curve:
        for step in range(4):
            # below a line's width from the first; just above it; and with fewer points
            late = {"late": 4.0 - step} if step else {}
            curve.update(step, first=4 - step, near=4.02 - step, far=4.04 - step, **late)
    styles = [line.get_linestyle() for line in curve.figure().axes[0].lines]
    assert styles == ["-", "--", "--", "-"]  # far is near to "near"
    with teach.LiveCurve(4, "Apart", "loss", alt=FALLS, every=60) as curve:
        for step in range(4):
            curve.update(step, first=4 - step, far=4.04 - step, broken=float("nan"))
    assert [line.get_linestyle() for line in curve.figure().axes[0].lines] == ["-"] * 3


def test_a_live_curve_survives_what_training_does(outputs):
    breaks = "The loss turns into NaN after a while."
    with teach.LiveCurve(10, "It breaks", "loss", alt=breaks, every=0) as curve:
        curve.update(0, train=float("nan"))
        curve.update(1, train=2.0)
        # beyond the end, and another name
        curve.update(25, train=float("inf"), test=0.5, third=0.5)
    ax = curve.figure().axes[0]
    assert ax.get_xlim() == (0, 25)
    labels = {t.get_text(): t.xy[1] for t in ax.texts}
    assert set(labels) == {"train 2", "test 0.5", "third 0.5"}
    assert abs(labels["test 0.5"] - labels["third 0.5"]) > 0.05  # they do not lie on each other
    with pytest.raises(KeyError):
        stops = "The loss until the error came up."
        with teach.LiveCurve(10, "It stops", "loss", alt=stops, every=0) as curve:
            curve.update(0, train=1.0)
            raise KeyError("stop")
    assert "Last values: train 1." in outputs[-1][0]["text/plain"]  # what there was stays
    count = len(outputs)
    with teach.LiveCurve(10, "Nothing", "loss", alt="Nothing is drawn without any points."):
        pass
    assert len(outputs) == count
    for total, alt, said in [(0, ALT, "total=0"), (3, "", "alt=")]:
        with pytest.raises(ValueError, match=said):
            teach.LiveCurve(total, "t", "y", alt=alt)


def plain_training():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1, device="cpu", dtype=torch.float32)
    x = torch.arange(24.0, device="cpu", dtype=torch.float32).view(8, 3) / 24
    return teach.train(model, lambda step: model(x).square().mean(), steps=5, rate=0.1)


def test_what_training_calls_is_callable():
    model = torch.nn.Linear(3, 1)
    for given, said in ((dict(loss=0.5), "loss is a float"), (dict(each=3), "each is a int")):
        with pytest.raises(ValueError, match=f"{said} but needs to be a function"):
            teach.train(model, **dict(loss=model, steps=1, rate=0.1) | given)


@pytest.mark.parametrize("setting", [torch.no_grad, torch.inference_mode])
def test_training_needs_no_grad_mode_of_the_caller(setting):
    want = plain_training()
    with setting():
        with torch.inference_mode(False):
            model = torch.nn.Linear(3, 1)
        losses = teach.train(model, lambda step: model(torch.ones(2, 3)).sum(), np.int64(3), 0.1)
    assert len(losses) == 3 and losses[-1] < losses[0]
    with torch.device("meta"):
        assert plain_training() == want


def test_a_live_curve_reads_numbers_of_any_kind(outputs):
    with teach.LiveCurve(np.int64(3), "It falls", "loss", alt=FALLS, every=60) as curve:
        value = torch.tensor(2.0, requires_grad=True)
        curve.update(0, a=value, b=np.float32(1), c=torch.tensor(1, dtype=torch.bfloat16))
    assert curve.history == {"a": ([0], [2.0]), "b": ([0], [1.0]), "c": ([0], [1.0])}
    for wrong in ("x", [1.0], None, torch.ones(2)):          # the error is that of the number
        with pytest.raises(ValueError, match="^a=.*: needs a number"):
            with teach.LiveCurve(3, "It falls", "loss", alt=FALLS) as curve:
                curve.update(0, a=wrong)
    with pytest.raises(ValueError, match="^step='0'"):
        curve.update("0", a=1.0)
    with pytest.raises(ValueError, match="^every="):
        teach.LiveCurve(3, "It falls", "loss", alt=FALLS, every="1")
    for total in (2.5, True):
        with pytest.raises(ValueError, match="total="):
            teach.LiveCurve(total, "t", "y", alt=FALLS)
