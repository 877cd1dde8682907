"""What stands around the library: version ranges, one address, a true README, no litter."""

import importlib.metadata
import math
import re
import subprocess
import tomllib

import pytest
import yaml

from tools.notebook import BADGE_PATTERN, ROOT, badge, number, paths, project, read, stamp
from tools.papers import taught

README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
BEFORE_THE_COURSE = {"vit"}  # papers that a notebook builds and that are not among the 51
CONDA_NAMES = {"pytorch": "torch"}  # conda's name -> pip's name
BINARY = {".npz", ".safetensors", ".png", ".jpg", ".gif", ".mp4", ".ico", ".woff", ".ttf"}
# Spelled in pieces, so that this file does not find itself.
MACHINE = re.compile(
    "|".join(
        [
            "/ro" + r"ot/",
            "/ho" + r"me/[a-z]\w+/",
            "/Use" + r"rs/\w+/",
            "/wo" + r"rk/(main|shared)",
            "/op" + r"t/(dev|pypi|wheels)",
            "/tm" + r"p/w/",
            "pypi" + r"\.org",
            "pythonhosted" + r"\.org",
            "download" + r"\.pytorch\.org",
        ]
    )
)


def table(heading):
    """Rows of the first table below `## heading` of the README, as lists of cells."""
    part = README.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(row) for row in rows}) == 1, "rows of different length"
    return rows[2:]


def pins(name):
    """The lines of a file of requirements, comments left out."""
    lines = (ROOT / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def ranges(requirements):
    """{name: specifier} of a list like ["numpy>=2"]."""
    found = {}
    for text in requirements:
        name, specifier = re.match(r"([\w.-]+)\s*(.*)", text).groups()
        found[CONDA_NAMES.get(name.lower(), name.lower())] = specifier.replace(" ", "")
    return found


# ----------------------------------------------------------------------------------------- versions
def test_conda_and_pip_ask_for_the_same():
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = ranges([e for e in entries if isinstance(e, str)])
    assert conda.pop("python") == PYPROJECT["project"]["requires-python"]
    conda.pop("pip")
    meta = PYPROJECT["project"]
    assert conda == ranges(meta["dependencies"] + meta["optional-dependencies"]["course"])
    assert [e["pip"] for e in entries if isinstance(e, dict)] == [["-e ."]]


def test_constraints_are_exact_and_cover_what_we_ask_for():
    lines = pins("constraints.txt")
    if not lines:
        pytest.skip("a run against the newest releases")
    told = "name==version, without local parts such as +cpu"
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), told
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines}
    meta = PYPROJECT["project"]
    extras = [r for extra in meta["optional-dependencies"].values() for r in extra]
    assert set(ranges(meta["dependencies"] + extras)) <= pinned
    assert "torch==2.13.0" in lines


def test_ranges_hold_here():
    meta = PYPROJECT["project"]
    asked = ranges(meta["dependencies"] + meta["optional-dependencies"]["course"])
    for name, specifier in asked.items():
        if name == "ipywidgets":
            continue  # 7.7.1, Colab's, has a test environment of its own
        lowest = [int(n) for n in re.match(r">=([\d.]+)$", specifier).group(1).split(".")]
        here = [int(n) for n in re.findall(r"\d+", importlib.metadata.version(name))[: len(lowest)]]
        assert here >= lowest, name
        open_ended = "<" not in specifier and "==" not in specifier
        assert open_ended, f"{name}: ranges in pyproject have no upper end"


def test_colab_pins_are_exact():
    lines = pins("tests/notebooks/colab-pins.txt")
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert {"ipywidgets==7.7.1", "ipython==7.34.0"} <= set(lines)


# ------------------------------------------------------------------------------------------ address
def test_everything_is_stamped():
    assert [str(path) for path in stamp(dry=True)] == [], "make colab"


def test_one_address():
    repository, version = project()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["repository-code"] == repository and str(citation["version"]) == version
    assert citation["license"] == PYPROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


# ------------------------------------------------------------------------------------------- README
def test_commands_exist():
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    text = README + contributing
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"`make ([a-z-]+)", prose))
    named |= set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE))
    assert named <= targets
    assert targets - named <= {"help", "clean"}, "README or CONTRIBUTING names every other target"
    for extra in re.findall(r'"\.\[(\w+)\]"', README):
        assert extra in PYPROJECT["project"]["optional-dependencies"]
    for name in re.findall(r"`((?:tools|tests|data|vtlib)/[\w/.]+\.\w+)`", README):
        assert (ROOT / name).exists() or re.search("NN|PAPER", name), name


def test_the_first_commands_come_first():
    first = re.search(r"^```\n(.*?)^```", README, re.MULTILINE | re.DOTALL).group(1)
    assert re.findall(r"^make \w+", first, re.MULTILINE) == ["make lab", "make test"]


def test_ci_runs_the_same_command():
    run = (ROOT / ".ci" / "run").read_text()
    made = re.findall(r"^make ([a-z-]+)$", run, re.MULTILINE)
    assert made == ["lint", "test", "test-colab"], "lint first"
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    job = workflow["jobs"]["test"]
    assert "make test PYTHON=python" in [step.get("run") for step in job["steps"]]
    matrix = job["strategy"]["matrix"]
    assert matrix == {"os": ["ubuntu-latest", "macos-latest"], "python": ["3.11", "3.13"]}
    assert "schedule" in workflow[True]  # YAML reads the key `on` as true


