#!/usr/bin/env bash
# LLaVA can be pickled until its first forward, and not any more behind it (transformers 5.23.0).
#
# One would expect: a forward changes nothing about a model that matters to pickle (torch.save of a whole model, a
# process pool with spawn, copies between workers).
# What happens: the first forward hangs hooks for recording outputs on layers, functions that are local to another
# one, and they stay: "AttributeError: Can't pickle local object 'install_output_capuring_hook.<locals>...'".
# state_dict, copy.deepcopy and save_pretrained still work.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6 transformers==5.23.0
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import copy
import pickle
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
model = make()
print("transformers", transformers.__version__)
print("before a forward:", len(pickle.dumps(model)) > 0)
with torch.no_grad():
    want = model(input_ids=ids, pixel_values=pixels).logits
try:
    pickle.dumps(model)
    message = "no error"
except (AttributeError, pickle.PicklingError) as error:
    message = f"{type(error).__name__}: {error}"
print("behind one:", message)
with torch.no_grad():
    copied = torch.equal(copy.deepcopy(model)(input_ids=ids, pixel_values=pixels).logits, want)
print("a deep copy gives the same:", copied)
sys.exit(not ("output_capturing_hook" in message and copied))
PYTHON
echo "as stated"
