"""What a notebook must look like, checked on the file itself, without a kernel. One test per rule, each over all notebooks."""

import ast
import re
import statistics
import sys
import tomllib

import nbformat
import pytest

from tools.notebook import (
    BADGE_PATTERN,
    ROOT,
    WIDGET,
    badge,
    code_cells,
    exercises,
    number,
    paths,
    plain_python,
    read,
    setup_source,
    tags,
)

NOTEBOOKS = paths()
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(root|home|Users|work|tmp|opt|usr|private|var|content|mnt)/\w|\b[A-Z]:\\\w")
DATA_URI = re.compile(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=\s]+")
IMG = re.compile(r"<img\b[^>]*>", re.IGNORECASE)
ALT = re.compile(r"""\balt\s*=\s*("([^"]*)"|'([^']*)')""", re.IGNORECASE)
MODULES = {
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "jupyterlab": "jupyterlab",
}  # package -> module, where they differ


@pytest.fixture(params=NOTEBOOKS, ids=lambda p: p.stem)
def path(request):
    return request.param


@pytest.fixture
def nb(path):
    return read(path)


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


def sections(nb):
    """{slug: cells} of the paper sections: from the heading tagged paper:slug to the next heading of level 2."""
    found, slug = {}, None
    for cell in nb.cells:
        if cell.cell_type == "markdown" and cell.source.lstrip().startswith("## "):
            slug = next((tag.removeprefix("paper:") for tag in tags(cell) if tag.startswith("paper:")), None)
            if slug:
                found[slug] = []
        if slug:
            found[slug].append(cell)
    return found


def outputs(nb):
    """(cell, output) of every code cell."""
    return [(cell, output) for cell in code_cells(nb) for output in cell.outputs]


def text_of(output):
    """Everything textual in an output, without embedded pictures."""
    if output.output_type == "stream":
        return output.text
    if output.output_type == "error":
        return "\n".join(output.traceback)
    data = output.get("data", {})
    return DATA_URI.sub("", "\n".join(v for k, v in data.items() if k.startswith("text/") and isinstance(v, str)))


def lines_of(cell):
    return [line for line in cell.source.splitlines() if line.strip()]


def words(nb):
    """Number of words of prose: markdown without code blocks, tags, addresses and table rules."""
    text = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    text = re.sub(r"^```.*?^```", " ", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"<[^>]+>|\]\([^)]*\)|https?://\S+", " ", text)
    return len(re.findall(r"[^\W_][\w'’.-]*", text))


# ------------------------------------------------------------------------------------------------------------------ shape
def test_valid_and_normalised(nb):
    nbformat.validate(nb)
    assert (nb.nbformat, nb.nbformat_minor) == (4, 5)
    assert [cell.id for cell in nb.cells] == [f"c{i:03d}" for i in range(len(nb.cells))], "run tools/notebook.py run on it"
    assert nb.metadata.kernelspec.name == "python3"
    assert "version" not in nb.metadata.language_info, "the Python version of the machine is in the metadata"


def test_name(path):
    assert re.fullmatch(r"\d\d[a-z]?_[a-z0-9_]+\.ipynb", path.name)


def test_head(nb, path):
    first = nb.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# "), "the first cell is the title"
    assert badge(path.name) in first.source, "the Colab badge is missing or stale: make colab"
    titles = [
        c
        for c in nb.cells
        if c.cell_type == "markdown" and re.search(r"^# ", re.sub(r"```.*?```", "", c.source, flags=re.DOTALL), re.MULTILINE)
    ]
    assert len(titles) == 1, f"one heading of level 1, found {[show(c) for c in titles]}"
    text = head(nb)
    assert re.search(r"^\|.*\bpaper\b.*\|.*\byear\b.*\|", text, re.MULTILINE | re.IGNORECASE), (
        "a table | paper | year | idea | section |"
    )
    assert re.search(r"read[^\n]*?\d+|\d+[^\n]*?\bread", text, re.IGNORECASE), "the time to read"
    assert re.search(r"\brun[^\n]*?\d+|\d+[^\n]*?\brun", text, re.IGNORECASE), "the time to run"
    assert re.search(r"\byou\s+(will\s+be\s+able|can)\b", text, re.IGNORECASE), "what you will be able to do"
    assert re.search(r"you\s+need|needs?:", text, re.IGNORECASE), "what you need to know"
    table = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    rows = [line for line in table.splitlines() if re.search(r"\]\(#", line)]
    assert len(rows) >= max(1, len(sections(nb))), "the table links to the section of each paper"


