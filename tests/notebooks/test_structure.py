"""What a notebook must look like, checked on the file itself, without a kernel.

One test per rule, each over all notebooks.
"""

import ast
import re
import sys
import tomllib
from pathlib import Path

import nbformat

from tools import claims, papers
from tools.notebook import (
    BADGE_PATTERN,
    ROOT,
    WIDGET,
    badge,
    code_cells,
    exercises,
    metadata,
    plain_python,
    setup_source,
    stored_outputs,
    tags,
)
from tools.papers import sections

FOLDERS = "root|home|Users|work|tmp|opt|usr|private|var|content|mnt"
MACHINE_PATH = re.compile(rf"(?<![\w.:/])/({FOLDERS})/\w|\b[A-Z]:\\\w")
DATA_URI = re.compile(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=\s]+")
IMG = re.compile(r"<img\b[^>]*>", re.IGNORECASE)
ALT = re.compile(r"""\balt\s*=\s*("([^"]*)"|'([^']*)')""", re.IGNORECASE)
MODULES = {
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "jupyterlab": "jupyterlab",
}  # package -> module, where they differ


def show(cell):
    """A cell as an error message quotes it: id, and its first line."""
    first = cell.source.strip().splitlines()
    return f"{cell.get('id')}: {first[0] if first else '(empty)'}"


def tagged(cells, tag):
    return [cell for cell in cells if tag in tags(cell)]


def head(nb):
    """The markdown before the set-up cell, in one piece."""
    stop = next(i for i, cell in enumerate(nb.cells) if "setup" in tags(cell))
    return "\n\n".join(cell.source for cell in nb.cells[:stop] if cell.cell_type == "markdown")


def outputs(nb):
    """(cell, output) of every code cell."""
    return [(cell, output) for cell in code_cells(nb) for output in cell.outputs]


def text_of(output):
    """Everything textual in an output, without embedded pictures."""
    if output.output_type == "stream":
        return output.text
    if output.output_type == "error":
        return "\n".join(output.traceback)
    texts = [v for mime, v in output.get("data", {}).items() if mime.startswith("text/")]
    return DATA_URI.sub("", "\n".join(text for text in texts if isinstance(text, str)))


def lines_of(cell):
    return [line for line in cell.source.splitlines() if line.strip()]


# -------------------------------------------------------------------------------------------- shape
def test_valid_and_normalised(nb):
    nbformat.validate(nb)
    assert (nb.nbformat, nb.nbformat_minor) == (4, 5)
    ids = [f"c{i:03d}" for i in range(len(nb.cells))]
    assert [cell.id for cell in nb.cells] == ids, "run tools/notebook.py run on it"
    folded = [show(cell) for cell in nb.cells if cell.metadata != metadata(cell)]
    assert not folded, "only tags, and what follows from them: run `make colab`"
    assert nb.metadata.kernelspec.name == "python3"
    told = "the Python version of the machine is in the metadata"
    assert "version" not in nb.metadata.language_info, told


def test_name(path):
    assert re.fullmatch(r"\d\d[a-z]?_[a-z0-9_]+\.ipynb", path.name)


def is_title(cell):
    prose = re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL)
    return cell.cell_type == "markdown" and re.search(r"^# ", prose, re.MULTILINE)


HEAD = {
    r"^\|.*\bpaper\b.*\|.*\byear\b.*\|": "a table | paper | year | idea | section |",
    r"read[^\n]*?\d+|\d+[^\n]*?\bread": "the time to read",
    r"\brun[^\n]*?\d+|\d+[^\n]*?\brun": "the time to run",
    r"\byou\s+(will\s+be\s+able|can)\b": "what you will be able to do",
    r"you\s+need|needs?:": "what you need to know",
}
"""What stands before the set-up cell."""


def test_head(nb, path):
    first = nb.cells[0]
    assert is_title(first) and first.source.startswith("# "), "the first cell is the title"
    assert badge(path.name) in first.source, "the Colab badge is missing or stale: make colab"
    titles = [show(cell) for cell in nb.cells if is_title(cell)]
    assert len(titles) == 1, f"one heading of level 1, found {titles}"
    text = head(nb)
    for pattern, what in HEAD.items():
        assert re.search(pattern, text, re.MULTILINE | re.IGNORECASE), what
    table = [line for line in text.splitlines() if line.startswith("|")]
    rows = [line for line in table if re.search(r"\]\(#", line)]
    assert len(rows) >= max(1, len(sections(nb))), "the table links to the section of each paper"


