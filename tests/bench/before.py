"""vtlib as it was at an earlier commit, beside today's, in one process: timings, old against new.

    old = before("463e4cd")                   # the package, under another name
    old.module("tokens.select").take(x, i)

A copy of it under another name is a package of its own: its imports of itself are renamed, and the
assets of that commit lie beside it.
"""

import functools
import importlib
import io
import itertools
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch.profiler import ProfilerActivity, profile

from vtlib.teach import flops, latency

ROOT = Path(__file__).resolve().parents[2]
FIRST = "463e4cd"
"""The commit that the targets of the speed table are ratios to."""


def today(name: str) -> ModuleType:
    """One of today's modules, as `Before.module` gives one of then."""
    return importlib.import_module(f"vtlib.{name}")


class Before:
    """The package of one commit: `module("nn.attention")` imports one of its modules."""

    def __init__(self, package: str):
        self.package = package

    def module(self, name: str) -> ModuleType:
        return importlib.import_module(f"{self.package}.{name}")


@functools.cache
def before(commit: str = FIRST) -> Before:
    """Unpack `vtlib/` of a commit, and its pictures, into a temporary folder and import it as
    vtlib_<commit>.

    ValueError without that commit.
    """
    assets = [f":(glob)data/*.{kind}" for kind in ("npz", "json")]
    command = ["git", "-C", str(ROOT), "archive", commit, "vtlib", *assets]
    packed = subprocess.run(command, capture_output=True)
    if packed.returncode:
        raise ValueError(f"commit={commit!r}: {packed.stderr.decode().strip()}")
    folder = Path(tempfile.mkdtemp(prefix="vtlib-before-"))
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    package = f"vtlib_{commit}"
    (folder / "vtlib").rename(folder / package)
    for file in (folder / package).rglob("*.py"):
        code = file.read_text(encoding="utf-8")
        renamed = re.sub(r"\b(from|import) vtlib\b", rf"\1 {package}", code)
        file.write_text(renamed, encoding="utf-8")
    sys.path.append(str(folder))
    return Before(package)


def ratio(new, old, repeats: int = 7) -> float:
    """Processor time of new() over that of old(): turns A B B A, the median of each.

    The number of threads is the caller's business.
    """
    new(), old()
    spent = {0: [], 1: []}
    for _ in range(repeats):
        for which in (0, 1, 1, 0):
            start = time.process_time()
            (new, old)[which]()
            spent[which].append(time.process_time() - start)
    middle = {which: sorted(times)[len(times) // 2] for which, times in spent.items()}
    return middle[0] / max(middle[1], 1e-9)


def peak_bytes(run, warmup: bool = True) -> int:
    """The most memory that torch's CPU allocator holds at a time for run(), beyond what was there.

    What allocations and releases add up to, as the profiler records them; the same every time.
    warmup: it runs once before.
    """
    if warmup:
        run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        result = run()
    del result
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return max(held, default=0)


def ratios(
    sizes: Sequence[int],
    makers: Callable[[int], Mapping[str, Callable[[], Any]]],
    repeat: int = 5,
    warmup: int = 1,
    label: str = "",
) -> tuple[list[str], list[list[str]]]:
    """FLOPs and time of each entry of makers(size), relative to its own value at the first size.

    Args:
        sizes: the columns.
        makers: {name: what is measured} at one size.
        repeat: how often each is timed.
        warmup: how often each runs before.
        label: what stands before a size in the header.

    Returns (header, rows). Operations that count nothing show "-".
    """
    first, rows = {}, {}
    for size in sizes:
        for name, run in makers(size).items():
            cost = flops(run), latency(run, repeat=repeat, warmup=warmup)
            base = first.setdefault(name, cost)
            row = rows.setdefault(name, [name])
            for now, then in zip(cost, base, strict=True):
                row.append(f"{now / then:.1f}" if then else "-")
    header = [f"{what} {label}{size}" for size in sizes for what in ("FLOPs", "time")]
    return header, list(rows.values())
