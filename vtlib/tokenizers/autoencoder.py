"""The plain tokenizer that the papers are measured against: encoder, bottleneck, decoder.

    tokenizer = small("cnn", "vq", codebook_size=512)          # 64 px in minutes, on a CPU
    tokenizer = Autoencoder(CNNEncoder(...), VectorQuantizer(...), CNNDecoder(...))

With a vector quantiser this is the VQ-VAE (van den Oord et al. 2017, arXiv 1711.00937) in VQGAN's
nets (Esser et al. 2021, arXiv 2012.09841) without its discriminator; with `KLBottleneck` the
autoencoder of latent diffusion (Rombach et al. 2022, arXiv 2112.10752).
"""

from typing import Any

from einops import rearrange
from torch import Tensor, nn

from ..nn.blocks import Block
from ..nn.checks import check_dtype, check_float, check_images, check_int
from ..nn.cnn import CNNDecoder, CNNEncoder
from ..nn.patches import PatchEmbed, unpatchify
from ..nn.positions import sincos_2d
from ..quantize.contract import Quantized
from ..quantize.fsq import FSQ
from ..quantize.kl import KLBottleneck, Sampled
from ..quantize.lfq import BSQ, LFQ
from ..quantize.residual import ResidualQuantizer
from ..quantize.vq import VectorQuantizer
from .base import Tokenizer


