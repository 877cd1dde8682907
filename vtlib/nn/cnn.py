"""The convolutional encoder and decoder of VQGAN, between pixels and a small map of features.

Esser, Rombach, Ommer, "Taming Transformers for High-Resolution Image Synthesis", CVPR 2021, arXiv
2012.09841, appendix A. At each level residual blocks, then a strided convolution halves the map:

    block(x) = shortcut(x) + conv(swish(norm(conv(swish(norm(x))))))

State-dict names are those of LlamaGen, GigaTok and TokenFlow (`conv_blocks.0.res.0.conv1.weight`).
`patch_size` is not in those: it folds squares of pixels into channels first, so that a small net
spends nothing on full resolution.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attend
from .checks import check_dtype, check_flag, check_float, check_int, check_ints, check_multiple

UPSAMPLING = ("nearest", "depth_to_space")
_CONV: dict[str, Any] = dict(kernel_size=3, padding=1)


class ResBlock(nn.Module):
    """x (B, in_channels, H, W) -> (B, out_channels, H, W); norms are GroupNorms.

    Args:
        in_channels: of the input, a multiple of `groups`.
        out_channels: of the output, a multiple of `groups`; if it differs, the shortcut is a 1 x 1
            convolution, `nin_shortcut`.
        groups: of the norms.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int = 32) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, **_CONV)
        self.norm2 = _norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, **_CONV)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        if hasattr(self, "nin_shortcut"):
            x = self.nin_shortcut(x)
        return x + y


