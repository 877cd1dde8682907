"""The small models that the repository ships for segmentation, in eval mode.

    net = vwformer_emoji()
    net(images).argmax(1)                    # (B, H, W)

How each was trained and did on data it had not seen: `vtlib.checkpoints.info("vwformer_emoji")`;
how its rivals did: `vtlib.checkpoints.seeds("vwformer_emoji_fpn")`. The result is the same whatever
torch's defaults are, and no global random number is drawn.
"""

import torch

from .. import checkpoints
from .segmenter import Segmenter

Device = torch.device | str | None


def vwformer_emoji(device: Device = None) -> Segmenter:
    """A class for every pixel, nine categories and the background, by VWFormer's decoder.

    Images (B, 3, 64, 64) in [0, 1], or larger multiples of 32 -> scores (B, 10, H, W). It knows 36
    pictograms (`segmenter.world`).
    """
    return checkpoints.load("vwformer_emoji", Segmenter, device)
