"""UPLiFT - Efficient Pixel-Dense Feature Upsampling with Local Attenders
(Walmer, Suri, Aggarwal, Shrivastava, CVPR 2026, arXiv 2601.17950).

The idea: a ViT gives one feature per patch, dense tasks want one per pixel. One small decoder
doubles the resolution, guided by shallow features of the image that are computed once; it is
applied again and again with the same weights. What it writes is never new: its last step, the Local
Attender, only averages neighbouring input features with softmax weights, so features keep their
distribution over iterations, at a cost linear in the pixels.

    e_0 ... e_4 = E(I)                     Encoder      at the image's own resolution, one pass for
                                                        all iterations
    G = D(x, e_4, e_3)                     Decoder      guide at twice the resolution of x; e_3, e_4
                                                        resized by nearest neighbour
    A = softmax_k(W G + G[:n])             LocalAttender.weights    n logits at each output
                                                        position, no queries, no keys
    out(y, x) = sum_k A_k(y, x) V(y//2 + dy_k, x//2 + dx_k)
                                           pool         V: this iteration's input, edges replicated
    x <- out, T times                      UPLiFT       T = 4: one feature a pixel for patch 16
    sum of D(D+1)/2 mean squared errors    loss         every step of every depth against features
                                                        of a larger copy of the image

State-dict names are the official ones (mwalmer-umd/UPLiFT), so official checkpoints load as they
are. Different from the official code: noise of the generative variant comes from a `generator`;
noise on the training input is added to a copy (there, it changes the stored features, which then
serve as targets of deeper levels); the options that no released configuration uses (downsampling in
the encoder, decoders of more than one doubling, an encoder pass at each iteration) are left out.
The fast mode there changes no numbers. The paper's full text was not at hand: mechanism from its
code.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..nn import (
    ChannelNorm,
    check_callable,
    check_dtype,
    check_flag,
    check_images,
    check_int,
    check_ints,
    check_number,
)
from ..nn.checks import check_generator, check_list, describe

PAPER = "uplift"
NORMS = ("batch", "layer")
BAND = 2**20                         # numbers that `pool` lays side by side at a time, with low_mem
Widths = int | Sequence[int]                                 # of one group: one block, or several
Offsets = Sequence[tuple[int, int]]

_SQUARE = [(dy, dx) for dy in (-2, -1, 0, 1, 2) for dx in (-2, -1, 0, 1, 2)]     # 5 x 5, row-major


def _offsets(inside: Callable[[int, int], bool]) -> tuple[tuple[int, int], ...]:
    return tuple(offset for offset in _SQUARE if inside(*offset))


OFFSETS = {
    5: _offsets(lambda dy, dx: abs(dy) + abs(dx) <= 1),                                   # a plus
    9: _offsets(lambda dy, dx: max(abs(dy), abs(dx)) <= 1),                               # 3 x 3
    13: _offsets(lambda dy, dx: abs(dy) + abs(dx) <= 2),                                  # diamond
    17: _offsets(lambda dy, dx: max(abs(dy), abs(dx)) <= 1 or dy % 2 == dx % 2 == 0),
    25: tuple(_SQUARE),
}
"""Neighbours (dy, dx) by their number; 17: 3 x 3, and the 8 points at distance 2 around it."""


def residual_auto(x: Tensor, y: Tensor) -> Tensor:
    """x + y with the channels of y: x (B, C, h, w) is cut to them, or filled up with zeros."""
    check_images(x, None, "x")
    check_images(y, None, "y")
    if x.shape[0] != y.shape[0] or x.shape[2:] != y.shape[2:]:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}: they need equal (B, ., h, w)"
        )
    missing = y.shape[1] - x.shape[1]
    return y + (F.pad(x, (0, 0, 0, 0, 0, missing)) if missing > 0 else x[:, : y.shape[1]])


def resize_nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, H, W) -> (B, C, *size): entry i comes from floor(i H / h)."""
    size = check_size(size)
    check_images(x, None, "x")
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size=size, mode="nearest")


