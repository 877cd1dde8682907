"""The 51 papers: the README's table, and stubs for the next one.

python tools/papers.py readme        write the paper table into the README
python tools/papers.py new SLUG      stubs for a paper: file, exercises, wrong answers, tests, and
                                     the package of its family where it is the first

Facts about a paper stand in papers.toml. What is done is found: a file of vtlib that declares
PAPER = "slug", a notebook with a cell tagged paper:slug, cases in tests/golden/slug.
"""

import argparse
import ast
import re
import sys
import textwrap
import tomllib
from pathlib import Path

if __name__ == "__main__":  # as a script: the folder above tools/ holds the package
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.notebook import ROOT, number, paths, read, tags

HEADER = "| Slug | Method | Paper | Authors | Year | arXiv | Notebook | Official numbers | Status |"
TABLE = re.compile(rf"{re.escape(HEADER)}\n\|[-|]+\|\n(\|.*\n)*")


def facts():
    """{slug: what papers.toml says of it}, in the order of the course."""
    return tomllib.loads((ROOT / "tools" / "papers.toml").read_text(encoding="utf-8"))


def declared(path):
    """What a module assigns to PAPER, None when it declares none. It is read, not imported."""
    text = path.read_text(encoding="utf-8")
    for node in ast.parse(text).body if "PAPER" in text else []:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PAPER":
            return ast.literal_eval(node.value)
    return None


def files():
    """{slug: file of vtlib, as a path from the root}. ValueError: two files declare one paper."""
    found = {}
    for path in sorted((ROOT / "vtlib").rglob("*.py")):
        slug = declared(path)
        if slug in found:
            raise ValueError(f"{path} and {found[slug]} both declare PAPER = {slug!r}")
        if slug:
            found[slug] = path.relative_to(ROOT).as_posix()
    return found


def slugs(cell):
    """The papers that a cell is tagged with."""
    return [tag.removeprefix("paper:") for tag in tags(cell) if tag.startswith("paper:")]


def sections(nb):
    """{slug: cells} of the paper sections of a notebook.

    From the heading tagged paper:slug to the next heading of level 2.
    """
    found, slug = {}, None
    for cell in nb.cells:
        if cell.cell_type == "markdown" and cell.source.lstrip().startswith("## "):
            slug = next(iter(slugs(cell)), None)
            if slug:
                found[slug] = []
        if slug:
            found[slug].append(cell)
    return found


def taught():
    """{slug: number of the notebook that has its section}."""
    found = {}
    for path in paths():
        for cell in read(path).cells:
            found |= dict.fromkeys(slugs(cell), number(path))
    return found


def row(slug, paper, file, notebook):
    """One line of the table. file, notebook: where it is done and taught, None for not yet."""
    cases = len(list((ROOT / "tests" / "golden" / slug).glob("*.json")))
    arxiv = paper["arxiv"]
    cells = [
        f"`{slug}`",
        f"[{paper['method']}]({file})" if file else paper["method"],
        paper["title"],
        paper["authors"],
        str(paper["year"]),
        f"[{arxiv}](https://arxiv.org/abs/{arxiv})",
        notebook or paper["notebook"],
        f"{cases} in tests" if cases else paper["official"],
        "done" if file and notebook else "coming",
    ]
    return f"| {' | '.join(cells)} |"


def table():
    """The README's paper table."""
    here, lessons = files(), taught()
    lines = [HEADER, "|" + "---|" * HEADER.count(" | ") + "---|"]
    for slug, paper in facts().items():
        lines.append(row(slug, paper, here.get(slug), lessons.get(slug)))
    return "\n".join(lines) + "\n"


def readme(text):
    """The README with the table as it should be. ValueError when it has no such table."""
    if len(TABLE.findall(text)) != 1:
        raise ValueError(f"README.md needs one table with the header {HEADER}")
    return TABLE.sub(lambda _: table(), text)


# -------------------------------------------------------------------------------------- a new paper
FAMILY_FILE = '''"""The {family} family: one file a paper."""

from .._lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __path__)
'''
PAPER_FILE = '''"""{heading}

The idea: TODO, in three sentences.

    TODO: equation                                   function           (eq. 1)

How it differs from the official code: TODO.
"""

PAPER = "{slug}"
'''
EXERCISES = '''"""The exercises on {method}: TODO, as CONTRIBUTING.md says under "An exercise"."""
'''
WRONG = '''"""Wrong answers to the exercises of {module}.py, with what the check must say."""

WRONG = {{}}
'''
TEST = '''"""{method}: equal to official numbers and to a reference, clear about bad input."""

from tools.notebook import ROOT
from tools.papers import declared, facts

SLUG = "{slug}"


def test_the_file_is_the_papers():
    paper = ROOT / "vtlib" / "{family}" / "{module}.py"
    assert declared(paper) == SLUG
    assert facts()[SLUG]["arxiv"] in paper.read_text(encoding="utf-8")
'''


def module_name(slug):
    """The name of a paper's file: "split-matching" -> split_matching."""
    return facts()[slug].get("module", slug.replace("-", "_"))


def new(slug, root=ROOT):
    """Write a paper's stubs; the files written. ValueError: unknown slug, or one that is there.

    Nothing is written when one of the files is there.
    """
    known = facts()
    if slug not in known:
        raise ValueError(f"PAPER={slug!r}: needs one of {', '.join(known)}")
    if slug in files():
        raise ValueError(f"PAPER={slug!r}: {files()[slug]} is there already")
    paper = known[slug] | {"slug": slug, "module": module_name(slug)}
    module, family = paper["module"], paper["family"]
    line = "{method} - {title} ({authors}, {year}, arXiv {arxiv}).".format(**paper)
    paper["heading"] = "\n".join(textwrap.wrap(line, 96, break_on_hyphens=False))
    stubs = {
        f"vtlib/{family}/{module}.py": PAPER_FILE,
        f"vtlib/teach/exercises/{module}.py": EXERCISES,
        f"tests/teach/wrong/{module}.py": WRONG,
        f"tests/{family}/test_{module}.py": TEST,
    }
    for name in stubs:
        if (root / name).exists():
            raise ValueError(f"{name} is there already")
    package = f"vtlib/{family}/__init__.py"
    if not (root / package).exists():
        stubs = {package: FAMILY_FILE, **stubs}
    for name, text in stubs.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(**paper), encoding="utf-8")
    return list(stubs)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["readme", "new"])
    parser.add_argument("slug", nargs="?")
    args = parser.parse_args(argv)
    try:
        if args.command == "new":
            print("\n".join(new(args.slug)))
            print("README.md, the paper table")
            print("Next: CONTRIBUTING.md, a paper in ten steps.")
        path = ROOT / "README.md"
        path.write_text(readme(path.read_text(encoding="utf-8")), encoding="utf-8")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