def test_setup_cell_is_the_first_code_cell_and_the_same_everywhere(nb):
    first = code_cells(nb)[0]
    assert tags(first) == ["setup"]
    assert first.source == setup_source(), "make colab writes it"
    assert len(tagged(nb.cells, "setup")) == 1


TITLE = re.compile(r"# @title \S.{9,}")


def test_folded_code_has_a_title(nb):
    """All that a reader sees of it: a comment on its first line, which Colab takes for a title."""
    for cell in tagged(nb.cells, "machinery"):
        assert cell.cell_type == "code", f"{show(cell)}: only code is machinery"
        told = f"{show(cell)}: its first line is `# @title`, and what the cell does"
        assert TITLE.match(cell.source), told


def test_predictions_are_code_that_shows_something(nb):
    for cell in tagged(nb.cells, "prediction"):
        told = f"{show(cell)}: the cell whose output is the answer, not the question"
        assert cell.cell_type == "code" and cell.outputs, told
        assert cell.outputs == stored_outputs(cell), f"{show(cell)}: run `make colab`"


def test_last_sections(nb):
    prose = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    headings = [text.lower() for text in re.findall(r"^#{2,3} (.*)$", prose, re.MULTILINE)]
    for name in ("recall", "further", "references"):
        assert any(name in heading for heading in headings), f"no heading '{name}'"


# --------------------------------------------------------------------------------------- the papers
def test_each_paper_has_its_parts(nb, path):
    found = sections(nb)
    is_first = path.name.startswith("00_")
    assert found or is_first, "no heading of level 2 is tagged paper:slug"
    scopes = found or {"the notebook": nb.cells}
    parts = ["exercise", "hint", "solution", "check", "widget"]
    if found:
        parts.append("claim")
    pairs = [(slug, tag, cells) for slug, cells in scopes.items() for tag in parts]
    missing = [f"{slug}: {tag}" for slug, tag, cells in pairs if not tagged(cells, tag)]
    assert not missing


def papers_of(nb):
    """Names of the modules whose PAPER has a section here, and `basics`."""
    modules = {slug: Path(file).stem for slug, file in papers.files().items()}
    return {"basics"} | {modules[slug] for slug in sections(nb) if slug in modules}


def test_exercises(nb):
    found = exercises(nb)  # raises when a solution is missing or not a single block
    modules = papers_of(nb)
    for i, names, _ in found:
        assert len(names) == 1, f"{names}: one exercise a cell"
        told = f"{names[0]}: named after a paper's module, or basics: {sorted(modules)}"
        assert names[0].partition(".")[0] in modules, told
        check_stub(nb.cells[i])
        check_surroundings(nb, i)
    names = [name for _, group, _ in found for name in group]
    assert names and len(set(names)) == len(names)


