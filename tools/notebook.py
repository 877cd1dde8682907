"""Make, run and check the course's notebooks.

python tools/notebook.py COMMAND ...

    convert SRC.py NN_x.ipynb   jupytext py:percent -> normalised notebook without outputs
    run NN_x.ipynb ...          execute in a fresh kernel and store the outputs
    stamp [FILE ...]            write set-up cell, Colab badge and what folds (all, and the README)
    check [FILE ...]            exit 1 when stamp would change something
    solve FILE [DEST]           the notebook with each solution in its exercise's place
"""

import argparse
import ast
import contextlib
import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
"""As under nbval: idle threads that wait for work count as processor seconds, and more so the
busier the machine."""
HANGING = 3600
"""Seconds on the clock after which a cell is taken for one that never ends."""
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
LANGUAGE = {
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "pygments_lexer": "ipython3",
}
FOLDS = {
    "machinery": ("hide-input", {"cellView": "form", "jupyter": {"source_hidden": True}}),
    "prediction": ("hide-output", {"collapsed": True, "jupyter": {"outputs_hidden": True}}),
}
"""Tag of a code cell, as an author sets it -> the tag and the metadata that fold the cell.

JupyterLab reads `jupyter`. Colab writes `collapsed` itself where a reader hides an output, and
folds code where `cellView` says so; a form folds no output, so an answer is none. Pages made of
notebooks read the tags. GitHub, VS Code, nbconvert and nbval read none of all that.
"""
WIDGET = "application/vnd.jupyter.widget-view+json"
SETUP = """import sys
if "google.colab" in sys.modules:  # on Colab: add what it lacks, leave its torch and numpy alone
    %pip install -q --no-deps "vtlib @ git+{repository}@v{version}"
    %pip install -q --no-deps torchmetrics lightning-utilities
from vtlib import teach
teach.setup(seed=0)"""
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({address})"
BADGE_PATTERN = re.compile(
    r"\[!\[[^\]]*\]\(https://colab\.research\.google\.com/assets/colab-badge\.svg\)\]\(([^)]*)\)"
)


# ------------------------------------------------------------------------------------------- basics
def paths(files=()):
    """The named notebooks, or all of the course."""
    return [Path(f) for f in files] or sorted(NOTEBOOKS.glob("*.ipynb"))


def number(path):
    """The start of its name: "01", or "01b" where a family has a second notebook."""
    return Path(path).name.partition("_")[0]


def read(path):
    return nbformat.read(path, as_version=4)


def tags(cell):
    return cell.metadata.get("tags", [])


def code_cells(nb):
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def project():
    """(repository address, version) from pyproject.toml, the one place that knows them."""
    meta = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return meta["urls"]["Repository"].rstrip("/"), meta["version"]


def setup_source():
    repository, version = project()
    return SETUP.format(repository=repository, version=version)


def badge(name):
    """Markdown of the Colab badge for notebooks/`name`, at the tag that the set-up installs."""
    repository, version = project()
    slug = repository.removeprefix("https://github.com/")
    page = f"github/{slug}/blob/v{version}/notebooks/{name}"
    return BADGE.format(address=f"https://colab.research.google.com/{page}")


def metadata(cell):
    """What a cell's metadata should be: the author's tags, and what folds the cell after them.

    All else goes, so a cell unfolds when its tag is taken away.
    """
    follow = {tag for tag, _ in FOLDS.values()}
    written = [tag for tag in tags(cell) if tag not in follow]
    found = {"tags": list(written)} if written else {}
    for name, (tag, keys) in FOLDS.items():
        if name in written and cell.cell_type == "code":
            found["tags"].append(tag)
            found["jupyter"] = found.get("jupyter", {}) | keys["jupyter"]
            found |= {key: value for key, value in keys.items() if key != "jupyter"}
    return nbformat.from_dict(found)


