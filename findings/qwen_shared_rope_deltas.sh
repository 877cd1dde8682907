#!/usr/bin/env bash
# Qwen2.5-VL keeps rope_deltas on the model: two conversations on one model disturb each other (transformers 5.23.0).
#
# One would expect: what a prompt left behind is in its past_key_values; a step on a cache depends on that cache alone.
# What happens: how far words behind a picture are shifted (rope_deltas) is an attribute of the model, written by
# every prompt. Prefill A, prefill B with a picture of another size, one step on A's cache: A's new word gets B's
# shift, and other logits, without a word. With position_ids given by hand the step is right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 transformers==5.23.0
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import sys

import torch
import transformers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

IMAGE = 99
torch.manual_seed(0)
config = Qwen2_5_VLConfig(
    vision_config=dict(
        depth=2,
        hidden_size=32,
        intermediate_size=64,
        num_heads=4,
        out_hidden_size=48,
        patch_size=14,
        spatial_merge_size=2,
        window_size=56,
        fullatt_block_indexes=[1],
    ),
    text_config=dict(
        vocab_size=100,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters=dict(rope_type="default", mrope_section=[2, 2, 2], rope_theta=10000.0),
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    ),
    image_token_id=IMAGE,
    video_token_id=98,
    vision_start_token_id=97,
    vision_end_token_id=96,
)
model = Qwen2_5_VLForConditionalGeneration(config).eval()
for parameter in model.parameters():
    parameter.data.mul_(3 if parameter.dim() > 1 else 1)


def prompt(h, w):
    """One picture of h x w patches, and a few words."""
    ids = torch.tensor([[1, 97] + [IMAGE] * (h * w // 4) + [96, 7, 8, 9]])
    return dict(
        input_ids=ids,
        pixel_values=torch.randn(h * w, 3 * 2 * 14 * 14, generator=torch.Generator("cpu").manual_seed(h)),
        image_grid_thw=torch.tensor([[1, h, w]]),
        mm_token_type_ids=(ids == IMAGE).int(),
    )


word = torch.tensor([[3]])
print("transformers", transformers.__version__)
with torch.no_grad():
    alone = model(input_ids=word, past_key_values=model(**prompt(8, 12)).past_key_values).logits
    again = model(input_ids=word, past_key_values=model(**prompt(8, 12)).past_key_values).logits
    cache = model(**prompt(8, 12)).past_key_values
    delta = model.model.rope_deltas.clone()
    model(**prompt(4, 8))
    other = model.model.rope_deltas.clone()
    place = cache.get_seq_length() + delta.expand(3, 1, 1)
    mixed = model(input_ids=word, past_key_values=cache).logits
    cache = model(**prompt(8, 12)).past_key_values
    model(**prompt(4, 8))
    given = model(input_ids=word, past_key_values=cache, position_ids=place).logits
print("shift of A, of B:", int(delta), int(other))
print("A alone, twice, differs by", float((alone - again).abs().max()))
print("A with B in between differs by", float((alone - mixed).abs().max()))
print("with position_ids given by", float((alone - given).abs().max()))
fine = (alone - again).abs().max() == 0 and (alone - given).abs().max() < 1e-5
sys.exit(not (fine and (alone - mixed).abs().max() > 1e-2))
PYTHON
echo "as stated"
