#!/usr/bin/env bash
# torch 2.13.0 (CPU build): exp and logsumexp in float32 are many times slower for inputs below -88.
#
# One would expect: exp of a million numbers takes the same time whatever they are. numpy's does, and so does torch's
# softmax for inputs far below -104.
# What happens: where the result underflows, also where it is exactly 0, torch.exp takes some fifty times as long (inputs
# of -200 or -10000), torch.logsumexp ten to twenty times; exp of minus infinity some ten times. torch.set_flush_denormal
# changes nothing. float64 does the same below -745. It is met by soft histograms, kernels exp(-d / t), log_softmax(...)
# .exp() with a small temperature (entropy losses of vector quantisers) and a hand-made logsumexp over masked scores.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import time

import numpy as np
import torch

torch.set_num_threads(1)


def milliseconds(run):
    run()
    took = []
    for _ in range(7):
        start = time.perf_counter()
        run()
        took.append(time.perf_counter() - start)
    return min(took) * 1e3


def times(value, dtype=torch.float32):
    x = torch.full((1_000_000,), value, dtype=dtype)
    rows = torch.zeros(1000, 1000, dtype=dtype)
    rows[:, 1::2] = value
    return {
        "torch.exp": milliseconds(lambda: torch.exp(x)),
        "torch.logsumexp": milliseconds(lambda: torch.logsumexp(rows, 1)),
        "torch.softmax": milliseconds(lambda: torch.softmax(rows, 1)),
        "numpy.exp": milliseconds(lambda: np.exp(x.numpy())),
    }


usual = times(-10.0)
slower = {value: {k: t / usual[k] for k, t in times(value).items()} for value in (-80.0, -200.0, -1e4)}
print("torch", torch.__version__, "| milliseconds at -10:", {k: round(t, 2) for k, t in usual.items()})
for value, row in slower.items():
    print(f"at {value:g}, times as long:", {k: round(t, 1) for k, t in row.items()})
torch.set_flush_denormal(True)
flushed = times(-200.0)["torch.exp"] / usual["torch.exp"]
torch.set_flush_denormal(False)
double = times(-1e4, torch.float64)["torch.exp"] / times(-10.0, torch.float64)["torch.exp"]
print(f"with set_flush_denormal, at -200: {flushed:.1f}; float64 at -10000: {double:.1f}")
assert torch.exp(torch.tensor([-200.0])).item() == 0
assert slower[-80.0]["torch.exp"] < 3
for value in (-200.0, -1e4):
    row = slower[value]
    assert row["torch.exp"] > 8 and row["torch.logsumexp"] > 4, row
    assert row["torch.softmax"] < 3 and row["numpy.exp"] < 3, row
assert flushed > 8 and double > 8
PYTHON
