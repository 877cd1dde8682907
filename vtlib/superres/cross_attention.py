"""The plain way to more features: cross-attention from every pixel to all coarse tokens. No paper's own method, but the plainest member of the family
that UPLiFT competes with (LoftUp, AnyUp), built on UPLiFT's image encoder for comparison at equal data."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..nn import attend, check_images, places_2d
from .uplift import Encoder


class CrossAttentionUpsampler(nn.Module):
    """Every output pixel asks all coarse features.

        out = softmax(Q K^T / sqrt(dim)) V      Q: image features and position at each pixel; K: the same pooled to the grid, and the features; V: features

    One step to any size; the output is a convex combination too, of ALL inputs. Cost HW hw (dim + C): quadratic in the number of tokens.
    Args: in_channels C; encoder: widths of the image encoder, as in UPLiFT; dim of queries and keys.
    """

    def __init__(self, in_channels=384, encoder=(16, 32, 64), dim=64, norm="batch"):
        super().__init__()
        self.in_channels = in_channels
        self.encoder = Encoder(encoder, norm)
        channels = self.encoder.out_channels[-1]
        self.query = nn.Conv2d(channels + 16, dim, 1)
        self.key = nn.Conv2d(channels + 16 + in_channels, dim, 1)

    def forward(self, images, features, size=None, return_attn=False):
        """images (B, 3, H, W), features (B, C, h, w) -> (B, C, *size), default the image's size; with return_attn=True also weights (B, 1, HW, hw)."""
        check_images(images)
        check_images(features, self.in_channels, "features")
        size, grid = tuple(size or images.shape[-2:]), tuple(features.shape[-2:])
        encoded = self.encoder(images)[-1]
        q, k = (F.interpolate(encoded, size=s, mode="area") for s in (size, grid))
        at_q, at_k = (_places(s, features) for s in (size, grid))
        q = self.query(torch.cat([q, at_q.to(q.dtype)], 1))
        k = self.key(torch.cat([k, at_k.to(k.dtype), features.to(k.dtype)], 1))
        q, k, v = (rearrange(t, "b c h w -> b 1 (h w) c") for t in (q, k, features))
        out = attend(q, k, v.to(q.dtype), return_attn=return_attn)
        out, attn = out if return_attn else (out, None)
        out = rearrange(out, "b 1 (h w) c -> b c h w", h=size[0])
        return (out, attn) if return_attn else out


def _places(size, like):
    """(B, 16, h, w) for B features `like`: where each pixel is, at wavelengths 2, 1, 1/2, 1/4."""
    places = places_2d(size, 16, math.pi, like.device).to(like.dtype)
    return rearrange(places, "(h w) c -> c h w", h=size[0]).expand(like.shape[0], -1, -1, -1)
