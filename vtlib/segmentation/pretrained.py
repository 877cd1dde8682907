"""The small models that the repository ships for segmentation, in eval mode.

    net = vwformer_emoji()
    net(images).argmax(1)                    # (B, H, W)
    slide(caswit_emoji(), large, (64, 64), factor=4).argmax(1)

How each was trained and did on data it had not seen: `vtlib.checkpoints.info("vwformer_emoji")`;
how its rivals did: `vtlib.checkpoints.seeds("vwformer_emoji_fpn")`. The result is the same whatever
torch's defaults are, and no global random number is drawn.
"""

from typing import Any

import torch
from torch import nn

from .. import checkpoints
from ..generation.diffusion import Denoiser
from .camouflage import CamouflageSegmenter
from .caswit import CASWiT
from .linear_segmenter import LinearSegmenter, linear_start, tuned_part
from .oneformer import OneFormer
from .oneformer_small import small
from .segmenter import Segmenter
from .split_matching import SplitMatching

Device = torch.device | str | None


def vwformer_emoji(device: Device = None) -> Segmenter:
    """A class for every pixel, nine categories and the background, by VWFormer's decoder.

    Images (B, 3, 64, 64) in [0, 1], or larger multiples of 32 -> scores (B, 10, H, W). It knows 36
    pictograms (`segmenter.world`).
    """
    return checkpoints.load("vwformer_emoji", Segmenter, device)


def split_matching(kind: str = "scenes", device: Device = None) -> SplitMatching:
    """Zero-shot masks: a small `SplitMatching` for dense features, twelve queries.

    Its header, `checkpoints.info("split_matching_scenes")`, holds the numbers of "seen" and
    "unseen" classes and the scores of rivals trained on the same scenes. ValueError for another
    kind.

    Args:
        kind: "scenes", features of `zero_shot.feature_scenes`, whose names' vectors ("text") and
            "noise" are in the header too; "pictures", features (B, 12, 12, 64) of
            `vlm.image_text_emoji().dense(images)` with images of 96 px that show pictograms of
            `data.EASY`.
        device: where the model goes; None: the CPU.
    """
    if kind not in ("scenes", "pictures"):
        raise ValueError(f"kind={kind!r} must be 'scenes' or 'pictures'")
    return checkpoints.load(f"split_matching_{kind}", SplitMatching, device)


def diffusion_camouflage(device: Device = None) -> Denoiser:
    """A frozen denoiser of textured camouflage at 64 px, `net.features(images, text)`.

    Trained on pictures of `vtlib.data.textures` with six of the eight textures and the names of
    the objects', on no mask and no label. Parameters ask for no gradient.
    """
    return checkpoints.load("diffusion_camouflage", Denoiser, device).requires_grad_(False)


def oneformer_emoji(device: Device = None) -> OneFormer:
    """Semantic, instance and panoptic masks by one small `OneFormer`: `model.segment(images, task,
    oneformer_small.THINGS)`.

    Images (B, 3, H, W) in [0, 1] of 96 px. Eight classes, `oneformer_small.NAMES`: three kinds of
    stuff and five pictograms. The header of "oneformer_emoji" says what it finds under each task's
    sentence; `checkpoints.seeds("oneformer_emoji_notoken")` and the like how its rivals did.
    """
    return checkpoints.load("oneformer_emoji", small, device)


def camouflage(variant: str | None = None, device: Device = None) -> CamouflageSegmenter:
    """Instances in textured camouflage at 64 px, with names from a list: the trained head alone.

        head, text = camouflage(), textures.vectors()[list(textures.SEEN)]
        out = head(*denoiser_maps(diffusion_camouflage(), images, prompt), text, size=(32, 32))

    The names are its vectors' (P, 32), of any textures; it was trained with the six SEEN ones. Its
    maps come from `camouflage_inputs`. ValueError for other arguments.

    Args:
        variant: None, for `denoiser_maps` of `diffusion_camouflage`; "vit", trained alike, for
            `vit_maps` of `vtlib.vit.vit_emoji`.
        device: where the head goes; None: the CPU.
    """
    if variant not in (None, "vit"):
        raise ValueError(f"variant={variant!r} must be None or 'vit'")
    name = f"camouflage_{variant}" if variant else "camouflage"
    return checkpoints.load(name, CamouflageSegmenter, device)


def caswit_emoji(device: Device = None) -> CASWiT:
    """Silhouettes by the biome they stand in: a small `CASWiT` for `EmojiWorld.biomes`.

    Three stages. Crops of 64 x 64 pixels in [0, 1] and windows of 256 pixels shrunk four times,
    `cut(images, corner, (64, 64), 4)` -> scores of ground, land, sea. What rivals score on the same
    crops: `vtlib.checkpoints.seeds` of "caswit_emoji_late" (fused after the last stage only),
    "caswit_emoji_noaux" (no auxiliary loss) and "caswit_emoji_pretraining".
    """
    return checkpoints.load("caswit_emoji", CASWiT, device)


def segmenter_emoji(device: Device = None) -> LinearSegmenter:
    """A plain ViT that says for every pixel which of `vtlib.data.EASY` is there, or class 0, the
    background: images (B, 3, 128, 128) in [0, 1] -> logits (B, 13, 128, 128).

    Patch 8 (16 x 16 tokens), D = 128, 6 blocks, of which the first four are `vit_emoji`'s.
    """
    first, whole = checkpoints.info("segmenter_emoji")["frozen"], []

    def build(**config: Any) -> nn.ModuleDict:
        whole.append(linear_start(**config))
        return tuned_part(whole[0], first)

    checkpoints.load("segmenter_emoji", build)
    return whole[0].eval().to(device)
