"""A wheel of this tree in an environment of its own, in seconds.

Its dependencies come from the running environment, through a .pth file.
"""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from tools.notebook import ROOT

RUNNER = Path(__file__).with_name("run_cells.py")


def build_wheel(folder):
    """Build the wheel into `folder`; return its path."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = Path(folder).glob("*.whl")
    return wheel


def empty_venv(folder):
    """An environment without vtlib that sees the current one's other packages; its python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    places = [Path(folder) / "bin" / "python", Path(folder) / "Scripts" / "python.exe"]
    python = next(path for path in places if path.exists())
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    # A path in a .pth file is added as it is: the .pth files inside it, such as that of an editable
    # vtlib, are not read.
    seen = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    Path(site.stdout.strip(), "dependencies.pth").write_text("\n".join(seen) + "\n")
    return python


def clean_env(folder, **extra):
    """Environment of a process that must not find this repository.

    No PYTHONPATH; Jupyter and IPython get folders of their own.
    """
    left_out = ("PYTHONPATH", "JUPYTER", "PYTEST")
    env = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    for name in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        env[name] = str(Path(folder) / name.lower())
    return env | {"OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"} | extra


def run(python, args, folder, **extra):
    """Run `python args` in `folder`; return its standard output. An error shows what it wrote."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [str(python), *map(str, args)],
        cwd=folder,
        env=clean_env(folder.parent, **extra),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def install(python, wheel, folder):
    run(python, ["-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], folder)


def run_cells(python, notebook, folder, cells=None, **extra):
    """Execute code cells of a notebook with `python`'s own kernel.

    Returns [printed text of each cell]; a last cell is added, which prints where vtlib was found.

    Args:
        python: of an environment.
        notebook: path.
        folder: where the kernel runs.
        cells: how many code cells, the first ones; None: all.
        extra: environment variables.
    """
    out = run(python, [RUNNER, notebook, cells or 0], folder, **extra)
    return json.loads(out.strip().splitlines()[-1])
