"""What can be counted of a notebook's ease: one test a rule, each over all notebooks.

exceptions.toml says how much of a rule a notebook may break, under the name of its test. A count
over the entry fails, and one under it as well: the list only shrinks. The set-up cell, which is
the same everywhere, is left out.
"""

import ast
import re
import tomllib
from pathlib import Path

import nbformat
import pytest

from tests.notebooks.test_structure import card, head, lines_of, outputs, show
from tools.glossary import FIRST, told, unexplained
from tools.notebook import code_cells, exercises, number, paths, plain_python, tags

LISTED = Path(__file__).with_name("exceptions.toml")
EXCEPTIONS = tomllib.loads(LISTED.read_text(encoding="utf-8"))
FENCED = re.compile(r"^```.*?^```", flags=re.MULTILINE | re.DOTALL)
WIDTH, LINES, FOLDED_LINES, WORDS = 88, 15, 25, 150
COLUMNS, ROW, PANELS, POSITIONAL, DRAWING = 5, 100, 3, 3, 15


def compare(offences, excused, rule):
    """AssertionError unless there are as many offences as are excused."""
    found = len(offences)
    listed = "\n".join(offences)
    assert found <= excused, f"{found}, and {excused} are excused:\n{listed}"
    todo = f"write {rule} = {found}" if found else f"take {rule} away"
    assert found == excused, f"{found} are left of {excused}, in exceptions.toml {todo}"


@pytest.fixture
def at_most(request, path):
    """A check that the test's rule is broken as often as exceptions.toml says: not at all."""
    rule = request.node.originalname.removeprefix("test_")
    excused = EXCEPTIONS.get(path.stem, {}).get(rule, 0)
    return lambda offences: compare(offences, excused, rule)


def lesson(nb):
    """The code cells without the set-up cell."""
    return [cell for cell in code_cells(nb) if "setup" not in tags(cell)]


def texts(nb):
    return [cell for cell in nb.cells if cell.cell_type == "markdown"]


def words(text):
    """Number of words of prose: without code blocks, tags, addresses and rules of tables."""
    text = re.sub(r"<[^>]+>|\]\([^)]*\)|https?://\S+", " ", FENCED.sub(" ", text))
    return len(re.findall(r"[^\W_][\w'’.-]*", text))


def nodes(nb, *kinds):
    """(cell, node) of all syntax of these kinds, in code a reader sees or unfolds."""
    for cell in lesson(nb):
        for node in ast.walk(ast.parse(plain_python(cell.source))):
            if isinstance(node, kinds):
                yield cell, node


def inside(node, *kinds):
    """The nodes of these kinds below a node."""
    return [n for n in ast.walk(node) if n is not node and isinstance(n, kinds)]


def quote(cell, node):
    return f"{cell.id}: {ast.unparse(node)[:80]}"


# -------------------------------------------------------------------------------------------- cells
def test_wide_lines(nb, at_most):
    """88 characters a line of code, in cells and in code blocks of texts."""
    code = [(cell.id, cell.source) for cell in lesson(nb)]
    code += [(cell.id, block) for cell in texts(nb) for block in FENCED.findall(cell.source)]
    lines = [(name, line) for name, source in code for line in source.splitlines()]
    at_most([f"{name}: {len(line)}: {line}" for name, line in lines if len(line) > WIDTH])


def test_long_cells(nb, at_most):
    """15 lines a code cell, 25 a folded one; comments and docstrings count, blank lines don't."""
    offences = []
    for cell in lesson(nb):
        limit = FOLDED_LINES if "machinery" in tags(cell) else LINES
        if len(lines_of(cell)) > limit:
            offences.append(f"{len(lines_of(cell))} lines in {show(cell)}")
    at_most(offences)


def test_long_texts(nb, at_most):
    """150 words a text cell, what is folded in it included."""
    counts = [(words(cell.source), cell) for cell in texts(nb)]
    at_most([f"{count} words in {show(cell)}" for count, cell in counts if count > WORDS])


