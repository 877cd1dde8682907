"""Settings that must stand before the first kernel or the first import of torch."""

import atexit
import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: one thread each, kernels too
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")

os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("PYTHONPATH", None)  # kernels find vtlib because it is installed

# Kernels start from an IPython folder of their own: no start-up files of the user's, no history
# file to fight over, no chatter.
_ipython = Path(tempfile.mkdtemp(prefix="ipython-"))
atexit.register(shutil.rmtree, _ipython, ignore_errors=True)
(_ipython / "profile_default").mkdir()
(_ipython / "profile_default" / "ipython_kernel_config.py").write_text(
    "c.IPKernelApp.log_level = 40\nc.HistoryManager.enabled = False\n"
)
os.environ["IPYTHONDIR"] = str(_ipython)


# ----------------------------------------------------------------------------------- notebook cells
CELL_SECONDS = 600
"""Seconds of the processor after which a cell is taken for one that never ends. On the clock a busy
machine takes any time, so nbval's own limit (Makefile) is far away. What a cell may cost is another
matter: tests/notebooks/test_budget.py."""


def kernel_seconds(item):
    """Processor seconds of the kernel behind a cell of nbval, None for any other test."""
    kernel = getattr(item.parent, "kernel", None)
    provisioner = getattr(getattr(kernel, "km", None), "provisioner", None)
    if getattr(provisioner, "pid", None) is None:
        return None
    from tools.notebook import processor_seconds

    return processor_seconds(provisioner.pid)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    before = kernel_seconds(item)
    result = yield
    after = kernel_seconds(item)
    if before is not None and after is not None and after - before > CELL_SECONDS:
        spent = round(after - before)
        pytest.fail(f"the cell took {spent} s of the processor, more than {CELL_SECONDS}")
    return result


# --------------------------------------------------------------------------- reports and scheduling
def pytest_terminal_summary(terminalreporter):
    """The browser tests' redraw times, in one block before the summary."""
    lines = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for key, value in report.user_properties
        if key == "redraw"
    ]
    if lines:
        terminalreporter.section("widgets in the browser")
        for line in sorted(lines):
            terminalreporter.write_line(line)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """`--dist loadfile`, but tests that run a whole notebook are spread by notebook."""
    if config.getoption("dist", "no") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByNotebook(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file, _, test = nodeid.partition("::")
            notebook = re.search(r"\[(\d\d[a-z]?_\w+)\]$", test)
            whole = notebook and re.match(r"test_(solved_notebook|first_cells)", test)
            return f"{file}::{notebook.group(1)}" if whole else file

    return ByNotebook(config, log)