def test_setup_cell_is_the_first_code_cell_and_the_same_everywhere(nb):
    first = code_cells(nb)[0]
    assert tags(first) == ["setup"]
    assert first.source == setup_source(), "make colab writes it"
    assert len(tagged(nb.cells, "setup")) == 1


def test_length(nb, path):
    second = len(number(path)) > 2  # 01b: the second notebook of a family, which may be the shorter half of an evening
    cells, prose = (35, 1800) if second else (40, 2500)
    assert cells <= len(nb.cells) <= 90, f"{len(nb.cells)} cells"
    assert prose <= words(nb) <= 5000, f"{words(nb)} words"


def test_code_cells_are_short(nb):
    counts = {show(cell): len(lines_of(cell)) for cell in code_cells(nb)}
    assert not {k: v for k, v in counts.items() if v > 25}, "split it, or move what is not the lesson into vtlib"
    long = {k: v for k, v in counts.items() if v > 20}
    assert len(long) <= len(counts) / 10, f"rarely over 20 lines: {long}"
    assert statistics.median(counts.values()) <= 15


def test_last_sections(nb):
    headings = [
        m.lower() for c in nb.cells if c.cell_type == "markdown" for m in re.findall(r"^#{2,3} (.*)$", c.source, re.MULTILINE)
    ]
    for name in ("recall", "further", "references"):
        assert any(name in heading for heading in headings), f"no heading '{name}'"


# ------------------------------------------------------------------------------------------------------------- the papers
def test_each_paper_has_its_parts(nb, path):
    found = sections(nb)
    assert found or path.name.startswith("00_"), "no heading of level 2 is tagged paper:slug"
    scopes = found or {"the notebook": nb.cells}
    missing = [
        f"{slug}: {tag}"
        for slug, cells in scopes.items()
        for tag in ("exercise", "hint", "solution", "check", "widget") + (("claim",) if found else ())
        if not tagged(cells, tag)
    ]
    assert not missing


def test_exercises(nb, path):
    found = exercises(nb)  # raises when a solution is missing or not a single block
    papers = {"basics"} | {slug.partition("-")[0] for slug in sections(nb)}  # a module has the first word of its slug
    for i, names, _ in found:
        cell = nb.cells[i]
        assert len(names) == 1, f"{names}: one exercise a cell"
        assert names[0].partition(".")[0] in papers, f"{names[0]}: named after a paper of the notebook, or basics: {papers}"
        assert "NotImplementedError" in cell.source, f"{show(cell)}: the stub raises NotImplementedError"
        tree = ast.parse(plain_python(cell.source))
        stubs = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
        assert stubs and all(ast.get_docstring(stub) for stub in stubs), f"{show(cell)}: each stub has a docstring"
        assert "teach.exercise(" in lines_of(cell)[-1], f"{show(cell)}: ends with the call of teach.exercise"
        others = [ast.unparse(n) for n in tree.body if n not in stubs and "teach.exercise(" not in ast.unparse(n)]
        assert not [o for o in others if not o.startswith(("import ", "from "))], f"{show(cell)}: nothing else belongs here"
        card = next(c for c in reversed(nb.cells[:i]) if c.cell_type == "markdown").source
        assert re.search(r"difficulty", card, re.IGNORECASE) and re.search(r"\d+\s*min", card), f"{show(cell)}: card above it"
        after = nb.cells[i + 1 :]
        order = [next((k for k, c in enumerate(after) if tag in tags(c)), None) for tag in ("hint", "solution")]
        assert None not in order and order[0] < order[1], f"{show(cell)}: a hint cell, then a solution cell, after it"
    names = [name for _, group, _ in found for name in group]
    assert names and len(set(names)) == len(names)


def test_hints_and_solutions_are_folded(nb):
    for cell in tagged(nb.cells, "hint") + tagged(nb.cells, "solution"):
        assert cell.cell_type == "markdown", show(cell)
        opened, closed = cell.source.count("<details"), cell.source.count("</details>")
        assert opened == closed >= 1 and "<summary>" in cell.source, show(cell)


