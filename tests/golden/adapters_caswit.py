"""The golden case of CASWiT's pre-training: SimMIM's mask, decoder and loss, the recipe it names.
The paper's own code could not be read."""

import math

import torch
from einops import repeat

from .adapters import adapter

FUNCTION = "MaskGenerator, SimMIM.forward"


@adapter("caswit", FUNCTION, inputs=("image", "features"))
def simmim(case):
    from vtlib.segmentation.caswit_pretraining import PixelDecoder, mask_units, masked_l1

    c, t = case.config, case.tensors
    unit, side = c["mask_patch"] // c["model_patch"], c["image"] // c["mask_patch"]
    hidden = t["mask"][:, ::unit, ::unit].bool()                 # random: only its form is compared
    ours = mask_units(len(hidden), (side, side), c["ratio"], torch.Generator().manual_seed(0))
    counts = {c["masked_units"], math.ceil(c["ratio"] * side**2)}
    counts |= set(hidden.sum((1, 2)).tolist()) | set(ours.sum((1, 2)).tolist())
    if hidden.shape != ours.shape or len(counts) != 1:
        raise ValueError(f"masks {tuple(hidden.shape)}, {tuple(ours.shape)} of {counts} units")
    decoder = PixelDecoder(t["features"].shape[1], c["encoder_stride"])
    decoder.load_state_dict(case.weights())
    rebuilt = decoder(t["features"])
    return {
        "mask": repeat(hidden, "b h w -> b (h p) (w q)", p=unit, q=unit).int(),
        "reconstruction": rebuilt,
        "loss": masked_l1(t["image"], rebuilt, hidden)[None],
    }
