"""What the notebooks cost, from what `tools/notebook.py run` stored in them.

Seconds of the processor on one thread, over those of a fixed piece of work (`gauge`) on the same
machine: the unit is what that work takes, about a second on a laptop's quiet core. So the numbers
depend neither on the machine nor, much, on what else it is doing.
"""

import re

import pytest

from tools.notebook import ROOT, number, paths, read

NOTEBOOKS = paths()
WHOLE, CELL = 60, 12
"""What a notebook and a cell may cost."""
IN_ALL, CORES, MINUTES = 28, 2, 45
"""So many notebooks the course will have; `.ci/run` then stays under 45 minutes on two cores."""
THE_REST = 780
"""Seconds of all that `.ci/run` does beside notebooks: environments, lint, unit tests."""


def cost(path):
    """(of the whole notebook, of its dearest cell)"""
    spent = read(path).metadata["vtlib"]
    return spent["processor_seconds"] / spent["gauge"], spent["slowest_cell"][1] / spent["gauge"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_keeps_its_budget(path):
    whole, dearest = cost(path)
    assert 0 < whole <= WHOLE
    index = read(path).metadata["vtlib"]["slowest_cell"][0]
    assert 0 < dearest <= CELL, f"cell c{index:03d}: split it, or let it do less"


def test_all_notebooks_there_will_be_keep_ci_under_its_limit():
    """The ones to come cost what they may; those that are here, what they do."""
    here = [cost(path)[0] for path in NOTEBOOKS]
    whole = sum(here) + WHOLE * (IN_ALL - len(here))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    colab = re.search(r"^COLAB_NOTEBOOKS := .*foreach n,([\d\w ]+),", makefile, re.MULTILINE)
    again = [cost(path)[0] for path in NOTEBOOKS if number(path) in colab.group(1).split()]
    seconds = (2 * whole + sum(again)) / CORES + THE_REST  # as shipped, and solved in the browser
    assert seconds < 60 * MINUTES, f"{seconds / 60:.0f} minutes"
