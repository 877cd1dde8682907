"""The small models that the repository ships for super-resolution, in eval mode.

    flow = spynet_emoji()(reference, supporting)

How each was trained and did on data it had not seen: `vtlib.checkpoints.info("spynet_emoji")`.
"""

from .. import checkpoints
from .catanet import CATANet
from .cross_attention import CrossAttentionUpsampler
from .spynet import SPyNet
from .uplift import UPLiFT


def _seeded(name, seed):
    """name of the first training, name_seed1 of the second. ValueError for another seed."""
    if seed not in (0, 1):
        raise ValueError(f"seed={seed!r}: there are two trainings, 0 and 1")
    return f"{name}_seed1" if seed else name


def spynet_emoji(device=None):
    """Optical flow: a small `SPyNet` trained on EmojiWorld's true flow and on photographs panned by known motion, pictures of 48 to 96 px and
    motions up to about 8 px. `net(reference, supporting)` -> flow (B, 2, h, w) in pixels; pictures (B, 3, h, w) in [0, 1]."""
    return checkpoints.load("spynet_emoji", SPyNet, device)


def uplift_emoji(variant=None, device=None, seed=0):
    """Upsampler of the shipped ViT's features (patch 8, D = 128, after four blocks: `ViT.feature_map(images, 4)`), `net(images, features)` -> one feature a pixel.

    variant: None, the `UPLiFT` (n = 17, depth 3); "onestep", trained on each depth's first step only; "free", without an attender;
    "cross", a `CrossAttentionUpsampler`. All four saw the same pictures in the same order. seed: 0 or 1, two trainings. ValueError for others.
    """
    if variant not in (None, "onestep", "free", "cross"):
        raise ValueError(f"variant={variant!r} must be None, 'onestep', 'free' or 'cross'")
    name = _seeded("uplift_emoji" + (f"_{variant}" if variant else ""), seed)
    return checkpoints.load(name, CrossAttentionUpsampler if variant == "cross" else UPLiFT, device)


def catanet_small(variant=None, device=None, seed=0):
    """Images x2: a small `CATANet` for the degradation BI (`bicubic(images, 1 / 2)`). Images (B, 3, h, w) in [0, 1] -> (B, 3, 2h, 2w).

    variant: None, or "local", the same net without token aggregation, trained on the same crops in the same order. seed: 0 or 1, two
    trainings. ValueError for another one.
    """
    if variant not in (None, "local"):
        raise ValueError(f"variant={variant!r} must be None or 'local'")
    return checkpoints.load(_seeded("catanet_small" + (f"_{variant}" if variant else ""), seed), CATANet, device)


def video(spynet, **config):
    """A `TTVSR` with a flow net of its own: `spynet` are the arguments of `SPyNet`."""
    from .ttvsr import TTVSR

    return TTVSR(**config, spynet=SPyNet(**spynet))


def ttvsr_small(device=None, seed=0, location="nearest"):
    """Video x4: a small `TTVSR` for the degradation BI (`bicubic(frames, 1 / 4)`), with a flow net of its own. Frames (B, T, 3, h, w) in
    [0, 1], h and w multiples of 4 -> (B, T, 3, 4h, 4w). Trained on clips of 7 frames of 24 x 24 pixels.
    seed: 0 or 1, two trainings. location: "nearest", or "fractional", trained alike with maps that are kept fractional (seed 0 only).
    ValueError for others."""
    if location not in ("nearest", "fractional") or location == "fractional" and seed != 0:
        raise ValueError(f"location={location!r}, seed={seed!r}: needs 'nearest', or 'fractional' with seed=0")
    return checkpoints.load("ttvsr_small_fractional" if location == "fractional" else _seeded("ttvsr_small", seed), video, device)


def recurrent_small(device=None, seed=0):
    """The plain recurrent net without trajectories, trained as `ttvsr_small` with the same seed and parameters: what the attention is compared with."""
    return checkpoints.load(_seeded("recurrent_small", seed), video, device)
