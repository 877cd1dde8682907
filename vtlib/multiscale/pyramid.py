"""The simple multi-scale baseline: what a plain ViT gains from seeing the picture at half size."""

import torch
import torch.nn.functional as F
from torch import nn

from ..vit import ViT


class PyramidViT(ViT):
    """A plain ViT on one sequence, the patches of the image and of its 2 x 2 averages.

    Takes the arguments of `ViT` (positions are learned). Images (B, C, H, W) of exactly img_size; H
    and W are multiples of 2 P.
    """

    def __init__(self, img_size=48, **kwargs):
        super().__init__(img_size, **kwargs)
        if self.pos != "learned":
            raise ValueError(f"pos={self.pos!r}: the pyramid has learned positions only")
        (h, w), patch = self.grid, self.patch_embed.patch_size
        if h % 2 or w % 2:
            raise ValueError(
                f"img_size={img_size!r}: needs multiples of {2 * patch}, twice the patch size"
            )
        num_tokens = 1 + h * w + h * w // 4
        self.pos_embed = nn.Parameter(torch.empty(1, num_tokens, self.pos_embed.shape[-1]))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def embed(self, images):
        fine = self.patch_embed(images)                                          # b n d
        if fine.shape[1] != self.grid[0] * self.grid[1]:
            raise ValueError(
                f"images of shape {tuple(images.shape)} need to be {self.grid} patches high and "
                f"wide"
            )
        coarse = self.patch_embed(F.avg_pool2d(images, 2))                       # b n/4 d
        cls = self.cls_token.expand(fine.shape[0], -1, -1).to(fine.dtype)
        return torch.cat([cls, fine, coarse], dim=1) + self.pos_embed, None
