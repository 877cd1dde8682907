"""Every model that vtlib ships, small enough for a test.

A later family joins by adding lines to MODELS; test_models.py does the rest.
"""

from dataclasses import dataclass
from typing import Callable

import torch

from vtlib.generation import AutoregressiveModel, Denoiser, guide
from vtlib.multiscale.crossformer import CrossFormer
from vtlib.multiscale.crossvit import FUSIONS, CrossViT
from vtlib.multiscale.pyramid import PyramidViT
from vtlib.multiscale.tokenformer import TokenFormer, TokenFormerViT
from vtlib.nn import check_dtype, check_images
from vtlib.quantize import Quantized
from vtlib.segmentation import (
    CamouflageSegmenter,
    CASWiT,
    ConvPyramid,
    OneFormer,
    Predictor,
    SAMEncoder,
    Segmenter,
    SplitMatching,
    TextEncoder,
    TextMapper,
    VWCityHead,
    VWHead,
    cut,
)
from vtlib.segmentation.camouflage_inputs import pixel_maps
from vtlib.superres.catanet import CATANet
from vtlib.superres.cross_attention import CrossAttentionUpsampler
from vtlib.superres.spynet import SPyNet
from vtlib.superres.ttvsr import TTVSR
from vtlib.superres.uplift import UPLiFT
from vtlib.tokenizers import (
    ETT,
    HAR,
    GigaTok,
    GloTok,
    HieraTok,
    IBQTokenizer,
    MaskedGenerator,
    ResTok,
    ReToK,
    TokenFlow,
    small,
)
from vtlib.tokens import take
from vtlib.vit import ViT
from vtlib.vit.vit import POSITIONS
from vtlib.vlm import Decoder, Encoder


@dataclass
class Model:
    """build() -> module; inputs(batch, odd, device) -> tensor.

    odd=True: the least convenient size the model accepts. output: shape of the output without the
    batch axis, for inputs(odd=False).
    """

    build: Callable
    inputs: Callable
    output: tuple


def images(plain, odd):
    """Inputs of a model on images: (H, W) when plain, (H, W) when odd."""
    def make(batch, is_odd=False, device="cpu"):
        return torch.rand(batch, 3, *(odd if is_odd else plain), device=device)
    return make


def clips(plain, odd):
    """Inputs of a model on videos: (T, h, w) when plain, (T, h, w) when odd."""
    def make(batch, is_odd=False, device="cpu"):
        t, h, w = odd if is_odd else plain
        return torch.rand(batch, t, 3, h, w, device=device)
    return make


def ids(batch, is_odd=False, device="cpu"):
    return torch.randint(0, 11, (batch, 7 if is_odd else 8), device=device)


def whole_ids(batch, is_odd=False, device="cpu"):
    """Of a length that is fixed."""
    return torch.randint(0, 11, (batch, 8), device=device)


# --------------------------------------------------------------------------- vit, multiscale
VIT = dict(img_size=32, patch_size=8, num_classes=5, embed_dim=24, num_layers=2, num_heads=3)


def vit(pos):
    return Model(lambda: ViT(**VIT, pos=pos), images((32, 32), (24, 40)), (5,))


def crossvit(fusion):
    """With the paper's own fusion one stage after another; the others differ within a stage."""
    depth = ((1, 2), (1, 1)) if fusion == "cross" else ((1, 2),)
    sizes = dict(img_size=(24, 32), patch_size=(4, 8), num_classes=5, embed_dim=(16, 24))
    sizes |= dict(depth=depth, num_heads=(2, 3), mlp_ratio=(2, 2), fusion=fusion)
    return Model(lambda: CrossViT(**sizes), images((32, 32), (29, 41)), (5,))


def crossformer(odd, **sizes):
    def build():
        return CrossFormer((4, 8), num_classes=5, embed_dim=32, **sizes)
    return Model(build, images((32, 32), odd), (5,))


