"""What constructors take: integers of Python, NumPy and torch; a ValueError that names the argument
for floats, strings, booleans and negative numbers. What functions and forwards of nets and of their
parts take: a ValueError or a result, never an error from deep inside."""

import itertools

import numpy as np
import pytest
import torch

from tests.wrong import raw_errors
from vtlib import nn as vnn
from vtlib.generation import AutoregressiveModel
from vtlib.multiscale import crossformer, crossvit, probes, tokenformer
from vtlib.multiscale.crossvit import CrossViT
from vtlib.multiscale.pyramid import PyramidViT
from vtlib.quantize import BSQ, FSQ, LFQ, DimensionWise
from vtlib.segmentation import CASWiT, Swin
from vtlib.superres import catanet, quality, spynet, ttvsr, uplift
from vtlib.superres.cross_attention import CrossAttentionUpsampler
from vtlib.superres.spynet import SPyNet
from vtlib.tokenizers import HAR, HieraTok, MaskedGenerator
from vtlib.tokenizers.restok_nets import ResTokDecoder, ResTokEncoder
from vtlib.tokenizers.tokenflow import SharedMapping, TokenFlow
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
SWIN = dict(embed_dim=8, depths=(1, 2), num_heads=(1, 2), window_size=3)
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
    MaskedGenerator: dict(
        grid=(2, 3), dim=3, num_classes=2, levels=5, embed_dim=8, num_layers=1, num_heads=2,
        decoder_dim=12, num_buffer=2, head_dim=16, head_layers=2, head_heads=4, order=(2, 0, 1),
    ),
    Encoder: dict(embed_dim=32, num_layers=1, num_heads=4, num_registers=2, place_dim=8),
    Decoder: dict(embed_dim=16, num_layers=1, num_heads=4, num_kv_heads=2, hidden_dim=6),
    Swin: SWIN | dict(patch_size=2, in_chans=3),
    CASWiT: SWIN | dict(num_classes=2, factor=2, fuse_at=(1,), max_keys=2, channels=4),
    AutoregressiveModel: dict(
        vocab_size=5, num_tokens=4, num_classes=3, embed_dim=16, num_layers=1, num_heads=4,
        num_kv_heads=2, hidden_dim=6,
    ),
    HieraTok: dict(
        scales=(1, (2, 3)), patch_size=2, latent_dim=2, embed_dim=8, encoder_layers=1,
        decoder_layers=1, num_heads=2,
    ),
    ResTokEncoder: dict(
        in_channels=4, embed_dim=16, num_layers=2, num_heads=2, num_latents=8, code_dim=3, stages=2
    ),
    ResTokDecoder: dict(
        out_channels=4, embed_dim=16, num_layers=1, num_heads=2, num_latents=8, code_dim=3
    ),
    HAR: dict(
        vocab_size=5, num_tokens=8, num_classes=3, embed_dim=8, num_layers=1, num_heads=2,
        ar_tokens=4, multiple=4,
    ),
    TokenFlow: dict(
        scales=(1, (2, 3)), codebook_size=4, semantic_dim=3, pixel_dim=2, patch_size=4,
        embed_dim=4, num_layers=1, num_heads=2, teacher_dim=3, decoder_dim=4, decoder_layers=1,
        decoder_heads=2, z_channels=2,
    ),
    SharedMapping: dict(dim=5, codebook_size=4, semantic_dim=3),
    FSQ: dict(levels=(3, 5)),
    LFQ: dict(dim=6, group_size=3),
    BSQ: dict(dim=6, group_size=2),
    DimensionWise: dict(dim=4, levels=8),
}
FIXED = {
    probes.Reader: dict(kinds=("sda",)),
    TokenFlow: dict(cnn=dict(channels=4, multipliers=(1,), num_res_blocks=1, groups=2)),
}
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


# ------------------------------------------------------------------------ functions and forwards
X, GRID, MAP = torch.rand(2, 16, 16), (4, 4), torch.rand(2, 4, 4, 16)
IMAGES, FEATURES = torch.rand(2, 3, 16, 16), torch.rand(2, 16, 4, 4)
HEADS = torch.rand(2, 2, 5, 8)
FLAG = dict(return_attn=False)


