"""BasicVSR - The Search for Essential Components in Video Super-Resolution and Beyond
(Chan, Wang, Yu, Dong, Loy, CVPR 2021, arXiv 2012.02181), so that its trained weights can run.

Features of the last frame wander back to the first, those of the first on to the last, each time
warped along the optical flow; a frame is made of what both bring to it. Four times the size.

State-dict names are the official ones (OpenMMLab, BasicSR), SPyNet's as in `vtlib.superres.spynet`.
What TTVSR shares with it, the residual blocks, is TTVSR's file's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import check_int, warp
from ..nn.checks import check_axes
from ..superres.spynet import SPyNet
from ..superres.ttvsr import ResidualBlocks


class BasicVSR(nn.Module):
    """Frames (B, T, 3, h, w) in [0, 1] -> (B, T, 3, 4h, 4w). The defaults are the official size.

    Args:
        channels: of the features.
        num_blocks: residual blocks a direction.
    """

    def __init__(self, channels: int = 64, num_blocks: int = 30):
        super().__init__()
        channels = check_int(channels, "channels", 1)
        self.channels = channels
        self.spynet = SPyNet()
        self.backward_trunk = ResidualBlocks(channels + 3, channels, num_blocks)
        self.forward_trunk = ResidualBlocks(channels + 3, channels, num_blocks)
        self.fusion = nn.Conv2d(2 * channels, channels, 1)
        self.upconv1 = nn.Conv2d(channels, 4 * channels, 3, padding=1)
        self.upconv2 = nn.Conv2d(channels, 4 * 64, 3, padding=1)
        self.conv_hr = nn.Conv2d(64, 64, 3, padding=1)
        self.conv_last = nn.Conv2d(64, 3, 3, padding=1)

    def forward(self, frames: Tensor) -> Tensor:
        check_axes(frames, "frames", "(B, T, 3, h, w)")
        later, earlier = frames[:, 1:], frames[:, :-1]
        back = self.wander(frames.flip(1), earlier.flip(1), later.flip(1), self.backward_trunk)
        on = self.wander(frames, later, earlier, self.forward_trunk)
        pairs = zip(frames.unbind(1), reversed(back), on, strict=True)
        return torch.stack([self.upsample(frame, b, f) for frame, b, f in pairs], dim=1)

    def wander(
        self, frames: Tensor, here: Tensor, before: Tensor, trunk: nn.Module
    ) -> list[Tensor]:
        """Features of each frame, in the order of `frames`, each made of those before it.

        Args:
            frames: (B, T, 3, h, w).
            here: all but the first, in that order.
            before: all but the last, so that flow goes from `here` to `before`.
            trunk: the residual blocks of this direction.
        """
        pairs = here.flatten(0, 1), before.flatten(0, 1)
        flows = self.spynet(*pairs).unflatten(0, here.shape[:2]) if here.shape[1] else None
        feature = frames.new_zeros(len(frames), self.channels, *frames.shape[3:])
        features = []
        for step, frame in enumerate(frames.unbind(1)):
            if step:
                feature = warp(feature, flows[:, step - 1], padding="zeros")
            feature = trunk(torch.cat([frame, feature], dim=1))                   # b c h w
            features.append(feature)
        return features

    def upsample(self, frame: Tensor, back: Tensor, on: Tensor) -> Tensor:
        """(B, 3, 4h, 4w): what both directions bring, on top of the frame enlarged bilinearly.

        Args:
            frame: (B, 3, h, w).
            back: features from the later frames.
            on: features from the earlier ones.
        """
        x = F.leaky_relu(self.fusion(torch.cat([back, on], dim=1)), 0.1)
        for conv in (self.upconv1, self.upconv2):
            x = F.leaky_relu(F.pixel_shuffle(conv(x), 2), 0.1)
        x = self.conv_last(F.leaky_relu(self.conv_hr(x), 0.1))
        return x + F.interpolate(frame, scale_factor=4, mode="bilinear", align_corners=False)
