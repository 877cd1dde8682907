"""TokenFlow - Unified Image Tokenizer for Multimodal Understanding and Generation (Qu, Zhang, Liu,
Wang, Jiang, Gao, Ye, Du, Yuan, Wu, CVPR 2025, arXiv 2412.03069).

The idea: a codebook learned for pixels groups patches by colour and texture, one learned from a
vision model groups them by meaning, and neither serves both ends. So keep two codebooks under one
index, the one whose *sum* of both distances is least: each index stands for a pair (meaning,
look). A language model reads the pair, a pixel decoder paints from one half of it, and a small
ViT recovers the teacher's features from the other.

    h = [semantic (32) | pixel (8)]              TokenFlow.features       a vision tower, unfrozen,
                                                                          and a CNN on one grid
    i* = argmin_i d_sem,i + w d_pix,i            SharedMapping.search     halves of z and of codes
                                                                          have length 1 each
    mean((sg z - z_q)^2) + 0.25 mean((z - sg z_q)^2)   SharedMapping.loss  over all 40 channels
    R <- R - up(q(down(R))), F = sum of up(q)    SharedScales             areas down, bicubic up to
                                                                          the last scale
    drop a scale, never the first, p = 0.1       SharedScales.used_levels training only
    1 - cos(teacher, decoder(F[:32]))            semantic_loss            TokenFlow.decode_semantic
    L2 of [-1, 1] pixels, decoder(F[32:])        TokenFlow.loss           TokenFlow.decode
    all 40 channels of F, a token a place        TokenFlow.understanding_features   the LLM's input

Next-scale generation, with its resampling inside a scale, is in `tokenflow_generate`.

Follows the official code where the paper says something else: the semantic loss is a cosine (paper:
an l2 distance); the tower of "B" has patch 16 (paper: 14). As there, every scale passes the
gradient of its codes on to what it quantised, through the normalisation (`SharedScales`), the
first codebooks have halves of length 1, and nothing but the optimiser moves them. Each code has
halves of length 1 however small the residual is, so more scales need not mean less error: the
encoders have to learn lengths of h that fit (inferred from the code; where h gets the gradient
once instead, as in VAR, nothing teaches them: after 60 steps at 64 px halves of h were 7 to 10
times as long as here, those of F as long as before).

Different from the official code: no table of N x K distances; the tower is a plain ViT
(`VisionTower`) unless another is put in its place, and sees pixels of [0, 1] (CLIP's tower gets
[-1, 1] there, without CLIP's own normalisation); in the semantic decoder keys have a bias and
residual branches do not start smaller in deeper layers; LPIPS and the discriminator are the
caller's; the k-means start and its moving averages, off there, are left out (`learn="ema"` moves
both codebooks).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..nn.checks import (
    check_dtype,
    check_flag,
    check_float,
    check_generator,
    check_images,
    check_int,
    check_number,
    check_tokens,
)
from ..nn.cnn import CNNDecoder, CNNEncoder
from ..nn.positions import resize_pos_embed
from ..nn.weights import load_weights
from ..quantize.contract import Quantized, straight_through
from ..quantize.residual import MultiScaleQuantizer, check_scales, from_scale
from ..quantize.vq import VectorQuantizer
from ..tokens.cosine import unit
from ..tokens.precision import full_precision, widen
from ..vit import ViT
from .base import Reconstruction, Tokenizer, pixel_loss, total

PAPER = "tokenflow"

PIXEL_WEIGHT = 4.0
"""A squared error in [-1, 1], where the paper takes it, is 4 times that in [0, 1]."""


# ------------------------------------------------------------------------------- shared mapping
class SharedMapping(VectorQuantizer):
    """x (..., D) -> `Quantized`: two codebooks, one index.

    The first semantic_dim channels of a vector and the others are halves, each scaled to length 1,
    in x and in every code. The code is argmin_i of d_sem,i + w d_pix,i, squared distances of the
    halves in [0, 4]. That sum is the squared distance of the halves side by side, the second times
    sqrt(w): one exact search, `vtlib.quantize.nearest`, with no table. Of equals the first is
    taken. w decides the choice alone: losses are of the halves as they are.

    Args:
        dim: D, of both halves.
        codebook_size: K.
        semantic_dim: channels of the first half.
        pixel_weight: w; 0: chosen by meaning alone.
        learn: see `VectorQuantizer`.
        commitment_weight: see there.
        decay: see there.
        revive_after: see there.
        entropy_weight: see there; distances of the softmax are d_sem + w d_pix.
        entropy_temperature: see there.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        semantic_dim: int = 32,
        pixel_weight: float = 1.0,
        learn: str = "gradient",
        commitment_weight: float = 0.25,
        decay: float = 0.99,
        revive_after: float | None = None,
        entropy_weight: float = 0.0,
        entropy_temperature: float = 0.01,
    ) -> None:
        super().__init__(
            dim, codebook_size, learn, commitment_weight=commitment_weight, decay=decay,
            revive_after=revive_after, entropy_weight=entropy_weight,
            entropy_temperature=entropy_temperature,
        )
        self.semantic_dim = check_int(semantic_dim, "semantic_dim", 1, self.dim - 1)
        self.pixel_weight = check_number(pixel_weight, "pixel_weight", 0)
        with torch.no_grad():
            self.codebook.copy_(self.normalised(self.codebook))

    def halves(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """(..., D) -> (..., semantic_dim), (..., D - semantic_dim)."""
        return vectors[..., :self.semantic_dim], vectors[..., self.semantic_dim:]

    def normalised(self, vectors: Tensor) -> Tensor:
        """(N, D) -> (N, D), both halves of length 1."""
        return torch.cat([unit(half) for half in self.halves(vectors)], dim=-1)

    def weighed(self, vectors: Tensor) -> Tensor:
        """(N, D) -> (N, D): |a - b|^2 of these is d_sem + w d_pix."""
        semantic, pixel = self.halves(vectors)
        return torch.cat([semantic, pixel * self.pixel_weight**0.5], dim=-1)

    def distances(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (..., D) -> d_sem, d_pix, each (..., K): to look at; a search does without."""
        rows = self.rows(x)
        pairs = zip(self.halves(rows), self.halves(self.table().to(rows.dtype)), strict=True)
        tables = []
        for half, codes in pairs:
            with full_precision(x.device):
                cross = half @ codes.T
            square = half.square().sum(dim=1, keepdim=True) + codes.square().sum(dim=1)
            tables.append((square - 2 * cross).clamp_min(0).reshape(*x.shape[:-1], -1))
        return tables[0], tables[1]


class SharedScales(MultiScaleQuantizer):
    """x (B, H, W, D) -> `Quantized`: `SharedMapping` in scales, see `MultiScaleQuantizer`.

    The last scale, whose size is that of x, is taken as it is; smaller ones come up bicubically.
    What a scale leaves over has no gradient of its codes. Training with a dropped scale gives the
    indices of the others; `decode` then needs to know which, see `used_levels`.

    Args:
        dim: D.
        codebook_size: K.
        scales: see there.
        drop_rate: how often a call in training leaves one scale out, any but the first.
        options: of `SharedMapping`.
    """

    quantizer = SharedMapping

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        scales: Sequence[int | Sequence[int]],
        drop_rate: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(dim, codebook_size, scales, **options)
        self.drop_rate = check_number(drop_rate, "drop_rate", 0, 1)

    def used_levels(
        self, num_levels: int | None = None, generator: torch.Generator | None = None
    ) -> tuple[int, ...]:
        """The scales of a call: all; with probability drop_rate, in training, all but one.

        Args:
            num_levels: asks for the first ones, and none is dropped.
            generator: for the two draws; on the CPU when None.
        """
        levels = super().used_levels(num_levels, generator)
        if num_levels is not None or not self.training or not self.drop_rate or len(levels) < 2:
            return levels
        device = "cpu" if generator is None else generator.device
        drawn = torch.rand(2, generator=generator, device=device, dtype=torch.float64).tolist()
        if drawn[0] >= self.drop_rate:
            return levels
        dropped = 1 + int(drawn[1] * (len(levels) - 1))
        return levels[:dropped] + levels[dropped + 1:]

    def with_gradient(self, codes: Tensor, x: Tensor, rows: Mapping[int, Tensor]) -> Tensor:
        """The codes, whose gradient each scale passes to the vectors of length 1 it compared.

        Args:
            codes: (B, H, W, D).
            x: (B, H, W, D), what came in.
            rows: (B h_l w_l, D) by scale.
        """
        carrier = torch.zeros_like(x, dtype=rows[0].dtype)
        for level, vectors in rows.items():
            pooled = vectors.reshape(x.shape[0], *self.scales[level], self.dim)
            carrier = carrier + from_scale(pooled, self.scales[-1])
        return straight_through(codes, carrier)


# ------------------------------------------------------------------------------------- encoders
class VisionTower(ViT):
    """The patch tokens of a plain ViT: images (B, in_chans, H, W) -> (B, N, D)."""

    def forward(self, images: Tensor) -> Tensor:
        return self.tokens(images)[:, 1:]

    def start_from(self, teacher: ViT) -> None:
        """Copy a trained ViT of the same width and patches: its first layers, as many as there are
        here, with positions resized. Its last LayerNorm is copied where all layers are, else
        it starts as the identity: the tower then gives `teacher.feature_map`. ValueError for
        another width, other patches, too few layers.
        """
        if not isinstance(teacher, ViT) or len(teacher.blocks) < len(self.blocks):
            needs = f"a vtlib.vit.ViT of {len(self.blocks)} layers or more"
            raise ValueError(f"teacher is {type(teacher).__name__}: needs {needs}")
        state = dict(teacher.state_dict())
        if "pos_embed" in state:
            state["pos_embed"] = resize_pos_embed(state["pos_embed"], teacher.grid, self.grid)
        if len(teacher.blocks) > len(self.blocks):
            state["norm.weight"] = torch.ones_like(state["norm.weight"])
            state["norm.bias"] = torch.zeros_like(state["norm.bias"])
        wanted = self.state_dict().keys()
        load_weights(self, {name: state[name] for name in state if name in wanted}, name="teacher")


# ------------------------------------------------------------------------------------ the whole
class TokenFlow(Tokenizer):
    """Images (B, 3, H, W) in [0, 1] -> indices (B, sum of h_l w_l) -> images and features.

    The defaults are the official "B": 224 px, 14 x 14 places, 561 tokens of 15 bits. H x W is the
    last scale times `patch_size`; where the CNN's factor is another number, it works on resized
    images (bicubic), as the official 384 px model with patch 14 does.

    Args:
        scales: see `SharedScales`; the last is the grid of the tower's tokens.
        codebook_size: K.
        semantic_dim: channels of the semantic half.
        pixel_dim: channels of the pixel half.
        patch_size: of the tower.
        embed_dim: its width.
        num_layers: its layers.
        num_heads: its heads.
        teacher_dim: channels of the teacher's features (CLIP ViT-B: 512 after its projection).
        decoder_dim: width of the semantic decoder; None: embed_dim.
        decoder_layers: its layers.
        decoder_heads: its heads.
        z_channels: between the CNNs and the pixel half.
        cnn: options of `vtlib.nn.cnn.CNNEncoder` and `CNNDecoder`; None: those of VQGAN, with
            attention.
        enhanced: a pixel decoder of twice the width with twice the residual blocks.
        pixel_weight: w, see `SharedMapping`.
        drop_rate: see `SharedScales`.
        options: more of `SharedMapping`.

    ValueError: sizes that do not fit each other; images of another size; indices that are not of
    complete scales; teacher features of another shape.
    """

    def __init__(
        self,
        scales: Sequence[int | Sequence[int]] = (1, 2, 4, 6, 8, 10, 12, 14),
        codebook_size: int = 32768,
        semantic_dim: int = 32,
        pixel_dim: int = 8,
        patch_size: int = 16,
        embed_dim: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        teacher_dim: int = 512,
        decoder_dim: int | None = None,
        decoder_layers: int = 3,
        decoder_heads: int = 12,
        z_channels: int = 256,
        cnn: Mapping[str, Any] | None = None,
        enhanced: bool = False,
        pixel_weight: float = 1.0,
        drop_rate: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__()
        grid = check_scales(scales)[-1]
        self.semantic_dim = check_int(semantic_dim, "semantic_dim", 1)
        self.pixel_dim = check_int(pixel_dim, "pixel_dim", 1)
        self.patch_size = check_int(patch_size, "patch_size", 1)
        self.embed_dim = check_int(embed_dim, "embed_dim", 1)
        z_channels = check_int(z_channels, "z_channels", 1)
        image_size = (grid[0] * self.patch_size, grid[1] * self.patch_size)
        self.encoder_vqkd = VisionTower(
            image_size, self.patch_size, 3, 0, embed_dim, num_layers, num_heads
        )
        self.encode_task_layer = _two_layers(self.embed_dim, self.semantic_dim)
        cnn = dict(cnn) if cnn is not None else dict(attention=True)
        self.encoder = CNNEncoder(3, z_channels, **cnn)
        self.quant_conv = nn.Conv2d(z_channels, self.pixel_dim, 1)
        self.quantizer = SharedScales(
            self.semantic_dim + self.pixel_dim, codebook_size, scales, drop_rate,
            semantic_dim=self.semantic_dim, pixel_weight=pixel_weight, **options,
        )
        decoder_dim = self.embed_dim if decoder_dim is None else decoder_dim
        decoder_dim = check_int(decoder_dim, "decoder_dim", 1)
        decoder_layers = check_int(decoder_layers, "decoder_layers", 1)
        decoder_heads = check_int(decoder_heads, "decoder_heads", 1)
        self.decoder_vqkd = VisionTower(
            grid, 1, self.semantic_dim, 0, decoder_dim, decoder_layers, decoder_heads
        )
        teacher_dim = check_int(teacher_dim, "teacher_dim", 1)
        self.decode_task_layer = _two_layers(decoder_dim, teacher_dim)
        self.post_quant_conv = nn.Conv2d(self.pixel_dim, z_channels, 1)
        self.decoder = CNNDecoder(z_channels, 3, **_doubled(cnn, enhanced))

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the last scale."""
        return self.quantizer.scales[-1]

    # ------------------------------------------------------------------------- images to codes
    def features(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) -> h (B, h, w, C), not normalised: [semantic | pixel]."""
        self._check(images)
        tokens = self.encoder_vqkd(images)
        check_tokens(tokens, self.embed_dim, "the tower's tokens")
        height, width = self.grid
        if tokens.shape[1] != height * width:
            needs = f"the last scale, {self.grid}, needs {height * width}"
            raise ValueError(f"the tower gives {tokens.shape[1]} tokens: {needs}")
        semantic = rearrange(self.encode_task_layer(tokens), "b (h w) c -> b h w c", h=height)
        pixel = self.quant_conv(self.encoder(self._resized(2 * images - 1, self.encoder.factor)))
        return torch.cat([semantic, rearrange(pixel, "b c h w -> b h w c")], dim=-1)

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Quantized:
        """images (B, 3, H, W) -> codes F (B, h, w, C), the sum over scales; indices (B, T).

        Args:
            images: in [0, 1].
            generator: for the drop of a scale, in training.
        """
        check_generator(generator, optional=True)
        return self.quantizer(self.features(images), generator=generator)

    @torch.no_grad()
    def understanding_features(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) -> (B, h w, C), what a language model reads: F of all scales, both
        halves, one token a place of the last scale (section 3.3). The tokenizer is frozen there:
        no gradient, no dropped scale."""
        codes = self.quantizer(self.features(images), num_levels=self.quantizer.num_levels).codes
        return codes.flatten(1, 2)

    # ------------------------------------------------------------------------- codes to images
    def decode(self, codes: Tensor) -> Tensor:
        """codes (B, h, w, C) -> images (B, 3, H, W), from the pixel half alone."""
        _, pixel = self._halves(codes)
        pixels = self.decoder(self.post_quant_conv(rearrange(pixel, "b h w c -> b c h w")))
        return (self._resized(pixels, self.patch_size) + 1) / 2

    def decode_semantic(self, codes: Tensor) -> Tensor:
        """codes (B, h, w, C) -> (B, h w, teacher_dim), from the semantic half alone."""
        semantic, _ = self._halves(codes)
        tokens = self.decoder_vqkd(rearrange(semantic, "b h w c -> b c h w"))
        return self.decode_task_layer(tokens)

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> Reconstruction:
        """images (B, 3, H, W) -> `Reconstruction`, features (B, h w, teacher_dim).

        Args:
            images: in [0, 1].
            generator: see `encode`.
        """
        quantized = self.encode(images, generator)
        codes = quantized.codes
        return Reconstruction(self.decode(codes), quantized, self.decode_semantic(codes))

    def loss(
        self,
        images: Tensor,
        teacher: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L2 + quantiser + semantic, weight 1 each, pixels of [-1, 1]; the parts, detached.

        Args:
            images: (B, 3, H, W) in [0, 1].
            teacher: (B, h w, teacher_dim), what the frozen teacher makes of them; None: without
                the semantic part.
            generator: see `encode`.
        """
        out = self(images, generator)
        parts = {"pixels": pixel_loss(out.images, images), "quantizer": out.quantized.loss}
        if teacher is not None:
            parts["semantic"] = semantic_loss(out.features, teacher)
        return total(parts, {"pixels": PIXEL_WEIGHT})

    # ----------------------------------------------------------------------------- how it is used
    def set_scales(self, scales: Sequence[int | Sequence[int]]) -> None:
        """Work on another grid from now on, with the same weights: the official model of 14 x 14
        places takes 256 px with a ninth scale of 16, its positions resized. Not for training."""
        self.quantizer.scales = check_scales(scales)
        self.quantizer.num_levels = len(self.quantizer.scales)

    def train_pixel_decoder_only(self) -> None:
        """Freeze all but the CNN decoder, as the enhanced one is trained at the end."""
        self.requires_grad_(False)
        self.decoder.requires_grad_(True)

    # --------------------------------------------------------------------------------- inside
    def _check(self, images: Tensor) -> None:
        check_images(images)
        check_dtype(images, self.quant_conv.weight, "images")
        height, width = self.grid
        want = (height * self.patch_size, width * self.patch_size)
        if tuple(images.shape[-2:]) != want:
            told = f"{height} x {width} places of {self.patch_size} pixels"
            raise ValueError(f"images has shape {tuple(images.shape)} but needs {want}: {told}")

    def _halves(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        check_float(codes, "codes")
        want = (*self.grid, self.semantic_dim + self.pixel_dim)
        if codes.dim() != 4 or tuple(codes.shape[1:]) != want:
            raise ValueError(f"codes has shape {tuple(codes.shape)} but needs (B, *{want})")
        return codes[..., :self.semantic_dim], codes[..., self.semantic_dim:]

    def _resized(self, pixels: Tensor, factor: int) -> Tensor:
        """(B, 3, H, W) at `factor` pixels a place of the grid."""
        size = (self.grid[0] * factor, self.grid[1] * factor)
        if tuple(pixels.shape[-2:]) == size:
            return pixels
        return F.interpolate(pixels, size, mode="bicubic", align_corners=False)


def _two_layers(width: int, out: int) -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out))
    for layer in (layers[0], layers[2]):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return layers


def _doubled(cnn: dict[str, Any], enhanced: bool) -> dict[str, Any]:
    """Options of the pixel decoder."""
    if not check_flag(enhanced, "enhanced"):
        return cnn
    channels, blocks = cnn.get("channels", 128), cnn.get("num_res_blocks", 2)
    return cnn | dict(channels=2 * channels, num_res_blocks=2 * blocks)


# ------------------------------------------------------------------------------------- the loss
def semantic_loss(features: Tensor, teacher: Tensor) -> Tensor:
    """mean over tokens of 1 - cos(features, teacher), 0-dim; no gradient to the teacher. ValueError
    for shapes that differ.

    features, teacher: (B, N, D).
    """
    check_tokens(features, None, "features")
    check_tokens(teacher, None, "teacher")
    if features.shape != teacher.shape:
        shapes = f"teacher has shape {tuple(teacher.shape)} but features {tuple(features.shape)}"
        raise ValueError(f"{shapes}: they need the same tokens and channels")
    return (1 - (unit(features) * unit(teacher.detach())).sum(dim=-1)).mean()


# ----------------------------------------------------------------------------- official weights
def convert_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of the official code (tokenflow_clipb_32k_enhanced.pt) -> of `TokenFlow`.

    Names of the CNNs, the decoders and the task layers are the same. The tower's (`encoder_vqkd.`)
    stay as they are, CLIP's: they fit once a module with those names is `model.encoder_vqkd`.
    """
    books = [f"quantize.embedding_{name}.weight" for name in ("vqkd", "vqgan")]
    missing = [name for name in books if name not in state]
    if missing:
        raise ValueError(f"state lacks {missing}: needs the two codebooks")
    codebook = torch.cat([widen(state[name]) for name in books], dim=1)
    prefix = "quantizer.quantizers.0."
    out = {
        f"{prefix}codebook": codebook,
        f"{prefix}count": codebook.new_zeros(len(codebook)),
        f"{prefix}idle": torch.zeros(len(codebook), dtype=torch.long, device=codebook.device),
        f"{prefix}started": torch.ones((), dtype=torch.bool, device=codebook.device),
    }
    for name, value in state.items():
        if name.startswith(("quantize.", "scaling_layer.")) or name.endswith(".v_bias"):
            continue
        if name.endswith(".q_bias"):
            values = state[name.replace(".q_bias", ".v_bias")]
            value = torch.cat([value, torch.zeros_like(value), values])
            name = name.replace(".q_bias", ".qkv.bias")
        out[name.replace("decoder_vqkd.fc_norm", "decoder_vqkd.norm")] = value
    return out
