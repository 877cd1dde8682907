"""Settings that must stand before the first kernel or the first import of torch, for unit tests and notebooks alike."""

import atexit
import os
import re
import shutil
import tempfile
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: one thread each, in the kernels too
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")

os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("PYTHONPATH", None)  # kernels find vtlib because it is installed, as they do for a reader

# Kernels start from an IPython folder of their own: no start-up files of the user's, no history file to fight over, no chatter.
_ipython = Path(tempfile.mkdtemp(prefix="ipython-"))
atexit.register(shutil.rmtree, _ipython, ignore_errors=True)
(_ipython / "profile_default").mkdir()
(_ipython / "profile_default" / "ipython_kernel_config.py").write_text(
    "c.IPKernelApp.log_level = 40\nc.HistoryManager.enabled = False\n"
)
os.environ["IPYTHONDIR"] = str(_ipython)


# --------------------------------------------------------------------------------------------- reports and scheduling
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
    """`--dist loadfile`, but tests that run a whole notebook are spread by notebook rather than by test file."""
    if config.getoption("dist", "no") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByNotebook(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file, _, test = nodeid.partition("::")
            notebook = re.search(r"\[(\d\d[a-z]?_\w+)\]$", test)
            whole = notebook and re.match(r"test_(solved|notebook|first_cells)", test)
            return f"{file}::{notebook.group(1)}" if whole else file

    return ByNotebook(config, log)