def of_nn():
    attention, cross = vnn.Attention(16, 2), vnn.CrossAttention(16, 2)
    table = dict(pos_embed=torch.rand(1, 17, 16), old_grid=GRID, new_grid=(2, 3))
    return {
        "attend": (vnn.attend, dict(q=HEADS, k=HEADS, v=HEADS, bias=HEADS[..., :5], **FLAG)),
        "Attention": (vnn.Attention, dict(embed_dim=12, num_heads=3, qkv_bias=True)),
        "Attention.forward": (attention, dict(x=X, bias=None, rope=None, **FLAG)),
        "CrossAttention": (
            vnn.CrossAttention, dict(embed_dim=12, num_heads=3, qkv_bias=True, context_dim=5)
        ),
        "CrossAttention.forward": (cross, dict(queries=X, context=X, **FLAG)),
        "Block": (vnn.Block, dict(
            embed_dim=12, num_heads=3, mlp_ratio=2.0, qkv_bias=True, drop_path=0.1, eps=1e-6
        )),
        "Block.forward": (vnn.Block(16, 2), dict(x=X, bias=None, rope=None, **FLAG)),
        "Mlp.forward": (vnn.Mlp(16, 4), dict(x=X)),
        "load_weights": (vnn.load_weights, dict(
            model=attention, state=attention.state_dict(), strict=True, name="state"
        )),
        "resize_pos_embed": (vnn.resize_pos_embed, table),
        "warp": (vnn.warp, dict(x=FEATURES, flow=torch.zeros(2, 2, 4, 4), mode="nearest")),
        "window_partition": (vnn.window_partition, dict(x=MAP, size=2)),
        "ViT": (ViT, dict(VIT, mlp_ratio=2.0, qkv_bias=True, drop_path=0.1, pos="rope")),
        "ViT.forward": (ViT(**VIT), dict(images=IMAGES, **FLAG)),
        "ViT.tokens": (ViT(**VIT | dict(num_layers=0)).tokens, dict(images=IMAGES, **FLAG)),
        "ViT.feature_map": (ViT(**VIT).feature_map, dict(images=IMAGES, blocks=1)),
    }


def of_crossvit():
    net = CrossViT(**CROSSVIT)
    branches = net.embed(torch.rand(2, 3, 16, 16))
    encoder, sizes = net.blocks[0], dict(dims=(8, 12), num_heads=(2, 3))
    parts = dict(f=encoder.projs, mca=encoder.fusion, g=encoder.revert_projs)
    return {
        "CrossViT": (CrossViT, dict(
            CROSSVIT, mlp_ratio=(2, 2), qkv_bias=True, drop_path=0.1, fusion="all",
            multi_conv=False, fan_in_projs=False,
        )),
        "CrossViT.forward": (net, dict(images=IMAGES, **FLAG)),
        "CrossViT.tokens": (net.tokens, dict(images=IMAGES, **FLAG)),
        "MultiScaleEncoder.forward": (encoder, dict(xs=branches, **FLAG)),
        "MultiScaleEncoder.forward, none": (
            CrossViT(**CROSSVIT, fusion="none").blocks[0], dict(xs=branches, **FLAG)
        ),
        "CrossAttentionBlock": (
            crossvit.CrossAttentionBlock, dict(dim=12, num_heads=3, qkv_bias=True, drop_path=0.1)
        ),
        "CrossAttentionBlock.forward": (encoder.fusion[0], dict(z=branches[1], **FLAG)),
        "exchange_cls": (crossvit.exchange_cls, dict(xs=branches, **parts, **FLAG)),
        "AllAttentionFusion": (crossvit.AllAttentionFusion, dict(sizes, qkv_bias=True)),
        "AllAttentionFusion.forward": (
            crossvit.AllAttentionFusion(**sizes), dict(xs=branches)
        ),
        "SumFusion": (crossvit.SumFusion, dict(dims=(8, 12), patches=True)),
        "SumFusion.forward": (crossvit.SumFusion((8, 12), True), dict(xs=branches)),
    }


