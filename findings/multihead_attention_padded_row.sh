#!/usr/bin/env bash
# nn.MultiheadAttention, one sequence of a batch all padding: NaN or zeros, by need_weights and grad mode (torch 2.13.0).
#
# One would expect: need_weights only says whether weights are returned, and torch.no_grad() changes no value.
# What happens, in eval mode, for the padded sequence (an image without text, a caption without tokens):
#     need_weights=True                     NaN
#     need_weights=False, with gradients    the bias of the output projection (attention gives zeros)
#     need_weights=False, under no_grad     NaN (the fast path)
# The other rows are right in all three. A model trained with need_weights=False therefore trains, and gives NaN in inference.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch

torch.manual_seed(0)
layer = torch.nn.MultiheadAttention(32, 2, batch_first=True).eval()
x = torch.randn(2, 5, 32)
padding = torch.tensor([[False] * 3 + [True] * 2, [True] * 5])


def run(need_weights, gradients):
    with torch.set_grad_enabled(gradients):
        return layer(x, x, x, key_padding_mask=padding, need_weights=need_weights)[0].detach()


print("torch", torch.__version__)
seen = {}
for need_weights in (True, False):
    for gradients in (True, False):
        out = run(need_weights, gradients)
        kind = "NaN" if out[1].isnan().all() else "finite"
        seen[need_weights, gradients] = kind
        fine = torch.allclose(out[0], run(True, True)[0], atol=1e-6)
        print(f"need_weights={need_weights}, gradients={gradients}: {kind}, other row right: {fine}")
        assert fine
expected = {(True, True): "NaN", (True, False): "NaN", (False, True): "finite", (False, False): "NaN"}
sys.exit(seen != expected)
PYTHON
echo "as stated"
