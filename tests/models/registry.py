"""Every model that vtlib ships, small enough for a test. A later family joins by adding lines to MODELS; test_models.py does the rest."""

from dataclasses import dataclass
from typing import Callable

import torch

from vtlib.multiscale.crossformer import CrossFormer
from vtlib.multiscale.crossvit import FUSIONS, CrossViT
from vtlib.multiscale.tokenformer import TokenFormer, TokenFormerViT
from vtlib.vit import ViT


@dataclass
class Model:
    """build() -> module; inputs(batch, odd, device) -> tensor, odd=True: the least convenient size the model accepts."""
    build: Callable
    inputs: Callable
    output: tuple            # shape of the output without the batch axis, for inputs(odd=False)


def images(plain, odd):
    """Inputs of a model on images: (H, W) when plain, (H, W) when odd."""
    def make(batch, is_odd=False, device="cpu"):
        return torch.rand(batch, 3, *(odd if is_odd else plain), device=device)
    return make


def ids(batch, is_odd=False, device="cpu"):
    return torch.randint(0, 11, (batch, 7 if is_odd else 8), device=device)


def crossvit(fusion):
    return Model(lambda: CrossViT((24, 32), (4, 8), num_classes=5, embed_dim=(16, 24), depth=((1, 2), (1, 1)), num_heads=(2, 3),
                                  mlp_ratio=(2, 2), fusion=fusion), images((32, 32), (29, 41)), (5,))


MODELS = {
    **{f"vit_{pos}": Model(lambda pos=pos: ViT(32, 8, num_classes=5, embed_dim=24, num_layers=2, num_heads=3, pos=pos),
                           images((32, 32), (24, 40)), (5,)) for pos in ("learned", "sincos", "rope", "none")},
    **{f"crossvit_{fusion}": crossvit(fusion) for fusion in FUSIONS},
    "crossformer": Model(lambda: CrossFormer((4, 8), num_classes=5, embed_dim=32, depths=(2, 2, 1), num_heads=(1, 2, 4), group_size=(3, 3, 3),
                                             interval=(2, 2, 1), merge_size=((2, 4), (2, 4))), images((32, 32), (48, 80)), (5,)),
    "crossformer_pp": Model(lambda: CrossFormer((4, 8), num_classes=5, embed_dim=32, depths=(4, 2), num_heads=(2, 2), group_size=(2, 4),
                                                interval=(2, 1), merge_size=((2, 4),), cooling=True), images((32, 32), (24, 56)), (5,)),
    "tokenformer_vision": Model(lambda: TokenFormerViT(32, 8, num_classes=5, embed_dim=24, num_layers=2, num_heads=3, num_tokens=12),
                                images((32, 32), (24, 40)), (5,)),
    "tokenformer_language": Model(lambda: TokenFormer(11, 24, 2, 3, num_tokens=12), ids, (8, 11)),
}
