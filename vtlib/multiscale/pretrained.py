"""Small models trained on EmojiWorld with objects of mixed sizes, at about equal FLOPs.

    model = pretrained.emoji("crossvit")

`train/multiscale.py` made them. All of them take images (B, 3, 48, 48) in [0, 1] and give logits
over the twelve pictograms of `vtlib.data.EASY`.
"""

from torch import nn

from .. import checkpoints, data
from ..nn import check_images
from ..vit import ViT
from .crossformer import CrossFormer
from .crossvit import CrossViT
from .pyramid import PyramidViT

SIZE, CLASSES = 48, data.EASY
SHIPPED = ("vit", "vit_pyramid", "crossvit", "crossformer")
MODELS = (*SHIPPED, "crossvit_none", "crossvit_all", "crossvit_pairwise")
"""All that were trained; of the other ways to fuse CrossViT's branches only scores are kept."""


class Normalised(nn.Module):
    """A model, `.model`, behind the scaling of pixels it was trained with, [0, 1] -> [-2, 2]."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    @staticmethod
    def scale(images):
        """What `.model` is fed: images * 4 - 2."""
        check_images(images)
        return images * 4 - 2

    def forward(self, images, **kwargs):
        return self.model(self.scale(images), **kwargs)


KINDS = {"ViT": ViT, "PyramidViT": PyramidViT, "CrossViT": CrossViT, "CrossFormer": CrossFormer}
_CROSSVIT = dict(
    img_size=(SIZE, SIZE),
    patch_size=(6, 12),
    embed_dim=(32, 64),
    depth=((1, 2), (1, 2)),
    num_heads=(4, 4),
    fan_in_projs=True,
)
_VIT = dict(img_size=SIZE, patch_size=8, num_layers=4, num_heads=4)
_CROSSFORMER = dict(
    patch_size=(6, 12, 24),
    embed_dim=40,
    depths=(2, 2),
    num_heads=(2, 4),
    group_size=(4, 4),
    interval=(2, 1),
    merge_size=((2, 4),),
)


def config(name):
    """(kind, arguments) of the model called `name`: what `build` makes.

    ValueError for an unknown name.
    """
    plans = {
        "vit": ("ViT", dict(_VIT, embed_dim=60)),
        "vit_pyramid": ("PyramidViT", dict(_VIT, embed_dim=52)),
        "crossformer": ("CrossFormer", _CROSSFORMER),
        "crossvit": ("CrossViT", dict(_CROSSVIT, fusion="cross")),
    }
    for fusion in ("none", "all", "pairwise"):
        plans[f"crossvit_{fusion}"] = "CrossViT", dict(_CROSSVIT, fusion=fusion)
    if not isinstance(name, str) or name not in plans:
        raise ValueError(f"name={name!r}: needs one of {', '.join(MODELS)}")
    kind, arguments = plans[name]
    return kind, dict(arguments, num_classes=len(CLASSES))


def build(kind, arguments):
    """The untrained model of a `config`, behind its pixel scaling."""
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"kind={kind!r}: needs one of {', '.join(KINDS)}")
    return Normalised(KINDS[kind](**arguments))


def stem(name):
    """The name of a model's checkpoint. ValueError for an unknown model."""
    config(name)                                                    # refuses what there is not
    return f"mixed_{name}"


def emoji(name, device=None):
    """The trained model called `name` (one of `SHIPPED`), in eval mode and single precision.

    Images (B, 3, 48, 48) in [0, 1] -> logits (B, 12). How it was trained, and the share it gets
    right on unseen backgrounds per object size: `checkpoints.info(stem(name))`, for CrossViT with
    `branches`, what the fine and the coarse head alone get right of large objects; the same of a
    second training, and of `MODELS` that are not shipped: `checkpoints.seeds(stem(name))`.
    ValueError for another name.
    """
    kind, _ = config(name)
    return Normalised(checkpoints.load(stem(name), KINDS[kind], device)).eval()
