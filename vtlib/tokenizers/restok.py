"""ResTok - Learning Hierarchical Residuals in 1D Visual Tokenizers for Autoregressive Image
Generation (Zhang et al., 2026, arXiv 2601.03955).

The idea: a flat list of 1-D tokens forgets that pictures are made of scales. ResTok lets the latent
tokens begin as a pyramid of what pooling leaves over, and merges the image tokens into coarser
levels on the way through the encoder, each finer level keeping its residual. Coarse tokens never
look at finer ones, so a code is readable from the front, and a generator can predict whole levels.

    R_0 = map, z_l = pool(R_l), R_l+1 = R_l - up(z_l)     restok_levels.pool_levels, sum_levels
    a token sees its level and all coarser ones,
      image levels first, then latent levels              restok_levels.block_causal_mask
    each grid is shifted by the tokens before it          restok_nets.grid_positions, rope_tables
    m = merge(x), x <- x - up(m), [m, x]                  restok_levels.merge_pairs, ResTokBlock
    a head, a level embedding, an input layer a level     restok_nets.ResTokEncoder, ResTokDecoder
    codes k, k + 1, ... of a sample are hidden            restok_levels.nested_probabilities, hide
    relu(1 - margin - cos), coarsest level -> [CLS],
      second query's tokens -> patches                    alignment, ResTok.loss

The image tokens of a level are merged in pairs side by side, so that only the width halves. The
paper's text says average pooling; the release keeps every other token, `merge="nearest"`: residuals
at even places are 0 then.

Different from the release:
- it reads the latents (B, N, D) as if they were (B, D, N) before the heads, so that a code mixes
  channels of all tokens, and code l depends on levels after it; `legacy=True` does so for released
  weights;
- the second pass, for features, runs when features are asked for, not always;
- lengths of nested dropout are drawn with a generator; the whole length has probability
  1 - drop to the digit (there: for drop = 1 / integer only);
- a level's grid may not be larger than the map;
- the network of pixels is not forced to float32;
- linear layers begin with a deviation of 0.02 at 1024 inputs, as there, but more in narrow nets
  (at width 64 the decoder takes notice of the codes after 60 steps, and with 0.02 after 130);
  convolutions begin as torch's do.

The nets of pixels are in `restok_pixels`, the generator in `restok_har`. LPIPS and the adversarial
term are left to the caller, see `Tokenizer.loss`. The paper's ablations are unknown to us.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import IMAGENET_MEAN, IMAGENET_STD
from ..nn.checks import (
    check_flag,
    check_float,
    check_generator,
    check_images,
    check_int,
    check_ints,
    check_multiple,
    check_number,
    check_tokens,
)
from ..nn.weights import unwrap
from ..quantize import Quantized, VectorQuantizer
from ..tokens.precision import widen
from .base import Reconstruction, Tokenizer, pixel_loss, total
from .restok_levels import Grid, nested_lengths, nested_probabilities
from .restok_nets import Encoded, ResTokDecoder, ResTokEncoder
from .restok_pixels import PixelDecoder, PixelEncoder

PAPER = "restok"


def alignment(features: Tensor, teacher: Tensor, margin: float = 0.25) -> Tensor:
    """mean(relu(1 - margin - cos(feature, teacher's))), 0-dim: what is near enough is left alone.

    Args:
        features: (B, n, D).
        teacher: (B, n, D).
        margin: no gradient where cos > 1 - margin.
    """
    check_float(teacher, "teacher")
    if features.shape != teacher.shape:
        raise ValueError(
            f"teacher has shape {tuple(teacher.shape)}, the features {tuple(features.shape)}"
        )
    cosine = F.cosine_similarity(widen(features), widen(teacher), dim=-1)               # b n
    return F.relu(1 - check_number(margin, "margin", 0, 2) - cosine).mean()


class ResTok(Tokenizer):
    """images (B, 3, H, W) in [0, 1] -> N tokens in levels, and back.

    Args:
        image_size: int or (H, W), the size that `decode` makes when no grid is given.
        channels: of the nets of pixels, see `restok_pixels`.
        multipliers: of those.
        num_res_blocks: of those.
        groups: of their GroupNorms.
        patch_size: of those.
        map_channels: between them and the transformers.
        embed_dim: D.
        num_layers: of the encoder.
        decoder_layers: None: as many.
        num_heads: must divide D.
        num_latents: N.
        stages: levels of image tokens.
        code_dim: channels of a code.
        codebook_size: K.
        teacher_dim: channels of a teacher's features; None: no second query, no alignment.
        merge: see `merge_pairs`; the release: "nearest".
        residual_image: whether finer image levels keep the residual only.
        residual_latents: see `pool_levels`.
        least: the fewest codes that nested dropout keeps.
        drop: how often it keeps fewer than all.
        margin: see `alignment`.
        align_weight: of both alignment terms.
        revive_after: see `VectorQuantizer`; None, as in the paper: never.
        legacy: see the file's docstring.
        from_places: whether tokens have the positions of their regions, and attention begins with
            what is near, see `start_at_places`; the release's are running numbers. For short
            trainings of small models: after 200 steps at 64 px 13.4 dB or more, and 12.0 without.
    """

    def __init__(
        self,
        image_size: int | Grid = 256,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        groups: int = 32,
        patch_size: int = 1,
        map_channels: int = 256,
        embed_dim: int = 1024,
        num_layers: int = 24,
        decoder_layers: int | None = None,
        num_heads: int = 16,
        num_latents: int = 128,
        stages: int = 4,
        code_dim: int = 8,
        codebook_size: int = 8192,
        teacher_dim: int | None = 1024,
        merge: str = "average",
        residual_image: bool = True,
        residual_latents: bool = True,
        least: int = 4,
        drop: float = 0.2,
        margin: float = 0.25,
        align_weight: float = 1.0,
        revive_after: float | None = None,
        legacy: bool = False,
        from_places: bool = False,
    ) -> None:
        super().__init__()
        pixels = (channels, multipliers, num_res_blocks, groups, patch_size)
        self.pixel_encoder = PixelEncoder(map_channels, *pixels)
        self.pixel_decoder = PixelDecoder(map_channels, *pixels)
        self.encoder = ResTokEncoder(
            map_channels, embed_dim, num_layers, num_heads, num_latents, code_dim, stages, merge,
            residual_image, residual_latents, legacy,
        )
        decoder_layers = num_layers if decoder_layers is None else decoder_layers
        self.decoder = ResTokDecoder(
            map_channels, embed_dim, decoder_layers, num_heads, num_latents, code_dim,
            features=teacher_dim is not None,
        )
        if check_flag(from_places, "from_places"):
            self.encoder.start_at_places()
            self.decoder.start_at_places()
        self.quantizer = VectorQuantizer(
            code_dim, codebook_size, learn="gradient", lookup="cosine", revive_after=revive_after
        )
        self.grid = self._grid(_size(image_size))
        self.lengths = nested_lengths(num_latents, least)
        self.drop = check_number(drop, "drop", 0, 1)
        self.margin = check_number(margin, "margin", 0, 2)
        self.align_weight = check_number(align_weight, "align_weight", 0)
        self.vf_proj: nn.Conv2d | None = None
        self.vf_proj_dec: nn.Conv2d | None = None
        if teacher_dim is not None:
            teacher_dim = check_int(teacher_dim, "teacher_dim", 1)
            self.vf_proj = nn.Conv2d(embed_dim, teacher_dim, 1, bias=False)
            self.vf_proj_dec = nn.Conv2d(embed_dim, teacher_dim, 1, bias=False)

    def _grid(self, size: Grid) -> Grid:
        check_multiple(size, self.pixel_encoder.factor)
        return size[0] // self.pixel_encoder.factor, size[1] // self.pixel_encoder.factor

    # -------------------------------------------------------------------------------- in and out
    def encoded(self, images: Tensor) -> Encoded:
        """images (B, 3, H, W) in [0, 1] -> latents before quantisation, image tokens by level."""
        check_images(images)
        mean, std = (images.new_tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
        return self.encoder(self.pixel_encoder((images - mean) / std))

    def encode(self, images: Tensor) -> Quantized:
        """images (B, 3, H, W) in [0, 1] -> tokens: codes (B, N, code_dim), coarse to fine."""
        return self.quantizer(self.encoded(images).latents)

    def decode(
        self, codes: Tensor, keep: int | Tensor | None = None, grid: Grid | None = None
    ) -> Tensor:
        """Codes (B, N, code_dim) -> images (B, 3, H, W), not clamped.

        Args:
            codes: of `encode`.
            keep: so many codes count, an int or (B,) long; the mask token stands for the others.
            grid: (h, w) of the map, for images of another size than `image_size`.
        """
        maps, _ = self.decoder(codes, self.grid if grid is None else grid, keep)
        return self.pixel_decoder(maps)

    def draw_lengths(
        self,
        count: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Nested dropout: how many codes each of `count` samples keeps, (count,) long.

        Args:
            count: B.
            generator: for the random numbers, of the same device.
            device: where they are drawn; None: the CPU.
        """
        check_generator(generator, optional=True)
        device = "cpu" if device is None else device
        chances = nested_probabilities(self.lengths[-1], self.lengths[0], self.drop)
        bounds = chances.cumsum(0)[:-1].to(device, torch.float32)
        chance = torch.rand(count, generator=generator, device=device, dtype=torch.float32)
        chosen = torch.bucketize(chance, bounds, right=True)
        return torch.tensor(self.lengths, device=device)[chosen]

    def forward(
        self,
        images: Tensor,
        keep: int | Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """images (B, 3, H, W) in [0, 1] -> `Reconstruction`; `features` (B, h w, teacher_dim) in
        training alone: the pass that makes them costs as much again.

        Args:
            images: the pictures.
            keep: see `decode`; None: all in eval mode, drawn by `draw_lengths` in training.
            generator: for that.
        """
        out, _ = self._run(images, keep, generator, self.training and self.vf_proj is not None)
        return out

    def _run(
        self, images: Tensor, keep: int | Tensor | None, generator: Any, features: bool
    ) -> tuple[Reconstruction, Encoded]:
        encoded = self.encoded(images)
        quantized = self.quantizer(encoded.latents)
        if keep is None and self.training:
            keep = self.draw_lengths(images.shape[0], generator, images.device)
        grid = self._grid((images.shape[-2], images.shape[-1]))
        maps, seen = self.decoder(quantized.codes, grid, keep, features)
        if seen is not None:
            seen = _project(seen, self.vf_proj_dec)
        return Reconstruction(self.pixel_decoder(maps), quantized, seen), encoded

    # ------------------------------------------------------------------------------------ training
    def loss(
        self,
        images: Tensor,
        teacher: Tensor | None = None,
        summary: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """mean squared error + the quantiser's loss + align_weight (summary + patches), and the
        parts, detached: "pixels", "quantizer", "summary", "patches".

        Args:
            images: (B, 3, H, W) in [0, 1].
            teacher: (B, h w, teacher_dim), features of the same patches; None: no alignment.
            summary: (B, teacher_dim), the teacher's [CLS]; None: the mean of its patches.
            generator: for nested dropout.
        """
        if teacher is not None:
            self._check_teacher(teacher, summary, images)
        out, encoded = self._run(images, None, generator, teacher is not None)
        parts = {"pixels": pixel_loss(out.images, images), "quantizer": out.quantized.loss}
        if teacher is not None and out.features is not None:
            whole = teacher.mean(dim=1) if summary is None else summary
            coarsest = _project(encoded.levels[0].mean(dim=1), self.vf_proj)             # b d
            parts["summary"] = alignment(coarsest[:, None], whole[:, None], self.margin)
            parts["patches"] = alignment(out.features, teacher, self.margin)
        aligned = [name for name in parts if name in ("summary", "patches")]
        return total(parts, dict.fromkeys(aligned, self.align_weight))

    def _check_teacher(self, teacher: Tensor, summary: Tensor | None, images: Tensor) -> None:
        if self.vf_proj is None:
            raise ValueError("teacher is given, but this tokenizer was built with teacher_dim=None")
        h, w = self._grid((images.shape[-2], images.shape[-1]))
        needs = (images.shape[0], h * w, self.vf_proj.out_channels)
        check_tokens(teacher, name="teacher")
        if tuple(teacher.shape) != needs:
            raise ValueError(f"teacher has shape {tuple(teacher.shape)} but needs {needs}")
        if summary is not None and tuple(summary.shape) != needs[::2]:
            raise ValueError(f"summary has shape {tuple(summary.shape)} but needs {needs[::2]}")


def _size(image_size: int | Grid) -> Grid:
    if isinstance(image_size, (tuple, list)):
        h, w = check_ints(image_size, "image_size", 1, length=2)
        return h, w
    side = check_int(image_size, "image_size", 1)
    return side, side


def _project(tokens: Tensor, conv: Any) -> Tensor:
    """A 1 x 1 convolution without bias, on tokens (..., D)."""
    return F.linear(tokens, conv.weight.flatten(1))


def convert_official(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of the release under our names: the codebook's alone differs. Load them into
    `ResTok(merge="nearest", legacy=True, teacher_dim=None)`.

    A teacher inside the checkpoint is left out. ValueError where there is no codebook.
    """
    weights = {k: v for k, v in unwrap(state).items() if not k.startswith("foundation_model.")}
    codebook = weights.pop("quantize.embedding.weight", None)
    if codebook is None:
        raise ValueError("state has no quantize.embedding.weight: this is no ResTok of the release")
    size = codebook.shape[0]
    return weights | {
        "quantizer.codebook": codebook,
        "quantizer.count": torch.zeros(size, device=codebook.device),
        "quantizer.idle": torch.zeros(size, device=codebook.device, dtype=torch.long),
        "quantizer.started": torch.tensor(True, device=codebook.device),
    }
