#!/usr/bin/env bash
# Llama 4 cannot generate from a picture with beams, or several answers at once (transformers 5.23.0).
#
# One would expect: `generate(..., num_beams=2)` or `num_return_sequences=2` repeats a prompt and its pictures, as for all other
# vision-language models of transformers.
# What happens: since transformers 5 `generate` encodes pictures once, before the first forward, and repeats the result. It repeats
# `pooler_output`; Llama 4's `get_image_features` gives its features in `last_hidden_state` (the state before its projector) and leaves
# `pooler_output` empty. So the prompt is repeated and the picture is not: "Image features and image tokens do not match". Greedy
# decoding and sampling of one answer work. Repeat the prompt and the pixels by hand and sample, one answer a row.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 numpy==2.4.6
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON' 2> /dev/null
import sys

import torch
import transformers
from transformers import Llama4Config, Llama4ForConditionalGeneration

torch.manual_seed(0)
vision = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vision_output_dim=32, image_size=56,
    patch_size=14, projector_input_dim=32, projector_output_dim=32,
)
text = dict(
    vocab_size=120, hidden_size=48, intermediate_size=64, intermediate_size_mlp=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=12, num_local_experts=2, pad_token_id=0, eos_token_id=None, attention_chunk_size=64,
)
config = Llama4Config(vision_config=vision, text_config=text, image_token_index=99, boi_token_index=97, eoi_token_index=96)
model = Llama4ForConditionalGeneration(config).eval()
for parameter in model.parameters():
    if not parameter.isfinite().all() or parameter.abs().max() > 1e3:
        torch.nn.init.normal_(parameter, std=0.05)
pixels = torch.randn(1, 3, 56, 56)
ids = torch.tensor([[1, 5, 97] + [99] * 4 + [96, 7, 8]])
inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels)
print("transformers", transformers.__version__)


def tried(name, **options):
    try:
        with torch.no_grad():
            model.generate(**inputs, max_new_tokens=2, **options)
        word = "works"
    except ValueError as error:
        word = f"ValueError: {error}"
    print(f"{name}: {word}")
    return word


greedy = tried("greedy", do_sample=False)
beams = tried("two beams", do_sample=False, num_beams=2)
answers = tried("two answers", do_sample=True, num_return_sequences=2)
as_found = greedy == "works" and all("do not match" in word for word in (beams, answers))
print("as found" if as_found else "changed")
sys.exit(0 if as_found else 1)
PYTHON
