"""tools/notebook.py on a small notebook made for it."""

import itertools
import json
import subprocess
import sys

import nbformat
import pytest

from tools import claims
from tools import notebook as tool
from vtlib.teach.tables import CLAIMS

SOURCE = '''# %% [markdown]
# # A title
#
# First words.

# %% tags=["setup"]
# written by stamp

# %%
import sys
print("a"); sys.stdout.flush(); print("b")

# %% tags=["exercise"]
def double(x):
    """Twice x."""
    raise NotImplementedError

double = teach.exercise("toy.double", double)

# %% [markdown] tags=["hint"]
# <details><summary>Hint</summary>add</details>

# %% [markdown] tags=["solution"]
# <details><summary>Solution</summary>
#
# ```python
# def double(x):
#     return 2 * x
# ```
# </details>

# %%
double(4)
'''
TEACH = """class teach:
    @staticmethod
    def exercise(name, fn):
        try:
            fn(1)
        except NotImplementedError:
            return lambda x: -x
        return fn"""


@pytest.fixture
def nb(tmp_path, monkeypatch):
    """A small notebook; the gauge, seconds of a process of its own, reads 2 and 3 in turn."""
    readings = itertools.cycle([2.0, 3.0])
    monkeypatch.setattr(tool, "gauge", lambda: next(readings))
    source, dest = tmp_path / "99_small.py", tmp_path / "99_small.ipynb"
    source.write_text(SOURCE)
    tool.convert(source, dest)
    return dest


def without_vtlib(path):
    """The set-up cell replaced, so that the run needs nothing but a kernel."""
    nb = tool.read(path)
    nb.cells[1].source = TEACH
    tool.write(nb, path)


def test_convert_normalises_and_stamps(nb):
    got = tool.read(nb)
    assert [cell.id for cell in got.cells] == [f"c{i:03d}" for i in range(7)]
    assert got.cells[1].source == tool.setup_source()
    assert tool.badge("99_small.ipynb") in got.cells[0].source
    assert got.cells[0].source.startswith("# A title")
    assert got.cells[0].source.endswith("First words.")
    found = [tool.tags(cell) for cell in got.cells]
    assert found == [[], ["setup"], [], ["exercise"], ["hint"], ["solution"], []]
    nbformat.validate(got)


def test_stamp_is_idempotent_and_check_sees_drift(nb):
    assert tool.stamp([nb]) == []
    old = nb.read_text().replace("@v", "@v9").replace("/blob/v", "/blob/v9")
    nb.write_text(old)
    assert tool.main(["check", str(nb)]) == 1 and nb.read_text() == old
    assert tool.stamp([nb]) == [nb] and tool.main(["check", str(nb)]) == 0


def test_readme_badges_follow_the_address():
    stale = f"| x | {tool.badge('07_x.ipynb')} |".replace("/blob/v", "/blob/v9")
    assert stale != f"| x | {tool.badge('07_x.ipynb')} |"
    assert tool.stamp_readme(stale) == f"| x | {tool.badge('07_x.ipynb')} |"