def stored_outputs(cell):
    """What a code cell's stored outputs should be: without metadata, and silent while folded.

    JupyterLab shows the first line of a folded cell's first output. So that it does not tell the
    answer to a prediction, an output of nothing at all comes first.
    """
    shown = [o for o in cell.outputs if o.get("data") != {}]
    for output in shown:
        if "metadata" in output:
            output["metadata"] = nbformat.from_dict({})
    silent = [nbformat.v4.new_output("display_data")] if "prediction" in tags(cell) else []
    return silent + shown if shown else []


def fold(cell):
    """Write in place what follows from a cell's tags."""
    cell["metadata"] = metadata(cell)
    if cell.cell_type == "code":
        cell["outputs"] = stored_outputs(cell)


def normalise(nb):
    """Same bytes on every machine: ids, metadata and kernel name carry nothing local."""
    nb.nbformat, nb.nbformat_minor = 4, 5
    seconds = nb.metadata.get("vtlib")
    nb.metadata = nbformat.from_dict({"kernelspec": KERNELSPEC, "language_info": LANGUAGE})
    if seconds:
        nb.metadata["vtlib"] = seconds
    for i, cell in enumerate(nb.cells):
        cell["id"] = f"c{i:03d}"
        cell["source"] = cell["source"].rstrip()
        fold(cell)
    return nb


