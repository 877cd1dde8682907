"""tools/papers.py: the table is what the tree calls for, stubs for a new paper are sound."""

import ast
import re
import subprocess
import sys

import pytest

from tools import papers
from tools.notebook import ROOT


def test_the_readme_is_up_to_date():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert papers.readme(text) == text, "make readme"


def test_fifty_one_papers_with_all_their_facts():
    facts = papers.facts()
    assert len(facts) == 51
    fields = {"method", "title", "authors", "year", "arxiv", "family", "notebook", "official"}
    for slug, paper in facts.items():
        assert re.fullmatch(r"[a-z0-9-]+", slug)
        assert set(paper) - {"module"} == fields, slug
        assert re.fullmatch(r"\d{4}\.\d{5}", paper["arxiv"]) and 2010 < paper["year"] < 2030
        assert paper["official"] in ("planned", "none exist")


def test_files_and_facts_agree():
    facts, files = papers.facts(), papers.files()
    assert files and set(files) <= set(facts)
    for slug, file in files.items():
        docstring = ast.get_docstring(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        one_line = re.sub(r"\s+", " ", docstring)
        assert facts[slug]["arxiv"] in one_line, f"{file} gives another arXiv id than papers.toml"
        assert file == f"vtlib/{facts[slug]['family']}/{papers.module_name(slug)}.py"


def test_what_is_done_is_found():
    done = [line for line in papers.table().splitlines() if line.endswith("| done |")]
    assert len(done) == len(set(papers.files()) & set(papers.taught())) >= 16
    row = papers.row("crossvit", papers.facts()["crossvit"], None, None)
    assert row.endswith("| coming |") and "](vtlib" not in row


def test_a_file_is_declared_once(tmp_path, monkeypatch):
    (tmp_path / "vtlib").mkdir()
    for name in ("a", "b"):
        (tmp_path / "vtlib" / f"{name}.py").write_text('PAPER = "same"\n')
    monkeypatch.setattr(papers, "ROOT", tmp_path)
    with pytest.raises(ValueError, match="both declare PAPER = 'same'"):
        papers.files()


@pytest.fixture
def nothing_done(monkeypatch):
    """As if no paper were there yet, so that these tests outlive the coming of any."""
    monkeypatch.setattr(papers, "files", dict)


def test_stubs(tmp_path, nothing_done):
    written = papers.new("split-matching", tmp_path)
    assert written == [
        "vtlib/segmentation/__init__.py",
        "vtlib/segmentation/split_matching.py",
        "vtlib/teach/exercises/split_matching.py",
        "tests/teach/wrong/split_matching.py",
        "tests/segmentation/test_split_matching.py",
    ]
    for name in written:
        ast.parse((tmp_path / name).read_text())
    assert papers.declared(tmp_path / written[1]) == "split-matching"
    assert "2505.05023" in (tmp_path / written[1]).read_text()
    with pytest.raises(ValueError, match="is there already"):
        papers.new("split-matching", tmp_path)
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / written[1]).unlink()
    with pytest.raises(ValueError, match="split_matching.py is there already"):
        papers.new("split-matching", tmp_path)
    assert sorted(tmp_path.rglob("*")) == [p for p in before if p != tmp_path / written[1]]


def test_stubs_of_every_paper_keep_the_form(tmp_path, nothing_done):
    slugs = list(papers.facts())
    for slug in slugs:
        papers.new(slug, tmp_path)
    config = str(ROOT / "pyproject.toml")
    command = [sys.executable, "-m", "ruff", "check", "--config", config, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for path in tmp_path.rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
    found = {papers.declared(path) for path in (tmp_path / "vtlib").rglob("*.py")}
    assert found == {None, *slugs}


@pytest.mark.parametrize("slug, said", [("nope", "needs one of crossvit"), ("divprune", "already")])
def test_stubs_are_refused(slug, said, tmp_path, capsys):
    with pytest.raises(ValueError, match=said):
        papers.new(slug, tmp_path)
    assert papers.main(["new", slug]) == 1 and said in capsys.readouterr().err


def test_a_readme_without_the_table():
    with pytest.raises(ValueError, match="needs one table"):
        papers.readme("# a README\n")