def test_run_stores_outputs_and_is_repeatable(nb):
    without_vtlib(nb)
    tool.run(nb)
    first = json.loads(nb.read_text())
    spent = first["metadata"].pop("vtlib")
    index, dearest = spent["slowest_cell"]
    assert spent["gauge"] == 2.5
    assert 0 < spent["processor_seconds"] and 0 < spent["seconds"]
    assert index in (1, 2, 3, 6) and 0 <= dearest < spent["processor_seconds"]
    cells = [cell for cell in first["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [1, 2, 3, 4]
    printed = {"name": "stdout", "output_type": "stream", "text": ["a\n", "b\n"]}
    assert cells[1]["outputs"] == [printed]
    assert cells[3]["outputs"][0]["data"] == {"text/plain": ["-4"]}
    assert "execution" not in cells[3]["metadata"]
    tool.run(nb)
    second = json.loads(nb.read_text())
    second["metadata"].pop("vtlib")
    assert first == second


def test_the_gauge_reads_the_seconds_of_a_core():
    assert 0.2 < tool.gauge() < 60


def test_widget_view_gives_way_to_html():
    data = {tool.WIDGET: {"model_id": "x"}, "text/html": "<img>", "text/plain": "a picture"}
    bare = {tool.WIDGET: {"model_id": "x"}}
    outputs = [nbformat.v4.new_output("display_data", data=shown) for shown in (data, bare)]
    cell = nbformat.v4.new_code_cell("x", outputs=outputs)
    tool.tidy_outputs(nbformat.v4.new_notebook(cells=[cell]))
    assert set(cell.outputs[0].data) == {"text/html", "text/plain"}
    assert set(cell.outputs[1].data) == {tool.WIDGET}


# ------------------------------------------------------------------------------------------- claims
CLAIM = {"claim": "it helps", "paper": "+1.4", "here": "+0.1", "verdict": "holds", "holds": True,
         "why": "Small data."}  # fmt: skip


def claims_cell(*slugs):
    """The cell of a table of claims, one row a slug, as it stands after a run."""
    rows = [CLAIM | {"slug": slug} for slug in slugs]
    data = {"text/html": "<table>", "text/plain": "claim", CLAIMS: {"rows": rows}}
    output = nbformat.v4.new_output("display_data", data=data)
    return nbformat.v4.new_code_cell("teach.claims(rows)", outputs=[output])


def test_claims_are_gathered_with_paper_and_place(tmp_path):
    heading = nbformat.v4.new_markdown_cell("## 1. A paper", metadata={"tags": ["paper:crossvit"]})
    cells = [claims_cell(None), heading, claims_cell(None, "tokenformer")]
    cells += [nbformat.v4.new_markdown_cell("## 2. Side by side"), claims_cell(None)]
    cells.append(nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("stream")]))
    path = tmp_path / "01b_small.ipynb"
    nb = nbformat.v4.new_notebook(cells=cells)
    tool.write(tool.normalise(tool.tidy_outputs(nb)), path)
    got = claims.gather([path])
    told = [(row["notebook"], row["cell"], row["slug"]) for row in got]
    assert told == [
        ("01b", "c000", None),
        ("01b", "c002", "crossvit"),
        ("01b", "c002", "tokenformer"),
        ("01b", "c004", None),
    ]
    assert all(CLAIM.items() <= row.items() for row in got)
    assert {row["where"] for row in got} == {"here"}, "what an output without the word means"


# -------------------------------------------------------------------------------------------- folds
CODE = {"machinery": "# @title Draw it\nprint(1)", "prediction": "print(2)", "": "print(3)"}


def folding(code=CODE):
    """A notebook with a cell a tag, each with its output."""
    cells = []
    for tag, source in code.items():
        shown = nbformat.v4.new_output("stream", text=source[-2])
        cell = nbformat.v4.new_code_cell(source, outputs=[shown])
        cell.metadata["tags"] = [tag] if tag else []
        cells.append(cell)
    text = nbformat.v4.new_markdown_cell("Guess.", metadata={"tags": ["prediction"]})
    return nbformat.v4.new_notebook(cells=[*cells, text])


def test_one_tag_folds_a_cell_and_taking_it_away_unfolds():
    nb = tool.normalise(folding())
    machinery, prediction, plain, text = (cell.metadata for cell in nb.cells)
    hidden = {"source_hidden": True}
    tags = ["machinery", "hide-input"]
    assert machinery == {"cellView": "form", "jupyter": hidden, "tags": tags}
    hidden = {"outputs_hidden": True}
    tags = ["prediction", "hide-output"]
    assert prediction == {"collapsed": True, "jupyter": hidden, "tags": tags}
    assert (plain, text) == ({}, {"tags": ["prediction"]})
    once = nbformat.writes(nb)
    assert nbformat.writes(tool.normalise(nb)) == once
    for cell in nb.cells:
        cell.metadata["tags"] = ["hide-output", "hide-input"]
    assert [cell.metadata for cell in tool.normalise(nb).cells] == [{}, {}, {}, {}]
    assert all(len(cell.outputs) == 1 for cell in tool.code_cells(nb))


def test_a_cell_may_fold_twice():
    nb = folding({"machinery": "print(1)"})
    nb.cells[0].metadata["tags"] = ["prediction", "machinery"]
    got = tool.normalise(nb).cells[0].metadata
    assert got["jupyter"] == {"source_hidden": True, "outputs_hidden": True}
    assert got["tags"] == ["prediction", "machinery", "hide-input", "hide-output"]


