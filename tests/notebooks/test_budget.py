"""What the notebooks cost, from the seconds that `tools/notebook.py run` stored in them.

They are those of the processor, on one thread: whatever else the machine was doing.
"""

import re

import pytest

from tools.notebook import CELL_SECONDS, ROOT, paths, read

NOTEBOOKS = paths()
SECONDS = 60
"""What a notebook may cost (DESIGN: "60 s of processor time top to bottom")."""
IN_ALL, CORES, MINUTES = 28, 2, 45
"""So many notebooks the course will have; `.ci/run` then stays under 45 minutes on two cores."""
THE_REST = 780
"""Seconds of all that `.ci/run` does beside notebooks: environments, lint, unit tests."""


def stored(path):
    return read(path).metadata["vtlib"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_keeps_its_budget(path):
    spent = stored(path)
    index, dearest = spent["slowest_cell"]
    assert 0 < spent["processor_seconds"] <= SECONDS
    assert 0 < dearest <= CELL_SECONDS, f"cell c{index:03d}: split it, or let it do less"


def test_all_notebooks_there_will_be_keep_ci_under_its_limit():
    mean = sum(stored(path)["processor_seconds"] for path in NOTEBOOKS) / len(NOTEBOOKS)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    colab = re.search(r"^COLAB_NOTEBOOKS := .*foreach n,([\d\w ]+),", makefile, re.MULTILINE)
    runs = 2 * IN_ALL + len(colab.group(1).split())  # as shipped, and solved in the browser
    minutes = (runs * mean / CORES + THE_REST) / 60
    assert minutes < MINUTES, f"{runs} runs of {mean:.0f} s: {minutes:.0f} minutes"
