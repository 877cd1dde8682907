"""Words that a notebook uses before it explains them.

python tools/glossary.py [NOTEBOOK ...]      list them (all notebooks when none is named)

A word of notebooks/glossary.md is explained where it links there, [mIoU](glossary.md#miou), or is
set in bold; then its sentence says what it is.

The links are relative: JupyterLab and GitHub follow them, to the anchor as well. Of relative links
in a notebook opened from GitHub, Colab makes addresses on GitHub (googlecolab/colabtools, issues
281 and 3877); where it does not, the page is one click further, in the repository. An absolute
address would bind every notebook to one version, and fail without network.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # as a script: the folder above tools/ holds the package
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.notebook import NOTEBOOKS, number, paths, read, tags

FIRST = "00"
"""The notebook that explains the basic words for all others."""
PAGE = "glossary.md#"
LINE = re.compile(
    r'- <a id="(?P<anchor>[^"]+)"></a>(?P<names>\*\*.+?\*\*)(?P<basic> \*\(00\)\*)?: (?P<text>.+)'
)
MARKED = re.compile(
    r"(?<!!)\[(?P<label>(?:[^\[\]]|\[[^\[\]]*\])+)\]\((?P<address>[^()\s]*)\)"
    r"|\*\*(?P<bold>.+?)\*\*|<(b|strong)>(?P<strong>.+?)</\4>",
    re.DOTALL,
)
"""A link or bold text."""
SILENT = re.compile(
    r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]*\$|!\[[^\]]*\]\([^)]*\)|<!--.*?-->", re.DOTALL
)
"""Code, formulas, pictures, comments."""
BLOCK = re.compile(r"</?(?:details|summary|p|li|br|tr|div)\b[^>]*>")
BREAK = re.compile(r"(?<=[.!?])\s+(?=[A-Z\d\[(*\"“])|\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) |\s*\|)")
"""Between two sentences, paragraphs, items of a list, rows of a table."""
REFERENCES = re.compile(r"^#+ References", re.MULTILINE)
FOLDED = {"hint", "solution"}


# ------------------------------------------------------------------------------------- the glossary
@dataclass
class Entry:
    """A line of the glossary. `basic`: known after notebook 00."""

    anchor: str
    names: list[str]
    text: str
    basic: bool


def entries():
    """The lines of the glossary, in order. ValueError for one of another form than the others."""
    lines = (NOTEBOOKS / "glossary.md").read_text(encoding="utf-8").splitlines()
    found = []
    for line in lines:
        if not line.startswith("- "):
            continue
        match = LINE.fullmatch(line)
        if not match:
            raise ValueError(f'not of the form - <a id="x"></a>**x**: What it is.\n{line}')
        names = re.findall(r"\*\*(.+?)\*\*", match["names"])
        found.append(Entry(match["anchor"], names, match["text"], bool(match["basic"])))
    return found


def pattern(name):
    """Finds a name as a whole word, and its plural. A small first letter may be a capital."""
    word = re.escape(name).replace(r"\ ", r"[\s-]").replace(r"\-", r"[\s-]")
    word = f"{word[:-1]}(?:y|ies)" if name.endswith("y") else f"{word}(?:s|es)?"
    if name[0].islower():
        word = f"[{name[0]}{name[0].upper()}]{word[1:]}"
    return re.compile(rf"(?<!\w){word}(?!\w)")


# ---------------------------------------------------------------------------------------- the prose
@dataclass
class Sentence:
    """Plain text, and for each of its characters None, "bold" or the anchor that it links to."""

    cell: str
    text: str
    marks: list


def visible(text, in_head):
    """Markdown without headings, code, formulas, pictures, and the table of the head."""
    lines = BLOCK.sub("\n\n", SILENT.sub(" ", text)).splitlines()
    kept = [line for line in lines if not line.startswith("#")]
    return "\n".join(line for line in kept if not (in_head and line.startswith("|")))


def spans(text, mark=None):
    """[(piece of text, its mark)] of a sentence in markdown. A link to another place says nothing
    of its words: they are left out."""
    found, at = [], 0
    for match in MARKED.finditer(text):
        found.append((text[at : match.start()], mark))
        at = match.end()
        if match["address"] is None:
            found += spans(match["bold"] or match["strong"], "bold")
        elif match["address"].startswith(PAGE):
            found.append((match["label"], match["address"].removeprefix(PAGE)))
    return [*found, (text[at:], mark)]


def sentences(nb):
    """The sentences of a notebook's text in reading order, up to the references. What is folded
    away (hints, solutions) is not read."""
    setup = next((i for i, cell in enumerate(nb.cells) if "setup" in tags(cell)), 0)
    for i, cell in enumerate(nb.cells):
        if cell.cell_type != "markdown" or FOLDED & set(tags(cell)):
            continue
        references = REFERENCES.search(cell.source)
        text = cell.source[: references.start()] if references else cell.source
        for sentence in BREAK.split(visible(text, i < setup)):
            pieces = [(re.sub(r"<[^>]*>", " ", part), mark) for part, mark in spans(sentence)]
            marks = [mark for part, mark in pieces for _ in part]
            yield Sentence(cell.get("id"), "".join(part for part, _ in pieces), marks)
        if references:
            return


# ------------------------------------------------------------------------------ what is unexplained
def uses(sentence, names):
    """{anchor: whether the sentence explains it} of the words that it uses.

    names: [(pattern, anchor)], the longest first: in "softmax temperature" nobody says softmax.
    """
    text, found = sentence.text, {}
    for name, anchor in names:
        for match in name.finditer(text):
            marks = set(sentence.marks[match.start() : match.end()])
            found[anchor] = found.get(anchor, False) or bool(marks & {"bold", anchor})
        text = name.sub(lambda match: "\0" * len(match.group()), text)
    return found


def unexplained(nb, first=False, glossary=None):
    """[(entry, id of the cell, sentence)]: the words that a notebook uses, and does not explain in
    the sentence that uses them first.

    Args:
        nb: the notebook.
        first: whether it is notebook 00, which explains the basic words too.
        glossary: entries, by default those of the course.
    """
    known = {entry.anchor: entry for entry in (entries() if glossary is None else glossary)}
    every = [(name, entry.anchor) for entry in known.values() for name in entry.names]
    every.sort(key=lambda pair: len(pair[0]), reverse=True)
    names = [(pattern(name), anchor) for name, anchor in every]
    seen, found = set(), []
    for sentence in sentences(nb):
        for anchor, explained in uses(sentence, names).items():
            asked = first or not known[anchor].basic
            if asked and not explained and anchor not in seen:
                found.append((known[anchor], sentence.cell, " ".join(sentence.text.split())))
            seen.add(anchor)
    return found


def told(found):
    """What `unexplained` found, one line a word: cell, how to link it, and the sentence."""
    return "\n".join(
        f"  {cell}  [{entry.names[0]}]({PAGE}{entry.anchor})  in: {sentence[:140]}"
        for entry, cell, sentence in found
    )


def main(files):
    for path in paths(files):
        found = unexplained(read(path), first=number(path) == FIRST)
        print(f"{path.name}: {len(found)} words not explained at their first use\n{told(found)}")


if __name__ == "__main__":
    main(sys.argv[1:])
