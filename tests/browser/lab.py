"""A real JupyterLab, driven by a real browser: start both, run a notebook, move the controls of its panels, clock the redraws."""

import json
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from tools.notebook import processor_seconds

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
PROCESSOR_SECONDS = 1800  # after so much of the processor a notebook is taken for one that never ends
HANGING = 3600  # the same on the clock, for one that waits
MOVES = 4  # how often each control is moved
REDRAW_GOAL, REDRAW_LIMIT = 150, 400  # milliseconds: what we promise, and what a busy machine may take

SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # all cells are in the page, seen or not
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "docmanager-extension/plugin": {"autosave": False},
}
OPENED = """() => {
  const w = window.jupyterapp?.shell.currentWidget;
  return !!(w && w.context && w.context.isReady && w.context.sessionContext.session?.kernel);
}"""
RUN_ALL = """async () => {
  const app = window.jupyterapp, w = app.shell.currentWidget;
  await w.context.ready;
  await w.context.sessionContext.ready;
  await app.commands.execute('notebook:clear-all-cell-outputs');
  window.vtlibFinished = false;
  app.commands.execute('notebook:run-all-cells').then(() => { window.vtlibFinished = true; });
}"""
CELLS = "() => window.jupyterapp.shell.currentWidget.content.model.toJSON().cells"
SHUT_DOWN = "async () => { await window.jupyterapp.shell.currentWidget.context.sessionContext.shutdown(); }"
# Times are taken in the page, from the key or click to the new picture, so that they are what a reader waits for.
WATCH = """image => {
  if (!window.vtlibClock) {
    window.vtlibClock = 0;
    for (const kind of ['keydown', 'change', 'click'])
      document.addEventListener(kind, () => { window.vtlibClock = performance.now(); }, true);
  }
  image.vtlibWatch?.disconnect();
  image.vtlibRedraws = [];
  image.vtlibWatch = new MutationObserver(() => image.vtlibRedraws.push(performance.now() - window.vtlibClock));
  image.vtlibWatch.observe(image, {attributes: true, attributeFilter: ['src']});
}"""

# Which of a group of buttons is on.
CHOSEN = """group => {
  const choices = [...group.querySelectorAll('button, input[type=radio]')];
  return Math.max(0, choices.findIndex(c => c.checked || c.classList.contains('mod-active')));
}"""


def find_browser():
    """Path of a Chromium or Chrome on this machine, or None."""
    found = [os.environ.get("BROWSER_PATH"), *map(shutil.which, NAMES), MAC if os.path.exists(MAC) else None]
    return next((path for path in found if path), None)


class Lab:
    """A running JupyterLab: `address` with its token, `root` with the notebooks it serves."""

    def __init__(self, base):
        self.base, self.root, self.token = Path(base), Path(base) / "notebooks", secrets.token_hex(16)
        self.root.mkdir(parents=True, exist_ok=True)
        for name, values in SETTINGS.items():
            file = self.base / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values))

    def start(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        own = {
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
        }
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {k: str(self.base / v) for k, v in own.items()}
        self.log = open(self.base / "server.log", "w")
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "jupyterlab",
                "--no-browser",
                "--allow-root",
                "--ip=127.0.0.1",
                f"--port={self.port}",
                "--ServerApp.port_retries=0",
                f"--ServerApp.root_dir={self.root}",
                f"--IdentityProvider.token={self.token}",
                "--expose-app-in-browser",
                "--LabApp.news_url=",
            ],
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=self.base,
        )
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/status?token={self.token}", timeout=5).read()
                return self
            except (urllib.error.URLError, OSError):
                if self.process.poll() is not None:
                    break
                time.sleep(0.25)
        self.stop()
        raise RuntimeError(f"JupyterLab did not start:\n{(self.base / 'server.log').read_text()[-3000:]}")

    def kernel_seconds(self):
        """Processor seconds of the server and of all kernels that run now."""
        return processor_seconds(self.process.pid)

    def stop(self):
        self.process.terminate()  # the server ends its kernels
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()

    def address(self, name):
        return f"http://127.0.0.1:{self.port}/lab/tree/{name}?token={self.token}&reset"


