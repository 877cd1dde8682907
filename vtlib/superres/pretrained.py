"""The small models that the repository ships for super-resolution, in eval mode.

    flow = spynet_emoji()(reference, supporting)

How each was trained and did on data it had not seen: `vtlib.checkpoints.info("spynet_emoji")`;
how far a second training lies from it: `vtlib.checkpoints.seeds("catanet_small")`. The result is
the same whatever torch's defaults are, and no global random number is drawn.
"""

from typing import Any

import torch

from .. import checkpoints
from .catanet import CATANet
from .cross_attention import CrossAttentionUpsampler
from .spynet import SPyNet
from .ttvsr import TTVSR
from .uplift import UPLiFT

Device = torch.device | str | None


def spynet_emoji(device: Device = None) -> SPyNet:
    """Optical flow: a small `SPyNet`, `net(reference, supporting)` -> (B, 2, h, w) in pixels.

    Trained on EmojiWorld's true flow and on photographs panned by known motion, pictures of 48 to
    96 px and motions up to about 8 px. Pictures (B, 3, h, w) in [0, 1].
    """
    return checkpoints.load("spynet_emoji", SPyNet, device)


def uplift_emoji(
    variant: str | None = None, device: Device = None
) -> UPLiFT | CrossAttentionUpsampler:
    """Upsampler of the shipped ViT's features, `net(images, features)` -> one feature a pixel.

    Patch 8, D = 128, after four blocks: `ViT.feature_map(images, 4)`. All four variants saw the
    same pictures in the same order. ValueError for other arguments.

    Args:
        variant: None, the `UPLiFT` (n = 17, depth 3); "onestep", trained on each depth's first step
            only; "free", without an attender; "cross", a `CrossAttentionUpsampler`.
        device: where the model goes; None: the CPU.
    """
    if variant not in (None, "onestep", "free", "cross"):
        raise ValueError(f"variant={variant!r} must be None, 'onestep', 'free' or 'cross'")
    name = f"uplift_emoji_{variant}" if variant else "uplift_emoji"
    build = CrossAttentionUpsampler if variant == "cross" else UPLiFT
    return checkpoints.load(name, build, device)


def catanet_small(variant: str | None = None, device: Device = None) -> CATANet:
    """Images x2: a small `CATANet` for the degradation BI (`bicubic(images, 1 / 2)`).

    Images (B, 3, h, w) in [0, 1] -> (B, 3, 2h, 2w). ValueError for other arguments.

    Args:
        variant: None, or "local", the same net without token aggregation, trained on the same crops
            in the same order.
        device: where the model goes; None: the CPU.
    """
    if variant not in (None, "local"):
        raise ValueError(f"variant={variant!r} must be None or 'local'")
    name = "catanet_small_local" if variant else "catanet_small"
    return checkpoints.load(name, CATANet, device)


def video(spynet: dict[str, Any], **config) -> TTVSR:
    """A `TTVSR` with a flow net of its own: `spynet` are the arguments of `SPyNet`."""
    return TTVSR(**config, spynet=SPyNet(**spynet))


def ttvsr_small(device: Device = None, location: str = "nearest") -> TTVSR:
    """Video x4: a small `TTVSR` for the degradation BI (`bicubic(frames, 1 / 4)`).

    With a flow net of its own. Frames (B, T, 3, h, w) in [0, 1], h and w multiples of 4 ->
    (B, T, 3, 4h, 4w). Trained on clips of 7 frames of 24 x 24 pixels. ValueError for other
    arguments.

    Args:
        device: where the model goes; None: the CPU.
        location: "nearest", or "fractional", trained alike with maps that are kept fractional.
    """
    if location not in ("nearest", "fractional"):
        raise ValueError(f"location={location!r} must be 'nearest' or 'fractional'")
    name = "ttvsr_small" if location == "nearest" else "ttvsr_small_fractional"
    return checkpoints.load(name, video, device)


def recurrent_small(device: Device = None) -> TTVSR:
    """The plain recurrent net without trajectories: what the attention is compared with.

    Trained as `ttvsr_small` with the same seed and parameters.
    """
    return checkpoints.load("recurrent_small", video, device)
