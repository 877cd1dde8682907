"""The plain way to more features: cross-attention from every pixel to all coarse tokens.

No paper's own method, but the plainest member of the family that UPLiFT competes with (LoftUp,
AnyUp), built on UPLiFT's image encoder for comparison at equal data.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..nn import attend, check_dtype, check_int, places_2d
from .uplift import Encoder, Widths, check_pair, check_size

PLACES = 16                                                         # channels of a pixel's position


class CrossAttentionUpsampler(nn.Module):
    """Every output pixel asks all coarse features.

        out = softmax(Q K^T / sqrt(dim)) V      Q: image features and position at each pixel
                                                K: the same pooled to the grid, and the features
                                                V: the features

    One step to any size; the output is a convex combination too, of ALL inputs. Cost
    HW hw (dim + C): quadratic in the number of tokens. ValueError for bad sizes.

    Args:
        in_channels: C.
        encoder: widths of the image encoder, as in `UPLiFT`.
        dim: channels of queries and keys.
        norm: "batch" or "layer".
    """

    def __init__(
        self, in_channels: int = 384, encoder: Sequence[Widths] = (16, 32, 64), dim: int = 64,
        norm: str = "batch",
    ):
        super().__init__()
        self.in_channels = check_int(in_channels, "in_channels", 1)
        dim = check_int(dim, "dim", 1)
        self.encoder = Encoder(encoder, norm)
        channels = self.encoder.out_channels[-1] + PLACES
        self.query = nn.Conv2d(channels, dim, 1)
        self.key = nn.Conv2d(channels + self.in_channels, dim, 1)

    def forward(
        self, images: Tensor, features: Tensor, size: Sequence[int] | int | None = None,
        return_attn: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """-> (B, C, *size). ValueError for shapes that do not fit.

        Args:
            images: (B, 3, H, W).
            features: (B, C, h, w).
            size: (rows, columns) of the result, or one int for both; None: the images'.
            return_attn: also the weights (B, 1, rows * columns, h * w).
        """
        check_pair(images, features, self.in_channels)
        check_dtype(images, self.query.weight, "images")                # features are cast to it
        size = images.shape[-2:] if size is None else check_size(size)
        encoded = self.encoder(images)[-1]
        query = self.query(_located(encoded, size))
        key = _located(encoded, features.shape[-2:])
        key = self.key(torch.cat([key, features.to(key.dtype)], dim=1))
        q, k, v = (rearrange(t, "b c h w -> b 1 (h w) c") for t in (query, key, features))
        out = attend(q, k, v.to(q.dtype), return_attn=return_attn)
        out, attn = out if return_attn else (out, None)
        out = rearrange(out, "b 1 (h w) c -> b c h w", h=size[0])
        return (out, attn) if return_attn else out


def _located(encoded: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, C, H, W) pooled to a size, and each place at wavelengths 2, 1, 1/2 and 1/4."""
    pooled = F.interpolate(encoded, size=tuple(size), mode="area")
    places = places_2d(tuple(size), PLACES, math.pi, pooled.device).to(pooled.dtype)
    places = rearrange(places, "(h w) c -> c h w", h=size[0])
    return torch.cat([pooled, places.expand(pooled.shape[0], -1, -1, -1)], dim=1)
