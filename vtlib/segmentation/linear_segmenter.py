"""A plain ViT that says a class for every pixel: Segmenter's linear decoder (Strudel, Garcia,
Laptev, Schmid, ICCV 2021, arXiv 2105.05633).

A linear layer reads each patch token behind the last LayerNorm, and the map of scores is resized
bilinearly to the picture. It is what Expedit is put into: `vtlib.hub.hourglass` takes it as it is.
"""

from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..data import EASY, EmojiWorld
from ..nn import resize_pos_embed
from ..nn.checks import check_int
from ..vit import ViT, vit_emoji


class LinearSegmenter(ViT):
    """Images (B, in_chans, H, W) -> logits (B, num_classes, H, W). Arguments: those of `ViT`;
    `num_classes` counts the background."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits at the size of the picture. ValueError for images that P does not divide."""
        grid = self.patch_embed.grid(*images.shape[-2:])
        scores = self.head(self.tokens(images)[:, 1:])                           # b n k
        scores = rearrange(scores, "b (h w) k -> b k h w", h=grid[0], w=grid[1])
        return F.interpolate(scores, images.shape[-2:], mode="bilinear", align_corners=False)


def tuned_part(model: LinearSegmenter, first: int) -> nn.ModuleDict:
    """The blocks from `first` on, the last norm and the head, under the names that they have in
    the model: what is trained, and stored, where the blocks before are another checkpoint's.

    Args:
        model: whose modules these are.
        first: block, 0 ... L.
    """
    first = check_int(first, "first", 0, len(model.blocks))
    blocks = {str(i): model.blocks[i] for i in range(first, len(model.blocks))}
    return nn.ModuleDict(
        {"blocks": nn.ModuleDict(blocks), "norm": model.norm, "head": model.head}
    )


# -------------------------------------------------------------------- what the shipped one is
def linear_start(**config: Any) -> LinearSegmenter:
    """The segmenter as its training begins: `vit_emoji`'s weights, positions resized, and a new
    head."""
    model, first = LinearSegmenter(**config), vit_emoji()[0]
    state = first.state_dict()
    state["pos_embed"] = resize_pos_embed(state["pos_embed"], first.grid, model.grid)
    state |= {name: value for name, value in model.state_dict().items() if "head." in name}
    model.load_state_dict(state)
    return model


def linear_world(split: str) -> EmojiWorld:
    """The twelve pictograms of `segmenter_emoji` at 128 px, on backgrounds of a split."""
    return EmojiWorld(128, split, pictograms=list(EASY))


def linear_scenes(world: EmojiWorld, batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (B, 3, 128, 128), and the class of every pixel (B, 128, 128): 1 to 4 objects of 0.2 to
    0.6 of the side.

    Args:
        world: of `linear_world`.
        batch: B.
        seed: decides.
    """
    part = world.scenes(batch, seed, objects=(1, 4), scale=(0.2, 0.6))
    return part.images, part.semantic("pictogram")
