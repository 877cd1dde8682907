"""Layers that decoders of segmentation put at every pixel, under the names of mmcv and mmseg."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.checks import check_flag, check_images, check_int


class ConvModule(nn.Module):
    """Convolution without padding, batch norm, ReLU; state-dict names `conv`, `bn` as in mmcv.

    Args:
        in_channels: of the map.
        out_channels: of the result.
        kernel_size: side of the kernel.
        norm: False: no norm, and the convolution has a bias.
        act: whether a ReLU follows.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        norm: bool = True,
        act: bool = True,
    ) -> None:
        super().__init__()
        in_channels = check_int(in_channels, "in_channels", 1)
        out_channels = check_int(out_channels, "out_channels", 1)
        kernel_size = check_int(kernel_size, "kernel_size", 1)
        norm, self.act = check_flag(norm, "norm"), check_flag(act, "act")
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, bias=not norm)
        self.bn = nn.BatchNorm2d(out_channels) if norm else None
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.conv.in_channels, "x")
        x = self.conv(x)
        x = x if self.bn is None else self.bn(x)
        return F.relu(x) if self.act else x


class PixelLinear(nn.Module):
    """A linear layer at every pixel, (B, C, h, w) -> (B, D, h, w); state-dict name `proj`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        in_channels = check_int(in_channels, "in_channels", 1)
        self.proj = nn.Linear(in_channels, check_int(out_channels, "out_channels", 1))

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.proj.in_features, "x")
        return self.proj(x.movedim(1, -1)).movedim(-1, 1)