@contextmanager
def browser_page():
    """A page of a headless browser. Playwright is started anew each time: its event loop would disturb other tests' kernels."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=find_browser(), args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(30_000)
            yield page
        finally:
            browser.close()


def run_all(page, lab, name):
    """Open notebook `name`, run all of its cells, complain about what went wrong; the cells."""
    page.goto(lab.address(name), wait_until="domcontentloaded")
    page.wait_for_function(OPENED, timeout=600_000)
    page.evaluate(RUN_ALL)
    start = time.monotonic()
    while not page.evaluate("() => window.vtlibFinished"):
        spent, passed = lab.kernel_seconds(), time.monotonic() - start
        assert spent < PROCESSOR_SECONDS, f"{name}: still running after {spent:.0f} processor s"
        assert passed < HANGING, f"{name}: still running after {passed:.0f} s, {spent:.0f} of them used"
        page.wait_for_timeout(1000)
    cells = page.evaluate(CELLS)
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"])
        for output in cell["outputs"]:
            assert output["output_type"] != "error", f"{source}\n{output.get('ename')}: {output.get('evalue')}"
            assert output.get("name") != "stderr", f"{source}\n{''.join(output['text'])}"
        assert cell["execution_count"], f"never ran:\n{source}"
    return cells


def panels(page, expected=1):
    """The live panels of the page: the innermost boxes that hold a widget picture. Waits until `expected` of them are drawn."""
    images = page.locator(".jp-OutputArea-output img.widget-image, .jp-OutputArea-output .widget-image img")
    if expected:
        images.nth(expected - 1).or_(page.locator(".jupyter-widgets-error-widget").first).first.wait_for(state="attached")
    assert page.locator(".jupyter-widgets-error-widget").count() == 0, (
        "JupyterLab could not draw a widget (its javascript failed)"
    )
    return [
        images.nth(i).locator("xpath=ancestor::*[contains(concat(' ', @class, ' '), ' widget-vbox ')][1]")
        for i in range(images.count())
    ]


def moves(page, panel):
    """[(label, [functions that each move the control once])] for every control of a panel."""
    found = []

    def label(control):
        text = control.locator("xpath=ancestor-or-self::*[contains(@class, 'widget-inline-hbox')][1]").locator(
            ".widget-label"
        )
        return text.first.inner_text() if text.count() else "control"

    handles = panel.locator(".noUi-handle")
    for i in range(handles.count()):

        def press(key, handle=handles.nth(i)):
            handle.focus()
            page.keyboard.press(key)

        at_end = handles.nth(i).get_attribute("aria-valuenow") == handles.nth(i).get_attribute("aria-valuemax")
        there, back = ("ArrowLeft", "ArrowRight") if at_end else ("ArrowRight", "ArrowLeft")
        keys = [there, there, back, back][:MOVES]
        found.append((label(handles.nth(i)), [lambda key=key, press=press: press(key) for key in keys]))
    selects = panel.locator("select")
    for i in range(selects.count()):
        select = selects.nth(i)
        now, count = select.evaluate("s => s.selectedIndex"), select.locator("option").count()
        others = [k for k in range(count) if k != now] or [now]
        order = ([*others[: MOVES - 1], now])[:MOVES]
        found.append((label(select), [lambda k=k, s=select: s.select_option(index=k) for k in order]))
    switches = panel.locator("input[type=checkbox], button.widget-toggle-button:not(.widget-toggle-buttons *)")
    for i in range(switches.count()):
        found.append((f"switch {i}", [switches.nth(i).click] * 2))
    groups = panel.locator(".widget-toggle-buttons, .widget-radio")
    for i in range(groups.count()):
        choices = groups.nth(i).locator("button, input[type=radio]")
        now = groups.nth(i).evaluate(CHOSEN)
        others = [k for k in range(choices.count()) if k != now]
        found.append((label(groups.nth(i)), [choices.nth(k).click for k in [*others[: MOVES - 1], now]]))
    return found


def drive(page, panel):
    """Move every control; return the milliseconds from each move to the new picture. AssertionError when one changes nothing."""
    from playwright.sync_api import TimeoutError as PlaywrightTimeout

    panel.scroll_into_view_if_needed()
    image = panel.locator("img").first.element_handle()
    image.evaluate(WATCH)
    trouble = panel.locator(".widget-html pre")  # where a panel writes the error of a redraw
    controls, times = moves(page, panel), []
    assert controls, "a picture without controls"
    for label, actions in controls:
        seen = 0
        for action in actions:
            before, source = image.evaluate("i => i.vtlibRedraws.length"), image.get_attribute("src")
            action()
            try:
                page.wait_for_function("([i, n]) => i.vtlibRedraws.length > n", arg=[image, before], timeout=5000)
            except PlaywrightTimeout:
                assert trouble.count() == 0, f"{label}: {trouble.first.inner_text()}"
                continue  # this step may leave the picture as it is, as long as another one doesn't
            assert image.get_attribute("src") != source
            times.append(image.evaluate("(i, n) => i.vtlibRedraws[n]", before))
            seen += 1
            page.wait_for_timeout(50)
        assert seen, f"{label}: moved {len(actions)} times, and the picture stayed the same"
    return times


def redraws(page, panel, tries=3):
    """The times of `drive`; when the median is over the limit, again: another process may have had the processor."""
    runs = []
    while len(runs) < tries and (not runs or statistics.median(runs[-1]) > REDRAW_LIMIT):
        runs.append(drive(page, panel))
    return min(runs, key=statistics.median)


def shut_down(page):
    page.evaluate(SHUT_DOWN)


def report(times):
    return f"redraw {statistics.median(times):.0f} ms (median of {len(times)}, slowest {max(times):.0f}, goal {REDRAW_GOAL})"
