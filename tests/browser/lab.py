"""A real JupyterLab, driven by a real browser.

Start both, run a notebook, move the controls of its panels, clock the redraws.
"""

import functools
import json
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tools.notebook import gauge, processor_seconds

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
PROCESSOR_SECONDS = 1800  # of a notebook, which then is taken for one that never ends
HANGING = 3600  # the same on the clock, for one that waits
LOOK = 15  # seconds between two looks at those
MOVES = 4  # how often each control is moved
# milliseconds: what we promise, and what a busy machine may take
REDRAW_GOAL, REDRAW_LIMIT = 150, 400

SETTINGS = {
    # all cells are in the page, and only those in sight are laid out: what readers have
    "notebook-extension/tracker": {"windowingMode": "contentVisibility"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "docmanager-extension/plugin": {"autosave": False},
}
FOLDERS = {
    "JUPYTERLAB_SETTINGS_DIR": "settings",
    "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    "JUPYTER_CONFIG_DIR": "config",
    "JUPYTER_DATA_DIR": "data",
    "JUPYTER_RUNTIME_DIR": "runtime",
}
# As a double click in the file browser does.
OPEN = """path => { window.jupyterapp.commands.execute('docmanager:open', {path}); }"""
OPENED = """path => {
  const w = window.jupyterapp?.shell.currentWidget;
  if (w?.context?.path !== path) return false;
  return w.context.isReady && !!w.context.sessionContext.session?.kernel;
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
# Kernel and tab; nobody is asked whether to save.
CLOSE = """async () => {
  const w = window.jupyterapp.shell.currentWidget;
  await w.context.sessionContext.shutdown();
  w.context.model.dirty = false;
  w.close();
}"""
CLOSED = "path => window.jupyterapp.shell.currentWidget?.context?.path !== path"
# Times are taken in the page, from the key or click to the new picture, so that they are what a
# reader waits for. Nothing polls: a poll in each frame makes the browser draw frames all the while.
WATCH = """image => {
  if (!window.vtlibClock) {
    window.vtlibClock = 0;
    for (const kind of ['keydown', 'change', 'click'])
      document.addEventListener(kind, () => { window.vtlibClock = performance.now(); }, true);
  }
  image.vtlibSource = image.src;
  image.vtlibRedrawn = new Promise(drawn => {
    const watch = new MutationObserver(() => {
      watch.disconnect();
      drawn(performance.now() - window.vtlibClock);
    });
    watch.observe(image, {attributes: true, attributeFilter: ['src']});
  });
}"""
# milliseconds, and whether the picture is another one; null when none came
REDRAWN = """async (image, patience) => {
  const late = new Promise(passed => setTimeout(() => passed(null), patience));
  const time = await Promise.race([image.vtlibRedrawn, late]);
  return time === null ? null : [time, image.src !== image.vtlibSource];
}"""

# which of a group of buttons is on
CHOSEN = """group => {
  const choices = [...group.querySelectorAll('button, input[type=radio]')];
  return Math.max(0, choices.findIndex(c => c.checked || c.classList.contains('mod-active')));
}"""


IMAGES = ".jp-OutputArea-output img.widget-image, .jp-OutputArea-output .widget-image img"
BROKEN = ".jupyter-widgets-error-widget"
BOX = "image => image.parentElement.closest('.widget-vbox')"
LABEL = """control => {
  const widget = control.closest('[class*=inline-hbox], .widget-toggle-buttons, .widget-radio');
  return widget?.querySelector('.widget-label')?.textContent ?? 'control';
}"""
TROUBLE = ".widget-html pre"  # where a panel writes the error of a redraw
BUTTONS = "button, input[type=radio]"
SWITCHES = "input[type=checkbox], button.widget-toggle-button:not(.widget-toggle-buttons *)"


def find_browser():
    """Path of a Chromium or Chrome on this machine, or None."""
    found = [os.environ.get("BROWSER_PATH"), *map(shutil.which, NAMES)]
    if os.path.exists(MAC):
        found.append(MAC)
    return next((path for path in found if path), None)


class Lab:
    """A running JupyterLab: `address` with its token, `root` with the notebooks it serves."""

    def __init__(self, base):
        self.base = Path(base)
        self.root = self.base / "notebooks"
        self.token = secrets.token_hex(16)
        self.root.mkdir(parents=True, exist_ok=True)
        for name, values in SETTINGS.items():
            file = self.base / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values))

    def command(self):
        return [
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
        ]

    def environment(self):
        """That of the tests, with folders of its own for all that Jupyter reads and writes."""
        env = dict(os.environ)
        env.pop("PYTHONPATH", None)
        for variable, folder in FOLDERS.items():
            env[variable] = str(self.base / folder)
        return env

    def start(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.log = open(self.base / "server.log", "w")
        self.process = subprocess.Popen(
            self.command(),
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env=self.environment(),
            cwd=self.base,
        )
        for _ in range(240):
            if self.answers():
                return self
            if self.process.poll() is not None:
                break
            time.sleep(0.25)
        self.stop()
        said = (self.base / "server.log").read_text()[-3000:]
        raise RuntimeError(f"JupyterLab did not start:\n{said}")

    def answers(self):
        status = f"http://127.0.0.1:{self.port}/api/status?token={self.token}"
        try:
            urllib.request.urlopen(status, timeout=5).read()
        except OSError:  # urllib's own errors are such
            return False
        return True

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

    @property
    def origin(self):
        return f"http://127.0.0.1:{self.port}/"

    def address(self, name):
        return f"{self.origin}lab/tree/{name}?token={self.token}&reset"


@contextmanager
def browser_page():
    """A page of a headless browser, with a Playwright of its own."""
    from playwright.sync_api import sync_playwright

    args = ["--no-sandbox", "--disable-dev-shm-usage"]
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=find_browser(), args=args)
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(30_000)
            yield page
        finally:
            browser.close()


class OnePage:
    """A page that stays open for several tests: the same one until `close`, then a new one."""

    def __init__(self):
        self.stack, self.page = ExitStack(), None

    def get(self):
        if self.page is None:
            self.page = self.stack.enter_context(browser_page())
        return self.page

    def close(self):
        self.page = None
        self.stack.close()


def open_notebook(page, lab, name):
    """Load JupyterLab with notebook `name`, or have the JupyterLab in the page open it."""
    if page.url.startswith(lab.origin):
        page.evaluate(OPEN, name)
    else:
        page.goto(lab.address(name), wait_until="domcontentloaded")
    page.wait_for_function(OPENED, arg=name, timeout=600_000, polling=200)


def run_all(page, lab, name):
    """Open notebook `name`, run all of its cells, complain about what went wrong; the cells."""
    open_notebook(page, lab, name)
    page.evaluate(RUN_ALL)
    start = looked = time.monotonic()
    while not page.evaluate("() => window.vtlibFinished"):
        now = time.monotonic()
        if now - looked > LOOK:  # it asks for every process of the machine
            looked, passed, spent = now, now - start, lab.kernel_seconds()
            assert spent < PROCESSOR_SECONDS, f"{name}: still running after {spent:.0f} processor s"
            assert passed < HANGING, f"{name}: still running after {passed:.0f} s, {spent:.0f} used"
        page.wait_for_timeout(500)
    cells = page.evaluate(CELLS)
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"])
        for output in cell["outputs"]:
            error = f"{output.get('ename')}: {output.get('evalue')}"
            assert output["output_type"] != "error", f"{source}\n{error}"
            assert output.get("name") != "stderr", f"{source}\n{''.join(output['text'])}"
        assert cell["execution_count"], f"never ran:\n{source}"
    return cells


def panels(page, expected=1):
    """The live panels of the page: the innermost boxes that hold a widget picture.

    Waits until `expected` of them are drawn. Elements, and not locators: those search the whole
    page, with all its cells, at each use.
    """
    images, broken = page.locator(IMAGES), page.locator(BROKEN)
    if expected:
        images.nth(expected - 1).or_(broken.first).first.wait_for(state="attached")
    said = "JupyterLab could not draw a widget (its javascript failed)"
    assert broken.count() == 0, said
    boxes = [image.evaluate_handle(BOX).as_element() for image in images.element_handles()]
    assert all(boxes), "a picture of a widget outside of a box"
    return boxes


def label(control):
    return control.evaluate(LABEL)


def presses(page, handle):
    """Keys on a slider's handle: twice there, twice back; at its end it turns round at once.

    So it stands at last where it stood: the other controls are moved from there.
    """

    def at(name):
        return handle.get_attribute(f"aria-value{name}")

    start, there, back, end = at("now"), "ArrowRight", "ArrowLeft", "max"
    if start == at("max"):
        there, back, end = "ArrowLeft", "ArrowRight", "min"

    def press(outwards):
        go_on = at("now") != at(end) if outwards else at("now") == start
        handle.focus()
        page.keyboard.press(there if go_on else back)

    return [functools.partial(press, outwards) for outwards in [True, True, False, False]]


def there_and_back(now, count):
    """Numbers of other options than `now`, and `now` at last."""
    others = [k for k in range(count) if k != now]
    return [*others[: MOVES - 1], now]


def choices(select):
    """Options of a list, one after the other."""
    now, count = select.evaluate("s => [s.selectedIndex, s.options.length]")
    order = there_and_back(now, count)
    return [functools.partial(select.select_option, index=k) for k in order]


def clicks(group):
    """The buttons of a group, one after the other."""
    buttons = group.query_selector_all(BUTTONS)
    order = there_and_back(group.evaluate(CHOSEN), len(buttons))
    return [buttons[k].click for k in order]


def moves(page, panel):
    """[(label, [functions that each move the control once])] for every control of a panel."""
    found = []
    for handle in panel.query_selector_all(".noUi-handle"):
        found.append((label(handle), presses(page, handle)))
    for select in panel.query_selector_all("select"):
        found.append((label(select), choices(select)))
    for number, switch in enumerate(panel.query_selector_all(SWITCHES)):
        found.append((f"switch {number}", [switch.click] * 2))
    for group in panel.query_selector_all(".widget-toggle-buttons, .widget-radio"):
        found.append((label(group), clicks(group)))
    return found


def drive(page, panel, patience=5000):
    """Move every control; milliseconds from each move to the new picture.

    AssertionError when a control changes nothing within `patience` milliseconds.
    """
    panel.scroll_into_view_if_needed()
    image = panel.query_selector("img")
    controls, times = moves(page, panel), []
    assert controls, "a picture without controls"
    for name, actions in controls:
        seen = 0
        for action in actions:
            image.evaluate(WATCH)
            action()
            redrawn = image.evaluate(REDRAWN, patience)
            if redrawn is None:
                trouble = panel.query_selector(TROUBLE)
                assert trouble is None, f"{name}: {trouble.inner_text()}"
                continue  # this step may leave the picture as it is, if another one doesn't
            milliseconds, changed = redrawn
            assert changed
            times.append(milliseconds)
            seen += 1
            page.wait_for_timeout(50)
        assert seen, f"{name}: moved {len(actions)} times, and the picture stayed the same"
    return times


@functools.cache
def slowness():
    """The gauge of this machine, taken once."""
    return gauge()


def redraws_in_time(median):
    """Whether a redraw of so many milliseconds keeps the limit, on a machine as fast as this one.

    `gauge` is about 1 on a laptop's quiet core, for which the limit is meant. It is asked again
    before the answer is no: the machine may have become busier.
    """
    if median < REDRAW_LIMIT or median < REDRAW_LIMIT * slowness():
        return True
    return median < REDRAW_LIMIT * gauge()


def redraws(page, panel, tries=3):
    """The times of `drive`.

    When the median is over the limit, again: another process may have had the processor.
    """
    runs = []
    while len(runs) < tries and not (runs and redraws_in_time(statistics.median(runs[-1]))):
        runs.append(drive(page, panel))
    return min(runs, key=statistics.median)


def close_notebook(page, name):
    """End the kernel of notebook `name`, the one in sight, and close its tab."""
    page.evaluate(CLOSE)
    page.wait_for_function(CLOSED, arg=name, polling=200)


def report(times):
    median, slowest = statistics.median(times), max(times)
    spread = f"median of {len(times)}, slowest {slowest:.0f}, goal {REDRAW_GOAL}"
    return f"redraw {median:.0f} ms ({spread})"
