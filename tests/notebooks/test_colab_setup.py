"""The set-up cell's Colab branch, without Colab.

There is a fake google.colab, and a %pip that writes down or installs a local wheel.
"""

import json
import subprocess

import pytest

from tests.fresh import fresh
from tests.project.installed import build_wheel, empty_venv, run_cells
from tools.notebook import ROOT, paths, project, setup_source

RECORD = """
import json, sys, types
from IPython.core.interactiveshell import InteractiveShell
shell, lines = InteractiveShell.instance(), []
shell.register_magic_function(lines.append, "line", "pip")
if {colab}:
    sys.modules["google"] = types.ModuleType("google")
    sys.modules["google.colab"] = types.ModuleType("google.colab")
result = shell.run_cell({source!r})
result.raise_error()
print(json.dumps(lines))
"""
# An IPython start-up file that makes the kernel look like Colab's: there is google.colab, and %pip
# takes the local wheel.
STARTUP = """
import re, subprocess, sys, types
sys.modules["google"] = types.ModuleType("google")
sys.modules["google.colab"] = types.ModuleType("google.colab")
def pip(line):
    if not re.match(r'install -q --no-deps "vtlib @ git\\+https://', line):
        assert line == "install -q --no-deps torchmetrics lightning-utilities", line
        return
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*install, {wheel!r}], check=True)
    print("installed vtlib")
get_ipython().register_magic_function(pip, "line", "pip")
"""


def record(colab):
    code = RECORD.format(colab=colab, source=setup_source())
    return json.loads(fresh(code, timeout=120).strip().splitlines()[-1])


def test_on_colab_it_adds_vtlib_and_leaves_torch_and_numpy_alone():
    own, others = record(colab=True)
    repository, version = project()
    assert own == f'install -q --no-deps "vtlib @ git+{repository}@v{version}"'
    told = "no torch, no numpy, no pins"
    assert others == "install -q --no-deps torchmetrics lightning-utilities", told


def test_elsewhere_it_installs_nothing():
    assert record(colab=False) == []


def test_setup_cell_is_short():
    assert len(setup_source().splitlines()) <= 8


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("colab-wheel"))


# The set-up cell is the same everywhere (test_structure): one notebook a run, the others at night.
ALL = paths()
ROWS = [ALL[0], *(pytest.param(path, marks=pytest.mark.nightly) for path in ALL[1:])]


@pytest.mark.slow
@pytest.mark.parametrize("path", ROWS, ids=lambda p: p.stem)
def test_first_cells_in_a_clean_environment(path, wheel, tmp_path):
    """vtlib is not there; the set-up cell brings it, and the next cells find it and its assets."""
    python = empty_venv(tmp_path / "venv")
    startup = tmp_path / "ipythondir" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-colab.py").write_text(STARTUP.format(wheel=str(wheel)))
    command = [python, "-c", "import vtlib"]
    probe = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "No module named 'vtlib'" in probe.stderr
    printed = run_cells(python, path, tmp_path / "content", cells=4)
    assert printed[0].startswith("installed vtlib") and "torch" in printed[0]
    assert str(ROOT) not in printed[-1] and "venv" in printed[-1]
