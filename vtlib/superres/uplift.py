"""UPLiFT - Efficient Pixel-Dense Feature Upsampling with Local Attenders (Walmer, Suri, Aggarwal, Shrivastava, CVPR 2026, arXiv 2601.17950).

The idea: a ViT gives one feature per patch, dense tasks want one per pixel. One small decoder doubles the resolution, guided by shallow features of the
image that are computed once; it is applied again and again with the same weights. What it writes is never new: its last step, the Local Attender, only
averages neighbouring input features with softmax weights, so features keep their distribution over iterations, at a cost linear in the pixels.

    e_0 ... e_4 = E(I)                           Encoder            at the image's own resolution, one pass for all iterations
    G = D(x, e_4, e_3)                           Decoder            guide at twice the resolution of x; e_3, e_4 resized by nearest neighbour
    A = softmax_k(W G + G[:n])                   LocalAttender.weights      n logits at each output position, no queries, no keys
    out(y, x) = sum_k A_k(y, x) V(y//2 + dy_k, x//2 + dx_k)        pool     V: this iteration's input, edges replicated
    x <- out, T times                            UPLiFT.forward     T = 4: one feature a pixel for patch 16
    sum of D(D+1)/2 mean squared errors          loss               every step of every depth against features of a larger copy of the image

State-dict names are the official ones (mwalmer-umd/UPLiFT), so official checkpoints load as they are. Different from the official code: noise of the
generative variant comes from a `generator`; noise on the training input is added to a copy (there, it changes the stored features, which then serve
as targets of deeper levels); the options that no released configuration uses (downsampling in the encoder, decoders of more than one doubling, an
encoder pass at each iteration) are left out. The fast mode there changes no numbers. The paper's full text was not at hand: mechanism from its code.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..nn import ChannelNorm, check_images, check_int

PAPER = "uplift"

_RING = [(dy, dx) for dy in (-2, -1, 0, 1, 2) for dx in (-2, -1, 0, 1, 2)]      # 5 x 5, row-major
OFFSETS = {
    5: tuple(o for o in _RING if abs(o[0]) + abs(o[1]) <= 1),                   # plus
    9: tuple(o for o in _RING if max(map(abs, o)) <= 1),                        # 3 x 3
    13: tuple(o for o in _RING if abs(o[0]) + abs(o[1]) <= 2),                  # diamond
    17: tuple(o for o in _RING if max(map(abs, o)) <= 1 or (o[0] % 2 == 0 and o[1] % 2 == 0)),  # 3 x 3, and 8 points at distance 2
    25: tuple(_RING),                                                           # 5 x 5
}


def residual_auto(x, y):
    """x + y with the channels of y: x (B, C, h, w) is cut to them when it has more, filled up with zeros when it has fewer."""
    missing = y.shape[1] - x.shape[1]
    return y + (F.pad(x, (0, 0, 0, 0, 0, missing)) if missing > 0 else x[:, : y.shape[1]])


def resize_nearest(x, size):
    """(B, C, H, W) -> (B, C, *size): entry i comes from floor(i H / h)."""
    return x if tuple(x.shape[-2:]) == tuple(size) else F.interpolate(x, size=tuple(size), mode="nearest")


def resize_image(images, size):
    """Bilinear with antialiasing, (B, C, H, W) -> (B, C, *size). At least in single precision: CPUs have it in no less."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    precise = images.float() if images.dtype in (torch.bfloat16, torch.float16) else images
    return F.interpolate(precise, size=tuple(size), mode="bilinear", align_corners=False, antialias=True).to(images.dtype)


# ------------------------------------------------------------------------------------------------------------ the Local Attender
def _neighbours(value, offsets):
    """Views of an edge-replicated map, one per offset: value (B, C, h, w) -> n views (B, C, h, w)."""
    h, w = value.shape[-2:]
    pad = max(max(abs(dy), abs(dx)) for dy, dx in offsets)
    padded = F.pad(value, (pad,) * 4, mode="replicate")
    return [padded[..., pad + dy : pad + dy + h, pad + dx : pad + dx + w] for dy, dx in offsets]