MULTISCALE = {
    **{f"vit_{pos}": vit(pos) for pos in POSITIONS},
    "vit_pyramid": Model(lambda: PyramidViT(**VIT), images((32, 32), (32, 32)), (5,)),
    **{f"crossvit_{fusion}": crossvit(fusion) for fusion in FUSIONS},
    "crossformer": crossformer(
        (24, 40),
        depths=(2, 1),                      # both kinds of blocks on padded maps, a merge
        num_heads=(1, 2),
        group_size=(3, 3),
        interval=(2, 1),
        merge_size=((2, 4),),
    ),
    "crossformer_pp": crossformer(
        (24, 56),
        depths=(4, 1),                      # cooling ends the third block, if it is not the last
        num_heads=(2, 2),
        group_size=(2, 4),
        interval=(2, 1),
        merge_size=((2, 4),),
        cooling=True,
    ),
    "tokenformer_vision": Model(
        lambda: TokenFormerViT(**VIT, num_tokens=12), images((32, 32), (24, 40)), (5,)
    ),
    "tokenformer_language": Model(lambda: TokenFormer(11, 24, 2, 3, num_tokens=12), ids, (8, 11)),
}


# -------------------------------------------------------------------------------------- superres
class Features(torch.nn.Module):
    """A patch embedding and an upsampler of its features: images (B, 3, H, W) -> (B, pixels, 6)."""

    def __init__(self, upsampler, patch):
        super().__init__()
        self.backbone, self.upsampler = torch.nn.Conv2d(3, 6, patch, patch), upsampler

    def forward(self, images):
        check_images(images)
        features = self.backbone(images.to(self.backbone.weight.dtype))
        return self.upsampler(images, features).flatten(2).mT


class WithMirrored(torch.nn.Module):
    """A net on two pictures as a model on one: the second is the first one's mirror image."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        mirrored = images.flip(-1) if isinstance(images, torch.Tensor) else images
        return self.net(images, mirrored)


def ttvsr(frames=3, **options):
    def build():
        spynet = SPyNet(1, (4,))
        sizes = dict(feat_blocks=1, head_channels=8, keyframe_stride=1)
        return TTVSR(8, 1, spynet=spynet, **sizes, **options)
    return Model(build, clips((frames, 16, 24), (2, 12, 24)), (frames, 3, 64, 96))


def catanet(upscale, num_layers=2, **options):
    def build():
        tabs = [pair[:num_layers] for pair in ((8, 10), (4, 6), (32, 24), (1, 3))]
        return CATANet(upscale, 12, num_layers, 8, 16, 2, *tabs, **options)
    return Model(build, images((16, 22), (13, 22)), (3, 16 * upscale, 22 * upscale))


def features(build, pixels=384, patch=4):
    return Model(lambda: Features(build(), patch), images((16, 24), (20, 12)), (pixels, 6))


def generative():
    options = dict(decoder_convs=1, norm="layer", noise_channels=2, noise_scale=0.0)
    return UPLiFT(6, 4, (4, (6, 6)), (8, (8, 8)), refiner=(8, 8), **options)


SUPERRES = {
    "spynet": Model(
        lambda: WithMirrored(SPyNet(3, (8, 16, 8), 5)), images((16, 22), (13, 22)), (2, 16, 22)
    ),
    "ttvsr": ttvsr(),
    "ttvsr_recurrent": ttvsr(frames=2, trajectories=False),
    "catanet_x2": catanet(2),
    # other ways to upscale, which begin where the layers end
    **{f"catanet_x{s}": catanet(s, num_layers=1, aggregate=False) for s in (3, 4)},
    "catanet_local": catanet(2, num_layers=1, aggregate=False),
    "uplift": features(lambda: UPLiFT(6, 4, (4, 6), (8, 8))),
    "uplift_patch_6": features(
        lambda: UPLiFT(6, 6, (4, 6, 6), (20, 20), num_neighbours=9), 512, patch=6
    ),
    "uplift_generative": features(generative),
    "cross_attention_upsampler": features(lambda: CrossAttentionUpsampler(6, (4, 6), 8)),
}

# ------------------------------------------------------------------------------------------- vlm
class Seen(torch.nn.Module):
    """TinyVLM's encoder as a model: images (B, 3, H, W) -> all tokens of its last layer, normed."""

    def __init__(self, **options):
        super().__init__()
        self.encoder = Encoder(24, 2, 3, 2.0, place_dim=8, **options)

    def forward(self, images):
        return self.encoder.norm(self.encoder(images)["last"])


def sequences(batch, is_odd=False, device="cpu"):
    return torch.randn(batch, 7 if is_odd else 8, 16, device=device)


VLM = {
    "encoder": Model(lambda: Seen(), images((16, 32), (8, 24)), (9, 24)),
    "encoder_registers": Model(
        lambda: Seen(num_registers=2), images((16, 32), (8, 24)), (11, 24)
    ),
    "decoder": Model(lambda: Decoder(16, 2, 4, 2, 24), sequences, (8, 16)),
    "decoder_bias": Model(lambda: Decoder(16, 2, 4, 4, 24, qkv_bias=True), sequences, (8, 16)),
}


