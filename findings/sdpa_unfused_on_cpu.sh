#!/usr/bin/env bash
# scaled_dot_product_attention on the CPU: three valid inputs that lose the fused kernel without a word (torch 2.13.0).
#
# One would expect: the shape (N, ..., L, E) of the documentation, values with a head size Ev of their own, and
# a bias that is learned all cost what attention costs, L x E numbers of memory.
# What happens: the fused kernel is taken for four axes and E = Ev only. With E = 9 and Ev = 10, with three axes (no batch,
# or heads folded into it), or with a mask that requires a gradient, the L x L weights are made: about 90 times the memory
# at L = 2048. Ways round: one zero channel more on queries and keys with scale=E**-0.5 (the output stays), a batch axis of 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import sys

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu"
L = 2048


def look(q, k, v, mask=None, scale=None):
    """(is the fused kernel taken, bytes allocated)"""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    rows = seen.key_averages()
    return any(row.key == FUSED for row in rows), sum(max(0, row.self_cpu_memory_usage) for row in rows)


torch.manual_seed(0)
q, k, v = (torch.randn(1, 2, L, 9) for _ in range(3))
wide = torch.randn(1, 2, L, 10)
padded = [F.pad(t, (0, 1)) for t in (q, k)]
bias = torch.zeros(L, L)
seen = {
    "E = Ev = 9": look(q, k, v),
    "E = 9, Ev = 10": look(q, k, wide),
    "E = Ev = 10, padded": look(*padded, wide, scale=9**-0.5),
    "three axes": look(q[0], k[0], v[0]),
    "a bias": look(q, k, v, bias),
    "a learned bias": look(q, k, v, bias.clone().requires_grad_()),
}
print("torch", torch.__version__)
for name, (fused, size) in seen.items():
    print(f"{name:22} {'fused  ' if fused else 'unfused'} {size / 1e6:7.1f} MB")
same = torch.allclose(
    F.scaled_dot_product_attention(q, k, wide),
    F.scaled_dot_product_attention(*padded, wide, scale=9**-0.5),
    atol=1e-5,
)
unfused = [name for name, (fused, _) in seen.items() if not fused]
as_stated = unfused == ["E = 9, Ev = 10", "three axes", "a learned bias"] and same
as_stated = as_stated and all(seen[name][1] > 40 * seen["E = Ev = 9"][1] for name in unfused)
sys.exit(not as_stated)
PYTHON
echo "as stated"
