#!/usr/bin/env bash
# torch.export, not strict (the default): len(x) fixes a free batch to that of the example (torch 2.13.0).
#
# One would expect: len(x) and x.shape[0] are the same number, so a module may use either.
# What happens: Python's len() has to return an int, so the symbolic size is replaced by the example's. With a named
# Dim the export fails ("specialized it to be a constant (3)", without the line). With Dim.AUTO it succeeds without a
# word, and the program refuses every other batch when it runs. strict=True, and x.shape[0], are right.
# Known upstream (pytorch pull request 185804), so a later version may end this.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import sys

import torch
from torch import nn
from torch.export import Dim, export


class ByLen(nn.Module):
    def forward(self, x):
        return x.reshape(len(x), -1)


class ByShape(nn.Module):
    def forward(self, x):
        return x.reshape(x.shape[0], -1)


def attempt(model, dim, strict):
    """What becomes of a program exported at batch 3 and run at batch 5."""
    try:
        program = export(model, (torch.randn(3, 2, 4),), dynamic_shapes=({0: dim},), strict=strict)
    except Exception as error:
        return f"export fails: {str(error).splitlines()[1].strip()[:80]}"
    try:
        return f"runs: {tuple(program.module()(torch.randn(5, 2, 4)).shape)}"
    except Exception as error:
        return f"the run fails: {str(error).splitlines()[0]}"


print("torch", torch.__version__)
seen = {}
for model in (ByLen(), ByShape()):
    for name, dim in (("a named Dim", Dim("batch")), ("Dim.AUTO", Dim.AUTO)):
        for strict in (False, True):
            got = attempt(model, dim, strict)
            seen[type(model).__name__, name, strict] = got.split(":")[0]
            print(f"{type(model).__name__:8} {name:12} strict={strict!s:6} {got}")
expected = dict.fromkeys(seen, "runs")
expected["ByLen", "a named Dim", False] = "export fails"
expected["ByLen", "Dim.AUTO", False] = "the run fails"
sys.exit(seen != expected)
PYTHON
echo "as stated"