def test_course_map_lists_every_notebook():
    rows = table("Course map")
    numbers = [row[0] for row in rows]
    assert numbers == sorted(set(numbers)), "in order; 01b follows 01"
    plain = [n for n in numbers if len(n) == 2]
    assert plain == [f"{i:02d}" for i in range(len(plain))]
    assert {n[:2] for n in numbers} == set(plain)
    linked = [row for row in rows if "(notebooks/" in row[1]]
    listed = {re.search(r"\(notebooks/([\w.]+)\)", row[1]).group(1): row for row in linked}
    told = "notebooks that are here, and notebooks that the map links to"
    assert set(listed) == {path.name for path in paths()}, told
    for name, row in listed.items():
        assert number(name) == row[0] and row[5] == "done" and row[3]
        assert BADGE_PATTERN.fullmatch(row[4]) and row[4] == badge(name)
    for row in rows:
        if row not in listed.values():
            assert row[3:] == ["", "", "coming"]


TIMES = r"(\d+) minutes to read, (\d+) minutes for the exercises, about ([\d.]+) minutes? to run"


@pytest.mark.parametrize("path", paths(), ids=lambda path: path.stem)
def test_course_map_says_the_times_of_the_notebooks_head(path):
    """Reading and exercises rounded up to half an hour; a minute is what a laptop's core takes."""
    nb = read(path)
    head = next(cell.source for cell in nb.cells if re.search(TIMES, cell.source))
    reading, exercises, run = map(float, re.search(TIMES, head).groups())
    row = next(row for row in table("Course map") if path.name in row[1])
    assert row[3] == f"{math.ceil((reading + exercises) / 30) / 2:g} h / {run:g} min"
    spent = nb.metadata["vtlib"]
    assert 20 * run < spent["processor_seconds"] / spent["gauge"] < 60 * run


def test_paper_table_and_course_map_agree():
    """The table is generated (test_papers.py): each row names a notebook that names it."""
    course = {row[0]: row for row in table("Course map")}
    rows = table("Papers")
    assert len(rows) == 51
    for slug, method, *_, notebook, _official, status in rows:
        name = re.sub(r"\[(.*)\]\(.*\)", r"\1", method)
        methods = course[notebook][2].split(", ")
        assert name in methods, f"{slug}: the course map's row {notebook} does not name it"
        assert status == course[notebook][5], f"{slug}: the course map says {course[notebook][5]}"
    known = {row[0].strip("`") for row in rows}
    assert set(taught()) <= known | BEFORE_THE_COURSE


# ------------------------------------------------------------------------------------------- litter
def tracked():
    """Files of the repository, ignored ones left out.

    In a copy without git: everything outside hidden and build folders.
    """
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        found = [ROOT / name for name in listed.stdout.split("\0") if name]
        return [path for path in found if path.is_file()]
    hidden = r"\.(?!ci|github|gitignore)[^/]*"
    skip = re.compile(rf"(^|/)({hidden}|__pycache__|build|dist|real|[^/]*\.egg-info)(/|$)")
    found = [path for path in ROOT.rglob("*") if path.is_file()]
    return [path for path in found if not skip.search(path.relative_to(ROOT).as_posix())]


LITTER = re.compile(r"\.(orig|rej|bak|swp|pyc|log)$|~$|\.DS_Store|\.ipynb_checkpoints")
MAY_BE_EMPTY = ("__init__.py", "py.typed", ".gitkeep")
SOURCE_ENDINGS = (".py", ".md", ".toml", ".yml", ".txt", ".cff")
SOURCE_NAMES = ("Makefile", "run", ".gitignore")


def litter(path):
    """What is wrong with a file, one line each."""
    name, size = path.relative_to(ROOT).as_posix(), path.stat().st_size
    if LITTER.search(name):
        yield f"{name}: should not be here"
    if size == 0 and path.name not in MAY_BE_EMPTY:
        yield f"{name}: empty"
    if size > 20e6:
        yield f"{name}: {size / 1e6:.0f} MB"
    if path.suffix in BINARY:
        return
    text = re.sub(r"base64,[A-Za-z0-9+/=\\n]+", "", path.read_text(encoding="utf-8"))
    yield from (f"{name}: {match.group()}" for match in MACHINE.finditer(text))
    if "LICENSES" in path.parts:  # word for word as their authors wrote them
        return
    if path.suffix in SOURCE_ENDINGS or path.name in SOURCE_NAMES:
        if (text and not text.endswith("\n")) or text.endswith("\n\n"):
            yield f"{name}: ends with one newline"
        if path.suffix != ".md" and re.search(r"[ \t]+$", text, re.MULTILINE):
            yield f"{name}: spaces at the end of a line"


def test_no_litter():
    bad = [line for path in tracked() for line in litter(path)]
    assert not bad


@pytest.mark.parametrize("name", ["run"])
def test_ci_script_is_executable(name):
    assert (ROOT / ".ci" / name).stat().st_mode & 0o111
