"""What every tokenizer of this package is: images in, tokens, images out.

    out = tokenizer(images)                              images (B, 3, H, W) in [0, 1]
    out.images, out.quantized.indices                    the reconstruction and its tokens
    tokenizer.decode_indices(out.quantized.indices)      the same picture, from the tokens alone
    loss, parts = tokenizer.loss(images, teacher)        what training minimises
"""

import math
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.checks import check_images, check_index
from ..quantize.contract import Quantized
from ..quantize.kl import Sampled
from ..tokens.precision import widen


class Reconstruction(NamedTuple):
    """What a tokenizer makes of images.

    Args:
        images: (B, 3, H, W), about [0, 1], not clamped: a loss needs the gradient of what is out
            of range, too.
        quantized: the tokens; `Sampled` of a continuous tokenizer.
        features: (B, N, D) what the method compares with a teacher's features; None: it has none.
    """

    images: Tensor
    quantized: Quantized | Sampled
    features: Tensor | None = None


class Tokenizer(nn.Module):
    """Base class. A method gives `encode` and `decode`, an attribute `quantizer`, and, where the
    paper has more terms than these two, `loss`.
    """

    quantizer: Any

    def encode(self, images: Tensor) -> Quantized | Sampled:
        """images (B, 3, H, W) in [0, 1] -> tokens, codes channels last: (B, h, w, C) on a grid,
        (B, N, C) in one dimension."""
        raise NotImplementedError

    def decode(self, codes: Tensor) -> Tensor:
        """codes as of `encode` -> images (B, 3, H, W), not clamped."""
        raise NotImplementedError

    def decode_indices(self, indices: Tensor) -> Tensor:
        """indices as of `encode` -> images (B, 3, H, W), bit for bit those of `forward` in eval
        mode. ValueError for a continuous tokenizer, for indices that are not long or out of range.
        """
        if not hasattr(self.quantizer, "decode"):
            kind = type(self.quantizer).__name__
            raise ValueError(f"indices: a tokenizer with a {kind} has none, its codes are numbers")
        check_index(indices, "indices")
        return self.decode(self.quantizer.decode(indices))

    def forward(self, images: Tensor) -> Reconstruction:
        """images (B, 3, H, W) in [0, 1] -> `Reconstruction`."""
        quantized = self.encode(images)
        return Reconstruction(self.decode(quantized.codes), quantized)

    def bits(self, quantized: Quantized | Sampled) -> float:
        """Bits that the indices of one image take, every code as likely as another: how many there
        are times log2(codebook_size). inf for a continuous tokenizer: real numbers have no number
        of bits."""
        if isinstance(quantized, Sampled):
            return math.inf
        indices = quantized.indices
        return indices[0].numel() * math.log2(self.quantizer.codebook_size)

    def loss(
        self, images: Tensor, teacher: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """mean squared error of the pixels + the quantiser's own loss, and both parts, detached.

        LPIPS and a discriminator, which papers add, are the caller's: `forward` gives the images.

        Args:
            images: (B, 3, H, W) in [0, 1].
            teacher: (B, n, D) features of the same images; methods without a teacher take no
                notice of them.
        """
        out = self(images)
        pixels = pixel_loss(out.images, images)
        parts = {"pixels": pixels, "quantizer": out.quantized.loss}
        return total(parts)


def pixel_loss(images: Tensor, truth: Tensor) -> Tensor:
    """mean((images - truth)^2), 0-dim, in float32 at least. ValueError for shapes that differ."""
    check_images(truth)
    if images.shape != truth.shape:
        raise ValueError(f"images has shape {tuple(images.shape)}, the truth {tuple(truth.shape)}")
    return F.mse_loss(widen(images), widen(truth))


def total(
    parts: dict[str, Tensor], weights: dict[str, float] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """(sum of weight * part, the parts as they are, detached); a weight that isn't given is 1.

    Args:
        parts: 0-dim losses by name.
        weights: their weights by the same names.
    """
    weights = weights or {}
    unknown = weights.keys() - parts.keys()
    if unknown:
        raise ValueError(f"weights has {sorted(unknown)}, but the parts are {list(parts)}")
    loss = sum(weights.get(name, 1.0) * part for name, part in parts.items())
    return loss, {name: part.detach() for name, part in parts.items()}
