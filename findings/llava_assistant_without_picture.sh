#!/usr/bin/env bash
# generate(assistant_model=...) with LLaVA: the assistant never sees the picture (transformers 5.23.0).
#
# One would expect: an assistant with the same weights as the model drafts exactly what the model says, so that
# every draft is accepted; or, if the picture cannot be handed on, a word about it.
# What happens: the assistant's forwards get input_ids with the picture's placeholders, and neither pixel_values
# nor mm_encoder_outputs. Placeholders without a picture are taken for words, so it drafts for another prompt: of
# the same model's drafts the first one is rejected already. The answer is right (the model itself sees the picture),
# only slower than without an assistant.
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


ids = torch.tensor([[1, 5] + [IMAGE] * N + [7, 8]])
inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels)
model, assistant = make(), make()
seen = {"model": [], "assistant": []}


def watch(name, watched):
    """Note of each forward: how many tokens it gets, and whether there is a picture."""

    def hook(module, args, kwargs):
        picture = any(kwargs.get(k) is not None for k in ("pixel_values", "mm_encoder_outputs"))
        seen[name].append((kwargs["input_ids"].shape[1], picture))

    watched.model.register_forward_pre_hook(hook, with_kwargs=True)


watch("model", model)
watch("assistant", assistant)
options = dict(max_new_tokens=8, do_sample=False)
with torch.no_grad():
    alone = model.generate(**inputs, **options)
    forwards = len(seen["model"])
    seen["model"].clear()
    assisted = model.generate(**inputs, **options, assistant_model=assistant)
    same = assistant.generate(**inputs, **options)
print("transformers", transformers.__version__)
print("the assistant alone says what the model says:", torch.equal(same, alone))
assistant_seen = seen["assistant"][: len(seen["assistant"]) - forwards]
print("assisted decoding gives the same answer:", torch.equal(assisted, alone))
print("forwards of the model alone:", forwards, "with its twin's help:", len(seen["model"]))
print("a picture in the model's first forward:", seen["model"][0][1])
print("a picture in any forward of the assistant:", any(picture for _, picture in assistant_seen))
as_stated = torch.equal(same, alone) and torch.equal(assisted, alone) and seen["model"][0][1]
as_stated = as_stated and assistant_seen[0][0] == ids.shape[1]
as_stated = as_stated and not any(picture for _, picture in assistant_seen)
# drafts of a twin that sees what the model sees would take 3 forwards at the most
as_stated = as_stated and len(seen["model"]) > 3
sys.exit(not as_stated)
PYTHON
echo "as stated"
