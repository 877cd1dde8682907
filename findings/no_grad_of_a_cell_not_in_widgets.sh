#!/usr/bin/env bash
# JupyterLab 4.6.6, ipykernel 7.4.0, ipywidgets 8.1.9, torch 2.13.0: gradients that a cell switched off are on again in
# what a slider calls.
#
# One would expect: a notebook begins with torch.set_grad_enabled(False); whatever runs later, a slider's callback too,
# records no gradients. Moved from code (slider.value = 1) it does.
# What happens: JupyterLab sends what a widget says to a subshell of the kernel, a thread of its own, and torch's switch
# belongs to a thread. When keys move the slider, the main thread hears the first; from then on the callback runs in a
# thread named subshell-... and finds gradients on: each redraw keeps a graph, and tensor.numpy() raises. What
# numpy.seterr set is lost in the same way.
# It needs a Chromium or Chrome (BROWSER_PATH, or chromium on the PATH).
set -euo pipefail
browser=${BROWSER_PATH:-$(command -v chromium || command -v chromium-browser || command -v google-chrome)}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jupyterlab==4.6.6 ipykernel==7.4.0 ipywidgets==8.1.9 torch==2.13.0 numpy==2.4.6 \
    playwright==1.65.2
mkdir "$folder/notebooks"
cd "$folder"
export JUPYTER_CONFIG_DIR=$folder/config JUPYTER_DATA_DIR=$folder/data JUPYTER_RUNTIME_DIR=$folder/runtime
export JUPYTERLAB_SETTINGS_DIR=$folder/settings JUPYTERLAB_WORKSPACES_DIR=$folder/workspaces
BROWSER_PATH=$browser "$folder/venv/bin/python" - <<'PYTHON'
import json
import os
import subprocess
import sys
import time
import urllib.request

import nbformat
from playwright.sync_api import sync_playwright

CELL = """
import json, threading
import ipywidgets, numpy, torch
torch.set_grad_enabled(False)
numpy.seterr(divide="raise")
seen = []
def note(change):
    name = threading.current_thread().name.split("-")[0]
    seen.append([name, torch.is_grad_enabled(), numpy.geterr()["divide"]])
    open("seen.json", "w").write(json.dumps(seen))
slider = ipywidgets.IntSlider(description="moved")
slider.observe(note, names="value")
slider.value = 1
slider
"""
kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
cell = nbformat.v4.new_code_cell(CELL.strip())
nb = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel})
nbformat.write(nb, "notebooks/moved.ipynb")
port = 18951
lab = subprocess.Popen(
    [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
     "--ServerApp.root_dir=notebooks", "--IdentityProvider.token=open", "--expose-app-in-browser"],
    stderr=subprocess.DEVNULL)
try:
    for _ in range(120):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token=open", timeout=5).read()
            break
        except OSError:
            time.sleep(0.5)
    with sync_playwright() as p:
        page = p.chromium.launch(executable_path=os.environ["BROWSER_PATH"], args=["--no-sandbox"]).new_page()
        page.set_default_timeout(60_000)
        page.goto(f"http://127.0.0.1:{port}/lab/tree/moved.ipynb?token=open&reset", wait_until="domcontentloaded")
        page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.context?.isReady"
                               " && !!window.jupyterapp.shell.currentWidget.context.sessionContext.session?.kernel")
        page.evaluate("async () => { await window.jupyterapp.shell.currentWidget.context.sessionContext.ready;"
                      " await window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
        handle = page.locator(".jp-OutputArea-output .noUi-handle").first
        handle.wait_for()
        for _ in range(4):
            handle.focus()
            page.keyboard.press("ArrowRight")
            page.wait_for_timeout(500)
finally:
    lab.terminate()
seen = json.load(open("notebooks/seen.json"))
for name, grad, divide in seen:
    print(f"in a thread named {name}: gradients {grad}, numpy's division by zero {divide}")
code, *keys = seen
right = code == ["MainThread", False, "raise"] and len(keys) == 4
right &= all(key == ["subshell", True, "warn"] for key in keys[1:])
sys.exit(not right)
PYTHON
echo "as stated"
