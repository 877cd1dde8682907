"""The plain ViT that the repository ships: attention that has learned something."""

import torch

from .. import checkpoints
from .vit import ViT


def vit_emoji(device: torch.device | str | None = None) -> tuple[ViT, list[str]]:
    """A ViT trained on EmojiWorld: (model in eval mode, names of its 48 classes).

    The first twelve classes are `vtlib.data.EASY`. 96 px, patch 8 (12 x 12 tokens), D = 128,
    6 layers, 4 heads. It takes images in [0, 1] without normalisation: mean and standard deviation
    are folded into the patch embedding. How it was trained and what it scores:
    `checkpoints.info("vit_emoji")`.
    """
    return checkpoints.load("vit_emoji", ViT, device), checkpoints.info("vit_emoji")["classes"]
