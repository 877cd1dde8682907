"""Small models trained on EmojiWorld with objects of mixed sizes, at about equal FLOPs. `train/multiscale.py` made them.

    model = pretrained.emoji("crossvit")

All of them take images (B, 3, 48, 48) in [0, 1] and give logits over the twelve pictograms of `vtlib.data.EASY`.
"""

from torch import nn

from .. import checkpoints, data
from ..nn import check_images
from ..vit import ViT
from .crossformer import CrossFormer
from .crossvit import CrossViT
from .pyramid import PyramidViT

SIZE, CLASSES = 48, data.EASY
MODELS = ("vit", "vit_pyramid", "crossvit", "crossformer", "crossvit_none", "crossvit_all", "crossvit_pairwise")
SEEDS = (0, 1)


class Normalised(nn.Module):
    """A model behind the scaling of pixels it was trained with, [0, 1] -> [-2, 2]. The model itself is `.model`."""

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
_CROSSVIT = dict(img_size=(SIZE, SIZE), patch_size=(6, 12), embed_dim=(32, 64), depth=((1, 2), (1, 2)), num_heads=(4, 4), fan_in_projs=True)


def config(name):
    """(kind, arguments) of the model called `name`: what `build` makes. ValueError for an unknown name."""
    plans = {
        "vit": ("ViT", dict(img_size=SIZE, patch_size=8, embed_dim=60, num_layers=4, num_heads=4)),
        "vit_pyramid": ("PyramidViT", dict(img_size=SIZE, patch_size=8, embed_dim=52, num_layers=4, num_heads=4)),
        "crossformer": ("CrossFormer", dict(patch_size=(6, 12, 24), embed_dim=40, depths=(2, 2), num_heads=(2, 4),
                                            group_size=(4, 4), interval=(2, 1), merge_size=((2, 4),))),
        "crossvit": ("CrossViT", dict(_CROSSVIT, fusion="cross")),
        **{f"crossvit_{fusion}": ("CrossViT", dict(_CROSSVIT, fusion=fusion)) for fusion in ("none", "all", "pairwise")},
    }
    if name not in plans:
        raise ValueError(f"name={name!r}: needs one of {', '.join(MODELS)}")
    kind, arguments = plans[name]
    return kind, dict(arguments, num_classes=len(CLASSES))


def build(kind, arguments):
    """The untrained model of a `config`, behind its pixel scaling."""
    return Normalised(KINDS[kind](**arguments))


def stem(name, seed=0):
    """The name of a model's checkpoint. ValueError for an unknown model."""
    if name not in MODELS:
        raise ValueError(f"name={name!r}: needs one of {', '.join(MODELS)}")
    return f"mixed_{name}" + (f"_seed{seed}" if seed else "")


def emoji(name, seed=0, device=None):
    """The trained model called `name` (one of `MODELS`), in eval mode and single precision.

    Images (B, 3, 48, 48) in [0, 1] -> logits (B, 12). How it was trained, and the share it gets
    right on unseen backgrounds per object size: `checkpoints.info(stem(name, seed))`, for CrossViT
    with `branches`, what the fine and the coarse head alone get right of large objects.
    ValueError for a name or a seed that is not shipped.
    """
    kind, _ = config(name)
    return Normalised(checkpoints.load(stem(name, seed), KINDS[kind], device)).eval()
