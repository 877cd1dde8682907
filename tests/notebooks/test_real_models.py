"""The sections "On real models" and "On real tokens" without weights: one line, and all goes on.

With the weights their cells run under nbval; here nothing of what they need from earlier cells is
there, beside what is imported, so that a cell which does not ask first fails.
"""

import ast
import re

import nbformat
import pytest
import torch

from tools.notebook import code_cells, number, paths, plain_python, read

HEADING = re.compile(r"^(#+) (.*)$", re.MULTILINE)


def section(nb):
    """The code cells under a heading "On real ...", up to the next of its rank or of a higher one;
    none without one."""
    level, inside, cells = 0, False, []
    for cell in nb.cells:
        for marks, title in HEADING.findall(cell.source) if cell.cell_type == "markdown" else ():
            if inside and len(marks) <= level:
                return cells
            if title.startswith("On real "):
                inside, level = True, len(marks)
        if inside and cell.cell_type == "code":
            cells.append(cell)
    return cells


def imports(nb):
    """All import statements of a notebook, as one source."""
    trees = [ast.parse(plain_python(cell.source)) for cell in code_cells(nb)]
    nodes = [node for tree in trees for node in tree.body]
    return "\n".join(ast.unparse(n) for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom)))


LOADS = re.compile(r"hub\.(real|tinyvlm_dino)\(")
WITH_REAL = [path for path in paths() if any(LOADS.search(c.source) for c in section(read(path)))]


@pytest.mark.parametrize("path", WITH_REAL, ids=lambda path: path.stem)
def test_a_line_says_what_is_missing(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VTLIB_REAL", str(tmp_path))
    monkeypatch.delenv("VTLIB_CHECKPOINTS", raising=False)
    monkeypatch.chdir(tmp_path)
    nb = read(path)
    names = {"device": torch.device("cpu")}
    exec(imports(nb), names)
    cells = section(nb)
    for cell in cells:
        exec(plain_python(cell.source), names)
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if "run `make real`" in line]
    assert lines and all(line.startswith("hub.real(") for line in lines), said
    assert len(said.splitlines()) <= len(cells), "one line a cell"


def test_a_section_ends_at_the_next_heading_of_its_rank():
    texts = ["## A\n\n### On real tokens", "#### Finer", "### The bench", "## Recall"]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("before = 0")])
    for k, text in enumerate(texts):
        nb.cells += [nbformat.v4.new_markdown_cell(text), nbformat.v4.new_code_cell(f"k = {k}")]
    assert [cell.source for cell in section(nb)] == ["k = 0", "k = 1"]
    nb.cells[1].source = "## On real models"
    assert [cell.source for cell in section(nb)] == ["k = 0", "k = 1", "k = 2"]


def test_there_are_such_notebooks():
    numbers = {number(path) for path in WITH_REAL}
    assert {"07", "07b", "07c"} <= numbers