# ------------------------------------------------------------------------------------ generation
class Conditioned(torch.nn.Module):
    """The shared autoregressive model on ids alone: the first one is the class too, or a caption
    of two vectors is made of it."""

    def __init__(self, **options):
        super().__init__()
        self.net = AutoregressiveModel(11, 8, embed_dim=16, num_layers=2, hidden_dim=24, **options)

    def forward(self, indices):
        condition = None
        if self.net.num_classes is not None:
            condition = indices[:, 0] % 3
        if self.net.condition_dim is not None:
            dtype = self.net.place.dtype
            condition = torch.nn.functional.one_hot(indices[:, :2], 11).to(dtype)
        return self.net(indices, condition)


class Denoised(torch.nn.Module):
    """The shared denoiser at one noise level, with a prompt of a word and an empty place."""

    def __init__(self):
        super().__init__()
        sizes = dict(widths=(8, 12, 16), text_at=(False, True, True), num_heads=2, groups=4)
        self.net = Denoiser(6, **sizes, time_dim=16)
        for name, parameter in self.net.named_parameters():           # zeros would hide the rest
            if name.startswith("head") or "conv2" in name:
                torch.nn.init.normal_(parameter, std=0.1)

    def forward(self, images):
        check_images(images)
        text = torch.linspace(-1, 1, 6, dtype=images.dtype, device=images.device)
        text = torch.stack([text, torch.zeros_like(text)]).expand(images.shape[0], 2, 6)
        t = torch.full((images.shape[0],), 300, device=images.device)
        return self.net(images, t, text)


GENERATION = {
    "denoiser": Model(lambda: Denoised(), images((16, 24), (8, 24)), (3, 16, 24)),
    "autoregressive": Model(lambda: Conditioned(), ids, (8, 11)),
    "autoregressive_classes": Model(lambda: Conditioned(num_classes=3), ids, (8, 11)),
    "autoregressive_captions": Model(lambda: Conditioned(condition_dim=11), ids, (8, 11)),
}


# ------------------------------------------------------------------------------------ tokenizers
class Rebuilt(torch.nn.Module):
    """A tokenizer as a model: images (B, 3, H, W) -> images."""

    def __init__(self, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images):
        return self.tokenizer(images).images


class RebuiltTwice(Rebuilt):
    """A tokenizer with a codebook and features: images -> images, once from codes and once from
    indices, which is how the codebook gets a gradient, and features."""

    def forward(self, images):
        out = self.tokenizer(images)
        again = self.tokenizer.decode_indices(out.quantized.indices)
        return torch.cat([(out.images + again).flatten(1), out.features.flatten(1)], dim=1)


class RebuiltFromIndices(Rebuilt):
    """The sum of the images from codes and from indices, which is how codebooks get a gradient."""

    def forward(self, images):
        out = self.tokenizer(images)
        return out.images + self.tokenizer.decode_indices(out.quantized.indices)


def rebuilt(build, plain=(32, 32), odd=(40, 32)):
    return Model(lambda: Rebuilt(build()), images(plain, odd), (3, *plain))


class Unquantised(torch.nn.Module):
    """In place of a quantiser, where equality must not hang on a choice between two codes."""

    codebook_size = 1

    def forward(self, x):
        indices = torch.zeros_like(x[..., 0], dtype=torch.long)
        return Quantized(x, indices, x.sum() * 0, x.sum() * 0)