def shifted(value, offsets):
    """Copies of a map, one per offset, edges replicated: value (B, C, h, w) -> (B, C, n, h, w), [:, :, k, y, x] = value[:, :, y + dy_k, x + dx_k]."""
    return torch.stack(_neighbours(value, offsets), dim=2)


def pool(attn, value, offsets, low_mem=False):
    """Average neighbours on the coarse map with weights given on the fine one.

        out(y, x) = sum_k attn_k(y, x) value(y // f + dy_k, x // f + dx_k)             f: how many times finer attn is

    attn: (B, n, f h, f w), in general softmax over n; value: (B, C, h, w); offsets: n pairs (dy, dx). Returns (B, C, f h, f w).
    low_mem adds one offset after the other instead of laying all n copies side by side: 0.68 of the
    memory, but 1.7 times slower. ValueError when sizes do not fit.
    """
    h, w = value.shape[-2:]
    if attn.shape[-2] % h or attn.shape[-1] % w or attn.shape[-2] // h != attn.shape[-1] // w:
        raise ValueError(f"attn is {tuple(attn.shape[-2:])} and value {(h, w)}: attn needs both sides the same whole number of times larger")
    if attn.shape[1] != len(offsets):
        raise ValueError(f"attn has {attn.shape[1]} channels, but there are {len(offsets)} offsets: one weight for each is needed")
    if low_mem:
        cells = rearrange(attn, "b n (h f) (w g) -> b n 1 f g h w", h=h, w=w).contiguous()
        out = sum(near[:, :, None, None] * cells[:, k] for k, near in enumerate(_neighbours(value, offsets)))
        return rearrange(out, "b c f g h w -> b c (h f) (w g)")
    # a small matrix product for each coarse cell: its f x f outputs by n neighbours, times n neighbours by C channels, channels last in memory
    cells = rearrange(attn, "b n (h f) (w g) -> (b h w) (f g) n", h=h, w=w)
    near = [n.movedim(1, -1) for n in _neighbours(value.contiguous(memory_format=torch.channels_last), offsets)]
    out = torch.bmm(cells, torch.stack(near, dim=3).flatten(0, 2))
    return rearrange(out, "(b h w) (f g) c -> b c (h f) (w g)", h=h, w=w, f=attn.shape[-2] // h)


class LocalAttender(nn.Module):
    """Softmax-weighted averages of `num_neighbours` (5, 9, 13, 17 or 25) coarse features around each fine position; C_g + 1 weights a neighbour.

    The logits are a 1x1 convolution of the guide plus the guide's own first n channels.
    """

    def __init__(self, guide_channels, num_neighbours=17, low_mem=False):
        super().__init__()
        if num_neighbours not in OFFSETS:
            raise ValueError(f"num_neighbours={num_neighbours} must be one of {tuple(OFFSETS)}")
        self.offsets, self.low_mem = OFFSETS[num_neighbours], low_mem
        self.conv1 = nn.Conv2d(guide_channels, num_neighbours, 1)

    def weights(self, guide):
        """guide (B, C_g, H, W) -> softmax weights (B, n, H, W), in the order of `offsets`."""
        return residual_auto(guide, self.conv1(guide)).softmax(dim=1)

    def forward(self, guide, value, return_attn=False):
        """guide (B, C_g, f h, f w), value (B, C, h, w) -> (B, C, f h, f w); with return_attn=True also the weights (B, n, f h, f w)."""
        attn = self.weights(guide)
        out = pool(attn, value, self.offsets, self.low_mem)
        return (out, attn) if return_attn else out


# ------------------------------------------------------------------------------------------------------------ encoder and decoder
class ConvBlock(nn.Module):
    """`convs` times [3x3 convolution without bias, norm, ReLU], then a 1x1 convolution; residual by `residual_auto`. (SingleConv, DoubleConv.)"""

    def __init__(self, in_channels, channels, convs=1, norm="batch"):
        super().__init__()
        if norm not in ("batch", "layer"):
            raise ValueError(f"norm={norm!r} must be 'batch' or 'layer'")
        layers = []
        for k in range(convs):
            layers += [nn.Conv2d(channels if k else in_channels, channels, 3, padding=1, bias=False),
                       nn.BatchNorm2d(channels) if norm == "batch" else ChannelNorm(channels), nn.ReLU()]
        self.conv = nn.Sequential(*layers, nn.Conv2d(channels, channels, 1))

    def forward(self, x):
        return residual_auto(x, self.conv(x))


class Group(nn.Module):
    """ConvBlocks in a row, of the given widths."""

    def __init__(self, in_channels, widths, convs=1, norm="batch"):
        super().__init__()
        widths = (widths,) if isinstance(widths, int) else tuple(widths)
        self.out_channels = widths[-1]
        self.blocks = nn.Sequential(*(ConvBlock(i, o, convs, norm) for i, o in zip((in_channels, *widths), widths)))

    def forward(self, x):
        return self.blocks(x)


class Encoder(nn.Module):
    """Image (B, 3, H, W) -> one map per group, all (B, C_i, H, W): nothing is downsampled."""

    def __init__(self, widths, norm="batch"):
        super().__init__()
        channels, self.out_channels = 3, []
        for i, group in enumerate(widths):
            self.add_module(f"block_{i}", Group(channels, group, norm=norm))
            channels = self.get_submodule(f"block_{i}").out_channels
            self.out_channels.append(channels)

    def forward(self, images):
        out, x = [], images
        for group in self.children():
            x = group(x)
            out.append(x)
        return out


class Up(nn.Module):
    """Twice the resolution: transposed 2x2 convolution, plus the bilinear enlargement (corners aligned) of its input."""

    def __init__(self, channels):
        super().__init__()
        self.up = nn.ConvTranspose2d(channels, channels, 2, stride=2)

    def forward(self, x):
        return self.up(x) + F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def combine(x, encoded, noise_channels=0, noise_scale=1.0, generator=None):
    """[x, encoder map resized to x by nearest neighbour, Gaussian noise channels] along the channels."""
    parts = [x, resize_nearest(encoded, x.shape[-2:]).to(x.dtype)]
    if noise_channels:
        shape = (x.shape[0], noise_channels, *x.shape[-2:])
        # torch.randn with a generator takes no free size in torch.export; the numbers are its own
        parts.append(noise_scale * x.new_empty(shape).normal_(generator=generator))
    return torch.cat(parts, dim=1)


class Decoder(nn.Module):
    """x (B, C, h, w) and the encoder's last two maps -> guide (B, C_g, 2h, 2w); without an attender (`out_channels`) -> features directly."""

    def __init__(self, in_channels, encoded, widths, convs=2, norm="batch", noise_channels=0, noise_scale=1.0, out_channels=None):
        super().__init__()
        self.noise = noise_channels, noise_scale
        self.block_0 = Group(in_channels + encoded[-1] + noise_channels, widths[0], convs, norm)
        self.up_1 = Up(self.block_0.out_channels)
        self.block_1 = Group(self.block_0.out_channels + encoded[-2] + noise_channels, widths[1], convs, norm)
        self.out_channels = self.block_1.out_channels
        self.outc = None if out_channels is None else nn.Conv2d(self.out_channels, out_channels, 1)

    def forward(self, x, encoded, generator=None):
        x = self.block_0(combine(x, encoded[-1], *self.noise, generator))
        x = self.block_1(combine(self.up_1(x), encoded[-2], *self.noise, generator))
        return x if self.outc is None else residual_auto(x, self.outc(x))


class UPLiFT(nn.Module):
    """Images (B, 3, H, W), normalised as for the backbone, and its features (B, C, H/P, W/P) -> features at 2^T times their resolution.

    Args: in_channels C, patch_size P; encoder, decoder: widths of the ConvBlocks of each group (an int, or several); decoder_convs: 3x3
    convolutions in a block of the decoder; num_neighbours n (5, 9, 13, 17, 25; None: no attender, the decoder's own output, for comparison); norm
    "batch" | "layer"; low_mem: attender adds one neighbour after the other. Generative variant: noise_channels (Gaussian channels of standard
    deviation noise_scale joined to the decoder's and refiner's inputs), refiner (widths of the blocks after the attender; they may leave the convex hull).
    Defaults are the DINOv2-S/14 and DINOv3-S+/16 configurations (789,521 parameters). ValueError for other values.
    """

    def __init__(self, in_channels=384, patch_size=16, encoder=(16, 32, 64, 128, 128), decoder=(64, 64), decoder_convs=2, num_neighbours=17,
                 norm="batch", low_mem=False, noise_channels=0, noise_scale=1.0, refiner=None):
        super().__init__()
        if not isinstance(encoder, (tuple, list)) or not isinstance(decoder, (tuple, list)) or len(encoder) < 2 or len(decoder) != 2:
            raise ValueError(f"encoder={encoder}, decoder={decoder}: needs at least 2 encoder groups and exactly 2 decoder groups")
        patch_size = check_int(patch_size, "patch_size", 2)
        decoder_convs = check_int(decoder_convs, "decoder_convs", 1)
        noise_channels = check_int(noise_channels, "noise_channels", 0)
        self.in_channels, self.patch_size, self.noise = in_channels, patch_size, (noise_channels, noise_scale)
        self.encoder = Encoder(encoder, norm)
        encoded = self.encoder.out_channels
        self.decoder = Decoder(in_channels, encoded, decoder, decoder_convs, norm, *self.noise, None if num_neighbours else in_channels)
        self.attender = LocalAttender(self.decoder.out_channels, num_neighbours, low_mem) if num_neighbours else None
        self.refiner = Group(in_channels + encoded[-1] + noise_channels, refiner, norm=norm) if refiner else None
        if refiner:
            self.ref_outc = nn.Conv2d(self.refiner.out_channels, in_channels, 1)

    @property
    def pixel_steps(self):
        """Iterations to at least one feature a pixel: 4 for patches of 14 and 16, 3 for 8."""
        return math.ceil(math.log2(self.patch_size))

    def encode(self, images):
        """The guide, once for all iterations. Where P is no power of two the image is first enlarged, 16/14 for patch 14, bilinear."""
        check_images(images)
        grid = 2**self.pixel_steps
        return self.encoder(resize_image(images, [side * grid // self.patch_size for side in images.shape[-2:]]))

    def upsample(self, x, encoded, generator=None, return_attn=False):
        """One iteration: x (B, C, h, w), maps of `encode` -> (B, C, 2h, 2w); with return_attn=True also the attender's weights (B, n, 2h, 2w)."""
        guide, attn = self.decoder(x, encoded, generator), None
        out = guide
        if self.attender is not None:
            out, attn = self.attender(guide, x, return_attn=True)
        if self.refiner is not None:
            out = self.ref_outc(self.refiner(combine(out, encoded[-1], *self.noise, generator)))
        return (out, attn) if return_attn else out

    def forward(self, images, features, iterations=None, size=None, generator=None, return_steps=False, return_attn=False):
        """(B, C, h, w) -> (B, C, 2^T h, 2^T w).

        iterations: T (default `pixel_steps`). size: (H, W), or one int for both, to which the last result is resized, bilinear (patch 14: the image's size).
        generator: for the noise of the generative variant. return_steps: a list of all T results, the last one resized if asked for.
        return_attn: (result, list of T weights (B, n, 2^t h, 2^t w)); needs an attender.
        """
        check_images(images)
        check_images(features, self.in_channels, "features")
        iterations = self.pixel_steps if iterations is None else iterations
        iterations = check_int(iterations, "iterations", 1)
        count, batch = features.shape[0], images.shape[0]
        if count != batch:
            raise ValueError(
                f"features of {count} images for {batch} images: needs features of each image"
            )
        if return_attn and self.attender is None:
            raise ValueError("return_attn=True needs an attender; this model has num_neighbours=None")
        encoded, steps, attns = self.encode(images), [], []
        for _ in range(iterations):
            features, attn = self.upsample(features, encoded, generator, return_attn=True)
            steps.append(features)
            attns.append(attn)
        if size is not None:
            size = size if isinstance(size, (tuple, list)) else (check_int(size, "size", 1),) * 2
            steps[-1] = resize_image(steps[-1], size)
        out = steps if return_steps else steps[-1]
        return (out, attns) if return_attn else out


def uplift_dino(in_channels=384, patch_size=14, **kwargs):
    """DINOv2-S/14 (patch_size 14) and DINOv3-S+/16 (16): 789,521 parameters. Any argument of `UPLiFT` can be given."""
    return UPLiFT(in_channels, patch_size, **kwargs)


def uplift_vae(**kwargs):
    """Latents of the VAE of Stable Diffusion 1.5 (4 channels, stride 8), with noise and a refiner: 53,487,445 parameters. Images in [0, 1]."""
    sizes = dict(in_channels=4, patch_size=8, encoder=((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)), decoder=(512, (512, 512)),
                 decoder_convs=1, norm="layer", noise_channels=4, refiner=(512,) * 12)
    return UPLiFT(**{**sizes, **kwargs})


# ---------------------------------------------------------------------------------------------------------------------- training
def pyramid(images, depth):
    """[images, 1/2, 1/4, ... 1/2^depth of their size], each from the original by antialiased bilinear resizing. ValueError for odd sizes on the way."""
    check_images(images)
    height, width = images.shape[-2:]
    if depth < 1 or height % 2**depth or width % 2**depth:
        raise ValueError(f"images of {height} x {width} cannot be halved depth={depth} times: needs depth >= 1 and sides divisible by {2**max(depth, 1)}")
    return [resize_image(images, (height >> i, width >> i)) for i in range(depth + 1)]


def loss_terms(model, backbone, images, depth, noise=0.0, multi_step=True, generator=None):
    """Mean squared errors of all steps of all depths: {(level, step): scalar}, D(D+1)/2 of them.

    Level i = 0 ... D-1 starts from the copy of the image that was halved i + 1 times - its features and itself as guide - and runs i + 1 iterations;
    the result of each is compared with the backbone's features of the copy that is as much larger.
    backbone: images (B, 3, H, W) -> features (B, C, H/P, W/P), run without gradient. noise: standard deviation added to a copy of the input
    features. multi_step=False: every level takes its first step only, D terms. generator: for both kinds of noise.
    """
    copies = pyramid(images, depth)
    with torch.no_grad():
        features = [backbone(copy) for copy in copies]
    terms = {}
    for level in range(depth):
        start = features[level + 1]
        if noise:
            start = start + noise * torch.randn(start.shape, generator=generator, device=start.device, dtype=start.dtype)
        steps = model(copies[level + 1], start, iterations=level + 1 if multi_step else 1, generator=generator, return_steps=True)
        for step, out in enumerate(steps):
            terms[level, step] = F.mse_loss(out.float(), features[level - step].float())
    return terms


def loss(model, backbone, images, depth, noise=0.0, multi_step=True, generator=None):
    """The unweighted sum of `loss_terms`. Official: depth 3 at 448 px (DINOv2), 2 (DINOv3), 4 at 1024 px with noise 1 (VAE); Adam, lr 1e-3."""
    return sum(loss_terms(model, backbone, images, depth, noise, multi_step, generator).values())
