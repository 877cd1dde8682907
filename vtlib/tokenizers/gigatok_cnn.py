"""The CNN decoder of GigaTok (Xiong et al., ICCV 2025, arXiv 2504.08736): VQGAN's, with
depth-to-space and, in front of each level, a norm that the decoder's own input scales and shifts.

    style = the map that comes in                                    (B, C, h, w)
    scale = Linear(sqrt(var of the style over space + eps)),  bias = Linear(its mean over space)
    x <- scale * GroupNorm(x) + bias                                 AdaptiveGroupNorm

The variance is the unbiased one. See gigatok.py.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import check_images, check_int, check_number
from ..nn.checks import check_dtype
from ..nn.cnn import CNNDecoder


class AdaptiveGroupNorm(nn.Module):
    """A GroupNorm without weights of its own, scaled and shifted by statistics of a style map.

    Args:
        style_channels: C of the style.
        channels: of what is normalised.
        groups: of the norm.
        eps: of the norm and of the deviation.
    """

    def __init__(
        self, style_channels: int, channels: int, groups: int = 32, eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.style_channels = check_int(style_channels, "style_channels", 1)
        self.channels, groups = check_int(channels, "channels", 1), check_int(groups, "groups", 1)
        if self.channels % groups:
            raise ValueError(f"channels={channels} do not divide into groups={groups}")
        self.eps = check_number(eps, "eps", 0)
        self.gn = nn.GroupNorm(groups, self.channels, eps=self.eps, affine=False)
        self.gamma = nn.Linear(self.style_channels, self.channels)
        self.beta = nn.Linear(self.style_channels, self.channels)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """x (B, channels, H, W), style (B, C, h, w) with two places at least -> as x."""
        check_images(x, self.channels, "x")
        check_images(style, self.style_channels, "style")
        if x.shape[0] != style.shape[0]:
            raise ValueError(f"x has {x.shape[0]} images and style {style.shape[0]}")
        places = style.flatten(2)                                                # b c hw
        if places.shape[2] < 2:
            raise ValueError("style has one place only: it has no deviation over space")
        scale = self.gamma((places.var(dim=2) + self.eps).sqrt())                # b channels
        bias = self.beta(places.mean(dim=2))
        return scale[:, :, None, None] * self.gn(x) + bias[:, :, None, None]


class AdaptiveDecoder(CNNDecoder):
    """A map (B, in_channels, h, w) -> pixels (B, out_channels, factor h, factor w).

    Args:
        in_channels: of the map.
        out_channels: of the pixels.
        channels: of the level nearest to the pixels.
        multipliers: from the pixels' level to the map's.
        num_res_blocks: of the encoder; here each level has one more.
        num_mid_blocks: residual blocks before the first level.
        groups: of the GroupNorms.
        patch_size: channels become squares of so many pixels at the end; 1 in GigaTok.
    """

    def __init__(
        self,
        in_channels: int = 256,
        out_channels: int = 3,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        num_mid_blocks: int = 2,
        groups: int = 32,
        patch_size: int = 1,
    ) -> None:
        super().__init__(
            in_channels, out_channels, channels, multipliers, num_res_blocks,
            num_mid_blocks=num_mid_blocks, groups=groups, patch_size=patch_size,
            upsampling="depth_to_space",
        )
        before = [multipliers[-1], *multipliers[:0:-1]]            # of the map that each level gets
        self.adaptive = nn.ModuleList(
            AdaptiveGroupNorm(in_channels, channels * factor, groups) for factor in before
        )

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.in_channels, "x")
        check_dtype(x, self.conv_in.weight, "x")
        y = self.conv_in(x)
        for layer in self.mid:
            y = layer(y)
        for norm, block in zip(self.adaptive, self.conv_blocks, strict=True):
            y = block(norm(y, x))
        y = self.conv_out(F.silu(self.norm_out(y)))
        return F.pixel_shuffle(y, self.patch_size)                               # b c h w