def resize_image(images: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear with antialiasing, (B, C, H, W) -> (B, C, *size).

    At least in single precision: CPUs have it in no less.
    """
    check_images(images, None)
    size = check_size(size)
    if tuple(images.shape[-2:]) == size:
        return images
    precise = images.float() if images.dtype in (torch.bfloat16, torch.float16) else images
    resized = F.interpolate(
        precise, size=size, mode="bilinear", align_corners=False, antialias=True
    )
    return resized.to(images.dtype)


# ------------------------------------------------------------------------------ the Local Attender
def _padded(value: Tensor, offsets: Offsets) -> tuple[Tensor, int]:
    """(B, C, h + 2 p, w + 2 p), edges replicated; p: how far the offsets reach."""
    pad = max(max(abs(dy), abs(dx)) for dy, dx in offsets)
    return F.pad(value, (pad,) * 4, mode="replicate"), pad


def _neighbours(padded: Tensor, pad: int, offsets: Offsets) -> list[Tensor]:
    """Views of a padded map, one per offset: (B, C, h + 2 pad, w + 2 pad) -> n of (B, C, h, w)."""
    h, w = padded.shape[-2] - 2 * pad, padded.shape[-1] - 2 * pad
    corners = [(pad + dy, pad + dx) for dy, dx in offsets]
    return [padded[..., y : y + h, x : x + w] for y, x in corners]


def _check_offsets(offsets: Offsets) -> None:
    pairs = check_list(offsets, "offsets", "pairs (dy, dx)")
    if not pairs:
        raise ValueError("offsets is empty: needs one pair (dy, dx) at least")
    for i, pair in enumerate(pairs):
        check_ints(pair, f"offsets[{i}]", length=2)


def shifted(value: Tensor, offsets: Offsets) -> Tensor:
    """Copies of a map, one per offset, edges replicated: (B, C, h, w) -> (B, C, n, h, w).

    [:, :, k, y, x] = value[:, :, y + dy_k, x + dx_k].
    """
    check_images(value, None, "value")
    _check_offsets(offsets)
    return torch.stack(_neighbours(*_padded(value, offsets), offsets), dim=2)


def pool(attn: Tensor, value: Tensor, offsets: Offsets, low_mem: bool = False) -> Tensor:
    """Average neighbours on the coarse map with weights given on the fine one.

        out(y, x) = sum_k attn_k(y, x) value(y // f + dy_k, x // f + dx_k)

    f: how many times finer attn is. ValueError when sizes do not fit.

    Args:
        attn: (B, n, f h, f w), in general softmax over n.
        value: (B, C, h, w).
        offsets: n pairs (dy, dx).
        low_mem: lay the n copies side by side for a few rows at a time, not for all: the same
            numbers for a third of the memory, on a CPU in 0.4 to 1.0 of the time. Where gradients
            are kept, so are all copies, in either case.

    Returns (B, C, f h, f w).
    """
    check_images(attn, None, "attn")
    check_images(value, None, "value")
    low_mem = check_flag(low_mem, "low_mem")
    _check_offsets(offsets)
    (channels, h, w), (count, tall, wide) = value.shape[1:], attn.shape[1:]
    if tall % h or wide % w or tall // h != wide // w:
        raise ValueError(
            f"attn is {(tall, wide)} and value {(h, w)}: attn needs both sides the same whole "
            f"number of times larger"
        )
    if count != len(offsets):
        raise ValueError(
            f"attn has {count} channels, but there are {len(offsets)} offsets: "
            f"one weight for each is needed"
        )
    padded, pad = _padded(value.contiguous(memory_format=torch.channels_last), offsets)
    rows, f = max(1, BAND // (count * channels * w)) if low_mem else h, tall // h
    bands = []
    for y in range(0, h, rows):
        near = _neighbours(padded[..., y : y + rows + 2 * pad, :], pad, offsets)
        bands.append(_weighted(attn[..., f * y : f * (y + rows), :], near))
    return torch.cat(bands, dim=-2) if len(bands) > 1 else bands[0]


def _weighted(attn: Tensor, near: list[Tensor]) -> Tensor:
    """Neighbours (B, C, h, w) by weights (B, n, f h, f w) -> (B, C, f h, f w).

    A small matrix product for each coarse cell: its f x f outputs by n neighbours, times n
    neighbours by C channels, channels last in memory.
    """
    h, w = near[0].shape[-2:]
    cells = rearrange(attn, "b n (h f) (w g) -> (b h w) (f g) n", h=h, w=w)
    rows = torch.stack([copy.movedim(1, -1) for copy in near], dim=3)                 # b h w n c
    out = torch.bmm(cells, rows.flatten(0, 2))
    return rearrange(out, "(b h w) (f g) c -> b c (h f) (w g)", h=h, w=w, f=attn.shape[-2] // h)


class LocalAttender(nn.Module):
    """Softmax-weighted averages of coarse features around each fine position.

    The logits are a 1x1 convolution of the guide plus the guide's own first n channels: C_g + 1
    weights a neighbour.

    Args:
        guide_channels: C_g.
        num_neighbours: n: 5, 9, 13, 17 or 25. ValueError for another one.
        low_mem: see `pool`.
    """

    def __init__(self, guide_channels: int, num_neighbours: int = 17, low_mem: bool = False):
        super().__init__()
        num_neighbours = check_int(num_neighbours, "num_neighbours")
        if num_neighbours not in OFFSETS:
            raise ValueError(f"num_neighbours={num_neighbours} must be one of {tuple(OFFSETS)}")
        self.offsets = OFFSETS[num_neighbours]
        self.low_mem = check_flag(low_mem, "low_mem")
        guide_channels = check_int(guide_channels, "guide_channels", 1)
        self.conv1 = nn.Conv2d(guide_channels, num_neighbours, 1)

    def weights(self, guide: Tensor) -> Tensor:
        """guide (B, C_g, H, W) -> softmax weights (B, n, H, W), in the order of `offsets`."""
        check_images(guide, self.conv1.in_channels, "guide")
        return residual_auto(guide, self.conv1(guide)).softmax(dim=1)

    def forward(
        self, guide: Tensor, value: Tensor, return_attn: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """-> (B, C, f h, f w).

        Args:
            guide: (B, C_g, f h, f w).
            value: (B, C, h, w).
            return_attn: also the weights (B, n, f h, f w).
        """
        return_attn = check_flag(return_attn, "return_attn")
        attn = self.weights(guide)
        out = pool(attn, value, self.offsets, self.low_mem)
        return (out, attn) if return_attn else out


# ----------------------------------------------------------------------------- encoder and decoder
class ConvBlock(nn.Module):
    """`convs` times [3x3 convolution without bias, norm, ReLU], then a 1x1 convolution.

    Residual by `residual_auto`. (SingleConv, DoubleConv.)

    Args:
        in_channels: channels that come in.
        channels: of the convolutions and what goes out.
        convs: how many 3x3 convolutions.
        norm: "batch" or "layer"; ValueError otherwise.
    """

    def __init__(self, in_channels: int, channels: int, convs: int = 1, norm: str = "batch"):
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm={norm!r} must be 'batch' or 'layer'")
        in_channels = check_int(in_channels, "in_channels", 1)
        channels, convs = check_int(channels, "channels", 1), check_int(convs, "convs", 1)
        normalise = nn.BatchNorm2d if norm == "batch" else ChannelNorm
        layers, width = [], in_channels
        for _ in range(convs):
            conv = nn.Conv2d(width, channels, 3, padding=1, bias=False)
            layers += [conv, normalise(channels), nn.ReLU()]
            width = channels
        self.conv = nn.Sequential(*layers, nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.conv[0].in_channels, "x")
        return residual_auto(x, self.conv(x))


class Group(nn.Module):
    """ConvBlocks in a row.

    Args:
        in_channels: channels that come in.
        widths: channels of each block; an int: one block.
        convs: as in `ConvBlock`.
        norm: as in `ConvBlock`.
    """

    def __init__(self, in_channels: int, widths: Widths, convs: int = 1, norm: str = "batch"):
        super().__init__()
        in_channels = check_int(in_channels, "in_channels", 1)
        several = isinstance(widths, (tuple, list))
        widths = [check_int(width, "width", 1) for width in (widths if several else [widths])]
        if not widths:
            raise ValueError("widths=(): a group needs at least one block")
        self.out_channels = widths[-1]
        pairs = zip([in_channels, *widths[:-1]], widths, strict=True)
        self.blocks = nn.Sequential(*(ConvBlock(i, o, convs, norm) for i, o in pairs))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Encoder(nn.Module):
    """Image (B, 3, H, W) -> one map per group, all (B, C_i, H, W): nothing is downsampled."""

    def __init__(self, widths: Sequence[Widths], norm: str = "batch"):
        super().__init__()
        if not isinstance(widths, (tuple, list)) or not widths:
            raise ValueError(f"widths={widths!r}: needs the widths of each group")
        channels, self.out_channels = 3, []
        for i, group in enumerate(widths):
            self.add_module(f"block_{i}", Group(channels, group, norm=norm))
            channels = self.get_submodule(f"block_{i}").out_channels
            self.out_channels.append(channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        check_images(images)
        out, x = [], images
        for group in self.children():
            x = group(x)
            out.append(x)
        return out


class Up(nn.Module):
    """Twice the resolution: a transposed 2x2 convolution, plus the bilinear enlargement (corners
    aligned) of its input."""

    def __init__(self, channels: int):
        super().__init__()
        channels = check_int(channels, "channels", 1)
        self.up = nn.ConvTranspose2d(channels, channels, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, self.up.in_channels, "x")
        return self.up(x) + F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


def combine(
    x: Tensor, encoded: Tensor, noise_channels: int = 0, noise_scale: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """[x, encoder map, Gaussian noise] along the channels: (B, C + C_e + noise_channels, h, w).

    Args:
        x: (B, C, h, w).
        encoded: (B, C_e, H, W), resized to x by nearest neighbour.
        noise_channels: how many channels of noise.
        noise_scale: its standard deviation.
        generator: where it comes from.
    """
    check_images(x, None, "x")
    check_images(encoded, None, "encoded")
    if x.shape[0] != encoded.shape[0]:
        raise ValueError(f"x is of {x.shape[0]} images but encoded of {encoded.shape[0]}")
    noise_channels = check_int(noise_channels, "noise_channels", 0)
    noise_scale = check_number(noise_scale, "noise_scale", 0)
    check_generator(generator, optional=True)
    parts = [x, resize_nearest(encoded, x.shape[-2:]).to(x.dtype)]
    if noise_channels:
        shape = (x.shape[0], noise_channels, *x.shape[-2:])
        # torch.randn with a generator takes no free size in torch.export; the numbers are its own
        parts.append(noise_scale * x.new_empty(shape).normal_(generator=generator))
    return torch.cat(parts, dim=1)


class Decoder(nn.Module):
    """x (B, C, h, w) and the encoder's last two maps -> guide (B, C_g, 2h, 2w).

    Args:
        in_channels: C.
        encoded: channels of the encoder's maps.
        widths: of the blocks before and after the doubling.
        convs: 3x3 convolutions in a block.
        norm: "batch" or "layer".
        noise_channels: channels of noise that join both inputs, see `combine`.
        noise_scale: its standard deviation.
        out_channels: None, or (without an attender) those of the features that come out.
    """

    def __init__(
        self, in_channels: int, encoded: Sequence[int], widths: Sequence[Widths], convs: int = 2,
        norm: str = "batch", noise_channels: int = 0, noise_scale: float = 1.0,
        out_channels: int | None = None,
    ):
        super().__init__()
        encoded = check_ints(encoded, "encoded", 1)
        if not isinstance(widths, (tuple, list)) or len(widths) != 2 or len(encoded) < 2:
            raise ValueError(
                f"widths={widths!r}, encoded={encoded}: needs the widths of two groups and the "
                f"channels of two maps at least"
            )
        noise_channels = check_int(noise_channels, "noise_channels", 0)
        self.noise = noise_channels, check_number(noise_scale, "noise_scale", 0)
        self.block_0 = Group(in_channels + encoded[-1] + noise_channels, widths[0], convs, norm)
        width = self.block_0.out_channels
        self.up_1 = Up(width)
        self.block_1 = Group(width + encoded[-2] + noise_channels, widths[1], convs, norm)
        self.out_channels = self.block_1.out_channels
        self.outc = None
        if out_channels is not None:
            self.outc = nn.Conv2d(self.out_channels, out_channels, 1)

    def forward(
        self, x: Tensor, encoded: Sequence[Tensor], generator: torch.Generator | None = None
    ) -> Tensor:
        """-> (B, C_g, 2h, 2w), or features with `out_channels`.

        Args:
            x: (B, C, h, w).
            encoded: the encoder's maps.
            generator: for the noise.
        """
        if not isinstance(encoded, (tuple, list)) or len(encoded) < 2:
            raise ValueError(f"encoded is {describe(encoded)} but needs to be maps of an Encoder")
        x = self.block_0(combine(x, encoded[-1], *self.noise, generator))
        x = self.block_1(combine(self.up_1(x), encoded[-2], *self.noise, generator))
        return x if self.outc is None else residual_auto(x, self.outc(x))


# --------------------------------------------------------------------------------------- the model
class UPLiFT(nn.Module):
    """Images and a backbone's features of them -> features at 2^T times their resolution.

    The defaults are the DINOv2-S/14 and DINOv3-S+/16 configurations (789,521 parameters).
    ValueError for sizes that make no model.

    Args:
        in_channels: C, of the features.
        patch_size: P, of the backbone.
        encoder: widths of the blocks of each group, an int or several; at least two groups.
        decoder: likewise, exactly two groups.
        decoder_convs: 3x3 convolutions in a block of the decoder.
        num_neighbours: n: 5, 9, 13, 17, 25; None: no attender, the decoder's own output, for
            comparison.
        norm: "batch" or "layer".
        low_mem: the attender works a few rows at a time, see `pool`.
        noise_channels: generative variant: channels of noise joined to the decoder's and the
            refiner's inputs.
        noise_scale: its standard deviation.
        refiner: generative variant: widths of the blocks after the attender; they may leave the
            convex hull.
    """

    def __init__(
        self, in_channels: int = 384, patch_size: int = 16,
        encoder: Sequence[Widths] = (16, 32, 64, 128, 128), decoder: Sequence[Widths] = (64, 64),
        decoder_convs: int = 2, num_neighbours: int | None = 17, norm: str = "batch",
        low_mem: bool = False, noise_channels: int = 0, noise_scale: float = 1.0,
        refiner: Widths | None = None,
    ):
        super().__init__()
        groups = [len(g) if isinstance(g, (tuple, list)) else 0 for g in (encoder, decoder)]
        if groups[0] < 2 or groups[1] != 2:
            raise ValueError(
                f"encoder={encoder}, decoder={decoder}: "
                f"needs at least 2 encoder groups and exactly 2 decoder groups"
            )
        self.in_channels = check_int(in_channels, "in_channels", 1)
        self.patch_size = check_int(patch_size, "patch_size", 2)
        decoder_convs = check_int(decoder_convs, "decoder_convs", 1)
        noise_channels = check_int(noise_channels, "noise_channels", 0)
        self.noise = noise_channels, check_number(noise_scale, "noise_scale", 0)
        low_mem = check_flag(low_mem, "low_mem")                # without an attender nobody looks
        self.encoder = Encoder(encoder, norm)
        encoded = self.encoder.out_channels
        free = None if num_neighbours is not None else self.in_channels
        self.decoder = Decoder(
            self.in_channels, encoded, decoder, decoder_convs, norm, *self.noise, free
        )
        self.attender = self.refiner = None
        if num_neighbours is not None:
            self.attender = LocalAttender(self.decoder.out_channels, num_neighbours, low_mem)
        if refiner is not None:
            width = self.in_channels + encoded[-1] + noise_channels
            self.refiner = Group(width, refiner, norm=norm)
            self.ref_outc = nn.Conv2d(self.refiner.out_channels, self.in_channels, 1)

    @property
    def pixel_steps(self) -> int:
        """Iterations to at least one feature a pixel: 4 for patches of 14 and 16, 3 for 8."""
        return math.ceil(math.log2(self.patch_size))

    def encode(self, images: Tensor) -> list[Tensor]:
        """The guide, once for all iterations: one map (B, C_i, H', W') per group.

        Where P is no power of two the image is first enlarged, 16/14 for patch 14, bilinear.
        """
        check_images(images)
        check_dtype(images, self.decoder.up_1.up.weight, "images")
        grid = 2**self.pixel_steps
        size = [side * grid // self.patch_size for side in images.shape[-2:]]
        return self.encoder(resize_image(images, size))

    def upsample(
        self, x: Tensor, encoded: Sequence[Tensor], generator: torch.Generator | None = None,
        return_attn: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """One iteration -> (B, C, 2h, 2w).

        Args:
            x: (B, C, h, w).
            encoded: maps of `encode`.
            generator: for the noise of the generative variant.
            return_attn: also the attender's weights (B, n, 2h, 2w); None without an attender.
        """
        check_images(x, self.in_channels, "x")
        check_dtype(x, self.decoder.up_1.up.weight, "x")
        return_attn = check_flag(return_attn, "return_attn")
        guide, attn = self.decoder(x, encoded, generator), None
        out = guide
        if self.attender is not None:
            out, attn = self.attender(guide, x, return_attn=True)
        if self.refiner is not None:
            refined = self.refiner(combine(out, encoded[-1], *self.noise, generator))
            out = self.ref_outc(refined)
        return (out, attn) if return_attn else out

    def forward(
        self, images: Tensor, features: Tensor, iterations: int | None = None,
        size: Sequence[int] | int | None = None, generator: torch.Generator | None = None,
        return_steps: bool = False, return_attn: bool = False,
    ) -> Tensor | list[Tensor] | tuple[Tensor | list[Tensor], list[Tensor]]:
        """-> (B, C, 2^T h, 2^T w). ValueError for shapes that do not fit.

        Args:
            images: (B, 3, H, W), normalised as for the backbone.
            features: its features of them (B, C, H/P, W/P), rounded down or up.
            iterations: T; None: `pixel_steps`.
            size: (rows, columns), or one int for both, to which the last result is resized,
                bilinear (patch 14: the image's size).
            generator: for the noise of the generative variant.
            return_steps: a list of all T results, the last one resized if asked for.
            return_attn: (result, list of T weights (B, n, 2^t h, 2^t w)); needs an attender.
        """
        check_pair(images, features, self.in_channels)
        check_generator(generator, optional=True)
        check_dtype(features, self.decoder.up_1.up.weight, "features")
        check_grid(images, features, self.patch_size)
        iterations = self.pixel_steps if iterations is None else iterations
        iterations = check_int(iterations, "iterations", 1)
        size = None if size is None else check_size(size)
        return_steps = check_flag(return_steps, "return_steps")
        return_attn = check_flag(return_attn, "return_attn")
        if return_attn and self.attender is None:
            raise ValueError(
                "return_attn=True needs an attender; this model has num_neighbours=None"
            )
        encoded, steps, attns = self.encode(images), [], []
        for _ in range(iterations):
            features, attn = self.upsample(features, encoded, generator, return_attn=True)
            steps.append(features)
            attns.append(attn)
        if size is not None:
            steps[-1] = resize_image(steps[-1], size)
        out = steps if return_steps else steps[-1]
        return (out, attns) if return_attn else out


def check_pair(images: Tensor, features: Tensor, in_channels: int) -> None:
    """ValueError unless images and features share B.

    Args:
        images: (B, 3, H, W).
        features: (B, in_channels, h, w).
        in_channels: what the model needs.
    """
    check_images(images)
    check_images(features, in_channels, "features")
    if features.shape[0] != images.shape[0]:
        raise ValueError(
            f"features of {features.shape[0]} images for {images.shape[0]} images: "
            f"needs features of each image"
        )


def check_grid(images: Tensor, features: Tensor, patch: int) -> None:
    """ValueError unless there is one feature a patch, with or without patches that the edge cuts.

    Args:
        images: (B, 3, H, W).
        features: (B, C, h, w): h is H / P rounded down or up, w likewise.
        patch: P.
    """
    (height, width), grid = images.shape[-2:], tuple(features.shape[-2:])
    whole, cut = (height // patch, width // patch), (-(-height // patch), -(-width // patch))
    fits = all(a <= n <= b for a, n, b in zip(whole, grid, cut, strict=True))
    if not fits:
        needs = " or ".join(f"{h} x {w}" for h, w in dict.fromkeys((whole, cut)))
        raise ValueError(
            f"features have a grid of {grid[0]} x {grid[1]} for images of {height} x {width}: "
            f"patches of {patch} need {needs}"
        )


def check_size(size: Sequence[int] | int) -> tuple[int, int]:
    """(rows, columns) from a pair of integers, or from one for both. ValueError otherwise."""
    pair = size if isinstance(size, (tuple, list)) else (size, size)         # torch.Size is a tuple
    if len(pair) != 2:
        raise ValueError(f"size={size!r}: needs (rows, columns), or one integer for both")
    return check_int(pair[0], "size", 1), check_int(pair[1], "size", 1)


def uplift_dino(in_channels: int = 384, patch_size: int = 14, **kwargs) -> UPLiFT:
    """DINOv2-S/14 (patch_size 14) and DINOv3-S+/16 (16): 789,521 parameters.

    kwargs: any argument of `UPLiFT`.
    """
    return UPLiFT(in_channels, patch_size, **kwargs)


def uplift_vae(**kwargs) -> UPLiFT:
    """Latents of the VAE of Stable Diffusion 1.5 (4 channels, stride 8), with noise and a refiner.

    53,487,445 parameters. Images in [0, 1]. kwargs: any argument of `UPLiFT`.
    """
    sizes = dict(
        in_channels=4,
        patch_size=8,
        encoder=((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
        decoder=(512, (512, 512)),
        decoder_convs=1,
        norm="layer",
        noise_channels=4,
        refiner=(512,) * 12,
    )
    return UPLiFT(**{**sizes, **kwargs})


# ---------------------------------------------------------------------------------------- training
def pyramid(images: Tensor, depth: int) -> list[Tensor]:
    """[images, 1/2, 1/4, ... 1/2^depth of their size], each by antialiased bilinear resizing.

    Each from the original. ValueError for odd sizes on the way.
    """
    check_images(images)
    depth = check_int(depth, "depth", 1)
    height, width = images.shape[-2:]
    if height % 2**depth or width % 2**depth:
        raise ValueError(
            f"images of {height} x {width} cannot be halved depth={depth} times: "
            f"needs sides divisible by {2**depth}"
        )
    return [resize_image(images, (height >> i, width >> i)) for i in range(depth + 1)]


def loss_terms(
    model: nn.Module, backbone: Callable[[Tensor], Tensor], images: Tensor, depth: int,
    noise: float = 0.0, multi_step: bool = True, generator: torch.Generator | None = None,
) -> dict[tuple[int, int], Tensor]:
    """Mean squared errors of all steps of all depths: {(level, step): scalar}, D(D+1)/2 of them.

    Level i = 0 ... D-1 starts from the copy of the image that was halved i + 1 times - its features
    and itself as guide - and runs i + 1 iterations; the result of each is compared with the
    backbone's features of the copy that is as much larger.

    Args:
        model: `UPLiFT`.
        backbone: images (B, 3, H, W) -> features (B, C, H/P, W/P), run without gradient.
        images: (B, 3, H, W), both sides divisible by 2^D.
        depth: D.
        noise: standard deviation of what is added to a copy of the input features.
        multi_step: False: every level takes its first step only, D terms.
        generator: for both kinds of noise.
    """
    copies = pyramid(images, depth)
    noise, multi_step = check_number(noise, "noise", 0), check_flag(multi_step, "multi_step")
    check_callable(model, "model", "an UPLiFT")
    check_callable(backbone, "backbone", "a function of images (B, 3, H, W)")
    check_generator(generator, optional=True)
    with torch.no_grad():
        features = [backbone(copy) for copy in copies]
    terms = {}
    for level in range(len(copies) - 1):
        start = features[level + 1]
        if noise:
            start = start + noise * torch.randn(
                start.shape, generator=generator, device=start.device, dtype=start.dtype
            )
        steps = model(
            copies[level + 1],
            start,
            iterations=level + 1 if multi_step else 1,
            generator=generator,
            return_steps=True,
        )
        for step, out in enumerate(steps):
            terms[level, step] = F.mse_loss(out.float(), features[level - step].float())
    return terms


def loss(*args, **kwargs) -> Tensor:
    """The unweighted sum of `loss_terms`, with its arguments.

    Official: depth 3 at 448 px (DINOv2), 2 (DINOv3), 4 at 1024 px with noise 1 (VAE); Adam,
    lr 1e-3.
    """
    return sum(loss_terms(*args, **kwargs).values())