def of_multiscale():
    bias, block = crossformer.DynamicPositionBias(4, 2), crossformer.CrossFormerBlock(16, 2, 2)
    language = tokenformer.TokenFormerBlock(16, 2, 4)
    ids, text = torch.tensor([[0, 3, 10]]), tokenformer.TokenFormer(**LANGUAGE, rotary=0.0)
    reader = probes.Reader(("sda",), 2, side=4)
    return {
        "CrossFormer": (crossformer.CrossFormer, dict(
            CROSSFORMER, mlp_ratio=2.0, drop_path=0.1, cooling=True
        )),
        "CrossFormerBlock": (crossformer.CrossFormerBlock, dict(
            dim=16, num_heads=2, group_size=2, interval=2, kind="lda", mlp_ratio=2.0,
            drop_path=0.1, cooling=True,
        )),
        "CrossFormerBlock.forward": (block, dict(x=X, grid=GRID)),
        "CrossScaleMerge.forward": (crossformer.CrossScaleMerge(16), dict(x=X, grid=GRID)),
        "DynamicPositionBias.forward": (bias, dict(group_size=2)),
        "GroupAttention.forward": (block.attn, dict(x=MAP, group_size=2)),
        "group_lda": (crossformer.group_lda, dict(x=MAP, group_size=2, interval=2)),
        "ungroup": (crossformer.ungroup, dict(
            groups=MAP, group_size=2, height=4, width=4, interval=2
        )),
        "padding_mask": (crossformer.padding_mask, dict(
            height=3, width=3, pad=(1, 1), group=lambda t: crossformer.group_sda(t, 2)
        )),
        "Pattention.forward": (tokenformer.Pattention(16, 4, 3), dict(
            x=X, mask=torch.ones(3, dtype=torch.bool), index=torch.arange(3)
        )),
        "Pattention.grow": (tokenformer.Pattention(4, 4, 3).grow, dict(
            num_new=1, init="random", keep_tau=True, generator=torch.Generator("cpu")
        )),
        "TokenFormerBlock": (tokenformer.TokenFormerBlock, dict(
            embed_dim=12, num_heads=3, qkv_tokens=4, proj_tokens=5, ffn_tokens=6, rotary=0.5,
            causal=True, eps=1e-5,
        )),
        "TokenFormerBlock.forward": (language, dict(x=X, **FLAG)),
        "TokenFormer.forward": (text, dict(ids=ids)),
        "TokenFormer.grow": (text.grow, dict(
            num_new=1, init="zero", keep_tau=False
        )),
        "Reader": (probes.Reader, dict(
            kinds=("sda",), group_size=3, interval=2, side=4, colours=3, dim=32, zero_bias=True
        )),
        "Reader.forward": (reader, dict(
            tokens=torch.rand(2, 16, 4), first=torch.tensor([0, 15])
        )),
    }