class Compared(Rebuilt):
    """A tokenizer without its quantiser; the features that a teacher is compared with count too."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer)
        tokenizer.quantizer = Unquantised()

    def forward(self, images):
        out = self.tokenizer(images)
        return out.images + out.features.mean()


def qformer(build, **options):
    """A tokenizer of one dimension, which takes images of one size."""
    cnn = dict(channels=8, multipliers=(1, 2), num_res_blocks=1, num_mid_blocks=1, groups=4)
    sizes = dict(img_size=(16, 32), encoder_size=(16, 1, 2), decoder_size=(24, 2, 3), num_tokens=16)
    sizes |= dict(codebook_size=32, map_channels=12, align_layer=1, teacher_dim=10)
    sizes |= dict(cnn=cnn | dict(patch_size=2))
    return Model(
        lambda: Compared(build(**sizes, **options)), images((16, 32), (16, 32)), (3, 16, 32)
    )


def tokenflow(**options):
    """Few codes, so that in half precision a vector falls to the same one; no dropped scale, so
    that indices decode in training, too."""
    cnn = dict(channels=4, multipliers=(1, 2), num_res_blocks=1, groups=2, patch_size=2)
    sizes = dict(scales=(1, 2, (2, 3), (4, 5)), codebook_size=3, semantic_dim=6, pixel_dim=3)
    sizes |= dict(embed_dim=16, num_layers=1, num_heads=2, teacher_dim=7, z_channels=4, cnn=cnn)
    sizes |= dict(decoder_layers=1, decoder_heads=2, drop_rate=0.0)
    patch = options.get("patch_size", 4)
    size = (4 * patch, 5 * patch)
    values = 3 * size[0] * size[1] + 4 * 5 * 7

    def build():
        return RebuiltTwice(TokenFlow(**{"patch_size": 4, **sizes, **options}))
    return Model(build, images(size, size), (values,))


class Guided(torch.nn.Module):
    """TokenBridge's generator on pictures as latents: every second position is masked, and guided
    from the context without a class to the one with; logits of the masked ones."""

    def __init__(self):
        super().__init__()
        sizes = dict(grid=(4, 6), dim=3, num_classes=5, levels=8, embed_dim=16, num_layers=1)
        sizes |= dict(num_heads=2, num_buffer=2, head_dim=16, head_layers=1, head_heads=2)
        self.net = MaskedGenerator(**sizes, order=(2, 0, 1), dropout=0)

    def forward(self, images):
        check_images(images)
        check_dtype(images, self.net.z_proj.weight, "images")
        batch, device = images.shape[0], images.device
        indices = self.net.quantizer(images.flatten(2).mT).indices               # b hw 3
        visible = torch.arange(0, 24, 2, device=device).expand(batch, -1)
        values, masked = self.net.quantizer.decode(indices), self.net.masked(visible)
        labels = torch.arange(batch, device=device) * 0 + 3
        conditions = [self.net.embed(given, batch) for given in (labels, None)]
        z = guide(*(self.net.context(values, visible, given) for given in conditions), 3.0)
        rows = take(z, masked).flatten(0, 1)
        return self.net.head(rows, take(indices, masked).flatten(0, 1)).unflatten(0, masked.shape)


class Captioned(torch.nn.Module):
    """ETT as a model: images -> what it says about one text, and the images again, in one row."""

    def __init__(self):
        super().__init__()
        sizes = dict(embed_dim=16, num_layers=1, num_heads=2, hidden_dim=24)
        self.net = ETT(IBQTokenizer(4, 16, 4.0, net=SMALL), 11, sizes)

    def forward(self, images):
        out = self.net.tokenizer(images)
        text = torch.arange(5, device=images.device).expand(images.shape[0], -1)
        logits = self.net.read(self.net.visual_tokens(out.quantized), text)
        return torch.cat([logits.flatten(1), out.images.flatten(1)], dim=1)


SMALL = dict(patch_size=2, channels=8, multipliers=(1, 2), num_res_blocks=1, groups=4)


def hieratok(**options):
    def build():
        return HieraTok((1, 2, (2, 4)), 4, 3, 16, 1, 2, num_heads=2, **options)
    return rebuilt(build, (8, 16), (8, 16))


def glotok():
    """Few codes, as above."""
    sizes = dict(codebook_size=(2, 3), latent_dim=8, residual_dim=16, num_heads=2, channels=8)
    sizes |= dict(multipliers=(1, 1), num_res_blocks=1, num_mid_blocks=1, groups=4, patch_size=4)

    def build():
        return RebuiltFromIndices(GloTok(**sizes))
    return Model(build, images((16, 24), (40, 24)), (3, 16, 24))
class Trained(Rebuilt):
    """The same; in training with all of its loss, for the weights that make no picture. There is a
    teacher where `teacher_dim` says so."""

    def __init__(self, tokenizer, teacher_dim=None):
        super().__init__(tokenizer)
        self.teacher_dim = teacher_dim

    def forward(self, images):
        if not self.training:
            return super().forward(images)
        teacher = None
        if self.teacher_dim is not None:
            places = images.shape[-2] * images.shape[-1] // 64
            teacher = images.new_ones(images.shape[0], places, self.teacher_dim)
        return images + self.tokenizer.loss(images, teacher)[0]


class Guessed(torch.nn.Module):
    """A generator on ids alone: the first one is the class, too."""

    def __init__(self, **options):
        super().__init__()
        self.net = HAR(11, 8, 11, 16, 2, 2, multiple=8, dropout=0.0, **options)

    def forward(self, indices):
        return self.net(indices, indices[:, 0])


def restok():
    pixels = dict(channels=8, multipliers=(1, 2), num_res_blocks=1, groups=4, patch_size=4)
    sizes = dict(map_channels=6, embed_dim=16, num_layers=3, num_heads=2, num_latents=16, stages=3)
    return Trained(
        ResTok(32, **pixels, **sizes, code_dim=4, codebook_size=32, teacher_dim=5, drop=1.0), 5
    )


TOKENIZERS = {
    "tokenbridge": Model(lambda: Guided(), images((4, 6), (4, 6)), (12, 3, 8)),
    "ett": Model(lambda: Captioned(), images((8, 12), (4, 24)), (5 * 11 + 288,)),
    "tokenizer_ibq": rebuilt(lambda: IBQTokenizer(4, 16, 4.0, net=SMALL)),
    "gigatok": qformer(GigaTok),
    "retok": qformer(ReToK, min_tokens=4),
    "tokenizer_cnn": rebuilt(lambda: small("cnn", "kl", 4)),
    "tokenizer_vit": rebuilt(lambda: small("vit", "kl", 4)),
    "hieratok": hieratok(),
    "hieratok_full": hieratok(mask="full"),
    "glotok": glotok(),
    "tokenflow": tokenflow(),
    "tokenflow_resized": tokenflow(patch_size=3),     # the CNN works on another size
    "tokenizer_restok": Model(restok, images((32, 32), (40, 32)), (3, 32, 32)),
    "restok_har": Model(lambda: Guessed(), whole_ids, (8, 11)),
}


# ---------------------------------------------------------------------------------- segmentation
class Decoded(torch.nn.Module):
    """A decoder as a model: images -> logits of pixels (B, pixels, K). What a backbone would give
    is the picture at four sizes."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, images):
        check_images(images)
        maps = [torch.nn.functional.avg_pool2d(images, 4 * 2**i) for i in range(4)]
        return self.head(maps).flatten(2).mT


