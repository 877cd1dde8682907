"""HieraTok - Multi-Scale Visual Tokenizer Improves Image Reconstruction and Generation (Chen et al.
of Zhejiang University and Ant Group, 2025, arXiv 2509.23736).

The idea: tokenizers made of vision transformers know one scale. HieraTok pools the encoder's token
map to several scales and gives its decoder the whole sequence, coarse to fine, in which a token may
look at its own and at coarser scales only, so that what is global comes first and details are built
upon it. Reconstruction gets better and the latents smoother and more even.

    Z = encoder(x)                                      ViTEncoder, KLBottleneck
    T = [pool(Z, s_1); ...; pool(Z, s_K)],  s_K: all    pool_scales
    M_ij = scale(i) >= scale(j)                         scale_causal_mask
    Y = decoder(W T + place + scale embedding, M)       ScaleDecoder
    x' = pixels of the last scale's tokens of Y         ScaleDecoder.pictures, HieraTok.decode
    pairs that attend = sum_k s_k^2 sum_(j<=k) s_j^2    attended_pairs

The coarse tokens are a function of Z: they are neither stored nor generated, the latent budget is
that of one scale. Pooling is linear, so pooling before the encoder's last linear map gives the same
means; only separate noise at each scale would be another model.

**A reconstruction, not the authors' model.** No code is public and only the abstract was read. From
it: an encoder of transformer blocks, pooling of its token map, scale-causal attention, and the
numbers (rFID 1.47 -> 1.07 at equal settings). Chosen here: a KL latent, average pooling, scales
1, 2, 4, 8, 16, the mask in all layers of the decoder, sizes of ViT-S, positions (sines and cosines
at the middle of a token's cell, in cells of the last scale), an L2 loss. LPIPS and a discriminator
are the caller's; a loss on a foundation model's features, which the scaled-up version may have, and
the downstream generator are unknown and left out. An extension of ours: with `coarse_weight` each
coarse scale learns to be a picture by itself, of s_k patches a side, so `decode` can stop early.
The mask is VAR's (Tian et al. 2024, arXiv 2404.02905). How the paper measures smooth latents is not
known either: `hieratok_smoothness.py` has a measure of ours.

With one scale this is `Autoencoder(ViTEncoder(...), KLBottleneck(...), ViTDecoder(...))`, bit for
bit and under the same names.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..nn.blocks import Block
from ..nn.checks import (
    check_axes,
    check_device,
    check_dtype,
    check_flag,
    check_images,
    check_int,
    check_ints,
    check_number,
    check_tokens,
)
from ..nn.patches import unpatchify
from ..nn.positions import Device
from ..quantize.kl import KLBottleneck, Sampled
from ..quantize.residual import check_scales, to_scale
from .autoencoder import ViTEncoder
from .base import Tokenizer, pixel_loss, total

PAPER = "hieratok"
MASKS = ("causal", "full")
Scales = Sequence[int | Sequence[int]]


# ------------------------------------------------------------------------------------ the scales
def token_counts(scales: Scales) -> list[int]:
    """Tokens of each scale, rows times columns; scales as in `HieraTok`."""
    return [rows * columns for rows, columns in check_scales(scales)]


def pool_scales(latents: Tensor, scales: Scales) -> Tensor:
    """latents (B, h, w, C) -> tokens (B, T, C), T = sum of all scales: means over areas, coarse to
    fine, each scale in row-major order. The last scale is the latents themselves.

    ValueError unless the last scale is (h, w).
    """
    check_axes(latents, "latents", "(B, h, w, C)")
    sizes = check_scales(scales)
    if tuple(latents.shape[1:3]) != sizes[-1]:
        raise ValueError(f"latents {tuple(latents.shape)} do not fit the last scale {sizes[-1]}")
    return torch.cat([to_scale(latents, size).flatten(1, 2) for size in sizes], dim=1)


def scale_index(scales: Scales, device: Device = None) -> Tensor:
    """(T,) long: which scale a token belongs to, from 0."""
    home = check_device(device)
    parts = [
        torch.full((count,), number, device=home)
        for number, count in enumerate(token_counts(scales))
    ]
    return torch.cat(parts)


def scale_causal_mask(scales: Scales, device: Device = None) -> Tensor:
    """(T, T) bool, True = attend: row i sees column j where scale(i) >= scale(j), so a token sees
    its whole scale and all coarser ones."""
    index = scale_index(scales, device)
    return index[:, None] >= index[None]


def attended_pairs(scales: Scales, mask: str = "causal") -> int:
    """How many pairs of a query and a key attention has in a layer, T^2 with mask="full"."""
    counts = token_counts(scales)
    if _check_mask_name(mask) == "full":
        return sum(counts) ** 2
    return sum(count * sum(counts[: k + 1]) for k, count in enumerate(counts))


def scale_positions(scales: Scales, embed_dim: int, device: Device = None) -> Tensor:
    """(T, D) sines and cosines of where the middle of a token's cell is, in rows and columns of the
    last scale: cell i of s lies at (i + 1/2) S / s - 1/2. For the last scale that is i, and the
    table is `nn.sincos_2d`.

    Args:
        scales: as in `HieraTok`.
        embed_dim: D, a multiple of 4.
        device: where the table is made.
    """
    sizes, home = check_scales(scales), check_device(device)
    embed_dim = check_int(embed_dim, "embed_dim", 4)
    if embed_dim % 4:
        raise ValueError(f"embed_dim={embed_dim} must be a multiple of 4")
    steps = torch.arange(embed_dim // 4, device=home, dtype=torch.float32)
    frequency = 10000.0 ** (-steps / (embed_dim // 4))
    tables = []
    for size in sizes:
        rows, columns = (
            _waves(_middles(count, full, home), frequency)
            for count, full in zip(size, sizes[-1], strict=True)
        )
        rows = rows[:, None].expand(-1, size[1], -1)                             # h w d/2
        columns = columns[None].expand(size[0], -1, -1)
        tables.append(torch.cat([rows, columns], dim=-1).flatten(0, 1))
    return torch.cat(tables)


def _middles(count: int, full: int, device: torch.device) -> Tensor:
    """(count,): where cells that share `full` finest ones have their middles."""
    cells = torch.arange(count, device=device, dtype=torch.float32)
    return (cells + 0.5) * (full / count) - 0.5


def _waves(places: Tensor, frequency: Tensor) -> Tensor:
    """(n,), (F,) -> (n, 2 F), sines before cosines."""
    angle = places[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def _check_mask_name(mask: str) -> str:
    if mask not in MASKS:
        raise ValueError(f"mask={mask!r} must be one of {MASKS}")
    return mask


# ----------------------------------------------------------------------------------- the decoder
class ScaleDecoder(nn.Module):
    """tokens (B, T, C) of all scales -> what they have become, (B, T, D); `pictures` shows it.

    Names of the weights are those of `autoencoder.ViTDecoder`; `scale_embed` is there with more
    than one scale only.

    Args:
        in_channels: C.
        scales: as in `HieraTok`.
        patch_size: P.
        embed_dim: D.
        num_layers: how many blocks.
        num_heads: of each.
        mask: "causal", or "full": every token sees every other one, a control.
    """

    def __init__(
        self,
        in_channels: int,
        scales: Scales,
        patch_size: int,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        mask: str = "causal",
    ) -> None:
        super().__init__()
        self.in_channels = check_int(in_channels, "in_channels", 1)
        self.patch_size = check_int(patch_size, "patch_size", 1)
        self.scales, self.mask = check_scales(scales), _check_mask_name(mask)
        embed_dim = check_int(embed_dim, "embed_dim", 1)
        self.embed = nn.Linear(self.in_channels, embed_dim)
        if len(self.scales) > 1:
            self.scale_embed = nn.Parameter(0.02 * torch.randn(len(self.scales), embed_dim))
        count = check_int(num_layers, "num_layers", 1)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads) for _ in range(count))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, 3 * self.patch_size**2)

    def forward(
        self, tokens: Tensor, num_scales: int | None = None, return_attn: bool = False
    ) -> Any:
        """(B, T, C) -> (B, T, D) after the last norm; with return_attn=True also the weights of
        each block, a list of (B, heads, T, T).

        Args:
            tokens: as of `pool_scales`, those of the first `num_scales` scales.
            num_scales: how many scales there are; None: all. With mask="causal" the tokens of the
                first scales become what they become among all.
            return_attn: also return the weights.
        """
        return_attn = check_flag(return_attn, "return_attn")
        scales = self.first(num_scales)
        check_tokens(tokens, self.in_channels)
        check_dtype(tokens, self.embed.weight, "tokens")
        if tokens.shape[1] != sum(token_counts(scales)):
            raise ValueError(
                f"tokens {tuple(tokens.shape)} do not fill the scales {scales}: "
                f"needs {sum(token_counts(scales))}"
            )
        x = self.embed(tokens)
        width = x.shape[-1]
        x = x + scale_positions(self.scales, width, x.device)[: x.shape[1]].to(x.dtype)
        if len(self.scales) > 1:
            x = x + self.scale_embed[scale_index(scales, x.device)].to(x.dtype)
        seen = None
        if len(scales) > 1 and self.mask == "causal":
            seen = scale_causal_mask(scales, x.device)
        attns = []
        for block in self.blocks:
            x = block(x, bias=seen, return_attn=return_attn)
            if return_attn:
                x, attn = x
                attns.append(attn)
        x = self.norm(x)
        return (x, attns) if return_attn else x

    def first(self, num_scales: int | None) -> tuple[tuple[int, int], ...]:
        """The first `num_scales` scales; None: all. ValueError for another number."""
        if num_scales is None:
            return self.scales
        return self.scales[: check_int(num_scales, "num_scales", 1, len(self.scales))]

    def pictures(self, x: Tensor) -> list[Tensor]:
        """x (B, T', D) as of forward, of the first scales -> a picture (B, 3, P h_k, P w_k) of each
        of them, in [-1, 1], all with the same head."""
        check_tokens(x, self.norm.normalized_shape[0], "x")
        pictures, start = [], 0
        for size in self.scales:
            stop = start + size[0] * size[1]
            if stop <= x.shape[1]:
                pictures.append(unpatchify(self.head(x[:, start:stop]), self.patch_size, size))
            start = stop
        return pictures


# --------------------------------------------------------------------------------- the tokenizer
class HieraTok(Tokenizer):
    """images (B, 3, P h, P w) in [0, 1] <-> latents (B, h, w, C), the last scale.

    Defaults are chosen here, the paper's are not known: 256 pixels, patches of 16, two ViT-S.

    Args:
        scales: (s_1, ..., s_K), coarse to fine, each an int for a square or a pair (rows, columns);
            the last one is the encoder's grid (h, w). One scale alone: the plain tokenizer.
        patch_size: P.
        latent_dim: C.
        embed_dim: width of encoder and decoder.
        encoder_layers: blocks of the encoder.
        decoder_layers: blocks of the decoder.
        num_heads: of each block.
        mask: "causal", or "full" as a control of the same size.
        kl_weight: of the KL in nats an image (summed over latents, as in VA-VAE).
        coarse_weight: of the mean loss of the coarse scales' own pictures, 0.1 say; 0: they have
            none, and `decode` to fewer scales shows nothing that was trained.
    """

    def __init__(
        self,
        scales: Scales = (1, 2, 4, 8, 16),
        patch_size: int = 16,
        latent_dim: int = 32,
        embed_dim: int = 384,
        encoder_layers: int = 12,
        decoder_layers: int = 12,
        num_heads: int = 6,
        mask: str = "causal",
        kl_weight: float = 1e-6,
        coarse_weight: float = 0.0,
    ) -> None:
        super().__init__()
        latent_dim = check_int(latent_dim, "latent_dim", 1)
        embed_dim = check_int(embed_dim, "embed_dim", 1)
        encoder_layers = check_int(encoder_layers, "encoder_layers", 1)
        decoder_layers = check_int(decoder_layers, "decoder_layers", 1)
        self.kl_weight = check_number(kl_weight, "kl_weight", 0)
        self.coarse_weight = check_number(coarse_weight, "coarse_weight", 0)
        self.encoder = ViTEncoder(2 * latent_dim, patch_size, embed_dim, encoder_layers, num_heads)
        self.quantizer = KLBottleneck(self.kl_weight)
        self.decoder = ScaleDecoder(
            latent_dim, scales, patch_size, embed_dim, decoder_layers, num_heads, mask
        )

    @property
    def scales(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of each scale."""
        return self.decoder.scales

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Sampled:
        """images -> latents; `codes` (B, h, w, C) are a sample in training, the means else.

        Args:
            images: (B, 3, P h, P w) in [0, 1].
            generator: of the sample.
        """
        check_images(images)
        rows, columns = (self.decoder.patch_size * side for side in self.scales[-1])
        if tuple(images.shape[-2:]) != (rows, columns):
            raise ValueError(f"images {tuple(images.shape)}: the scales need {(rows, columns)}")
        parameters = rearrange(self.encoder(2 * images - 1), "b c h w -> b h w c")
        return self.quantizer(parameters, generator=generator)

    def tokens(self, codes: Tensor, num_scales: int | None = None) -> Tensor:
        """codes (B, h, w, C) -> (B, T, C): the decoder's input, the first `num_scales` scales."""
        count = sum(token_counts(self.decoder.first(num_scales)))
        return pool_scales(codes, self.scales)[:, :count]

    def decode(self, codes: Tensor, num_scales: int | None = None) -> Tensor:
        """codes (B, h, w, C) -> images (B, 3, P h, P w), not clamped.

        Args:
            codes: as of `encode`.
            num_scales: only so many scales are read: the picture of the last one of them,
                (B, 3, P h_k, P w_k); None: all.
        """
        tokens = self.tokens(codes, num_scales)
        return (self.decoder.pictures(self.decoder(tokens, num_scales))[-1] + 1) / 2

    def decode_scales(self, codes: Tensor) -> list[Tensor]:
        """The pictures of all scales in one run of the decoder, the last one that of `decode`."""
        pictures = self.decoder.pictures(self.decoder(self.tokens(codes)))
        return [(picture + 1) / 2 for picture in pictures]

    def loss(
        self, images: Tensor, teacher: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """mean squared error + KL + coarse_weight * the mean over coarse scales of their pictures'
        mean squared error, each against the image's means over areas; and the parts, detached.

        Args:
            images: (B, 3, P h, P w) in [0, 1].
            teacher: no notice is taken of it.
        """
        quantized = self.encode(images)
        pictures = self.decode_scales(quantized.codes)
        parts = {"pixels": pixel_loss(pictures[-1], images), "quantizer": quantized.loss}
        if self.coarse_weight and len(pictures) > 1:
            coarse = [pixel_loss(p, shrunk(images, p.shape[-2:])) for p in pictures[:-1]]
            parts["coarse"] = torch.stack(coarse).mean()
            return total(parts, {"coarse": self.coarse_weight})
        return total(parts)


def shrunk(images: Tensor, size: Sequence[int]) -> Tensor:
    """images (B, 3, H, W) -> (B, 3, *size), means over areas: what a coarse scale should show."""
    check_images(images, None)
    return F.interpolate(images, check_ints(size, "size", 1, 2), mode="area")
