"""The sections "On real models" and "On real tokens" without weights: one line, and all goes on.

With the weights their cells run under nbval; here nothing of what they need from earlier cells is
there, beside what is imported, so that a cell which does not ask first fails.
"""

import ast
import re

import pytest
import torch

from tools.notebook import code_cells, number, paths, plain_python, read


def section(nb):
    """The code cells under a heading "On real ...", up to "Recall"; none without one."""
    headings = [i for i, c in enumerate(nb.cells) if "# On real " in c.source]
    if not headings:
        return []
    later = nb.cells[headings[0] :]
    stop = next(i for i, cell in enumerate(later) if "## Recall" in cell.source)
    return [cell for cell in later[:stop] if cell.cell_type == "code"]


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


def test_there_are_such_notebooks():
    numbers = {number(path) for path in WITH_REAL}
    assert {"07", "07b", "07c"} <= numbers
