"""One JupyterLab per worker, and one page that opens a notebook after the other.

Without a browser the tests are skipped on a reader's machine and fail in CI.
"""

import os
from pathlib import Path

import pytest

from tests.browser.lab import Lab, OnePage, find_browser
from tools.notebook import paths, read, solve, write

FAILURES = Path(__file__).with_name("failures")


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    if find_browser() is None:
        reason = f"no Chromium or Chrome found (PATH: {os.environ.get('PATH')})"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    lab = Lab(tmp_path_factory.mktemp("lab"))
    for path in paths():
        write(solve(read(path)), lab.root / path.name)  # as shipped they run under nbval
    lab.start()
    yield lab
    lab.stop()


@pytest.fixture(scope="module")
def one_page():
    """To load JupyterLab takes seconds of the processor, to open a notebook in it much less.

    It ends with the tests of this module: Playwright's event loop would disturb other kernels.
    """
    one_page = OnePage()
    yield one_page
    one_page.close()


@pytest.fixture
def page(one_page, request):
    page = one_page.get()
    yield page
    if request.node.stash.get(FAILED, False):
        FAILURES.mkdir(exist_ok=True)
        page.screenshot(path=FAILURES / f"{request.node.name}.png", full_page=True)
        one_page.close()


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call" and report.failed:
        item.stash[FAILED] = True
    return report
