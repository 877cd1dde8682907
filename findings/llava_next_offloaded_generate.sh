#!/usr/bin/env bash
# LLaVA-NeXT with its weights offloaded by accelerate answers a forward, but cannot generate (transformers 5.23.0, accelerate 1.15.0).
#
# One would expect: a model that `cpu_offload` (or `device_map` with offloading) has prepared can do with `generate` what it can do with a
# plain forward; accelerate's hooks bring every weight before it is used.
# What happens: since transformers 5 `generate` encodes the pictures itself, by `model.get_image_features(...)` before the first forward.
# The hooks sit on `forward`. The tower and the projector are called as modules and get their weights, but LLaVA-NeXT's own parameter
# `image_newline`, which it puts behind each row of tiles, belongs to the model around them, whose forward has not run: it is still on
# the meta device, and `generate` ends with "Cannot copy out of meta tensor". LLaVA 1.5 has no such parameter and generates.
# Put `image_newline` on a real device by hand, or keep the module that holds it out of the offloading.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON' 2> /dev/null
import sys

import accelerate
import torch
import transformers
from accelerate import cpu_offload
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

torch.manual_seed(0)
size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
config = LlavaNextConfig(
    vision_config=dict(model_type="clip_vision_model", patch_size=14, image_size=56, **size),
    text_config=dict(model_type="llama", vocab_size=120, pad_token_id=0, eos_token_id=None, **size),
    image_token_id=99, image_seq_length=16, image_grid_pinpoints=[[56, 112], [112, 56], [112, 112]],
)
model = LlavaNextForConditionalGeneration(config).eval()
pixels, shapes = torch.randn(1, 5, 3, 56, 56), torch.tensor([[100, 110]])
with torch.no_grad():
    tokens = model.get_image_features(pixel_values=pixels, image_sizes=shapes).pooler_output[0]
ids = torch.tensor([[1, 5] + [99] * len(tokens) + [7, 8]])
inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, image_sizes=shapes)
print("transformers", transformers.__version__, "accelerate", accelerate.__version__)


def tried(name, run):
    try:
        with torch.no_grad():
            run()
        word = "works"
    except NotImplementedError as error:
        word = f"NotImplementedError: {error}"
    print(f"{name}: {word}")
    return word


before = tried("generate, all weights at hand", lambda: model.generate(**inputs, max_new_tokens=2, do_sample=False))
model = cpu_offload(model, torch.device("cpu"))
forward = tried("forward, offloaded", lambda: model(**inputs))
generate = tried("generate, offloaded", lambda: model.generate(**inputs, max_new_tokens=2, do_sample=False))
as_found = before == forward == "works" and "meta tensor" in generate
print("as found" if as_found else "changed")
sys.exit(0 if as_found else 1)
PYTHON
