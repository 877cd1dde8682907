"""Decoders: maps of a pyramid -> scores of classes at the size of the first map.

    UPerHead    pyramid pooling of the last map, then top-down (UPerNet, Xiao et al., ECCV 2018);
                pool_scales=() leaves the top-down pyramid alone (FPN, Lin et al., CVPR 2017)
    ASPPHead    dilated convolutions side by side (DeepLabv3+, Chen et al., ECCV 2018)
    MLPHead     a linear layer a map, all upsampled and mixed (SegFormer, Xie et al., NeurIPS 2021)
    ConvHead    a convolution on one map: the auxiliary head (FCN)

All take a list of maps (B, C_s, h_s, w_s), the finest first, and resize bilinearly with
align_corners=False. Norms are BatchNorms, as in the official recipes: training needs two pictures
where a map is pooled to one place.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.checks import check_images, check_int, check_ints, check_list, check_number


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear, (B, C, h, w) -> (B, C, *size)."""
    check_images(x, None, "x")
    return F.interpolate(x, check_ints(size, "size", 1, 2), mode="bilinear", align_corners=False)


def conv(in_dim: int, out_dim: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    """Convolution without bias, BatchNorm, ReLU; the size stays.

    Args:
        in_dim: channels that come in.
        out_dim: channels that go out.
        kernel: its side, odd.
        dilation: pixels from one weight to the next.
    """
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(in_dim, out_dim, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_dim),
        nn.ReLU(),
    )


def _check_maps(maps: Sequence[Tensor], dims: Sequence[int]) -> None:
    maps = check_list(maps, "maps", f"a list of {len(dims)} maps (B, C, h, w)")
    if len(maps) != len(dims):
        raise ValueError(f"maps are {len(maps)} but this head reads {len(dims)}")
    for s, (x, dim) in enumerate(zip(maps, dims, strict=True)):
        check_images(x, dim, f"maps[{s}]")


