"""GloTok - Global Perspective Tokenizer for Image Reconstruction and Generation (Zhao, Zhang and
others, AAAI 2026, arXiv 2511.14184).

The idea: tokenizers with two codebooks copy semantics from a pretrained model image by image, which
leaves the semantic codes unevenly spread. GloTok matches one global statistic instead: how often
each cosine occurs among all pairs of semantic codes becomes as often as among tokens that stand for
the pretrained model on the whole data set, computed once; no teacher runs in training. A small
transformer on each quantised map then predicts what quantisation took away.

    Z = E(x),   Z_sem, Z_vis = A_sem(Z), A_vis(Z)                GloTok.latents        sec. 3.2
    D = {cos(t_i, t_j): i <= j},    B_k = -1 + 2 k / (N - 1)     glotok_histogram.py   eqs. 4-6
    p_k = sum over D of exp(-a (D - B_k)^2),    P = p / sum p    soft_histogram
    P_t of the teacher's tokens, once                            teacher_histogram
    L_hist = sum_k P_t log(P_t / P_s)                            histogram_loss        eq. 7
    |sg Z - Zq|^2 + b |sg Zq - Z|^2, for each codebook           DualCodebook
    Z_res = R(Zq),   Zq <- Zq + Z_res                            Residual, refine      eqs. 8, 9
    L_res = |sg Z - Zq - Z_res|^2, for each branch               residual_loss         eqs. 10-12
    L = L_R + L_Q + 0.5 L_res + 0.01 L_hist                      GloTok.loss
    how evenly codes lie, Tab. 3                                 glotok_uniformity.py

What it fixes is a statistic and no geometry: a turned codebook has the same histogram.

No official code was found; from the paper are the equations, N = 40, codes of 8 channels, 4096 and
12,288 of them, the weights 0.5 and 0.01. Not given there, and chosen here:
- a = 200 (a standard deviation of one bin), 1e-8 added to both histograms (an empty bin of the
  student gives infinity otherwise), and the divergence read as torch's kl_div(log P_s, P_t);
- adapters: norm, swish, 3 x 3 convolution, 1 x 1 convolution to 8 channels;
- vectors and codes have length 1, as in LlamaGen, so Z in L_res does, too; b = 0.25;
- R: a linear map to `residual_dim`, one pre-norm block with rotary positions of the grid, a linear
  map back that starts at 0: training begins as the plain tokenizer with two codebooks;
- norms of L_res are means of squares. Its gradient goes to R and to the codes, not through the
  straight-through estimator: that would push latents away from their codes (after 150 steps of the
  small model L_Q is 0.098 instead of 0.005). So only Z is stopped, and Zq are the codes themselves.
  On the way to the decoder Zq and R's input are straight-through;
- L_R is the mean of squares of pixels in -1 ... 1. LPIPS and the discriminator (weights 1, 0.5 in
  FQGAN) are the caller's.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..nn.blocks import Block
from ..nn.checks import (
    check_channels,
    check_heads,
    check_images,
    check_int,
    check_ints,
    check_map,
    check_number,
)
from ..nn.cnn import CNNDecoder, CNNEncoder
from ..nn.positions import rope_2d
from ..quantize.contract import Quantized, check_digits
from ..quantize.kl import Sampled
from ..quantize.vq import VectorQuantizer
from ..tokens.cosine import unit
from ..tokens.precision import widen
from .base import Tokenizer, pixel_loss, total
from .glotok_histogram import NUM_BINS, SHARPNESS, histogram_loss, teacher_histogram

PAPER = "glotok"


# --------------------------------------------------------------------------------- two codebooks
class DualCodebook(nn.Module):
    """A semantic and a visual codebook side by side: x (..., 2 C) -> `Quantized`.

        codes (..., 2 C)      the semantic code, then the visual one, each of length 1
        indices (..., 2)      in 0 ... K_s - 1 and in 0 ... K_v - 1: each codebook counts from 0

    They are digits: `digits_to_index(indices, codebook_size)` makes one number of each pair. The
    loss is the sum of both codebooks' losses, usage the share of all K_s + K_v codes.

    Args:
        dim: C, channels of a code.
        codebook_size: (K_s, K_v).
        options: of `VectorQuantizer`, for both.
    """

    def __init__(self, dim: int, codebook_size: Sequence[int], **options: Any) -> None:
        super().__init__()
        sizes = check_ints(codebook_size, "codebook_size", 1, length=2)
        options = dict(learn="gradient", lookup="cosine") | options
        self.semantic, self.visual = (VectorQuantizer(dim, size, **options) for size in sizes)
        with torch.no_grad():
            for book in (self.semantic, self.visual):
                book.codebook.copy_(unit(book.codebook))           # a step means the same to each
        self.dim, self.codebook_size = self.semantic.dim, sizes

    @property
    def bits(self) -> float:
        """Bits of the two indices of a place, log2 K_s + log2 K_v."""
        return self.semantic.bits + self.visual.bits

    def forward(self, x: Tensor) -> Quantized:
        """x (..., 2 C) -> `Quantized`, see the class."""
        check_channels(x, 2 * self.dim)
        semantic, visual = (
            book(part)
            for book, part in zip((self.semantic, self.visual), x.chunk(2, dim=-1), strict=True)
        )
        codes = torch.cat([semantic.codes, visual.codes], dim=-1)
        indices = torch.stack([semantic.indices, visual.indices], dim=-1)
        first, second = self.codebook_size
        usage = (semantic.usage * first + visual.usage * second) / (first + second)
        return Quantized(codes, indices, semantic.loss + visual.loss, usage)

    def decode(self, indices: Tensor) -> Tensor:
        """indices (..., 2) -> codes (..., 2 C), bit for bit those of forward, with the gradient of
        the codebooks."""
        check_digits(indices, 2, "indices")
        semantic, visual = indices.unbind(dim=-1)
        return torch.cat([self.semantic.decode(semantic), self.visual.decode(visual)], dim=-1)

    def normalised(self, x: Tensor) -> Tensor:
        """x (..., 2 C) -> (..., 2 C), each half as its codebook compares it: of length 1."""
        halves = zip((self.semantic, self.visual), x.chunk(2, dim=-1), strict=True)
        return torch.cat([book.normalised(part) for book, part in halves], dim=-1)


class Residual(nn.Module):
    """R: what quantisation took away, guessed from a quantised map alone, (B, h, w, C) -> the same.

    One transformer block between two linear maps; the second starts at 0.

    Args:
        dim: C.
        width: of the block.
        num_heads: must divide width, into heads of a multiple of 4 channels.
    """

    def __init__(self, dim: int, width: int, num_heads: int) -> None:
        super().__init__()
        self.head_dim = check_heads(width, num_heads)
        if self.head_dim % 4:
            raise ValueError(
                f"width={width} in num_heads={num_heads} are heads of {self.head_dim} channels: "
                f"positions on a grid need a multiple of 4"
            )
        self.proj_in = nn.Linear(check_int(dim, "dim", 1), width)
        self.block = Block(width, num_heads)
        self.norm = nn.LayerNorm(width)
        self.proj_out = nn.Linear(width, dim)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, codes: Tensor) -> Tensor:
        check_map(codes, "codes")
        check_channels(codes, self.proj_in.in_features, "codes")
        grid = (codes.shape[1], codes.shape[2])
        rope = rope_2d(grid, self.head_dim, device=codes.device)
        x = self.proj_in(codes).flatten(1, 2)                                        # b hw d
        x = self.proj_out(self.norm(self.block(x, rope=rope)))
        return x.unflatten(1, grid)                                                  # b h w c


# ------------------------------------------------------------------------------------- the model
class GloTok(Tokenizer):
    """Images -> a map of pairs of codes, one semantic and one visual -> images.

        model = GloTok()                                            # as in the paper, 256 pixels
        model.set_teacher(teacher_centres(features, 4096))          # once, before training
        loss, parts = model.loss(images)

    Codes are (B, h, w, 2 C), indices (B, h, w, 2), see `DualCodebook`; h and w are the sides of the
    image over `encoder.factor`. The residual net belongs to decoding: `refine` gives the maps that
    a generator of continuous tokens models (xAR in the paper).

    Args:
        codebook_size: (K_s, K_v).
        code_dim: C.
        latent_dim: channels of the encoder's map, before the adapters.
        residual_dim: width of the residual nets; 0: without them.
        num_heads: of theirs.
        histogram_weight: of L_hist.
        residual_weight: of L_res.
        commitment_weight: b, of each codebook.
        num_bins: N.
        sharpness: a.
        quantizer: further options of `VectorQuantizer`, for both codebooks.
        cnn: options of `CNNEncoder` and `CNNDecoder`.
    """

    teacher: Tensor

    def __init__(
        self,
        codebook_size: Sequence[int] = (4096, 12288),
        code_dim: int = 8,
        latent_dim: int = 256,
        residual_dim: int = 256,
        num_heads: int = 4,
        histogram_weight: float = 0.01,
        residual_weight: float = 0.5,
        commitment_weight: float = 0.25,
        num_bins: int = NUM_BINS,
        sharpness: float = SHARPNESS,
        quantizer: dict[str, Any] | None = None,
        **cnn: Any,
    ) -> None:
        super().__init__()
        self.histogram_weight = check_number(histogram_weight, "histogram_weight", 0)
        self.residual_weight = check_number(residual_weight, "residual_weight", 0)
        self.sharpness = check_number(sharpness, "sharpness", above=0)
        num_bins = check_int(num_bins, "num_bins", 2)
        residual_dim = check_int(residual_dim, "residual_dim", 0)
        groups = cnn.get("groups", 32)
        cnn = dict(attention=True) | cnn

        self.encoder = CNNEncoder(3, latent_dim, **cnn)
        self.adapters = nn.ModuleList(_adapter(latent_dim, code_dim, groups) for _ in range(2))
        options = dict(quantizer or {}, commitment_weight=commitment_weight)
        self.quantizer = DualCodebook(code_dim, codebook_size, **options)
        self.residuals = nn.ModuleList()
        if residual_dim:
            self.residuals.extend(Residual(code_dim, residual_dim, num_heads) for _ in range(2))
        self.decoder = CNNDecoder(2 * code_dim, 3, **cnn)
        self.register_buffer("teacher", torch.zeros(num_bins, dtype=torch.float32))
        self.has_teacher = False
        self.register_load_state_dict_post_hook(_read_teacher)

    # ---------------------------------------------------------------------------- in and out
    def latents(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) in [0, 1] -> Z_sem and Z_vis side by side, (B, h, w, 2 C)."""
        check_images(images)
        z = self.encoder(2 * images - 1)
        branches = torch.cat([adapter(z) for adapter in self.adapters], dim=1)
        return rearrange(branches, "b c h w -> b h w c")

    def encode(self, images: Tensor) -> Quantized:
        return self.quantizer(self.latents(images))

    def refine(self, codes: Tensor) -> Tensor:
        """Zq + R(Zq) of each branch, (B, h, w, 2 C) -> the same: what the decoder sees. It reads
        codes and nothing of the latents that they stand for."""
        check_map(codes, "codes")
        check_channels(codes, 2 * self.quantizer.dim, "codes")
        if not self.residuals:
            return codes
        parts = zip(self.residuals, codes.chunk(2, dim=-1), strict=True)
        return torch.cat([part + residual(part) for residual, part in parts], dim=-1)

    def decode(self, codes: Tensor) -> Tensor:
        refined = self.refine(codes).to(codes.dtype)
        return (self.decoder(rearrange(refined, "b h w c -> b c h w")) + 1) / 2

    def bits(self, quantized: Quantized | Sampled) -> float:
        """Bits of one image: its places times log2 K_s + log2 K_v."""
        return math.prod(quantized.codes.shape[1:-1]) * self.quantizer.bits

    # -------------------------------------------------------------------------------- training
    def set_teacher(self, tokens: Tensor) -> None:
        """The teacher's statistics, once: tokens (n, d), see `teacher_histogram`. They are kept
        with the weights."""
        histogram = teacher_histogram(tokens, len(self.teacher), self.sharpness)
        self.teacher.copy_(histogram)
        self.has_teacher = True

    def histogram_loss(self) -> Tensor:
        """L_hist of the semantic codebook, 0-dim: the same for every batch. ValueError without a
        teacher."""
        if not self.has_teacher:
            raise ValueError("teacher: none is set, set_teacher(tokens) comes first")
        return histogram_loss(self.quantizer.semantic.codebook, self.teacher, self.sharpness)

    def residual_loss(self, latents: Tensor, indices: Tensor) -> Tensor:
        """L_res, 0-dim: mean((sg Z - Zq - R(Zq))^2) of each branch, summed. R and the codes get a
        gradient, latents don't.

        Args:
            latents: (B, h, w, 2 C), of any length.
            indices: (B, h, w, 2), their codes.
        """
        target = self.quantizer.normalised(latents.detach())
        refined = self.refine(self.quantizer.decode(indices))
        return 2 * F.mse_loss(widen(refined), widen(target))            # both have the same size

    def loss(
        self, images: Tensor, teacher: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """4 mean squared error of pixels (of -1 ... 1) + L_Q + 0.5 L_res + 0.01 L_hist, and parts.

        L_hist takes part once `set_teacher` was called; without, this is the plain tokenizer with
        two codebooks.

        Args:
            images: (B, 3, H, W) in [0, 1].
            teacher: features of these images are not read: this teacher is global. ValueError when
                some are given before `set_teacher`.
        """
        if teacher is not None and not self.has_teacher:
            raise ValueError(
                "teacher: features of a batch are not read here, set_teacher(tokens) with tokens "
                "of the whole data set comes first"
            )
        latents = self.latents(images)
        quantized = self.quantizer(latents)
        pixels = pixel_loss(self.decode(quantized.codes), images)
        parts, weights = {"pixels": pixels, "quantizer": quantized.loss}, {"pixels": 4.0}
        if self.residuals:
            parts["residual"] = self.residual_loss(latents, quantized.indices)
            weights["residual"] = self.residual_weight
        if self.has_teacher:
            parts["histogram"] = self.histogram_loss()
            weights["histogram"] = self.histogram_weight
        return total(parts, weights)


def _adapter(latent_dim: int, code_dim: int, groups: int) -> nn.Sequential:
    """A map (B, D, h, w) -> (B, C, h, w) for one branch."""
    if latent_dim % groups:
        raise ValueError(f"latent_dim={latent_dim} must be a multiple of groups={groups}")
    return nn.Sequential(
        nn.GroupNorm(groups, latent_dim, eps=1e-6),
        nn.SiLU(),
        nn.Conv2d(latent_dim, latent_dim, 3, padding=1),
        nn.Conv2d(latent_dim, check_int(code_dim, "code_dim", 1), 1),
    )


def _read_teacher(model: GloTok, _: Any) -> None:
    """After loading: whether the statistics of a teacher came along."""
    model.has_teacher = not model.teacher.is_meta and bool(model.teacher.any())
