"""EmojiWorld: today's generators against the first commit's, at any number of threads, and what the
first batch of a process costs beside `import torch`."""

import os
import statistics
import subprocess
import sys

import torch

from vtlib import data
from vtlib.teach import latency

from .before import FIRST, before, ratio

EASY = list(data.EASY)


def jobs(package):
    """(name, function) of what is measured, for one version of the package."""
    world, large = package.EmojiWorld(96), package.EmojiWorld(224)
    easy = package.EmojiWorld(48, pictograms=EASY)
    both = package.EmojiWorld(64, artist="both")
    return {
        "64 scenes of 96 px": lambda: world.scenes(64, 0).images,
        "64 pictures to classify, 48 px": lambda: easy.classify(64, 0)[0],
        "16 scenes of 224 px": lambda: large.scenes(16, 0).images,
        "4 videos of 8 frames, 64 px": lambda: both.video(4, 8, 0).frames,
        "16 in camouflage, 96 px": lambda: world.camouflage(16, 0).images,
        "a mosaic of 768 x 1024": lambda: world.mosaic(768, 1024, 0).image,
        "4 panned clips of 5 frames, 96 px": lambda: package.footage.panned(4, 5, 96, 0).frames,
    }


def packages():
    old = before()
    old.module("data.footage")
    return data, old.module("data")


def against_before(repeats=3):
    new, old = (jobs(package) for package in packages())
    for name in new:
        same = "same bits" if torch.equal(new[name](), old[name]()) else "other bits"
        yield name, same, f"{ratio(new[name], old[name], repeats):.2f}"


def by_threads(counts=(1, 2, 4), repeats=9):
    """Time of a batch over its time on one thread, both versions in turns."""
    worlds = [package.EmojiWorld(96) for package in packages()]
    setting, alone = torch.get_num_threads(), []
    try:
        for count in counts:
            torch.set_num_threads(count)
            spent = [
                latency(world.scenes, 64, 0, repeat=repeats, warmup=1) for world in worlds
            ]
            alone = alone or spent
            shares = [f"{s / one:.2f}" for s, one in zip(spent, alone, strict=True)]
            yield count, f"{spent[0] * 1e3:.0f} ms", *shares
    finally:
        torch.set_num_threads(setting)


FIRST_BATCH = """
import sys, time
sys.path.insert(0, {folder!r})
import psutil
start = time.process_time()
import torch
torch.set_num_threads(1)
ready = time.process_time()
import {package}.data as data
world = data.EmojiWorld(96)
loaded, used = time.process_time(), psutil.Process().memory_info().rss
world.scenes(64, 0)
end, full = time.process_time(), psutil.Process().memory_info().rss
torch_took = ready - start
print((loaded - ready) / torch_took, (end - loaded) / torch_took, (end - ready) / torch_took)
print((full - used) / 2**20)
"""


def first_batch(repeats=3):
    """A process of its own: imports and a world, the first batch, both, memory; medians.

    Python may keep the bytecode of what it imports, as it does by default: the first process
    compiles vtlib, the others find it as compiled as torch is.
    """
    old = before().package
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    folders = {"vtlib": ".", old: str(__import__(old).__path__[0]) + "/.."}
    for package, folder in folders.items():
        code = FIRST_BATCH.format(package=package, folder=folder)
        runs = []
        for _ in range(repeats):
            command = [sys.executable, "-c", code]
            done = subprocess.run(command, capture_output=True, check=True, env=environment)
            runs.append([float(word) for word in done.stdout.split()])
        *shares, memory = (statistics.median(column) for column in zip(*runs, strict=True))
        name = "today" if package == "vtlib" else FIRST
        yield name, *(f"{share:.3f}" for share in shares), f"{memory:.0f} MiB"


def tables():
    header = ("what", "pictures", "time / before")
    yield f"EmojiWorld on one thread, today against {FIRST}", header, against_before()
    header = ("threads", "today", "over one thread, today", f"over one thread, {FIRST}")
    yield "EmojiWorld, 64 scenes of 96 px by the clock, at numbers of threads", header, by_threads()
    header = ("version", "vtlib.data and a world", "first batch", "both", "memory of the batch")
    yield "64 scenes in a fresh process, over `import torch`", header, first_batch()