class AttnBlock(nn.Module):
    """x (B, C, H, W) -> x + attention of each pixel to all, one head.

    Args:
        channels: C.
        groups: of the norm.
    """

    def __init__(self, channels: int, groups: int = 32) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q, self.k, self.v, self.proj_out = (
            nn.Conv2d(channels, channels, 1) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (conv(y).flatten(2).mT[:, None] for conv in (self.q, self.k, self.v))  # b 1 hw c
        y = attend(q, k, v)
        return x + self.proj_out(y[:, 0].mT.reshape(x.shape))


class Downsample(nn.Module):
    """(B, C, H, W) -> (B, C, H/2, W/2): stride 2, padded on the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """(B, C, H, W) -> (B, C, 2H, 2W).

    Args:
        channels: C.
        kind: "nearest": pixels doubled, then a convolution; "depth_to_space": a convolution to 4 C
            channels, which are dealt out to 2 x 2 pixels, outer channels first.
    """

    def __init__(self, channels: int, kind: str = "nearest") -> None:
        super().__init__()
        if kind not in UPSAMPLING:
            raise ValueError(f"upsampling={kind!r} must be one of {UPSAMPLING}")
        self.kind = kind
        self.conv = nn.Conv2d(channels, channels * (1 if kind == "nearest" else 4), **_CONV)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "nearest":
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        x = self.conv(x).unflatten(1, (2, 2, -1))                                # b 2 2 c h w
        x = x.permute(0, 3, 4, 1, 5, 2)                                          # b c h 2 w 2
        return x.flatten(4, 5).flatten(2, 3)                                     # b c 2h 2w


class Level(nn.Module):
    """Residual blocks, each followed by attention where asked for; then the map is resized.

    Args:
        in_channels: of the first block.
        channels: of the others, and of what comes out.
        count: how many blocks.
        groups: of the norms.
        attention: whether an attention follows each block.
    """

    def __init__(
        self, in_channels: int, channels: int, count: int, groups: int, attention: bool
    ) -> None:
        super().__init__()
        sizes = [in_channels, *[channels] * count]
        self.res = nn.ModuleList(ResBlock(sizes[i], channels, groups) for i in range(count))
        attentions = count if attention else 0
        self.attn = nn.ModuleList(AttnBlock(channels, groups) for _ in range(attentions))
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.res):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        for resize in (self.downsample, self.upsample):
            x = x if resize is None else resize(x)
        return x


class CNNEncoder(nn.Module):
    """Pixels (B, in_channels, H, W) -> a map (B, out_channels, H / factor, W / factor), where
    factor = patch_size * 2^(levels - 1).

    Args:
        in_channels: of the pixels.
        out_channels: of the map.
        channels: of the first level.
        multipliers: channels of each level over `channels`; one level fewer halves the map.
        num_res_blocks: a level.
        attention: at the last level and in the middle.
        num_mid_blocks: residual blocks behind the last level.
        groups: of the GroupNorms; they must divide every level's channels.
        patch_size: squares of so many pixels become channels first; 1 in VQGAN.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 256,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        attention: bool = False,
        num_mid_blocks: int = 2,
        groups: int = 32,
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        in_channels = check_int(in_channels, "in_channels", 1)
        out_channels = check_int(out_channels, "out_channels", 1)
        widths = level_widths(channels, multipliers, groups)
        num_res_blocks = check_int(num_res_blocks, "num_res_blocks", 1)
        num_mid_blocks = check_int(num_mid_blocks, "num_mid_blocks", 0)
        self.in_channels = in_channels
        self.patch_size = check_int(patch_size, "patch_size", 1)
        self.factor = self.patch_size * 2 ** (len(widths) - 1)
        attention = check_flag(attention, "attention")

        self.conv_in = nn.Conv2d(in_channels * self.patch_size**2, widths[0], **_CONV)
        self.conv_blocks = nn.ModuleList()
        width = widths[0]
        for level, after in enumerate(widths):
            last = level == len(widths) - 1
            block = Level(width, after, num_res_blocks, groups, attention and last)
            self.conv_blocks.append(block)
            if not last:
                block.downsample = Downsample(after)
            width = after
        self.mid = _middle(width, num_mid_blocks, groups, attention)
        self.norm_out = _norm(width, groups)
        self.conv_out = nn.Conv2d(width, out_channels, **_CONV)

    def forward(self, images: Tensor) -> Tensor:
        """ValueError: other channels, another dtype than the weights, sides that `factor` does not
        divide."""
        _check_map(images, self.in_channels, self.conv_in.weight, "images")
        check_multiple(images.shape[-2:], self.factor)
        x = self.conv_in(F.pixel_unshuffle(images, self.patch_size))
        for block in self.conv_blocks:
            x = block(x)
        for layer in self.mid:
            x = layer(x)
        return self.conv_out(F.silu(self.norm_out(x)))                           # b c h w


class CNNDecoder(nn.Module):
    """A map (B, in_channels, h, w) -> pixels (B, out_channels, factor h, factor w), where
    factor = patch_size * 2^(levels - 1). A level has one residual block more than an encoder's.

    Args:
        in_channels: of the map.
        out_channels: of the pixels.
        channels: of the level nearest to the pixels.
        multipliers: as of the encoder: from the pixels' level to the map's.
        num_res_blocks: of the encoder; here each level has one more.
        attention: at the map's level and in the middle.
        num_mid_blocks: residual blocks before the first level.
        groups: of the GroupNorms; they must divide every level's channels.
        patch_size: channels become squares of so many pixels at the end; 1 in VQGAN.
        upsampling: "nearest" or "depth_to_space", see `Upsample`.
    """

    def __init__(
        self,
        in_channels: int = 256,
        out_channels: int = 3,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        attention: bool = False,
        num_mid_blocks: int = 2,
        groups: int = 32,
        patch_size: int = 1,
        upsampling: str = "nearest",
    ) -> None:
        super().__init__()
        self.in_channels = check_int(in_channels, "in_channels", 1)
        out_channels = check_int(out_channels, "out_channels", 1)
        widths = level_widths(channels, multipliers, groups)[::-1]
        num_res_blocks = check_int(num_res_blocks, "num_res_blocks", 1)
        num_mid_blocks = check_int(num_mid_blocks, "num_mid_blocks", 0)
        self.patch_size = check_int(patch_size, "patch_size", 1)
        self.factor = self.patch_size * 2 ** (len(widths) - 1)
        attention = check_flag(attention, "attention")

        width = widths[0]
        self.conv_in = nn.Conv2d(self.in_channels, width, **_CONV)
        self.mid = _middle(width, num_mid_blocks, groups, attention)
        self.conv_blocks = nn.ModuleList()
        for level, after in enumerate(widths):
            first, last = level == 0, level == len(widths) - 1
            block = Level(width, after, num_res_blocks + 1, groups, attention and first)
            self.conv_blocks.append(block)
            if not last:
                block.upsample = Upsample(after, upsampling)
            width = after
        self.norm_out = _norm(width, groups)
        self.conv_out = nn.Conv2d(width, out_channels * self.patch_size**2, **_CONV)

    def forward(self, x: Tensor) -> Tensor:
        """ValueError: other channels, another dtype than the weights."""
        _check_map(x, self.in_channels, self.conv_in.weight, "x")
        x = self.conv_in(x)
        for layer in self.mid:
            x = layer(x)
        for block in self.conv_blocks:
            x = block(x)
        x = self.conv_out(F.silu(self.norm_out(x)))
        return F.pixel_shuffle(x, self.patch_size)                               # b c h w


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


def level_widths(channels: int, multipliers: Sequence[int], groups: int) -> list[int]:
    """Channels of each level, channels * multiplier, in the order given.

    Args:
        channels: what is multiplied.
        multipliers: one a level.
        groups: of the GroupNorms. ValueError unless there is a level and they divide each.
    """
    channels = check_int(channels, "channels", 1)
    groups = check_int(groups, "groups", 1)
    factors = check_ints(multipliers, "multipliers", 1)
    widths = [channels * factor for factor in factors]
    if not widths or any(width % groups for width in widths):
        raise ValueError(
            f"multipliers={factors} of channels={channels} give levels of {widths} channels: "
            f"needs one level at least, each a multiple of groups={groups}"
        )
    return widths


def _middle(width: int, count: int, groups: int, attention: bool) -> nn.ModuleList:
    layers: list[nn.Module] = [ResBlock(width, width, groups) for _ in range(count)]
    if attention:
        layers.insert(1, AttnBlock(width, groups))
    return nn.ModuleList(layers)


def _check_map(x: Tensor, channels: int, weight: Tensor, name: str) -> None:
    check_float(x, name)
    if x.dim() != 4 or x.shape[1] != channels or 0 in x.shape:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)} but needs (B, {channels}, H, W), not empty"
        )
    check_dtype(x, weight, name)
