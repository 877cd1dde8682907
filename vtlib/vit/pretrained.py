"""The plain ViT that the repository ships, for notebooks and experiments that need attention which has learned something."""

import json

import torch
from safetensors import safe_open

from .vit import ViT


def vit_emoji(device=None):
    """A ViT trained on EmojiWorld: (model in eval mode, names of its 48 classes). The first twelve are `vtlib.data.EASY`.

    96 px, patch 8 (12 x 12 tokens), D = 128, 6 layers, 4 heads. It takes images in [0, 1] without normalisation: mean and standard deviation are
    folded into the patch embedding. Weights are stored as float16 and come out as float32. Training: data/train_vit.py; scores:
    data/README.md. Raises ValueError when the checkpoint is not there.
    """
    from ..data import checkpoint  # here: building a ViT needs no assets

    with safe_open(checkpoint("vit_emoji"), framework="pt") as file:
        header = file.metadata()
        state = {name: file.get_tensor(name).float() for name in file.keys()}
    with torch.random.fork_rng(devices=[]):  # the random start is overwritten: the caller's random numbers stay as they are
        model = ViT(**json.loads(header["config"]))
    model.load_state_dict(state)
    return model.eval().to(device), json.loads(header["classes"])
