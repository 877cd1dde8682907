"""vtlib as others install it: a wheel with its assets, usable anywhere, with extras or not."""

import json
import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser

import nbformat
import pytest

from tests.project.installed import build_wheel, empty_venv, install, run, run_cells
from tools.notebook import ROOT, paths, read
from tools.wheel_assets import assets

EXTRAS = [
    "matplotlib",
    "ipywidgets",
    "IPython",
    "transformers",
    "diffusers",
    "skimage",
    "sklearn",
    "scipy",
    "PIL",
    "torchmetrics",
    "pycocotools",
    "tokenizers",
    "tqdm",
    "torchvision",
]
BLOCKED = f"""
import importlib, pkgutil, sys, time
for name in {EXTRAS}:
    sys.modules[name] = None  # an import now raises ImportError
start = time.perf_counter()
import vtlib
seconds = time.perf_counter() - start
print("torch" in sys.modules, [m for m in sys.modules if m.startswith("vtlib.")], seconds)
import torch, numpy, einops, safetensors.torch
start = time.perf_counter()
names = [module.name for module in pkgutil.walk_packages(vtlib.__path__, "vtlib.")]
names = [name for name in names if not name.startswith("vtlib.teach")]
for name in names:
    importlib.import_module(name)
print(len(names), time.perf_counter() - start)
"""
USES_ASSETS = """
from vtlib import data, teach
teach.setup(seed=0)
images, labels = data.EmojiWorld(size=64).classify(4, seed=0)
photos = data.photographs()
digits, _ = data.digits()
clip, fps = data.clip()
saved = sorted((data.root() / "checkpoints").glob("*.safetensors"))
print(tuple(images.shape), len(photos), digits.shape[0] > 1000, clip.shape[1])
print([p.stem for p in saved])
assert data.root().name == "assets"
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """(python of an environment with the wheel, a folder that has nothing to do with the tree)."""
    base = tmp_path_factory.mktemp("installed")
    python = empty_venv(base / "venv")
    install(python, wheel, base / "elsewhere")
    return python, base / "elsewhere"


def test_contents(wheel):
    with zipfile.ZipFile(wheel) as z:
        names = set(z.namelist())
        folders = {name.split("/")[0] for name in names}
        meta = Parser().parsestr(z.read(next(n for n in names if n.endswith("METADATA"))).decode())
    assert folders == {"vtlib", f"vtlib-{meta['Version']}.dist-info"}
    assert set(assets(ROOT).values()) <= names, "an asset of data/ is missing"
    licences = [n for n in names if n.startswith("vtlib/assets/") and "LICENSE" in n.upper()]
    assert licences, "the licences travel with the assets"
    assert any(n.endswith("dist-info/licenses/LICENSE") for n in names)
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "vtlib").rglob("*.py")}
    packed = {n for n in names if n.endswith(".py")}
    assert modules == packed, "only vtlib's modules, and all of them"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [r for r in meta.get_all("Requires-Dist") if "extra ==" not in r]
    core = {re.match(r"[\w-]+", r).group() for r in asked}
    assert core == {"torch", "numpy", "einops", "safetensors"}
    extras = {"course", "hub", "dev"}
    assert set(meta.get_all("Provides-Extra")) == set(project["optional-dependencies"]) == extras
    assert wheel.stat().st_size < 95e6  # the course's budget for it


def test_version_is_stated_once():
    import vtlib

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert vtlib.__version__ == version
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE).group(1) == version


def python_here(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_imports_without_the_extras_and_fast():
    done = python_here(BLOCKED)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    torch_too, eager, seconds = re.fullmatch(r"(\w+) (\[.*\]) ([\d.e-]+)", first).groups()
    assert torch_too == "False" and eager == "['vtlib._lazy']", "it loads torch or a family"
    assert float(seconds) < 0.5
    count, seconds = second.split()
    assert int(count) > 10 and float(seconds) < 5


def test_teach_names_what_is_missing():
    code = "import sys; sys.modules['matplotlib'] = None\nimport vtlib.teach"
    done = python_here(code)
    assert done.returncode != 0 and "matplotlib" in done.stderr and "pip install" in done.stderr


def test_assets_from_another_folder(installed, tmp_path):
    python, folder = installed
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(USES_ASSETS)])
    nbformat.write(nb, tmp_path / "assets.ipynb")
    *_, printed, where = run_cells(python, tmp_path / "assets.ipynb", folder)
    assert str(ROOT) not in where and "venv" in where
    assert "(4, 3, 64, 64)" in printed
    shipped = sorted(p.stem for p in (ROOT / "data" / "checkpoints").glob("*.safetensors"))
    assert str(shipped) in printed


def test_wheel_alone_is_a_library(installed):
    python, folder = installed
    code = f"""
import sys
for name in {EXTRAS}:
    sys.modules[name] = None
import json, torch, vtlib
model = vtlib.vit.tiny(num_classes=3)
print(json.dumps([vtlib.__file__, list(model(torch.rand(2, 3, 96, 96)).shape)]))
"""
    where, shape = json.loads(run(python, ["-c", code], folder))
    assert "venv" in where and shape == [2, 3]


@pytest.mark.nightly
@pytest.mark.skipif(not paths(), reason="no notebook yet")
def test_a_whole_notebook_from_the_wheel(installed):
    python, folder = installed
    quickest = min(paths(), key=lambda p: read(p).metadata.get("vtlib", {}).get("seconds", 1e9))
    *_, where = run_cells(python, quickest, folder)
    assert str(ROOT) not in where and "venv" in where