def test_a_folded_output_begins_with_one_that_shows_nothing():
    """JupyterLab shows the first line of the first output of a folded cell: the answer."""
    machinery, prediction, plain = (c.outputs for c in tool.normalise(folding()).cells[:3])
    assert prediction[0] == {"output_type": "display_data", "data": {}, "metadata": {}}
    assert [o.get("text") for o in (*machinery, *prediction, *plain)] == ["1", None, "2", "3"]


def test_stamp_folds_and_check_sees_what_is_not_folded(nb):
    tagged = tool.read(nb)
    tagged.cells[2].metadata["tags"] = ["prediction"]
    tagged.cells[2].outputs = [nbformat.v4.new_output("stream", text="the answer")]
    tool.write(tagged, nb)
    assert tool.main(["check", str(nb)]) == 1
    assert tool.stamp([nb]) == [nb] and tool.main(["check", str(nb)]) == 0
    got = tool.read(nb).cells[2]
    assert got.metadata["jupyter"] == {"outputs_hidden": True}
    assert [output.get("text") for output in got.outputs] == [None, "the answer"]


def test_folds_survive_jupytext_run_and_solve(nb, tmp_path):
    import jupytext

    without_vtlib(nb)
    tagged = tool.read(nb)
    tagged.cells[2].metadata["tags"] = ["machinery"]
    tagged.cells[6].metadata["tags"] = ["prediction"]
    tool.write(tagged, nb)
    tool.run(nb)
    folded = [cell.metadata for cell in tool.read(nb).cells]
    assert [len(cell.outputs) for cell in tool.code_cells(tool.read(nb))] == [0, 1, 0, 2]
    assert [cell.metadata for cell in tool.solve(tool.read(nb)).cells] == folded
    jupytext.write(tool.read(nb), tmp_path / "again.py", fmt="py:percent")
    tool.convert(tmp_path / "again.py", tmp_path / "99_again.ipynb")
    assert [cell.metadata for cell in tool.read(tmp_path / "99_again.ipynb").cells] == folded


WARNS = "import warnings; warnings.warn('careful')"


@pytest.mark.parametrize("code,said", [("1 / 0", "ZeroDivisionError"), (WARNS, "careful")])
def test_run_refuses_errors_and_stderr(nb, code, said, capsys):
    without_vtlib(nb)
    bad = tool.read(nb)
    bad.cells[2].source = code
    tool.write(bad, nb)
    before = nb.read_text()
    assert tool.main(["run", str(nb)]) == 1
    err = capsys.readouterr().err
    assert said in err and code in err
    assert nb.read_text() == before


def test_run_names_the_cell_that_takes_too_long(nb):
    without_vtlib(nb)
    slow = tool.read(nb)
    slow.cells[2].source = "import time; time.sleep(20)"
    with pytest.raises(tool.CellFailed, match="(?s)Timeout.*time.sleep"):
        tool.execute(slow, folder=nb.parent, hanging=1)


def test_solve_puts_the_solution_in_its_place(nb):
    solved = tool.solve(tool.read(nb))
    call = 'double = teach.exercise("toy.double", double)'
    assert solved.cells[3].source == f"def double(x):\n    return 2 * x\n\n\n{call}"
    without_vtlib(nb)
    out = nb.parent / "solved.ipynb"
    assert tool.main(["solve", str(nb), str(out)]) == 0
    tool.run(out)
    assert tool.code_cells(tool.read(out))[-1].outputs[0].data["text/plain"] == "8"


@pytest.mark.parametrize(
    "change,said",
    [
        (lambda nb: nb.cells.pop(5), "tagged 'solution'"),
        (lambda nb: nb.cells[5].update(source="no block"), "exactly one"),
        (lambda nb: nb.cells[3].update(source="pass"), "never calls"),
    ],
)
def test_solve_says_what_is_missing(nb, change, said):
    bad = tool.read(nb)
    change(bad)
    with pytest.raises(ValueError, match=said):
        tool.solve(bad)


def test_magics_do_not_stop_the_parser():
    assert tool.plain_python("if x:\n    %pip install y\n!ls") == "if x:\n    pass\npass"


def test_command_line(nb):
    command = [sys.executable, tool.ROOT / "tools" / "notebook.py", "check", nb]
    got = subprocess.run(command, capture_output=True, text=True)
    assert got.returncode == 0, got.stderr