class UPerHead(nn.Module):
    """Pyramid pooling on the coarsest map and a feature pyramid over all of them.

    Args:
        dims: channels of the maps.
        num_classes: K.
        channels: inner width.
        pool_scales: sides of the maps that the last one is pooled to; (): no pooling.
        dropout: rate before the classifier.
    """

    def __init__(
        self,
        dims: Sequence[int],
        num_classes: int,
        channels: int = 512,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.dims, channels = check_ints(dims, "dims", 1), check_int(channels, "channels", 1)
        self.pool_scales = check_ints(pool_scales, "pool_scales", 1)
        num_classes = check_int(num_classes, "num_classes", 1)
        if not self.dims:
            raise ValueError("dims=(): needs one map at least")
        *finer, last = self.dims
        self.pools = nn.ModuleList(conv(last, channels, 1) for _ in self.pool_scales)
        self.bottleneck = conv(last + len(self.pools) * channels, channels, 3)
        self.laterals = nn.ModuleList(conv(dim, channels, 1) for dim in finer)
        self.fpn_convs = nn.ModuleList(conv(channels, channels, 3) for _ in finer)
        self.fpn_bottleneck = conv(len(self.dims) * channels, channels, 3)
        self.dropout = nn.Dropout2d(check_number(dropout, "dropout", 0, 1))
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def pooled(self, x: Tensor) -> Tensor:
        """Pyramid pooling: the map beside what it is on average in each cell of coarse grids."""
        if self.training and 1 in self.pool_scales and x.shape[0] == 1:
            raise ValueError("maps are of 1 picture: in training a map pooled to 1 x 1 needs 2")
        parts = [x]
        for scale, project in zip(self.pool_scales, self.pools, strict=True):
            parts.append(resize(project(F.adaptive_avg_pool2d(x, scale)), x.shape[-2:]))
        return self.bottleneck(torch.cat(parts, dim=1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_s, h_s, w_s) -> scores (B, K, h_0, w_0)."""
        _check_maps(maps, self.dims)
        down = [self.pooled(maps[-1])]                       # from coarse to fine
        for x, lateral in zip(reversed(maps[:-1]), reversed(self.laterals), strict=True):
            down.append(lateral(x) + resize(down[-1], x.shape[-2:]))
        coarsest, *finer = down
        out = [coarsest]
        for x, smooth in zip(finer, reversed(self.fpn_convs), strict=True):
            out.append(smooth(x))
        out = [resize(x, maps[0].shape[-2:]) for x in reversed(out)]
        return self.conv_seg(self.dropout(self.fpn_bottleneck(torch.cat(out, dim=1))))


class ASPPHead(nn.Module):
    """Atrous spatial pyramid pooling: 3 x 3 convolutions of several dilations beside a pixel-wise
    one and the mean of the picture; then the first map in few channels for sharp edges.

    In DeepLabv3+ a dilated backbone gives one map. Here it is made of all maps but the first, each
    projected and resized to the second, so that the decoder fits any pyramid.

    Args:
        dims: channels of the maps, two at least.
        num_classes: K.
        channels: inner width.
        dilations: of the 3 x 3 convolutions.
        low_channels: of the first map.
        dropout: rate before the classifier.
    """

    def __init__(
        self,
        dims: Sequence[int],
        num_classes: int,
        channels: int = 256,
        dilations: Sequence[int] = (6, 12, 18),
        low_channels: int = 48,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.dims, channels = check_ints(dims, "dims", 1), check_int(channels, "channels", 1)
        dilations = check_ints(dilations, "dilations", 1)
        num_classes = check_int(num_classes, "num_classes", 1)
        low_channels = check_int(low_channels, "low_channels", 1)
        if len(self.dims) < 2:
            raise ValueError(f"dims={self.dims}: needs two maps at least")
        first, *others = self.dims
        self.laterals = nn.ModuleList(conv(dim, channels, 1) for dim in others)
        self.fuse = conv(len(others) * channels, channels, 1)
        branches = [conv(channels, channels, 1)]
        branches += [conv(channels, channels, 3, dilation) for dilation in dilations]
        self.branches = nn.ModuleList(branches)
        self.image_pool = conv(channels, channels, 1)
        self.project = conv((len(branches) + 1) * channels, channels, 1)
        self.low_level = conv(first, low_channels, 1)
        self.refine = conv(channels + low_channels, channels, 3)
        self.dropout = nn.Dropout2d(check_number(dropout, "dropout", 0, 1))
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def pyramid(self, x: Tensor) -> Tensor:
        """All branches on one map, mixed: (B, C, h, w) -> the same."""
        if self.training and x.shape[0] == 1:
            raise ValueError("maps are of 1 picture: in training a map pooled to 1 x 1 needs 2")
        parts = [branch(x) for branch in self.branches]
        parts.append(self.image_pool(F.adaptive_avg_pool2d(x, 1)).expand_as(x))
        return self.project(torch.cat(parts, dim=1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_s, h_s, w_s) -> scores (B, K, h_0, w_0)."""
        _check_maps(maps, self.dims)
        first, *others = maps
        size = others[0].shape[-2:]
        pairs = zip(others, self.laterals, strict=True)
        x = self.fuse(torch.cat([resize(to(x), size) for x, to in pairs], dim=1))
        parts = [resize(self.pyramid(x), first.shape[-2:]), self.low_level(first)]
        return self.conv_seg(self.dropout(self.refine(torch.cat(parts, dim=1))))


class MLPHead(nn.Module):
    """A linear layer for each map, upsampling, a linear mix.

    Args:
        dims: channels of the maps.
        num_classes: K.
        channels: inner width.
        dropout: rate before the classifier.
    """

    def __init__(
        self, dims: Sequence[int], num_classes: int, channels: int = 768, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.dims, channels = check_ints(dims, "dims", 1), check_int(channels, "channels", 1)
        num_classes = check_int(num_classes, "num_classes", 1)
        if not self.dims:
            raise ValueError("dims=(): needs one map at least")
        self.linears = nn.ModuleList(nn.Conv2d(dim, channels, 1) for dim in self.dims)
        self.fuse = conv(len(self.dims) * channels, channels, 1)
        self.dropout = nn.Dropout2d(check_number(dropout, "dropout", 0, 1))
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_s, h_s, w_s) -> scores (B, K, h_0, w_0)."""
        _check_maps(maps, self.dims)
        size = maps[0].shape[-2:]
        parts = [resize(to(x), size) for x, to in zip(maps, self.linears, strict=True)]
        return self.conv_seg(self.dropout(self.fuse(torch.cat(parts[::-1], dim=1))))


class ConvHead(nn.Module):
    """A 3 x 3 convolution and a classifier on one map (B, C, h, w) -> (B, K, h, w).

    Args:
        dim: C.
        num_classes: K.
        channels: inner width.
        dropout: rate before the classifier.
    """

    def __init__(
        self, dim: int, num_classes: int, channels: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__()
        dim, channels = check_int(dim, "dim", 1), check_int(channels, "channels", 1)
        num_classes = check_int(num_classes, "num_classes", 1)
        self.dim, self.conv = dim, conv(dim, channels, 3)
        self.dropout = nn.Dropout2d(check_number(dropout, "dropout", 0, 1))
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.dim, "x")
        return self.conv_seg(self.dropout(self.conv(x)))
