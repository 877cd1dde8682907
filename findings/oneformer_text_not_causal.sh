#!/usr/bin/env bash
# OneFormer's text encoder builds a causal mask and never uses it: a sentence's vector depends on the padding (transformers 5.23.0).
#
# One would expect: `OneFormerTextEncoder.build_attention_mask` makes the mask of CLIP's text encoder, as the authors' code does
# (SHI-Labs/OneFormer), and the layers get it (`attn_mask`), so the vector read at the end token knows nothing of what follows it.
# What happens: the layers keep the mask and do not hand it to nn.MultiheadAttention. Attention goes both ways, to padding as well:
# the same sentence in a row of 16 ids and in one of 8 ids, with the same weights, gives two vectors. With the mask handed over they
# are equal. It matters in training and fine-tuning (the query-text contrast); inference reads no text but the task.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.23.0 numpy==2.4.6
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
import transformers
from transformers.models.oneformer.modeling_oneformer import OneFormerTextEncoder

torch.manual_seed(0)
long = OneFormerTextEncoder(context_length=16, width=64, layers=2, vocab_size=50).eval()
torch.nn.init.normal_(long.positional_embedding, std=0.3)
short = OneFormerTextEncoder(context_length=8, width=64, layers=2, vocab_size=50).eval()
weights = long.state_dict()
weights["positional_embedding"] = weights["positional_embedding"][:8]
short.load_state_dict(weights)

sentence = torch.tensor([[48, 7, 12, 5, 49]])                       # start, three words, end


def vector(encoder):
    padding = torch.zeros(1, encoder.context_length - sentence.shape[1], dtype=torch.long)
    with torch.no_grad():
        return encoder(torch.cat([sentence, padding], dim=1))[0]


def hand_over(encoder):
    for layer in encoder.transformer.layers:
        attend, mask = layer.self_attn.forward, layer.attn_mask
        layer.self_attn.forward = lambda *x, attend=attend, mask=mask, **named: attend(
            *x, attn_mask=mask, **named
        )


print("transformers", transformers.__version__)
mask = long.transformer.layers[0].attn_mask
print("the layers keep a causal mask:", bool(mask[0, 1].isinf() and mask[1, 0] == 0))
as_shipped = (vector(long) - vector(short)).abs().max().item()
print(f"16 ids against 8, as shipped: largest difference {as_shipped:.3f}")
for encoder in (long, short):
    hand_over(encoder)
masked = (vector(long) - vector(short)).abs().max().item()
print(f"16 ids against 8, mask handed over: {masked:.1e}")
if as_shipped < 0.05 or masked > 1e-5:
    sys.exit("changed: the text encoder's attention is no longer as described")
print("as described")
PYTHON
