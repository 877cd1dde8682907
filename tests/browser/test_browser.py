"""Each notebook, solved, in a real JupyterLab: no error, every control redraws its picture fast."""

import statistics

import nbformat
import pytest

from tests.browser.lab import (
    close_notebook,
    drive,
    moves,
    open_notebook,
    panels,
    redraws,
    redraws_in_time,
    report,
    run_all,
)
from tools.notebook import code_cells, exercises, normalise, paths, read, tags, write

pytestmark = [pytest.mark.browser, pytest.mark.slow]

TINY = """
import ipywidgets
from vtlib import teach
def draw(keep, mode, size, bold, dots, colour):
    fig, ax = teach.figure()
    color = teach.PALETTE[int(colour) + (mode == "b")]
    line = "o-" if dots == "yes" else "-"
    ax.plot(range(keep), [size] * keep, line, linewidth=3 if bold else 1, color=color)
    ax.set_title(f"{keep} {mode}")
    return fig
p = teach.panel(draw, alt="A line whose length and colour follow the controls.",
    keep=ipywidgets.IntSlider(value=4, min=2, max=9, description="keep"),
    mode=ipywidgets.Dropdown(options=["a", "b", "c"], description="mode"),
    size=ipywidgets.SelectionSlider(options=[1, 2, 4], value=2, description="size"),
    bold=ipywidgets.Checkbox(value=False, description="bold"),
    dots=ipywidgets.ToggleButtons(options=["yes", "no"], description="dots"),
    colour=ipywidgets.RadioButtons(options=["0", "3", "6"], description="colour"))
p.show()
p.set(keep=5)
"""
STUCK = """
import ipywidgets
from vtlib import teach
fig, ax = teach.figure()
frame = teach.png(fig)
keep = ipywidgets.IntSlider(description="keep")
teach.panel(lambda keep: frame, alt="A picture that never changes at all.", keep=keep).show()
"""
BROKEN = """
import ipywidgets
from vtlib import teach
def draw(keep):
    if keep == 2:
        raise ValueError("two is not drawn")
    fig, ax = teach.figure()
    ax.plot([0, keep])
    return fig
keep = ipywidgets.IntSlider(description="keep")
teach.panel(draw, alt="A line that ends at the value of the slider.", keep=keep).show()
"""


def small(lab, name, *cells):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in cells])
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nb.metadata["kernelspec"] = kernel
    nbformat.write(nb, lab.root / name)
    return name


def standing(panel):
    """Where the sliders of a panel stand."""
    handles = panel.query_selector_all(".noUi-handle")
    return [handle.get_attribute("aria-valuenow").removesuffix(".0") for handle in handles]


def test_the_driver_moves_everything_and_sees_what_is_wrong(lab, page, record_property):
    name = small(lab, "tiny.ipynb", TINY, STUCK, BROKEN)
    run_all(page, lab, name)
    tiny, stuck, broken = panels(page, expected=3)
    assert [name for name, _ in moves(page, tiny)][:3] == ["keep", "size", "mode"]
    assert {name for name, _ in moves(page, tiny)} >= {"dots", "colour"}
    before = standing(tiny)
    times = redraws(page, tiny)
    assert standing(tiny) == before == ["5", "1"], "a slider did not come back"
    record_property("redraw", f"a small panel: {report(times)}")
    assert len(times) >= 15
    assert redraws_in_time(statistics.median(times))
    with pytest.raises(AssertionError, match="keep: moved .* the picture stayed the same"):
        drive(page, stuck, patience=500)
    with pytest.raises(AssertionError, match="two is not drawn"):
        drive(page, broken)
    close_notebook(page, name)


def test_an_error_in_a_cell_is_found(lab, page):
    name = small(lab, "error.ipynb", "1 / 0", "print(1)")
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_all(page, lab, name)
    close_notebook(page, name)


def folded(lab, name):
    """A notebook with a machinery cell, and a prediction whose answer is 42."""
    cells = []
    for tag, code in (("machinery", "# @title Draw the scene"), ("prediction", "print(6 * 7)")):
        shown = [nbformat.v4.new_output("stream", text="42" if tag == "prediction" else "drawn")]
        cell = nbformat.v4.new_code_cell(code, outputs=shown)
        cell.metadata["tags"] = [tag]
        cells.append(cell)
    write(normalise(nbformat.v4.new_notebook(cells=cells)), lab.root / name)
    return name


def test_machinery_and_answers_are_folded_and_open_on_a_click(lab, page):
    name = folded(lab, "folded.ipynb")
    open_notebook(page, lab, name)
    machinery, prediction = (page.locator(".jp-Notebook .jp-CodeCell").nth(i) for i in (0, 1))
    machinery.get_by_text("# @title Draw the scene").wait_for()
    assert machinery.locator(".jp-Editor").count() == 0, "the code is out of sight"
    assert machinery.locator(".jp-OutputArea-output").inner_text().strip() == "drawn"
    assert prediction.locator(".jp-Editor").count() == 1, "its code is there"
    assert "42" not in prediction.inner_text(), "the fold tells the answer"
    prediction.get_by_title("Click to expand").click()
    assert prediction.locator(".jp-OutputArea-output").inner_text().strip() == "42"
    machinery.get_by_title("Click to expand").click()
    machinery.locator(".jp-Editor").wait_for()
    close_notebook(page, name)


@pytest.mark.parametrize("path", paths(), ids=lambda p: p.stem)
def test_solved_notebook(path, lab, page, record_property):
    nb = read(path)
    cells = [cell for cell in run_all(page, lab, path.name) if cell["cell_type"] == "code"]
    text = "".join("".join(o.get("text", "")) for cell in cells for o in cell["outputs"])
    assert "not attempted" not in text
    assert text.count(": correct.") >= sum(len(names) for _, names, _ in exercises(nb))
    widgets = [cell for cell in code_cells(nb) if "widget" in tags(cell)]
    found = panels(page, expected=len(widgets))
    medians = []
    for k, panel in enumerate(found, start=1):
        times = redraws(page, panel)
        record_property("redraw", f"{path.stem}, panel {k}: {report(times)}")
        medians.append(statistics.median(times))
    assert redraws_in_time(max(medians, default=0)), f"{[round(m) for m in medians]} ms"
    close_notebook(page, path.name)