def of_catanet():
    tokens, centres, groups = X, torch.rand(3, 16), catanet.grouping(X, torch.rand(3, 16), 5)
    keys = torch.rand(2, 3, 4)
    widths = dict(dim=16, qk_dim=8, mlp_dim=12, num_heads=2)
    small = dict(upscale=2, embed_dim=16, num_layers=1, qk_dim=8, mlp_dim=12, num_heads=2)
    small |= dict(patch_sizes=(4,), num_centres=(3,), group_sizes=(5,), n_iter=(2,))
    return {
        "CATANet": (catanet.CATANet, dict(small, ema_decay=0.9, in_chans=3, aggregate=True)),
        "CATANet.forward": (
            catanet.CATANet(**small).eval(), dict(images=IMAGES, return_groups=False)
        ),
        "TAB.forward": (
            catanet.TAB(**widths, num_centres=3, group_size=5).eval(),
            dict(x=FEATURES, return_groups=False),
        ),
        "LRSA.forward": (catanet.LRSA(**widths, patch_size=4), dict(x=FEATURES)),
        "IRCA.forward": (catanet.IRCA(16, 8, 2), dict(centres=centres)),
        "IASA.forward": (catanet.IASA(16, 8, 2), dict(
            tokens=tokens, groups=groups, k_global=keys, v_global=torch.rand(2, 3, 8)
        )),
        "Attention.forward": (catanet.Attention(16, 8, 2), dict(x=tokens)),
        "ConvFFN.forward": (catanet.ConvFFN(16, 12), dict(x=tokens, grid=GRID)),
        "PreNorm": (catanet.PreNorm, dict(dim=16, fn=torch.nn.Identity())),
        "assign": (catanet.assign, dict(tokens=tokens, centres=centres)),
        "center_iter": (catanet.center_iter, dict(unit=tokens, centres=centres)),
        "first_centres": (catanet.first_centres, dict(tokens=tokens, num_centres=3)),
        "grouping": (catanet.grouping, dict(tokens=tokens, centres=centres, group_size=5)),
        "sorted_row": (catanet.sorted_row, dict(n=16, group_size=5)),
        "patch_divide": (catanet.patch_divide, dict(x=FEATURES, patch_size=3)),
        "patch_reverse": (catanet.patch_reverse, dict(
            patches=catanet.patch_divide(FEATURES, 3), size=(4, 4)
        )),
    }


def of_ttvsr():
    frames, flow = torch.rand(1, 2, 3, 8, 8), torch.zeros(1, 2, 8, 8)
    sizes = dict(mid_channels=4, num_blocks=1, feat_blocks=1, head_channels=4)
    net = ttvsr.TTVSR(**sizes, spynet=SPyNet(1, (4,)))
    features, flows = torch.rand(1, 2, 4, 8, 8), flow[:, None]
    place = ttvsr.identity_grid(1, 2, 2)
    tokens = torch.rand(1, 64, 1, 2, 2)
    return {
        "TTVSR": (ttvsr.TTVSR, dict(
            sizes, stride=4, keyframe_stride=3, location="nearest", trajectories=True, spynet=None
        )),
        "TTVSR.forward": (net, dict(
            frames=frames, flows=(flows, flows), mirror=False, return_trace=False
        )),
        "TTVSR.flows": (net.flows, dict(frames=frames, mirror=False)),
        "TTVSR.key_frames": (net.key_frames, dict(frames=5, direction="forward")),
        "TTVSR.propagate": (net.propagate, dict(
            features=features, flows=flows, direction="forward", trace=[]
        )),
        "LTAM.forward": (net.LTAM, dict(
            query=features[:, 0], keys=tokens, anchor=features[:, 0], values=[tokens] * 3,
            location=place[:, None], **FLAG,
        )),
        "OwnPlace.forward": (ttvsr.OwnPlace(4, 4), dict(anchor=features[:, 0])),
        "ResidualBlock.forward": (ttvsr.ResidualBlock(4), dict(x=features[:, 0])),
        "ResidualBlocks.forward": (ttvsr.ResidualBlocks(3, 4, 1), dict(x=frames[:, 0])),
        "PixelShuffleUp.forward": (ttvsr.PixelShuffleUp(4, 4), dict(x=features[:, 0])),
        "push": (ttvsr.push, dict(buffer=tokens, tokens=tokens[:, :, 0])),
        "identity_grid": (ttvsr.identity_grid, dict(batch=1, height=2, width=3)),
        "token_flow": (ttvsr.token_flow, dict(flow=flow, stride=4)),
        "carry": (ttvsr.carry, dict(
            location=place, flow=torch.zeros(1, 2, 2, 2), mode="fractional"
        )),
        "gather_tokens": (ttvsr.gather_tokens, dict(
            tokens=tokens, location=place, key=torch.zeros(1, 2, 2, dtype=torch.long)
        )),
        "tokenize": (ttvsr.tokenize, dict(x=features[:, 0], stride=4)),
        "untokenize": (ttvsr.untokenize, dict(tokens=tokens[:, :, 0], stride=4)),
        "cross_scale_tokens": (ttvsr.cross_scale_tokens, dict(x=features[:, 0], stride=4)),
        "SPyNet.forward": (net.spynet, dict(reference=frames[0], supporting=frames[0])),
        "ConvReLU": (spynet.ConvReLU, dict(in_chans=3, out_chans=4, kernel_size=3, relu=True)),
        "ConvReLU.forward": (spynet.ConvReLU(3, 4, 3, True), dict(x=frames[0])),
        "SPyNetBasicModule.forward": (
            spynet.SPyNetBasicModule((4,), 3), dict(x=torch.rand(1, 8, 4, 4))
        ),
    }