def write(nb, path):
    nbformat.validate(nb)
    Path(path).write_text(nbformat.writes(nb).rstrip("\n") + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------------- run
class CellFailed(Exception):
    """A cell raised, or wrote to stderr. The message shows the cell."""


def processor_seconds(pid):
    """Seconds that a process and those that it started have used; 0 when it is gone."""
    import psutil

    spent = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                used = one.cpu_times()
                spent += used.user + used.system
    return spent


class KernelClock:
    """Processor seconds of a kernel, and of each cell: hooks that nbclient calls around a cell."""

    def __init__(self):
        self.client, self.cells, self.before, self.total = None, {}, 0.0, 0.0

    def read(self):
        return processor_seconds(self.client.km.provisioner.pid)

    def start(self, cell, cell_index):
        self.before = self.read()

    def stop(self, cell, cell_index, execute_reply):
        self.total = self.read()
        self.cells[cell_index] = self.total - self.before


def execute(nb, folder=NOTEBOOKS, env=None, hanging=HANGING):
    """Run `nb` in place from a fresh kernel started in `folder`; return its `KernelClock`.

    CellFailed when a cell raises, writes to stderr or never ends.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    for cell in code_cells(nb):
        cell.outputs, cell.execution_count = [], None
    clock = KernelClock()
    clock.client = NotebookClient(
        nb,
        timeout=hanging,
        startup_timeout=120,
        kernel_name="python3",
        store_widget_state=False,
        extra_arguments=["--IPKernelApp.log_level=40"],
        resources={"metadata": {"path": str(folder)}},
        on_cell_start=clock.start,
        on_cell_executed=clock.stop,
    )
    kernel_env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    kernel_env |= {"PYDEVD_DISABLE_FILE_VALIDATION": "1"} | ONE_THREAD | (env or {})
    try:
        clock.client.execute(env=kernel_env)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        done = [c for c in code_cells(nb) if c.execution_count or c.outputs]
        source, trace = (done[-1].source, error_text(done[-1])) if done else ("(none has run)", "")
        raise CellFailed(
            f"{type(error).__name__}\n--- the cell ---\n{source}"
            f"\n--- the error ---\n{trace or error}"
        ) from None
    for cell in code_cells(nb):
        errors = [o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stderr"]
        if errors:
            raise CellFailed(
                "stderr output (warnings and progress bars don't belong into a lesson)"
                f"\n--- the cell ---\n{cell.source}\n--- stderr ---\n{''.join(errors)}"
            )
    return clock


def error_text(cell):
    """The traceback of a failed cell, without colour codes."""
    lines = [line for o in cell.outputs if o.output_type == "error" for line in o.traceback]
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(lines))


def tidy_outputs(nb):
    """Keep what a reader without a kernel sees.

    No widget view where HTML stands beside it, streams in one piece.
    """
    for count, cell in enumerate((c for c in code_cells(nb) if c.source.strip()), start=1):
        cell.execution_count = count
        merged = []
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output["execution_count"] = count
            data = output.get("data", {})
            if WIDGET in data and "text/html" in data:
                del data[WIDGET]
            last = merged[-1] if merged else None
            stream = output.output_type == "stream"
            if stream and last and last.output_type == "stream" and last.name == output.name:
                last["text"] += output.text
            else:
                merged.append(output)
        cell.outputs = merged
    return nb


GAUGE = """
import time, torch
square, row = torch.ones(256, 256) / 256, torch.ones(4096)
start = time.process_time()
for _ in range(1400):
    square = square @ square
for _ in range(140_000):
    row = row * 0.5 + 0.5
print(time.process_time() - start)
"""


def gauge():
    """Processor seconds of a fixed piece of work, small and large operators: how fast a core is."""
    environment = os.environ | ONE_THREAD
    command = [sys.executable, "-c", GAUGE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def run(path):
    """Execute a notebook and store its outputs and run time. On failure the file stays as it was.

    Stored are the seconds on the clock and those of the processor; `slowest_cell`: its index among
    the cells, and its seconds of the processor; `gauge`: what `gauge` takes on this machine, mean
    of before and after. Seconds of the processor over it compare from machine to machine.
    """
    path = Path(path)
    nb = read(path)
    before = gauge()
    start = time.perf_counter()
    clock = execute(nb, folder=path.resolve().parent)
    tidy_outputs(nb)
    slowest = max(clock.cells, key=clock.cells.get)
    nb.metadata["vtlib"] = {
        "seconds": round(time.perf_counter() - start, 1),
        "processor_seconds": round(clock.total, 1),
        "slowest_cell": [slowest, round(clock.cells[slowest], 1)],
        "gauge": round((before + gauge()) / 2, 2),
    }
    write(normalise(nb), path)
    size = path.stat().st_size / 1e6
    print(f"{path}: {dict(nb.metadata['vtlib'])}, {len(nb.cells)} cells, {size:.2f} MB")
    return clock


# -------------------------------------------------------------------------------------------- stamp
def stamp_notebook(nb, name):
    """Write set-up cell, badge and folds into `nb` in place; True when something changed."""
    setups = [cell for cell in nb.cells if "setup" in tags(cell)]
    if len(setups) != 1:
        raise SystemExit(f"{name}: needs exactly one code cell tagged 'setup', found {len(setups)}")
    before = nbformat.writes(nb)
    setups[0].source = setup_source()
    for cell in nb.cells:
        fold(cell)
    head = next(cell for cell in nb.cells if cell.cell_type == "markdown")
    if BADGE_PATTERN.search(head.source):
        head.source = BADGE_PATTERN.sub(lambda _: badge(name), head.source, count=1)
    else:
        title, _, rest = head.source.partition("\n")
        head.source = f"{title}\n\n{badge(name)}\n\n{rest.lstrip()}".rstrip()
    return nbformat.writes(nb) != before


def stamp_readme(text):
    """The README's badges, each pointing at the notebook it already names."""
    return BADGE_PATTERN.sub(lambda m: badge(m.group(1).rsplit("/", 1)[-1]), text)


def stamp(files=(), dry=False):
    """Stamp notebooks (and the README when no file is named).

    Returns the files that changed or would change.
    """
    changed = []
    for path in paths(files):
        nb = read(path)
        if stamp_notebook(nb, path.name):
            changed.append(path)
            if not dry:
                write(nb, path)
    readme = ROOT / "README.md"
    if not files and readme.exists():
        text = readme.read_text(encoding="utf-8")
        if stamp_readme(text) != text:
            changed.append(readme)
            if not dry:
                readme.write_text(stamp_readme(text), encoding="utf-8")
    return changed


# ------------------------------------------------------------------------------------------ convert
def convert(source, dest):
    """jupytext py:percent -> a normalised, stamped notebook without outputs."""
    import jupytext

    nb = nbformat.from_dict(jupytext.read(source, fmt="py:percent"))
    for cell in code_cells(nb):
        cell.outputs, cell.execution_count = [], None
    nb = normalise(nb)
    stamp_notebook(nb, Path(dest).name)
    write(nb, dest)
    print(f"{dest}: {len(nb.cells)} cells")


# -------------------------------------------------------------------------------------------- solve
def plain_python(source):
    """Notebook code as plain Python: magics and shell lines become `pass`."""
    return re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.MULTILINE)


