"""Words are explained at their first use: notebooks/glossary.md, and the notebooks that use it.

What is asked, and how a notebook is read: tools/glossary.py. That a notebook explains its words is
one of the counts: test_counts.py.
"""

import re

import nbformat
import pytest

from tools.glossary import FIRST, MARKED, PAGE, entries, pattern, told, unexplained
from tools.notebook import number, paths, read


# ------------------------------------------------------------------------------------- the glossary
def anchor_of(name):
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def test_the_glossary_has_one_plain_line_a_word():
    found = entries()
    assert 50 <= len(found) <= 120
    for entry in found:
        assert entry.anchor == anchor_of(entry.names[0]), f"{entry.names[0]}: its anchor"
        assert entry.text.endswith(".") and len(entry.text.split()) <= 45, entry.names[0]
        assert not re.search(r"[.!?] [A-Z]", entry.text), f"{entry.names[0]}: one sentence"
    order = [anchor_of(entry.names[0]).replace("-", " ") for entry in found]
    assert order == sorted(order), "in alphabetical order"
    names = [name.lower() for entry in found for name in entry.names]
    assert len(set(names)) == len(names), "a name that stands in two lines"


def test_notebook_00_uses_the_basic_words():
    (path,) = [path for path in paths() if number(path) == FIRST]
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    unused = [
        entry.names[0]
        for entry in entries()
        if entry.basic and not any(pattern(name).search(text) for name in entry.names)
    ]
    assert not unused, f"marked (00) in the glossary, but notebook 00 does not speak of {unused}"


# ------------------------------------------------------------------------------------ the notebooks
@pytest.mark.parametrize("path", paths(), ids=lambda path: path.stem)
def test_links_to_the_glossary_lead_somewhere(path):
    known = {PAGE + entry.anchor for entry in entries()}
    for cell in read(path).cells:
        links = [match["address"] or "" for match in MARKED.finditer(cell.source)]
        wrong = [link for link in links if link.startswith("glossary.md") and link not in known]
        assert cell.cell_type != "markdown" or not wrong, f"{cell.id}: {wrong}"


# --------------------------------------------------------------------------------- how text is read
LINES = '''
- <a id="miou"></a>**mIoU**, **mean IoU**: A score.
- <a id="softmax"></a>**softmax** *(00)*: A function.
- <a id="softmax-temperature"></a>**softmax temperature**: A number.
- <a id="query"></a>**query**: A vector.
- <a id="cls"></a>**[CLS]**: A token.
'''


@pytest.fixture
def glossary(tmp_path, monkeypatch):
    (tmp_path / "glossary.md").write_text(LINES, encoding="utf-8")
    monkeypatch.setattr("tools.glossary.NOTEBOOKS", tmp_path)
    return entries()


def words(glossary, *texts, first=False):
    """[(word, cell)] that a notebook of these texts does not explain; its head is the first."""
    cells = [nbformat.v4.new_markdown_cell(text, id=f"c{i}") for i, text in enumerate(texts)]
    cells.insert(1, nbformat.v4.new_code_cell("mIoU", metadata={"tags": ["setup"]}))
    found = unexplained(nbformat.v4.new_notebook(cells=cells), first, glossary)
    return [(entry.names[0], cell) for entry, cell, _ in found]


def test_a_line_of_the_glossary_is_read(glossary):
    assert [entry.names for entry in glossary][:2] == [["mIoU", "mean IoU"], ["softmax"]]
    assert [entry.basic for entry in glossary] == [False, True, False, False, False]
    assert glossary[0].anchor == "miou" and glossary[0].text == "A score."


def test_a_line_of_another_form_is_named(tmp_path, monkeypatch):
    (tmp_path / "glossary.md").write_text("- **mIoU**: A score.", encoding="utf-8")
    monkeypatch.setattr("tools.glossary.NOTEBOOKS", tmp_path)
    with pytest.raises(ValueError, match=r"(?s)not of the form.*- \*\*mIoU"):
        entries()


@pytest.mark.parametrize(
    "text",
    [
        "We use [mIoU](glossary.md#miou). Then mIoU again.",
        "The **mIoU** is a score.",
        "The score is mean IoU, in short **mIoU**.",  # anywhere in the sentence of its first use
        "<b>The mIoU is a score.</b>",
        "Its [[CLS]](glossary.md#cls) and [**queries**](glossary.md#query)",
        "# mIoU\n\n```python\nmIoU\n```\n`mIoU` $mIoU$ ![mIoU](a.png) [see mIoU](other.ipynb) MIOU",
        "## References\n\nA paper on mIoU.",
    ],
)
def test_what_is_explained(text, glossary):
    assert words(glossary, "# Title", text) == []


@pytest.mark.parametrize(
    "text,word",
    [
        ("We use mIoU. A sentence later, **mIoU** is a score.", "mIoU"),
        ("*mIoU* is in italics", "mIoU"),
        ("We use [mIoU](glossary.md#query)", "mIoU"),
        ("| score |\n|---|\n| mIoU |", "mIoU"),
        ("Mean\nIoU. Queries", "mIoU"),
        ("All Queries", "query"),
        ("the [CLS] token", "[CLS]"),
        ("<details><summary>1. And mIoU?</summary>It is **mIoU**.</details>", "mIoU"),
    ],
)
def test_what_is_not_explained(text, word, glossary):
    found = words(glossary, "# Title", text)
    assert found[0] == (word, "c1")


def test_the_longer_word_goes_first_and_basics_are_known(glossary):
    text = "With a **softmax temperature** it is sharp. A softmax is a function."
    assert words(glossary, "# Title", text) == []
    assert words(glossary, "# Title", text, first=True) == [("softmax", "c1")]


def test_the_table_of_the_head_and_folded_cells_are_not_read(glossary):
    assert words(glossary, "# Title\n\n| paper |\n|---|\n| mIoU |") == []
    assert words(glossary, "# Title\n\nYou can say mIoU.") == [("mIoU", "c0")]
    nb = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("mIoU", metadata={"tags": ["solution"]}),
            nbformat.v4.new_markdown_cell("## References\n\nmIoU"),
            nbformat.v4.new_markdown_cell("mIoU"),
        ]
    )
    assert unexplained(nb, glossary=glossary) == []


def test_the_message_names_word_cell_and_sentence(glossary):
    cell = nbformat.v4.new_markdown_cell("All  of\nit: mIoU.", id="c7")
    found = unexplained(nbformat.v4.new_notebook(cells=[cell]), glossary=glossary)
    assert told(found) == (
        "  c7  [mIoU](glossary.md#miou)  in: All of it: mIoU."
    )