def check_stub(cell):
    """The stub of an exercise, with nothing beside it."""
    assert "NotImplementedError" in cell.source, f"{show(cell)}: it raises NotImplementedError"
    body = ast.parse(plain_python(cell.source)).body
    stubs = [n for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    documented = stubs and all(ast.get_docstring(stub) for stub in stubs)
    assert documented, f"{show(cell)}: each stub has a docstring"
    last = lines_of(cell)[-1]
    assert "teach.exercise(" in last, f"{show(cell)}: ends with the call of teach.exercise"
    others = [ast.unparse(node) for node in body if node not in stubs]
    beside = [o for o in others if not o.startswith(("import ", "from "))]
    assert all("teach.exercise(" in o for o in beside), f"{show(cell)}: nothing else belongs here"


def card(nb, i):
    """The text above the exercise in cell i."""
    return next(c for c in reversed(nb.cells[:i]) if c.cell_type == "markdown").source


def check_surroundings(nb, i):
    """A card above the exercise in cell i; a hint and a solution after it."""
    cell, above = nb.cells[i], card(nb, i)
    described = re.search(r"difficulty", above, re.IGNORECASE) and re.search(r"\d+\s*min", above)
    assert described, f"{show(cell)}: card above it, with difficulty and minutes"
    after = [tags(c) for c in nb.cells[i + 1 :]]
    order = [
        next((k for k, found in enumerate(after) if tag in found), None)
        for tag in ("hint", "solution")
    ]
    told = f"{show(cell)}: a hint, then a solution, after it, in two cells or in one"
    assert None not in order and order[0] <= order[1], told


def test_hints_and_solutions_are_folded(nb):
    for cell in tagged(nb.cells, "hint") + tagged(nb.cells, "solution"):
        assert cell.cell_type == "markdown", show(cell)
        opened, closed = cell.source.count("<details"), cell.source.count("</details>")
        assert opened == closed >= 1 and "<summary>" in cell.source, show(cell)


def test_widgets_are_moved_by_a_cell(nb):
    places = [i for i, cell in enumerate(nb.cells) if "widget" in tags(cell)]
    places = [i for i in places if nb.cells[i].cell_type == "code"]
    for i in places:
        following = [k for k, cell in enumerate(nb.cells) if k > i and "widget" in tags(cell)]
        until = following[0] if following else len(nb.cells)
        part = nb.cells[i:until]
        code = "\n".join(cell.source for cell in part if cell.cell_type == "code")
        told = f"{show(nb.cells[i])}: no cell moves the control, so nbval never calls it"
        assert re.search(r"\.set\(|\.value\s*=[^=]", code), told


def stored(tree):
    """Names that the statements of a cell give a value, functions and classes among them."""
    names, todo = set(), list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif not isinstance(node, (ast.Lambda, ast.ListComp, ast.DictComp, ast.GeneratorExp)):
            todo += ast.iter_child_nodes(node)
    return names


def read_by(function):
    """Names that a function reads and does not make."""
    parts = list(ast.walk(function))
    names = [node for node in parts if isinstance(node, ast.Name)]
    own = {node.arg for node in parts if isinstance(node, ast.arg)}
    own |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
    return {node.id for node in names if isinstance(node.ctx, ast.Load)} - own


def read_by_widget(trees, i):
    """Names that the functions of cell i read, and the notebook's functions that these call."""
    made = [node for tree in trees[: i + 1] for node in tree.body]
    made = [node for node in made if isinstance(node, ast.FunctionDef)]
    todo, seen, names = [node for node in trees[i].body if node in made], [], set()
    while todo:
        function = todo.pop()
        seen.append(function)
        names |= read_by(function)
        todo += [node for node in made if node.name in names and node not in seen + todo]
    return names


def test_what_a_widget_reads_is_not_overwritten(nb):
    """A slider moved after the last cell finds what it found in its own."""
    cells = code_cells(nb)
    trees = [ast.parse(plain_python(cell.source)) for cell in cells]
    for i in [i for i, cell in enumerate(cells) if "widget" in tags(cell)]:
        names = read_by_widget(trees, i)
        for cell, tree in zip(cells[i + 1 :], trees[i + 1 :], strict=True):
            again = names & stored(tree)
            told = f"{show(cells[i])} reads {sorted(again)}, which another value takes in"
            assert not again, f"{told} {show(cell)}"


def test_widget_and_claim_outputs(nb):
    for tag, wanted, what in (
        ("widget", "<img", "static first frame"),
        ("claim", "<table", "table of claims"),
    ):
        for cell in tagged(code_cells(nb), tag):
            shown = [output.get("data", {}).get("text/html", "") for output in cell.outputs]
            assert any(wanted in text for text in shown), f"{show(cell)}: no {what}"


BEFORE_DATA = ">same direction?</th>"
"""A column that teach.claims had before its output carried data: run no more since."""


def test_claims_carry_their_rows_as_data(nb):
    known = papers.facts()
    for cell in tagged(code_cells(nb), "claim"):
        rows = claims.rows_of(cell)
        tables = [output.get("data", {}).get("text/html", "") for output in cell.outputs]
        old = any(BEFORE_DATA in table for table in tables)
        assert rows or old, f"{show(cell)}: teach.claims makes the table, run the notebook again"
        for row in rows:
            slug = row["slug"]
            assert slug is None or slug in known, f"{show(cell)}: slug={slug!r} is no paper's"


# ------------------------------------------------------------------------------------------ outputs
def test_was_run_from_top_to_bottom(nb):
    cells = code_cells(nb)
    assert all(cell.source.strip() for cell in cells), "an empty code cell"
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell.outputs) for cell in cells) > len(cells) / 2, "most cells show nothing"


