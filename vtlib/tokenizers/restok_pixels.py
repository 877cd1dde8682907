"""The convolutional nets around ResTok: those of MaskGIT's VQGAN (Chang, Zhang, Jiang, Liu,
Freeman, "MaskGIT", CVPR 2022, arXiv 2202.04200), in the form of TiTok's and ResTok's code.

VQGAN's nets (`vtlib.nn.cnn`) with a few things left out: no attention, convolutions without bias
inside, halving by the mean of 2 x 2, one residual block fewer a level on the way back. Where a
residual block changes the channels, the release takes the shortcut, a 1 x 1 convolution, from what
the block has just made, not from its input; parameter counts and released weights need it so.

State-dict names are the release's: `down.0.block.0.conv1.weight`, `up.0.upsample_conv.weight`.
`patch_size` and `groups` are ours, for nets of 64 px: squares of pixels become channels first, so
that nothing is spent on full resolution.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.checks import check_dtype, check_images, check_int, check_multiple
from ..nn.cnn import level_widths


class ResBlock(nn.Module):
    """x (B, C, H, W) -> (B, out_channels, H, W).

    Args:
        in_channels: C.
        out_channels: of the output.
        groups: of the GroupNorms.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.nin_shortcut: nn.Module | None = None
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(out_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(y))


class Level(nn.Module):
    """Residual blocks of one resolution.

    Args:
        in_channels: of the first.
        channels: of what comes out.
        count: how many.
        groups: of the GroupNorms.
        doubles: whether the map is doubled after them, and a convolution follows.
    """

    def __init__(
        self, in_channels: int, channels: int, count: int, groups: int, doubles: bool = False
    ) -> None:
        super().__init__()
        widths = [in_channels, *[channels] * count]
        self.block = nn.ModuleList(ResBlock(widths[i], channels, groups) for i in range(count))
        self.upsample_conv: nn.Module | None = None
        if doubles:
            self.upsample_conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if self.upsample_conv is None:
            return x
        return self.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class PixelEncoder(nn.Module):
    """Images (B, 3, H, W) -> a map (B, out_channels, H / factor, W / factor), where factor =
    patch_size * 2^(levels - 1).

    Args:
        out_channels: of the map.
        channels: of the first level.
        multipliers: channels of each level over `channels`.
        num_res_blocks: a level, and behind the last.
        groups: of the GroupNorms; they must divide every level's channels.
        patch_size: squares of so many pixels become channels first; 1 in the paper.
    """

    def __init__(
        self,
        out_channels: int = 256,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        groups: int = 32,
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        widths = level_widths(channels, multipliers, groups)
        count = check_int(num_res_blocks, "num_res_blocks", 1)
        self.patch_size = check_int(patch_size, "patch_size", 1)
        self.factor = self.patch_size * 2 ** (len(widths) - 1)
        self.conv_in = nn.Conv2d(3 * self.patch_size**2, widths[0], 3, padding=1, bias=False)
        sizes = zip([widths[0], *widths[:-1]], widths, strict=True)
        self.down = nn.ModuleList(Level(before, width, count, groups) for before, width in sizes)
        width = widths[-1]
        self.mid = nn.ModuleList(ResBlock(width, width, groups) for _ in range(count))
        self.norm_out = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, check_int(out_channels, "out_channels", 1), 1)

    def forward(self, images: Tensor) -> Tensor:
        """ValueError: other channels, another dtype than the weights, sides that `factor` does not
        divide."""
        check_images(images)
        check_dtype(images, self.conv_in.weight, "images")
        check_multiple(images.shape[-2:], self.factor)
        x = self.conv_in(F.pixel_unshuffle(images, self.patch_size))
        for i, level in enumerate(self.down):
            x = level(x if i == 0 else F.avg_pool2d(x, 2))
        for block in self.mid:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))                               # b c h w


class PixelDecoder(nn.Module):
    """A map (B, in_channels, h, w) -> pixels (B, 3, factor h, factor w).

    Args:
        in_channels: of the map.
        channels: of the level nearest to the pixels.
        multipliers: as of the encoder: from the pixels' level to the map's.
        num_res_blocks: a level, and before the first.
        groups: of the GroupNorms; they must divide every level's channels.
        patch_size: channels become squares of so many pixels at the end; 1 in the paper.
    """

    def __init__(
        self,
        in_channels: int = 256,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        groups: int = 32,
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        widths = level_widths(channels, multipliers, groups)
        count = check_int(num_res_blocks, "num_res_blocks", 1)
        self.in_channels = check_int(in_channels, "in_channels", 1)
        self.patch_size = check_int(patch_size, "patch_size", 1)
        width = widths[-1]
        self.conv_in = nn.Conv2d(self.in_channels, width, 3, padding=1)
        self.mid = nn.ModuleList(ResBlock(width, width, groups) for _ in range(count))
        sizes = zip([*widths[1:], width], widths, strict=True)
        self.up = nn.ModuleList(
            Level(before, after, count, groups, doubles=i > 0)
            for i, (before, after) in enumerate(sizes)
        )
        self.norm_out = nn.GroupNorm(groups, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], 3 * self.patch_size**2, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        """ValueError: other channels, another dtype than the weights."""
        check_images(maps, self.in_channels, "maps")
        check_dtype(maps, self.conv_in.weight, "maps")
        x = self.conv_in(maps)
        for block in self.mid:
            x = block(x)
        for level in reversed(self.up):
            x = level(x)
        x = self.conv_out(F.silu(self.norm_out(x)))
        return F.pixel_shuffle(x, self.patch_size)                                   # b 3 h w
