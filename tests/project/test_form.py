"""The form of the code: a list of exceptions that only shrinks, functions of a screen, types."""

import ast
import json
import subprocess
import sys
import tomllib

from tools.notebook import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]
IGNORED = {
    name: set(codes)
    for name, codes in PYPROJECT["lint"]["per-file-ignores"].items()
    if "*" not in name
}
BODY_LINES = 40
LONG = {
    "train/ttvsr.py: train",
    "vtlib/data/emojiworld.py: _render",
    "vtlib/data/footage.py: panned",
    "vtlib/data/mosaic.py: make_mosaic",
    "vtlib/data/video.py: make_video",
    "vtlib/hub/clip.py: attach_layer",
    "vtlib/hub/encoders.py: read",
}
"""Functions from before that limit: a list that only shrinks, too."""


def ruff(*args):
    """What `ruff check` says, as a list of dicts."""
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "json", *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)


def test_ruff_and_mypy_are_clean():
    assert not [f"{v['filename']}: {v['message']}" for v in ruff(".")]
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_list_of_exceptions_only_shrinks():
    """Each file on the list of pyproject.toml still needs each of its entries."""
    assert PYPROJECT["line-length"] == 100 and {"B", "E501"} <= set(PYPROJECT["lint"]["select"])
    found = {name: set() for name in IGNORED}
    if not found:
        return
    immutable = 'lint.flake8-bugbear.extend-immutable-calls=["torch.device"]'
    rules = ["--isolated", "--select", "E501,B", "--line-length", "100", "--config", immutable]
    for violation in ruff(*rules, *found):
        name = violation["filename"].removeprefix(f"{ROOT}/")
        code = violation["code"]
        found[name].add("B" if code.startswith("B") else code)
    clean = {name: codes - found[name] for name, codes in IGNORED.items() if codes - found[name]}
    assert not clean, f"these files keep the rule now, take them off the list: {clean}"


def test_functions_fit_on_a_screen():
    long = {}
    for path in [*(ROOT / "vtlib").rglob("*.py"), *(ROOT / "train").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = node.end_lineno - body[0].lineno + 1 if body else 0
            if lines > BODY_LINES:
                long[f"{path.relative_to(ROOT).as_posix()}: {node.name}"] = lines
    assert set(long) == LONG, f"too long, or short by now and still on the list: {long}"
