"""Small models trained on EmojiWorld with objects of mixed sizes, at about equal FLOPs. `data/train_multiscale.py` made them.

    model, how = pretrained.emoji("crossvit"), pretrained.scores()["crossvit", 0]

All of them take images (B, 3, 48, 48) in [0, 1] and give logits over the twelve pictograms of `vtlib.data.EASY`.
"""

import json

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from .. import data
from ..nn import check_images
from ..vit import ViT
from .crossformer import CrossFormer
from .crossvit import CrossViT

SIZE, CLASSES = 48, data.EASY
MODELS = ("vit", "vit_pyramid", "crossvit", "crossformer", "crossvit_none", "crossvit_all", "crossvit_pairwise")
SEEDS = (0, 1)


class PyramidViT(ViT):
    """The simple multi-scale baseline: a plain ViT on one sequence, the patches of the image and of its 2 x 2 averages.

    Takes the arguments of `ViT` (positions are learned). Images (B, C, H, W) of exactly img_size; H and W are multiples of 2 P.
    """

    def __init__(self, img_size=48, **kwargs):
        super().__init__(img_size, **kwargs)
        if self.pos != "learned":
            raise ValueError(f"pos={self.pos!r}: the pyramid has learned positions only")
        (h, w), patch = self.grid, self.patch_embed.proj.stride[0]
        if h % 2 or w % 2:
            raise ValueError(f"img_size={img_size!r}: needs multiples of {2 * patch}, twice the patch size")
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + h * w + h * w // 4, self.pos_embed.shape[-1]))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def embed(self, images):
        x = torch.cat([self.patch_embed(images), self.patch_embed(F.avg_pool2d(images, 2))], dim=1)   # b n+n/4 d
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)
        if x.shape[1] != self.pos_embed.shape[1]:
            raise ValueError(f"images of shape {tuple(images.shape)} need to be {self.grid} patches high and wide")
        return x + self.pos_embed, None


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


_KINDS = {"ViT": ViT, "PyramidViT": PyramidViT, "CrossViT": CrossViT, "CrossFormer": CrossFormer}
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
    return Normalised(_KINDS[kind](**arguments))


def stem(name, seed=0):
    """The name of a model's checkpoint. ValueError for an unknown model."""
    if name not in MODELS:
        raise ValueError(f"name={name!r}: needs one of {', '.join(MODELS)}")
    return f"mixed_{name}" + (f"_seed{seed}" if seed else "")


def scores():
    """{(name, seed): what is known of that training}: steps, batch, command, minutes, accuracy on unseen backgrounds per object
    size (shares, 1,000 pictures each), and for CrossViT `branches`, what the fine and the coarse head alone get right of large objects.

    Read from the headers of the shipped checkpoints.
    """
    rows = {}
    for name in MODELS:
        for seed in SEEDS:
            with safe_open(data.checkpoint(stem(name, seed)), framework="pt") as file:
                rows[name, seed] = {key: json.loads(value) for key, value in file.metadata().items()}
    return rows


def emoji(name, seed=0, device=None):
    """The trained model called `name` (one of `MODELS`), in eval mode and single precision.

    Images (B, 3, 48, 48) in [0, 1] -> logits (B, 12). ValueError for a name or a seed that is not shipped.
    """
    weights = load_file(data.checkpoint(stem(name, seed)))
    model = build(*config(name))
    model.model.load_state_dict({key: value.float() for key, value in weights.items()})
    return model.eval().to(device)
