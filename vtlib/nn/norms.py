"""Normalisation of maps."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_images, check_int


class ChannelNorm(nn.Module):
    """LayerNorm over the channels at each position of (B, C, h, w), eps 1e-6."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        channels = check_int(channels, "channels", 1)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, len(self.weight), "x")
        x = F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, 1e-6)
        return x.movedim(-1, 1)