def test_wide_tables(nb, at_most):
    """Five columns a table, and 100 characters a row as plain text."""
    offences = []
    for cell, output in outputs(nb):
        markup = output.get("data", {}).get("text/html", "")
        if "<table" not in markup:
            continue
        rows = re.findall(r"<tr.*?</tr>", markup, flags=re.DOTALL)
        columns = max(len(re.findall(r"<t[hd]\b", row)) for row in rows)
        # caption and rule; the reasons below a table of claims are no rows
        plain = output.data.get("text/plain", "").splitlines()[: len(rows) + 2]
        width = max(map(len, plain), default=0)
        if columns > COLUMNS or width > ROW:
            offences.append(f"{columns} columns, {width} characters in {show(cell)}")
    at_most(offences)


def panels(call):
    """Panels of a call of teach.figure(ncols, nrows), as far as it says so in numbers."""
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    sizes = [*call.args[:2], *(named[name] for name in ("ncols", "nrows") if name in named)]
    numbers = [size.value for size in sizes if isinstance(size, ast.Constant)]
    return numbers[0] * numbers[1] if len(numbers) == 2 else max(numbers, default=1)


def test_figures_of_many_panels(nb, at_most):
    """Three panels; a row of pictures that teach.pictures draws into one panel is one."""
    calls = [(cell, node) for cell, node in nodes(nb, ast.Call)]
    figures = [(cell, node) for cell, node in calls if ast.unparse(node.func) == "teach.figure"]
    at_most([quote(cell, node) for cell, node in figures if panels(node) > PANELS])


# --------------------------------------------------------------------------------------------- code
LOOPS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
MANY = {"print", "zip", "max", "min", "rand", "randn", "zeros", "ones", "empty"} | {
    "expand", "permute", "repeat", "reshape", "view", "einsum"
}  # fmt: skip
"""Functions that take any number of the same thing: values, sizes, axes."""


def test_nested_conditionals(nb, at_most):
    """No `a if x else b if y else c`."""
    found = nodes(nb, ast.IfExp)
    at_most([quote(cell, node) for cell, node in found if inside(node, ast.IfExp)])


def test_nested_comprehensions(nb, at_most):
    """No two `for` in one comprehension, and no comprehension in another."""
    found = nodes(nb, *LOOPS)
    deep = [(c, node) for c, node in found if len(node.generators) > 1 or inside(node, *LOOPS)]
    at_most([quote(cell, node) for cell, node in deep])


def test_assignments_in_calls(nb, at_most):
    """No := among the arguments of a call."""
    found = {}
    for cell, call in nodes(nb, ast.Call):
        for node in inside(call, ast.NamedExpr):
            found[node] = quote(cell, node)
    at_most(list(found.values()))


def test_many_positional_arguments(nb, at_most):
    """Three arguments by position, except where any number of the same thing is meant."""
    offences = []
    for cell, call in nodes(nb, ast.Call):
        name = ast.unparse(call.func).split(".")[-1]
        if len(call.args) > POSITIONAL and name not in MANY:
            offences.append(quote(cell, call))
    at_most(offences)


DRAWS = re.compile(r"(ax\w*|fig\w*|plt)(\[[^]]*\])*\.")


def test_drawing_lines(nb, at_most):
    """15 visible lines a notebook, all lines of the calls of an ax..., a fig... or plt."""
    drawn = {}
    for cell, call in nodes(nb, ast.Call):
        if "machinery" not in tags(cell) and DRAWS.match(ast.unparse(call.func)):
            lines = range(call.lineno, call.end_lineno + 1)
            drawn |= {(cell.id, line): quote(cell, call) for line in lines}
    at_most(list(drawn.values())[DRAWING:])


# --------------------------------------------------------------------------------------- the whole
def test_number_of_cells(nb, at_most):
    """40 to 90 (40 to 70 are wished for)."""
    count = len(nb.cells)
    at_most([] if 40 <= count <= 90 else [f"{count} cells"])


def test_number_of_words(nb, at_most):
    """2,000 to 5,000 (up to 4,000 are wished for)."""
    count = sum(words(cell.source) for cell in texts(nb))
    at_most([] if 2000 <= count <= 5000 else [f"{count} words"])


STATED = re.compile(r"(\d+) min\w* (?:to read|for the exercises)")


