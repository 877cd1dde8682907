#!/usr/bin/env bash
# generate(prompt_lookup_num_tokens=...) with LLaVA drafts placeholders of the picture (transformers 5.23.0).
#
# One would expect: prompt lookup, which changes no answer, works where greedy decoding does; a draft is made of words.
# What happens: where the prompt's last words stood before the picture, too, the draft is what followed there, the
# picture's placeholders. The model then counts more placeholders than the picture has tokens, and generate ends in
# "ValueError: Image features and image tokens do not match". Greedy decoding of the same prompt works.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 transformers==5.23.0
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import sys

import torch
import transformers
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

IMAGE, N = 99, 16
size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
special = dict(pad_token_id=0, bos_token_id=1, eos_token_id=None)


def make():
    """A tiny random LLaVA; weights are enlarged, so that attention prefers something."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=56, patch_size=14, **size),
        text_config=LlamaConfig(vocab_size=100, num_key_value_heads=2, **size, **special),
        image_token_id=IMAGE,
        vision_feature_layer=-2,
        image_seq_length=N,
    )
    model = LlavaForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3 if parameter.dim() > 1 else 1)
    return model


pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator("cpu").manual_seed(1))


# "describe <image> and describe": the last word stood right before the picture
ids = torch.tensor([[1, 5] + [IMAGE] * N + [7, 8, 5]])
inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels)
model, options = make(), dict(max_new_tokens=8, do_sample=False)
print("transformers", transformers.__version__)
with torch.no_grad():
    words = model.generate(**inputs, **options)
    print("greedy:", words[0, -8:].tolist())
    other = dict(inputs, input_ids=ids.masked_fill(torch.arange(ids.shape[1]) == 20, 9))
    fine = model.generate(**other, **options, prompt_lookup_num_tokens=3)
    print("lookup where the last word is new:", fine[0, -8:].tolist())
    try:
        model.generate(**inputs, **options, prompt_lookup_num_tokens=3)
        message = "no error"
    except ValueError as error:
        message = f"ValueError: {error}"
print("lookup:", message)
sys.exit("Image features and image tokens do not match" not in message)
PYTHON
echo "as stated"
