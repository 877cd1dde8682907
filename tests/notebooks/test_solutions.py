"""The exercises: a stub is not an error, folded solutions are accepted, mistakes are turned down with a message that helps.

tests/teach/wrong/PAPER.py holds the mistakes:
WRONG = {"PAPER.name": [("short name", "python source", "fragment of the message"), ...]}.
"""

import ast
import functools
import re
import runpy

import pytest
import torch

from tools.notebook import (
    ROOT,
    code_cells,
    exercise_lines,
    paths,
    plain_python,
    read,
    solution_code,
    tags,
)
from vtlib import teach

NOTEBOOKS = {path.stem: path for path in paths()}
CASES = [
    (stem, name)
    for stem, path in NOTEBOOKS.items()
    for cell in code_cells(read(path))
    if "exercise" in tags(cell)
    for name in re.findall(r"""teach\.exercise\(\s*["']([^"']+)["']""", cell.source)
]
HOME = {name: stem for stem, name in CASES}
WRONG = {
    name: rows
    for file in sorted((ROOT / "tests" / "teach" / "wrong").glob("*.py"))
    for name, rows in runpy.run_path(str(file))["WRONG"].items()
}
MISTAKES = [(HOME.get(name), name, *row) for name, rows in WRONG.items() for row in rows]


def define(source, namespace):
    """Run what a cell defines: imports, functions, classes, plain constants. The rest (training, plots) is left out."""
    for node in ast.parse(plain_python(source)).body:
        plain = isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef))
        if isinstance(node, ast.Assign):
            try:
                ast.literal_eval(node.value)
                plain = True
            except (ValueError, TypeError):
                plain = ast.unparse(node.value) in ("teach.device()",)
        if plain:
            try:
                exec(compile(ast.Module([node], []), "<notebook>", "exec"), namespace)
            except NameError:  # needs a value that only a real run has
                pass


@functools.cache
def prepared(stem):
    """{exercise name: (names known before its cell, source of the cell, solution, expression handed to teach.exercise)}."""
    namespace, found, cells = {"__name__": "__notebook__"}, {}, read(NOTEBOOKS[stem]).cells
    for i, cell in enumerate(cells):
        if cell.cell_type != "code":
            continue
        if "exercise" not in tags(cell):
            define(cell.source, namespace)
            continue
        solution = solution_code(next(c for c in cells[i:] if "solution" in tags(c)))
        for name, line in exercise_lines(cell.source):
            call = next(
                n for n in ast.walk(ast.parse(line)) if isinstance(n, ast.Call) and ast.unparse(n.func) == "teach.exercise"
            )
            found[name] = (dict(namespace), cell.source, solution, ast.unparse(call.args[1]))
        exec(compile(solution, f"<solution {i}>", "exec"), namespace)
    return found


def attempt(stem, name, source):
    """What teach.exercise makes of `source` in the place of the stub: (what it returned, what it was given)."""
    before, _, _, expression = prepared(stem)[name]
    namespace = dict(before)
    exec(compile(source, f"<{name}>", "exec"), namespace)
    torch.manual_seed(0)
    fn = eval(expression, namespace)
    return teach.exercise(name, fn), fn


def stub(stem, name):
    """The exercise's cell without its last call."""
    source = prepared(stem)[name][1]
    for _, line in exercise_lines(source):
        source = source.replace(line, "")
    return source


@pytest.mark.parametrize("stem,name", CASES, ids=[name for _, name in CASES])
def test_not_attempted(stem, name, capsys):
    got, fn = attempt(stem, name, stub(stem, name))
    assert "not attempted" in capsys.readouterr().out
    reference, _ = teach.exercises.get(name)
    assert got is reference and got is not fn


@pytest.mark.parametrize("stem,name", CASES, ids=[name for _, name in CASES])
def test_solution_is_accepted(stem, name, capsys):
    got, fn = attempt(stem, name, prepared(stem)[name][2])
    assert "correct" in capsys.readouterr().out
    assert got is fn


@pytest.mark.parametrize("stem,name", CASES, ids=[name for _, name in CASES])
def test_reference_is_accepted(stem, name, capsys):
    reference, _ = teach.exercises.get(name)
    assert teach.exercise(name, reference) is reference


@pytest.mark.parametrize(
    "stem,name,short,source,fragment", MISTAKES, ids=[f"{m[1]}-{m[2]}".replace(" ", "_") for m in MISTAKES]
)
def test_mistake_is_explained(stem, name, short, source, fragment):
    with pytest.raises(teach.Wrong) as caught:
        attempt(stem, name, source)
    message = str(caught.value)
    assert fragment in message, f"the message does not help:\n{message}"
    assert name in message


def test_registry_and_mistakes_cover_the_notebooks():
    names = [name for _, name in CASES]
    assert sorted(names) == sorted(teach.exercises.names()), (
        "exercises of the notebooks and of vtlib/teach/exercises differ"
    )
    assert not set(WRONG) - set(names), "mistakes of exercises that don't exist"
    few = [name for name in names if len(WRONG.get(name, [])) < 3]
    assert not few, f"at least three wrong answers each, in tests/teach/wrong: {few}"


@pytest.mark.parametrize("file", sorted((ROOT / "tests" / "teach" / "wrong").glob("*.py")), ids=lambda file: file.stem)
def test_a_file_of_mistakes_is_about_one_paper(file):
    assert {name.partition(".")[0] for name in runpy.run_path(str(file))["WRONG"]} == {file.stem}