def test_minutes(nb, at_most):
    """The head's minutes: 200 words a minute, half a minute a code cell, the exercises' cards.

    It says "60 minutes to read, 50 minutes for the exercises"; the sum may be 20 % off.
    """
    stated = sum(map(int, STATED.findall(head(nb))))
    done = [int(re.search(r"(\d+)\s*min", card(nb, i)).group(1)) for i, _, _ in exercises(nb)]
    read = sum(words(cell.source) for cell in texts(nb)) / 200 + len(code_cells(nb)) / 2
    counted = read + sum(done)
    told = f"{stated} minutes stated: {read:.0f} to read, {sum(done)} for the exercises counted"
    at_most([] if abs(stated - counted) <= 0.2 * counted else [told])


def test_unexplained_words(nb, path, at_most):
    """Words of the glossary that a notebook uses before it explains them.

    Link the first use to glossary.md, or set it in bold and say there what it is.
    """
    found = unexplained(nb, first=number(path) == FIRST)
    at_most(told(found).splitlines())


# --------------------------------------------------------------------------------------- exceptions
def test_the_exceptions_name_notebooks_and_rules():
    rules = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    for stem, entries in EXCEPTIONS.items():
        assert stem in {path.stem for path in paths()}, stem
        counts = {rule: count for rule, count in entries.items() if rule != "reason"}
        assert counts, f"{stem}: nothing is left to excuse, take it away"
        assert set(counts) <= rules, f"{stem}: no rules: {set(counts) - rules}"
        assert all(isinstance(count, int) and count > 0 for count in counts.values()), stem
        assert len(entries["reason"]) > 20, f"{stem}: a reason"


def test_the_list_only_shrinks():
    compare(["c001", "c002"], 2, "wide_lines")
    with pytest.raises(AssertionError, match="3, and 2 are excused"):
        compare(["c001", "c002", "c003"], 2, "wide_lines")
    with pytest.raises(AssertionError, match="write wide_lines = 1"):
        compare(["c001"], 2, "wide_lines")
    with pytest.raises(AssertionError, match="take wide_lines away"):
        compare([], 2, "wide_lines")


SEEN = [
    (test_wide_lines, "x = " + "1" * 85, "x = " + "1" * 84),
    (test_long_cells, "x = 1\n" * 16, "x = 1\n\n" * 15),
    (test_figures_of_many_panels, "teach.figure(2, nrows=2)", "teach.figure(3, size=(9, 4))"),
    (test_nested_conditionals, "a if x else b if y else c", "[a if x else b, c if y else d]"),
    (test_nested_comprehensions, "[a for x in y for a in x]", "[a for a in x], [b for b in y]"),
    (test_nested_comprehensions, "[[a for a in x] for x in y]", "f(a for a in x)"),
    (test_assignments_in_calls, "print(f(y := 2))", "if (y := 2) > x:\n    print(y)"),
    (test_many_positional_arguments, "f(1, 2, 3, 4)", "f(1, 2, 3, d=4), x.view(1, 2, 3, 4)"),
    (test_drawing_lines, "ax.plot(\n1,\n)\n" * 5 + "fig.legend()", "axes[0].plot(1)\n" * 15),
]


@pytest.mark.parametrize("rule,bad,good", SEEN)
def test_rules_see_what_they_forbid(rule, bad, good):
    for source, count in ((bad, 1), (good, 0)):
        found = []
        rule(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), found.extend)
        assert len(found) == count, found


def test_folded_code_may_be_longer_and_draw():
    for lines, count in ((25, 0), (26, 1)):
        cell = nbformat.v4.new_code_cell("ax.plot()\n" * lines, metadata={"tags": ["machinery"]})
        nb, found = nbformat.v4.new_notebook(cells=[cell]), []
        test_long_cells(nb, found.extend)
        test_drawing_lines(nb, found.extend)
        assert len(found) == count


def test_wide_and_narrow_tables():
    data = {"text/html": f"<table><tr>{'<td>1</td>' * 5}</tr></table>\n<p>Why</p>"}
    for plain, count in (("x" * 100 + "\n\n\n" + "why " * 30, 0), ("x" * 101, 1)):
        output = nbformat.v4.new_output("display_data", data=data | {"text/plain": plain})
        cell, found = nbformat.v4.new_code_cell("1", outputs=[output]), []
        test_wide_tables(nbformat.v4.new_notebook(cells=[cell]), found.extend)
        assert len(found) == count
