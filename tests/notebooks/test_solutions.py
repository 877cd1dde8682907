"""The exercises: a stub is not an error, folded solutions are accepted, mistakes are turned down with a message that helps.

wrong_NN.py beside this file holds the mistakes:
WRONG = {"NN.name": [("short name", "python source", "fragment of the message"), ...]}.
"""

import ast
import functools
import re
import runpy
from pathlib import Path

import pytest
import torch

from tools.notebook import (
    ROOT,
    code_cells,
    execute,
    exercise_lines,
    number,
    paths,
    plain_python,
    read,
    solution_code,
    solve,
    tags,
)
from vtlib import teach

NOTEBOOKS = {path.stem: path for path in paths()}
HERE = Path(__file__).parent
CASES = [
    (stem, name)
    for stem, path in NOTEBOOKS.items()
    for cell in code_cells(read(path))
    if "exercise" in tags(cell)
    for name in re.findall(r"""teach\.exercise\(\s*["']([^"']+)["']""", cell.source)
]
FILES = {stem: HERE / f"wrong_{number(path)}.py" for stem, path in NOTEBOOKS.items()}
WRONG = {stem: runpy.run_path(str(file))["WRONG"] if file.exists() else {} for stem, file in FILES.items()}
MISTAKES = [
    (stem, name, short, source, fragment)
    for stem in NOTEBOOKS
    for name, rows in WRONG[stem].items()
    for short, source, fragment in rows
]


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


@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_registry_and_mistakes_cover_the_notebook(stem):
    names = [name for s, name in CASES if s == stem]
    assert sorted(names) == sorted(teach.exercises.names(number(stem))), (
        "exercises of the notebook and of vtlib/teach/exercises differ"
    )
    assert not set(WRONG[stem]) - set(names), "mistakes of exercises that don't exist"
    few = {name: len(WRONG[stem].get(name, [])) for name in names if len(WRONG[stem].get(name, [])) < 3}
    assert not few, f"at least three wrong answers each, in tests/notebooks/{FILES[stem].name}"


@pytest.mark.slow
@pytest.mark.parametrize("stem", NOTEBOOKS)
def test_solved_notebook_runs(stem):
    nb = solve(read(NOTEBOOKS[stem]))
    seconds = execute(nb, folder=ROOT / "notebooks")
    text = "".join(o.get("text", "") for cell in code_cells(nb) for o in cell.outputs)
    assert "not attempted" not in text
    assert text.count(": correct.") >= sum(s == stem for s, _ in CASES)
    print(f"{stem} solved: {seconds:.0f} s")
