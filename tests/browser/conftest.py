"""One JupyterLab per worker.

Without a browser the tests are skipped on a reader's machine and fail in CI.
"""

import os
from pathlib import Path

import pytest

from tests.browser.lab import Lab, browser_page, find_browser
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


@pytest.fixture
def page(lab, request):
    with browser_page() as page:
        yield page
        if request.node.stash.get(FAILED, False):
            FAILURES.mkdir(exist_ok=True)
            page.screenshot(path=FAILURES / f"{request.node.name}.png", full_page=True)


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call" and report.failed:
        item.stash[FAILED] = True
    return report
