"""What constructors take: integers of Python, NumPy and torch; a ValueError that names the argument
for floats, strings, booleans and negative numbers."""

import itertools

import numpy as np
import pytest
import torch

from vtlib import nn as vnn
from vtlib.multiscale import crossformer, probes, tokenformer
from vtlib.multiscale.crossvit import CrossViT
from vtlib.multiscale.pyramid import PyramidViT
from vtlib.quantize import FiniteScalar
from vtlib.vit import ViT
from vtlib.vlm import Decoder, Encoder

VIT = dict(img_size=16, patch_size=8, in_chans=3, num_classes=5, embed_dim=12, num_layers=1)
VIT |= dict(num_heads=3)
CROSSVIT = dict(img_size=(16, 16), patch_size=(4, 8), in_chans=3, num_classes=5)
CROSSVIT |= dict(embed_dim=(8, 12), depth=((1, 1),), num_heads=(2, 3))
CROSSFORMER = dict(patch_size=(4, 8), in_chans=3, num_classes=5, embed_dim=16, depths=(1, 2))
CROSSFORMER |= dict(num_heads=(1, 2), group_size=(2, (2, 2)), interval=(2, 1))
CROSSFORMER |= dict(merge_size=((2, 4),))
LANGUAGE = dict(vocab_size=11, embed_dim=12, num_layers=1, num_heads=3, num_tokens=4, ffn_tokens=5)
CONSTRUCTORS = {
    vnn.PatchEmbed: dict(patch_size=4, in_chans=3, embed_dim=8),
    vnn.Attention: dict(embed_dim=12, num_heads=3),
    vnn.CrossAttention: dict(embed_dim=12, num_heads=3, context_dim=5),
    vnn.Mlp: dict(embed_dim=4, hidden_dim=6),
    vnn.Block: dict(embed_dim=12, num_heads=3),
    vnn.ChannelNorm: dict(channels=4),
    ViT: VIT,
    PyramidViT: VIT,
    CrossViT: CROSSVIT,
    crossformer.CrossFormer: CROSSFORMER,
    crossformer.CrossFormerBlock: dict(dim=16, num_heads=2, group_size=3, interval=2),
    crossformer.CrossScaleEmbed: dict(patch_size=(4, 8), in_chans=3, embed_dim=8),
    tokenformer.Pattention: dict(in_dim=4, out_dim=6, num_tokens=5),
    tokenformer.TokenFormerBlock: dict(
        embed_dim=12, num_heads=3, qkv_tokens=4, proj_tokens=5, ffn_tokens=6
    ),
    tokenformer.TokenFormer: LANGUAGE,
    tokenformer.TokenFormerViT: VIT | dict(num_tokens=4, ffn_tokens=5),
    probes.Reader: dict(group_size=3, interval=2, side=4, colours=3, dim=32),
    Encoder: dict(embed_dim=32, num_layers=1, num_heads=4, num_registers=2, place_dim=8),
    Decoder: dict(embed_dim=16, num_layers=1, num_heads=4, num_kv_heads=2, hidden_dim=6),
    FiniteScalar: dict(levels=(3, 5)),
}
FIXED = {probes.Reader: dict(kinds=("sda",))}
CASES = [(build, name) for build, sizes in CONSTRUCTORS.items() for name in sizes]
IDS = [f"{build.__name__}.{name}" for build, name in CASES]


def made(build, sizes):
    return build(**FIXED.get(build, {}), **sizes)


def every(value, change):
    """`value`, an integer or a nest of tuples, with change(integer) for each integer."""
    if isinstance(value, tuple):
        return tuple(every(entry, change) for entry in value)
    return change(value)


def with_first(value, new):
    """`value` with its first integer replaced."""
    return (with_first(value[0], new), *value[1:]) if isinstance(value, tuple) else new


def shapes(module):
    tensors = *module.named_parameters(), *module.named_buffers()
    return {name: tuple(tensor.shape) for name, tensor in tensors}


@pytest.mark.parametrize("maker", [np.int64, torch.tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("build", CONSTRUCTORS, ids=lambda build: build.__name__)
def test_integers_of_any_maker(build, maker):
    plain = CONSTRUCTORS[build]
    given = {name: every(value, maker) for name, value in plain.items()}
    module, want = made(build, given), made(build, plain)
    assert shapes(module) == shapes(want)
    kept = {k: v for k, v in vars(module).items() if not k.startswith("_")}
    assert not [k for k, v in kept.items() if isinstance(v, (np.generic, torch.Tensor))]


@pytest.mark.parametrize("build, name", CASES, ids=IDS)
def test_what_is_no_size_is_named(build, name):
    sizes = CONSTRUCTORS[build]
    for wrong in (1.5, "3", -1, True):
        value = with_first(sizes[name], wrong)
        with pytest.raises(ValueError) as error:
            made(build, sizes | {name: value})
        assert name in str(error.value), (wrong, str(error.value))


RATES = {
    "mlp_ratio": ("4", -1.0, float("nan"), True, 1e300),
    "drop_path": ("0.1", -0.1, float("nan"), 1e300),
}


@pytest.mark.parametrize("build", [ViT, vnn.Block, CrossViT, crossformer.CrossFormer])
@pytest.mark.parametrize("name", RATES)
def test_what_is_no_rate_is_named(build, name):
    for wrong in RATES[name]:
        value = (wrong, 4) if (build, name) == (CrossViT, "mlp_ratio") else wrong
        with pytest.raises(ValueError, match=name):
            build(**CONSTRUCTORS[build], **{name: value})


def test_pictures_and_pairs_of_any_maker():
    pairs = [(16, 24), [16, 24], np.array([16, 24]), torch.tensor([16, 24])]
    grids = [ViT(**VIT | dict(img_size=pair)).grid for pair in pairs]
    assert grids == [(2, 3)] * 4
    for a, b in itertools.pairwise([16, np.int64(16), torch.tensor(16)]):
        assert ViT(**VIT | dict(img_size=a)).grid == ViT(**VIT | dict(img_size=b)).grid