def test_widgets_are_moved_by_a_cell(nb):
    for i, cell in enumerate(nb.cells):
        if cell.cell_type == "code" and "widget" in tags(cell):
            later = nb.cells[i:]
            until = next((k for k, c in enumerate(later[1:], 1) if "widget" in tags(c)), len(later))
            code = "\n".join(c.source for c in later[:until] if c.cell_type == "code")
            assert re.search(r"\.set\(|\.value\s*=[^=]", code), (
                f"{show(cell)}: no cell moves the control, so nbval never calls it"
            )


def test_widget_and_claim_outputs(nb):
    for cell in tagged(code_cells(nb), "widget"):
        assert any("<img" in o.get("data", {}).get("text/html", "") for o in cell.outputs), (
            f"{show(cell)}: no static first frame"
        )
    for cell in tagged(code_cells(nb), "claim"):
        assert any("<table" in o.get("data", {}).get("text/html", "") for o in cell.outputs), (
            f"{show(cell)}: no table of claims"
        )


# ---------------------------------------------------------------------------------------------------------------- outputs
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
        assert not re.search(r"\bat 0x[0-9a-f]{6,}|<Figure size|\btensor\(", text), f"{show(cell)}: the repr of an object"
        assert not re.search(r"\d(it/s|s/it)\b", text), f"{show(cell)}: a progress bar"


def test_no_machine_paths(nb):
    for cell in nb.cells:
        assert not MACHINE_PATH.search(DATA_URI.sub("", cell.source)), show(cell)
    for cell, output in outputs(nb):
        assert not MACHINE_PATH.search(text_of(output)), f"{show(cell)}: {MACHINE_PATH.search(text_of(output))}"


def test_no_widget_state(nb):
    assert "widgets" not in nb.metadata, "GitHub refuses a notebook with saved widget state"
    for cell, output in outputs(nb):
        data = output.get("data", {})
        assert WIDGET not in data or "text/html" in data, f"{show(cell)}: a widget without a static picture"


def test_pictures_have_alt_text(nb):
    for cell, output in outputs(nb):
        data = output.get("data", {})
        assert not [mime for mime in data if mime.startswith("image/")], (
            f"{show(cell)}: figures go through teach.show(fig, alt=...)"
        )
        for tag in IMG.findall(data.get("text/html", "")):
            assert alt(tag) >= 20, f"{show(cell)}: {tag[:80]}"
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            text = BADGE_PATTERN.sub("", cell.source)
            assert all(len(m) >= 10 for m in re.findall(r"!\[([^\]]*)\]\(", text)), (
                f"{show(cell)}: a picture without alt text"
            )
            assert all(alt(tag) >= 10 for tag in IMG.findall(text)), f"{show(cell)}: a picture without alt text"


def alt(tag):
    found = ALT.search(tag)
    return len((found.group(2) or found.group(3) or "").strip()) if found else 0


def test_size(path):
    assert path.stat().st_size < 2.5e6, f"{path.stat().st_size / 1e6:.2f} MB"


def test_few_compared_outputs(nb):
    marked = [cell for cell in code_cells(nb) if "NBVAL_CHECK_OUTPUT" in cell.source or "nbval-check-output" in tags(cell)]
    assert len(marked) <= 6
    assert all(cell.outputs for cell in marked), "a cell to compare has no output"
    skipped = [
        show(cell)
        for cell in code_cells(nb)
        if re.search(r"NBVAL_(SKIP|RAISES)", cell.source)
        or {"nbval-skip", "raises-exception", "nbval-raises-exception"} & set(tags(cell))
    ]
    assert not skipped, "every cell runs, and none may fail"


# ---------------------------------------------------------------------------------------------------------------- imports
def allowed_modules():
    meta = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = meta["optional-dependencies"]
    names = [re.match(r"[\w.-]+", r).group() for r in meta["dependencies"] + extras["course"] + extras["hub"]]
    return {MODULES.get(n, n) for n in names} | {"vtlib", "IPython"} | set(sys.stdlib_module_names)


def test_imports(nb):
    allowed = allowed_modules()
    for k, cell in enumerate(code_cells(nb)):
        for node in ast.walk(ast.parse(plain_python(cell.source))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                assert top in allowed, f"{show(cell)}: {top} is not among the dependencies"
                assert top != "vtlib" or k > 0 or "setup" in tags(cell), "vtlib is imported before the set-up cell"