def of_uplift():
    sizes = dict(in_channels=5, patch_size=4, encoder=(4, 6), decoder=(4, 6))
    net = uplift.UPLiFT(**sizes).eval()
    images, features = torch.rand(1, 3, 8, 8), torch.rand(1, 5, 2, 2)
    encoded, guide = net.encode(images), torch.rand(1, 6, 4, 4)
    attn, offsets = torch.rand(1, 5, 4, 4), uplift.OFFSETS[5]
    backbone = torch.nn.Conv2d(3, 5, 4, 4)
    cross = CrossAttentionUpsampler(5, (4,), dim=4).eval()
    return {
        "UPLiFT": (uplift.UPLiFT, dict(
            sizes, decoder_convs=1, num_neighbours=None, norm="layer", low_mem=False,
            noise_channels=1, noise_scale=0.5, refiner=3,
        )),
        "UPLiFT.forward": (net, dict(
            images=images, features=features, iterations=1, size=(5, 5),
            generator=torch.Generator("cpu"), return_steps=False, **FLAG,
        )),
        "UPLiFT.encode": (net.encode, dict(images=images)),
        "UPLiFT.upsample": (net.upsample, dict(x=features, encoded=encoded, **FLAG)),
        "LocalAttender": (
            uplift.LocalAttender, dict(guide_channels=6, num_neighbours=5, low_mem=True)
        ),
        "LocalAttender.forward": (net.attender, dict(guide=guide, value=features, **FLAG)),
        "Encoder.forward": (net.encoder, dict(images=images)),
        "Decoder.forward": (net.decoder, dict(x=features, encoded=encoded)),
        "ConvBlock.forward": (uplift.ConvBlock(5, 4).eval(), dict(x=features)),
        "Up.forward": (uplift.Up(5), dict(x=features)),
        "combine": (uplift.combine, dict(
            x=features, encoded=images, noise_channels=2, noise_scale=0.5,
            generator=torch.Generator("cpu"),
        )),
        "residual_auto": (uplift.residual_auto, dict(x=features, y=torch.rand(1, 6, 2, 2))),
        "resize_nearest": (uplift.resize_nearest, dict(x=images, size=(5, 5))),
        "resize_image": (uplift.resize_image, dict(images=images, size=(5, 5))),
        "shifted": (uplift.shifted, dict(value=features, offsets=offsets)),
        "pool": (uplift.pool, dict(
            attn=attn, value=features, offsets=offsets, low_mem=True
        )),
        "pyramid": (uplift.pyramid, dict(images=images, depth=1)),
        "loss_terms": (uplift.loss_terms, dict(
            model=net, backbone=backbone, images=torch.rand(1, 3, 32, 32), depth=1, noise=0.1,
            multi_step=True, generator=torch.Generator("cpu"),
        )),
        "CrossAttentionUpsampler.forward": (cross, dict(
            images=images, features=features, size=(5, 5), **FLAG
        )),
        "psnr": (quality.psnr, dict(got=images, want=images, crop=1, y=True)),
        "ssim": (quality.ssim, dict(got=IMAGES, want=IMAGES, crop=1, y=True)),
    }


ROOMS = [of_nn, of_crossvit, of_multiscale, of_catanet, of_ttvsr, of_uplift]


@pytest.mark.parametrize("room", ROOMS)
@torch.no_grad()
def test_no_error_from_deep_inside(room):
    torch.manual_seed(0)
    found = {name: raw_errors(*call, part=True) for name, call in room().items()}
    assert {name: errors for name, errors in found.items() if errors} == {}
