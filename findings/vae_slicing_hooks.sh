#!/usr/bin/env bash
# A hook on diffusers' autoencoder sees one picture of the batch when slicing is on (diffusers 0.42.1).
#
# One would expect: `vae.enable_slicing()` saves memory and changes nothing else ("split the input tensor in slices to compute decoding
# in several steps"); a forward hook on a block of the encoder, the usual way to take features from inside (ODISE takes blocks 5 and 7),
# is called once and gets the whole batch.
# What happens: the encoder runs once a picture, so the hook is called once a picture with a batch of one. A hook that stores its output
# holds the last picture's features alone, of a legal shape: (1, C, h, w) broadcasts against a batch. The latents are the same in
# both cases, so nothing else looks different. Gather the hook's outputs and concatenate them, or switch slicing off.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 diffusers==0.42.1 numpy==2.4.6
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import diffusers
import torch
from diffusers import AutoencoderKL

torch.manual_seed(0)
vae = AutoencoderKL(
    block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4,
).eval()
images = torch.rand(3, 3, 32, 32) * 2 - 1
seen = []
vae.encoder.down_blocks[0].register_forward_hook(lambda module, args, out: seen.append(out))


def encode():
    seen.clear()
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mean
    return latents, [tuple(out.shape) for out in seen], seen[-1]


print("diffusers", diffusers.__version__)
whole, calls, features = encode()
print("slicing off, the hook sees:", calls)
vae.enable_slicing()
sliced, calls_sliced, last = encode()
print("slicing on, the hook sees: ", calls_sliced)
same = torch.allclose(whole, sliced, atol=1e-5)
third = torch.allclose(last[0], features[2], atol=1e-5)
print("latents the same:", same, "| what is stored last is the third picture's:", third)
described = len(calls) == 1 and calls[0][0] == 3 and len(calls_sliced) == 3
if not (described and {c[0] for c in calls_sliced} == {1} and same and third):
    sys.exit("changed: slicing no longer does what is described")
print("as described")
PYTHON
