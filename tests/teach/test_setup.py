"""The first cell, and a whole small notebook in a real kernel."""

import os
import random
import subprocess
import sys

import matplotlib
import nbformat
import numpy as np
import pytest
import torch

import vtlib
from vtlib import teach


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        yield


def test_setup_says_one_line_and_seeds(capsys):
    def numbers():
        teach.setup(seed=5)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert numbers() == numbers()
    first, second = capsys.readouterr().out.splitlines()
    version = torch.__version__.split("+")[0]
    assert first == second and first.startswith(f"vtlib {vtlib.__version__} | torch {version} | ")
    assert "/" not in first and "+" not in first
    assert matplotlib.rcParams["axes.titlelocation"] == "left"
    assert matplotlib.rcParams["figure.dpi"] <= 110


def test_setup_leaves_threads_alone_unless_told(monkeypatch, capsys):
    before = torch.get_num_threads()
    monkeypatch.delenv("VTLIB_THREADS", raising=False)
    teach.setup()
    assert torch.get_num_threads() == before
    monkeypatch.setenv("VTLIB_THREADS", "1")
    try:
        teach.setup()
        assert torch.get_num_threads() == 1
        on_cpu = "cpu, 1 thread\n" in capsys.readouterr().out
        assert on_cpu != torch.cuda.is_available()
    finally:
        torch.set_num_threads(before)
    monkeypatch.setenv("VTLIB_THREADS", "many")
    with pytest.raises(ValueError, match="VTLIB_THREADS='many'"):
        teach.setup()


@pytest.mark.parametrize("seed", [-1, 1.5, "0", None, 2**32])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(ValueError, match="seed="):
        teach.setup(seed=seed)


@pytest.mark.parametrize("seed", [np.int64(3), torch.tensor(3)])
def test_integers_of_numpy_and_torch_are_seeds(seed):
    teach.setup(seed=seed)
    drawn = torch.rand(())
    teach.setup(seed=3)
    assert torch.equal(drawn, torch.rand(()))


def test_device():
    assert teach.device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_require_names_the_pip_command():
    teach.require()
    command = "need nothing_like_it; run:  pip install nothing_like_it"
    with pytest.raises(ImportError, match=command):
        teach.require(["torch", "nothing_like_it"])


def test_a_missing_package_is_named_at_import():
    code = (
        "import importlib.util as u; find = u.find_spec\n"
        "gone = ('matplotlib', 'IPython')\n"
        "u.find_spec = lambda name, *a: None if name in gone else find(name, *a)\n"
        "from vtlib import teach"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    told = "the notebooks need matplotlib, ipython; run:  pip install matplotlib ipython"
    assert run.stderr.splitlines()[-1] == f"ImportError: {told}"


CELLS = [
    """\
from vtlib import teach
teach.setup(seed=0)""",
    """\
import ipywidgets
def draw(keep):
    fig, ax = teach.figure()
    ax.plot(range(keep))
    return fig
slider = ipywidgets.IntSlider(3, 1, 9, description="keep")
panel = teach.panel(draw, alt="A line of as many points as keep says.", keep=slider)
panel.show()""",
    """\
panel.set(keep=8)
assert len(panel.milliseconds) == 2""",
    """\
alt = "The loss falls from 4 to 1 in four steps."
with teach.LiveCurve(4, "It falls", "loss", alt=alt, every=0) as live:
    for step in range(4):
        live.update(step, train=4 - step)""",
    """\
import matplotlib.pyplot as plt
fig, ax = plt.subplots(figsize=(2, 1))
teach.show(fig, alt="An empty pair of axes, made by pyplot.")""",
    """\
teach.table(["a", "b"], [["x", 1]])""",
    """\
from vtlib.teach.exercises import check, expect
check("toy.twice", reference=lambda x: 2 * x)(lambda fn: expect(fn(2), 4))
def twice(x):
    raise NotImplementedError
twice = teach.exercise("toy.twice", twice)
assert twice(3) == 6""",
    """\
def twice(x):
    return x / 0
try:
    teach.exercise("toy.twice", twice)
except teach.Wrong as wrong:
    print(wrong)""",
]


def test_a_notebook_runs_without_warnings_and_each_cell_has_one_output(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    place = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(
        nb, timeout=60, kernel_name="python3", store_widget_state=False, resources=place
    )
    client.execute()
    outputs = [cell.outputs for cell in nb.cells]
    assert [len(o) for o in outputs] == [1, 1, 0, 1, 1, 1, 1, 1]
    assert not [o for cell in outputs for o in cell if o.get("name") == "stderr"]
    widget = "application/vnd.jupyter.widget-view+json"
    assert set(outputs[1][0].data) == {widget, "text/html", "text/plain"}
    said = "The loss falls from 4 to 1 in four steps. Last values: train 1."
    assert outputs[3][0].data["text/plain"] == said
    for i in (3, 4, 5):
        assert set(outputs[i][0].data) == {"text/html", "text/plain"}
    assert "not attempted yet" in outputs[6][0].text
    assert "in line 2 of its cell:  return x / 0" in outputs[7][0].text