def exercise_lines(source):
    """[(exercise name, its line)] of the statements that call teach.exercise in a cell's source."""
    source = plain_python(source)
    found = []
    for statement in ast.parse(source).body:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            continue
        calls = [node for node in ast.walk(statement) if isinstance(node, ast.Call)]
        calls = [call for call in calls if ast.unparse(call.func) == "teach.exercise"]
        if calls:
            name = ast.literal_eval(calls[0].args[0])
            found.append((name, ast.get_source_segment(source, statement)))
    return found


def solution_code(cell):
    """The one fenced python block of a markdown cell tagged `solution`."""
    fenced = re.compile(r"^```python\s*\n(.*?)^```\s*$", flags=re.MULTILINE | re.DOTALL)
    blocks = fenced.findall(cell.source)
    if len(blocks) != 1:
        raise ValueError(
            f"cell {cell.get('id')}: a solution needs exactly one ```python block, "
            f"found {len(blocks)}"
        )
    return blocks[0].rstrip()


def exercises(nb):
    """[(index of the exercise cell, names, solution code)] in order.

    Each exercise's solution comes before the next exercise.
    """
    found = []
    for i, cell in enumerate(nb.cells):
        if cell.cell_type != "code" or "exercise" not in tags(cell):
            continue
        names = [name for name, _ in exercise_lines(cell.source)]
        if not names:
            raise ValueError(
                f"cell {cell.get('id')}: tagged 'exercise' but never calls teach.exercise"
            )
        after = nb.cells[i + 1 :]
        until = next((k for k, c in enumerate(after) if "exercise" in tags(c)), len(after))
        texts = [c for c in after[:until] if c.cell_type == "markdown"]
        solutions = [c for c in texts if "solution" in tags(c)]
        if len(solutions) != 1:
            raise ValueError(
                f"exercise {names[0]}: needs one markdown cell tagged 'solution' after it, "
                f"found {len(solutions)}"
            )
        found.append((i, names, solution_code(solutions[0])))
    return found


def solve(nb):
    """`nb` with every stub replaced by its folded solution (in place)."""
    for i, _, code in exercises(nb):
        cell = nb.cells[i]
        calls = "\n".join(line for _, line in exercise_lines(cell.source))
        cell.source = f"{code}\n\n\n{calls}"
    return nb


# --------------------------------------------------------------------------------------------- main
def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["convert", "run", "stamp", "check", "solve"])
    parser.add_argument("files", nargs="*")
    parser.add_argument("--cells", action="store_true", help="with `run`: the dearest cells, too")
    args = parser.parse_intermixed_args(argv)
    if args.command == "convert":
        convert(*args.files)
    elif args.command == "run":
        for path in paths(args.files):
            try:
                clock = run(path)
            except CellFailed as error:
                print(f"{path}: {error}", file=sys.stderr)
                return 1
            if args.cells:
                for index in sorted(clock.cells, key=clock.cells.get, reverse=True)[:12]:
                    print(f"  c{index:03d} {clock.cells[index]:6.1f} s")
    elif args.command == "solve":
        nb = solve(read(args.files[0]))
        if args.files[1:]:
            write(nb, args.files[1])
        else:
            print(nbformat.writes(nb))
    else:
        changed = stamp(args.files, dry=args.command == "check")
        said = "out of date, run `make colab`" if args.command == "check" else "stamped"
        for path in changed:
            print(f"{path}: {said}")
        return int(args.command == "check" and bool(changed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