def vwformer(kind, **options):
    """Windows of one pixel, too; attention, which starts at zero, has a say."""
    sizes = dict(channels=16, num_heads=2, ratios=(2, 4), num_windows=4, low_channels=4)

    def build():
        head = kind((3, 3, 3, 3), 5, **sizes, **options)
        for attention in head.attn:
            if hasattr(attention, "conv_out"):
                torch.nn.init.ones_(attention.conv_out.bn.weight)
        return Decoded(head)
    return Model(build, images((64, 64), (32, 96)), (256, 5))


class Pixels(torch.nn.Module):
    """A net of pixels as a model: images -> scores (B, pixels, K)."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net(images).flatten(2).mT


def exchanged(decoder, **options):
    def build():
        net = Segmenter(decoder, 5, 16, (4, 6, 8, 10), **options)
        for attention in net.decoder.attn if decoder == "vw" else ():
            torch.nn.init.ones_(attention.conv_out.bn.weight)
        return Pixels(net)
    return Model(build, images((32, 32), (32, 64)), (1024, 5))


class WithContext(torch.nn.Module):
    """CASWiT on a picture: the crop is its middle, half as wide and high, the context all of it."""

    def __init__(self, **options):
        super().__init__()
        sizes = dict(embed_dim=8, depths=(2, 1), num_heads=(1, 2), window_size=3, mlp_ratio=2.0)
        sizes |= dict(drop_path=0.0, fuse_at=(0, 1), max_keys=4, channels=8)
        self.net = CASWiT(5, **sizes, **options)

    def forward(self, images):
        check_images(images)
        size = images.shape[-2] // 2, images.shape[-1] // 2
        out = self.net(*cut(images, (size[0] // 2, size[1] // 2), size))
        return out.logits + out.context_logits.mean(dim=(1, 2, 3), keepdim=True)


def segmented(build):
    return Model(build, images((64, 64), (56, 64)), (5, 32, 32))


class OneTask(torch.nn.Module):
    """OneFormer as a model: class logits, and the mean of each mask; in training all predictions,
    and the contrast with texts that are made of the place in the batch."""

    def __init__(self):
        super().__init__()
        text = TextMapper(TextEncoder(12, 8, 16, 1, 2), 2)
        predictor = Predictor(4, 6, 16, 2, 24, 4, dropout=0.0)
        self.net = OneFormer(ConvPyramid(16, (8, 8, 16, 16, 16), 4), predictor, text, 8)

    def forward(self, images):
        if not self.training:
            return self.read(self.net(images).last)
        place = torch.arange(images.shape[0], device=images.device)[:, None, None]
        words = torch.arange(32, device=images.device).view(4, 8)
        out = self.net(images, "panoptic", (place + words) % 12)
        every = torch.stack([self.read(each) for each in (*out.earlier, out.last)])
        return every.mean(dim=0) + self.net.contrast(out)

    def read(self, prediction):
        means = prediction.mask_logits.mean(dim=(2, 3))
        return torch.cat([prediction.class_logits, means[..., None]], dim=2)


class OnPixels(torch.nn.Module):
    """The camouflage head on neighbourhoods of pixels, with fixed texts: class logits, scores of
    texts and the mean of each mask; in training of all predictions."""

    def __init__(self):
        super().__init__()
        sizes = dict(embed_dim=16, num_queries=6, num_layers=3, num_heads=2, hidden_dim=24)
        self.net = CamouflageSegmenter((27,), 27, 8, groups=4, **sizes)
        self.register_buffer("text", torch.eye(8)[:4])

    def forward(self, images):
        out = self.net(*pixel_maps(images, 3, 4), self.text)
        if not self.training:
            return torch.cat([self.read(out.last), out.scores], dim=2)
        return torch.stack([self.read(each) for each in (*out.earlier, out.last)]).mean(dim=0)

    def read(self, prediction):
        means = prediction.mask_logits.mean(dim=(2, 3))
        return torch.cat([prediction.class_logits, means[..., None]], dim=2)


def sam(**hourglass):
    """Windows of 4 on a map of 8 x 8, then of 2 on the clustered one; odd: 5 rows."""
    sizes = dict(img_size=32, patch_size=4, embed_dim=16, num_layers=3, num_heads=2, out_chans=6)
    sizes |= dict(window_size=4, global_blocks=(2,))
    return Model(lambda: SAMEncoder(**sizes, **hourglass), images((32, 32), (20, 32)), (6, 8, 8))


class Candidates(torch.nn.Module):
    """Split Matching as a model: of a picture's pixels, embeddings and the mean of each mask of
    every layer's queries. The first convolutions of its enhancement have a say."""

    def __init__(self):
        super().__init__()
        self.net = SplitMatching(3, 5, 16, 2, 24, 2, num_seen=3, num_candidates=2, scales=(1, 2))
        for branch in self.net.enhance.branches:
            torch.nn.init.ones_(branch[2].weight)

    def forward(self, images):
        check_images(images)
        layers = self.net(images.permute(0, 2, 3, 1))
        rows = [torch.cat([c, m.mean(dim=(2, 3))[..., None]], dim=2) for c, m in layers]
        text = torch.eye(5, device=images.device, dtype=images.dtype)
        names = self.net.class_logits(layers[-1].embeddings, text).mean(dim=(1, 2), keepdim=True)
        return (torch.stack(rows).mean(dim=0) + names).to(images.dtype)


SEGMENTATION = {
    "sam": sam(),
    "expedit_sam": sam(num_clusters=4, after=1, cluster_window=3, k=3),
    "vwformer": vwformer(VWHead),
    "vwformer_variant": vwformer(VWHead, pos="sincos", padding="zeros", pre_scaling=False),
    "vwformer_city": vwformer(VWCityHead),
    "segmenter_vw": exchanged("vw", ratios=(2, 4), num_windows=4, low_channels=4),
    "segmenter_fpn": exchanged("fpn"),
    "segmenter_aspp": exchanged("aspp", dilations=(1, 2), low_channels=4),
    "caswit": segmented(lambda: WithContext()),
    "caswit_tied": segmented(
        lambda: WithContext(tied=True, gate="channel", decoder="mlp")
    ),
    "oneformer": Model(lambda: OneTask(), images((64, 96), (45, 70)), (6, 6)),
    "split_matching": Model(lambda: Candidates(), images((8, 12), (7, 5)), (5, 6)),
    "camouflage": Model(lambda: OnPixels(), images((64, 96), (45, 70)), (6, 10)),
}

MODELS = {**MULTISCALE, **SUPERRES, **VLM, **GENERATION, **TOKENIZERS, **SEGMENTATION}