class Autoencoder(Tokenizer):
    """images -> encoder -> quantizer -> decoder -> images.

    Args:
        encoder: images (B, 3, H, W) in [-1, 1] -> a map (B, C, h, w).
        quantizer: any of `vtlib.quantize`; it sees the map channels last, (B, h, w, C).
        decoder: its codes (B, C', h, w) -> images in [-1, 1].
    """

    def __init__(self, encoder: nn.Module, quantizer: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder

    def features(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1] -> what the quantiser sees, (B, h, w, C)."""
        check_images(images)
        return rearrange(self.encoder(2 * images - 1), "b c h w -> b h w c")

    def encode(self, images: Tensor) -> Quantized | Sampled:
        return self.quantizer(self.features(images))

    def decode(self, codes: Tensor) -> Tensor:
        check_float(codes, "codes")
        if codes.dim() != 4:
            raise ValueError(f"codes has shape {tuple(codes.shape)} but needs (B, h, w, C)")
        # a convolution's last bits depend on how its input lies in memory
        maps = rearrange(codes, "b h w c -> b c h w").contiguous()
        return (self.decoder(maps) + 1) / 2


class ViTEncoder(nn.Module):
    """Patches, sine-cosine positions, transformer blocks, a linear map to C channels.

    (B, 3, H, W) -> (B, C, H/P, W/P) for any sides that P divides.

    Args:
        out_channels: C.
        patch_size: P.
        embed_dim: width of the blocks.
        num_layers: how many.
        num_heads: of each.
    """

    def __init__(
        self,
        out_channels: int,
        patch_size: int = 8,
        embed_dim: int = 64,
        num_layers: int = 4,
        num_heads: int = 4,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(patch_size, 3, embed_dim)
        self.blocks = _blocks(embed_dim, num_layers, num_heads)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, check_int(out_channels, "out_channels", 1))

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images)                                             # b hw d
        h, w = self.patch_embed.grid(*images.shape[-2:])
        x = x + sincos_2d((h, w), x.shape[-1], device=x.device).to(x.dtype)
        for block in self.blocks:
            x = block(x)
        return rearrange(self.head(self.norm(x)), "b (h w) c -> b c h w", h=h, w=w)


class ViTDecoder(nn.Module):
    """The way back: a linear map, sine-cosine positions, blocks, P x P pixels a token.

    (B, C, h, w) -> (B, 3, P h, P w).

    Args:
        in_channels: C.
        patch_size: P.
        embed_dim: width of the blocks.
        num_layers: how many.
        num_heads: of each.
    """

    def __init__(
        self,
        in_channels: int,
        patch_size: int = 8,
        embed_dim: int = 64,
        num_layers: int = 4,
        num_heads: int = 4,
    ) -> None:
        super().__init__()
        self.in_channels = check_int(in_channels, "in_channels", 1)
        self.patch_size = check_int(patch_size, "patch_size", 1)
        self.embed = nn.Linear(self.in_channels, check_int(embed_dim, "embed_dim", 1))
        self.blocks = _blocks(embed_dim, num_layers, num_heads)
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, 3 * self.patch_size**2)

    def forward(self, x: Tensor) -> Tensor:
        check_float(x, "x")
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"x has shape {tuple(x.shape)} but needs (B, {self.in_channels}, h, w)"
            )
        check_dtype(x, self.embed.weight, "x")
        h, w = x.shape[-2:]
        x = self.embed(rearrange(x, "b c h w -> b (h w) c"))
        x = x + sincos_2d((h, w), x.shape[-1], device=x.device).to(x.dtype)
        for block in self.blocks:
            x = block(x)
        return unpatchify(self.head(self.norm(x)), self.patch_size, (h, w))


def _blocks(embed_dim: int, num_layers: int, num_heads: int) -> nn.ModuleList:
    count = check_int(num_layers, "num_layers", 1)
    return nn.ModuleList(Block(embed_dim, num_heads) for _ in range(count))


# ------------------------------------------------------------------------------- the small one
CNN = dict(
    patch_size=4, channels=24, multipliers=(1, 2), num_res_blocks=1, num_mid_blocks=1, groups=8
)
VIT = dict(patch_size=8, embed_dim=64, num_layers=4, num_heads=4)
NETS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "cnn": (CNNEncoder, CNNDecoder, CNN),
    "vit": (ViTEncoder, ViTDecoder, VIT),
}


BOTTLENECKS = ("vq", "kl", "residual", "fsq", "lfq", "bsq")


def small(
    net: str = "cnn", bottleneck: str = "vq", dim: int = 8, **options: Any
) -> Autoencoder:
    """A tokenizer of about 300,000 parameters: a token for every 8 x 8 pixels, made for
    64 px, where it trains in minutes on one core.

    Args:
        net: "cnn" or "vit".
        bottleneck: "vq" | "kl" | "residual" | "fsq" | "lfq" | "bsq".
        dim: channels of a code; FSQ has one for each of its levels instead.
        options: of the quantiser's class. "vq" and "residual" have codebook_size=512, a k-means
            start and two levels where nothing else is said; FSQ has levels=(8, 8, 8).

    ValueError for other names, and for options that the quantiser does not have.
    """
    if net not in NETS:
        raise ValueError(f"net={net!r} must be one of {', '.join(NETS)}")
    dim = check_int(dim, "dim", 1)
    try:
        quantizer = _quantizer(bottleneck, dim, options)
    except TypeError as error:
        raise ValueError(f"options of bottleneck={bottleneck!r}: {error}") from error
    if isinstance(quantizer, FSQ):
        dim = len(quantizer.counts)
    encoder, decoder, sizes = NETS[net]
    seen = 2 * dim if bottleneck == "kl" else dim
    return Autoencoder(
        encoder(out_channels=seen, **sizes), quantizer, decoder(in_channels=dim, **sizes)
    )


def _quantizer(bottleneck: str, dim: int, options: dict[str, Any]) -> nn.Module:
    if bottleneck == "kl":
        return KLBottleneck(**options)
    if bottleneck == "fsq":
        return FSQ(**{"levels": (8, 8, 8), **options})
    if bottleneck in ("lfq", "bsq"):
        return {"lfq": LFQ, "bsq": BSQ}[bottleneck](dim, **options)
    defaults: dict[str, Any] = {"codebook_size": 512, "kmeans_init": True}
    if bottleneck == "vq":
        return VectorQuantizer(dim, **{**defaults, **options})
    if bottleneck == "residual":
        return ResidualQuantizer(dim, **{**defaults, "num_levels": 2, **options})
    raise ValueError(f"bottleneck={bottleneck!r} must be one of {', '.join(BOTTLENECKS)}")