def test_outputs_are_clean(nb):
    for cell, output in outputs(nb):
        assert output.output_type != "error", show(cell)
        assert output.get("name") != "stderr", f"{show(cell)}: {text_of(output)}"
        text = text_of(output)
        assert not re.search(r"\b\w*Warning:", text), f"{show(cell)}: a warning"
        written = re.search(r"\bat 0x[0-9a-f]{6,}|<Figure size|\btensor\(", text)
        assert not written, f"{show(cell)}: the repr of an object"
        assert not re.search(r"\d(it/s|s/it)\b", text), f"{show(cell)}: a progress bar"


def test_no_machine_paths(nb):
    for cell in nb.cells:
        assert not MACHINE_PATH.search(DATA_URI.sub("", cell.source)), show(cell)
    for cell, output in outputs(nb):
        found = MACHINE_PATH.search(text_of(output))
        assert not found, f"{show(cell)}: {found}"


def test_no_widget_state(nb):
    assert "widgets" not in nb.metadata, "GitHub refuses a notebook with saved widget state"
    for cell, output in outputs(nb):
        data = output.get("data", {})
        told = f"{show(cell)}: a widget without a static picture"
        assert WIDGET not in data or "text/html" in data, told


def test_pictures_have_alt_text(nb):
    for cell, output in outputs(nb):
        data = output.get("data", {})
        bare = [mime for mime in data if mime.startswith("image/")]
        assert not bare, f"{show(cell)}: figures go through teach.show(fig, alt=...)"
        for tag in IMG.findall(data.get("text/html", "")):
            assert alt(tag) >= 20, f"{show(cell)}: {tag[:80]}"
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            text = BADGE_PATTERN.sub("", cell.source)
            lengths = [len(found) for found in re.findall(r"!\[([^\]]*)\]\(", text)]
            lengths += [alt(tag) for tag in IMG.findall(text)]
            told = f"{show(cell)}: a picture without alt text"
            assert all(length >= 10 for length in lengths), told


def alt(tag):
    found = ALT.search(tag)
    return len((found.group(2) or found.group(3) or "").strip()) if found else 0


def test_size(path):
    assert path.stat().st_size < 2.5e6, f"{path.stat().st_size / 1e6:.2f} MB"


def cells_with(nb, pattern, any_of):
    """Code cells whose source has the pattern, or that have one of these tags."""
    return [c for c in code_cells(nb) if re.search(pattern, c.source) or any_of & set(tags(c))]


def test_few_compared_outputs(nb):
    marked = cells_with(nb, "NBVAL_CHECK_OUTPUT", {"nbval-check-output"})
    assert len(marked) <= 6
    assert all(cell.outputs for cell in marked), "a cell to compare has no output"
    excused = {"nbval-skip", "raises-exception", "nbval-raises-exception"}
    skipped = cells_with(nb, "NBVAL_(SKIP|RAISES)", excused)
    assert not [show(cell) for cell in skipped], "every cell runs, and none may fail"


# ------------------------------------------------------------------------------------------ imports
def allowed_modules():
    meta = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = meta["optional-dependencies"]
    asked = meta["dependencies"] + extras["course"] + extras["hub"]
    names = [re.match(r"[\w.-]+", requirement).group() for requirement in asked]
    own = {"vtlib", "IPython"}
    return {MODULES.get(name, name) for name in names} | own | set(sys.stdlib_module_names)


def imported(source):
    """Top names of what a cell imports."""
    names = []
    for node in ast.walk(ast.parse(plain_python(source))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module)
    return [name.split(".")[0] for name in names]


def test_imports(nb):
    """Dependencies only; the set-up cell, which may bring vtlib, is the first code cell."""
    allowed = allowed_modules()
    for cell in code_cells(nb):
        for top in imported(cell.source):
            assert top in allowed, f"{show(cell)}: {top} is not among the dependencies"
