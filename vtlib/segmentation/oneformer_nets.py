"""Layers of OneFormer's queries: attention whose keys and values differ, post-norm decoder layers,
sine positions, and a small net that gives a picture's maps. State-dict names are the release's.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..nn.attention import attend
from ..nn.checks import (
    check_channels,
    check_dtype,
    check_heads,
    check_images,
    check_int,
    check_ints,
)


def sine_positions(
    grid: tuple[int, int], embed_dim: int, device: torch.device | str | None = None
) -> Tensor:
    """Sine encoding of a grid's places, (h*w, D), as in DETR: rows first, then columns.

    Row r of h is the angle 2 pi (r + 1) / h, so the last row is a full turn at any size; channel
    pair i divides it by 10000^(2i / (D/2)), sine and cosine side by side.

    Args:
        grid: (h, w).
        embed_dim: D. ValueError unless it is a multiple of 4.
        device: where it is made.
    """
    height, width = check_ints(grid, "grid", 1, length=2)
    embed_dim = check_int(embed_dim, "embed_dim", 4)
    if embed_dim % 4:
        raise ValueError(f"embed_dim={embed_dim} must be a multiple of 4: sine, cosine, two axes")
    half = embed_dim // 2
    pairs = torch.arange(0, half, 2, device=device, dtype=torch.float32)
    frequency = 10000.0 ** (-pairs / half)                                     # d/4

    def waves(length: int) -> Tensor:
        steps = torch.arange(1, length + 1, device=device, dtype=torch.float32)
        angle = (steps / (length + 1e-6) * 2 * math.pi)[:, None] * frequency
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)      # l d/2

    rows = waves(height)[:, None].expand(height, width, half)
    cols = waves(width)[None].expand(height, width, half)
    return rearrange(torch.cat([rows, cols], dim=-1), "h w d -> (h w) d")


class MLP(nn.Module):
    """Linear layers with ReLU between them: widths D_in, D, ..., D, D_out.

    Args:
        in_dim: D_in.
        embed_dim: D.
        out_dim: D_out.
        num_layers: how many linear layers.
    """

    def __init__(self, in_dim: int, embed_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        num_layers = check_int(num_layers, "num_layers", 1)
        widths = [in_dim, *[embed_dim] * (num_layers - 1), out_dim]
        widths = check_ints(widths, "in_dim, embed_dim, out_dim", 1)
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D_in) -> (..., D_out)."""
        check_channels(x, self.layers[0].in_features)
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class StreamAttention(nn.Module):
    """Attention with queries, keys and values of three origins; torch's state-dict names."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        check_heads(embed_dim, num_heads)
        self.num_heads = int(num_heads)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim))
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None):
        """query (B, Q, D), key and value (B, N, D) -> (B, Q, D).

        Args:
            query: who asks.
            key: what the questions are compared with.
            value: what is read.
            mask: None, or boolean, True = attend, broadcastable to (B, heads, Q, N).
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        streams = zip((query, key, value), weights, biases, strict=True)
        q, k, v = (
            rearrange(F.linear(x, weight, bias), "b n (h p) -> b h n p", h=self.num_heads)
            for x, weight, bias in streams
        )
        return self.out_proj(rearrange(attend(q, k, v, mask), "b h n p -> b n (h p)"))


# ------------------------------------------------------- post-norm layers of the masked decoder
def allowed(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Where each query may look in the next layer: (B, N, H, W) -> bool (B, N, h, w).

    Its own mask, resized: probability at least 0.5. No gradient flows. A query without a single
    such place is not helped here, see `oneformer.Predictor.forward`.
    """
    mask = F.interpolate(mask_logits.detach(), size=size, mode="bilinear", align_corners=False)
    return mask.sigmoid() >= 0.5


class CrossAttentionLayer(nn.Module):
    """x = LN(x + Attention(x + place, memory + position, memory))."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.multihead_attn = StreamAttention(embed_dim, num_heads)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor, place: Tensor, memory: Tensor, position: Tensor, mask: Tensor):
        """x (B, Q, D) -> (B, Q, D).

        Args:
            x: queries.
            place: learnt positions of the queries, (1, Q, D).
            memory: (B, N, D), the values.
            position: (1, N, D), added to make the keys.
            mask: boolean (B, 1, Q, N), True = attend.
        """
        return self.norm(x + self.multihead_attn(x + place, memory + position, memory, mask))


class SelfAttentionLayer(nn.Module):
    """x = LN(x + Attention(x + place, x + place, x))."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.self_attn = StreamAttention(embed_dim, num_heads)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        return self.norm(x + self.self_attn(x + place, x + place, x))


class FFNLayer(nn.Module):
    """x = LN(x + linear2(ReLU(linear1(x))))."""

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(embed_dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.linear2(F.relu(self.linear1(x))))


# ------------------------------------------------------------- the transformer that forms queries
class QueryLayer(nn.Module):
    """Self attention, cross attention, feed-forward, each added and then normed.

    Args:
        embed_dim: D.
        num_heads: must divide D.
        hidden_dim: of the feed-forward net.
        dropout: of each branch, in training. (The release also drops attention weights.)
    """

    def __init__(self, embed_dim: int, num_heads: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = StreamAttention(embed_dim, num_heads)
        self.multihead_attn = StreamAttention(embed_dim, num_heads)
        self.linear1 = nn.Linear(embed_dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, embed_dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(embed_dim) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, place: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """x (B, Q, D) -> (B, Q, D).

        Args:
            x: queries.
            place: their learnt positions, (1, Q, D).
            key: (B, N, D).
            value: (B, N, D).
        """
        x = self.norm1(x + self.dropout(self.self_attn(x + place, x + place, x)))
        x = self.norm2(x + self.dropout(self.multihead_attn(x + place, key, value)))
        hidden = self.dropout(F.relu(self.linear1(x)))
        return self.norm3(x + self.dropout(self.linear2(hidden)))


class QueryDecoder(nn.Module):
    """Query layers, then one LayerNorm.

    Args:
        embed_dim: D.
        num_heads: must divide D.
        hidden_dim: of the feed-forward nets.
        num_layers: how many.
        dropout: in training.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, hidden_dim: int, num_layers: int, dropout: float
    ) -> None:
        super().__init__()
        sizes = (embed_dim, num_heads, hidden_dim, dropout)
        self.layers = nn.ModuleList(QueryLayer(*sizes) for _ in range(num_layers))
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor, place: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """x (B, Q, D) -> (B, Q, D).

        Args:
            x: as in `QueryLayer`.
            place: as there.
            key: as there.
            value: as there.
        """
        for layer in self.layers:
            x = layer(x, place, key, value)
        return self.norm(x)


class QueryTransformer(nn.Module):
    """The release's `class_transformer`, which has no encoder layers: a decoder that looks at a
    map and at the places of its pixels."""

    def __init__(self, decoder: QueryDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, x: Tensor, place: Tensor, features: Tensor) -> Tensor:
        """x (B, N - 1, D), place (1, N - 1, D), features (B, D, H, W) -> (B, N - 1, D).

        Args:
            x: the task token, repeated.
            place: learnt positions of the queries.
            features: projected mask features.
        """
        grid = (features.shape[2], features.shape[3])
        sine = sine_positions(grid, features.shape[1], features.device).to(features.dtype)
        value = sine.expand(features.shape[0], -1, -1)                          # b hw d
        key = value + rearrange(features, "b d h w -> b (h w) d")
        return self.decoder(x, place, key, value)


# --------------------------------------------------------------------------- maps of a picture
class ConvPyramid(nn.Module):
    """A picture's maps from plain convolutions, in place of backbone and pixel decoder.

    Five strides of 2 with GroupNorm and ReLU, then from coarse to fine each map is added to a 1 x 1
    convolution of its finer neighbour (a feature pyramid). NOT the paper's, which has a Swin,
    ConvNeXt or DiNAT backbone and six layers of deformable attention; for small experiments.

    Args:
        embed_dim: D of all maps that come out.
        channels: of the five strides.
        groups: of GroupNorm; must divide D and all channels.
    """

    def __init__(
        self, embed_dim: int, channels: Sequence[int] = (16, 32, 64, 64, 64), groups: int = 8
    ) -> None:
        super().__init__()
        widths = check_ints(channels, "channels", 1, length=5)
        embed_dim, groups = check_int(embed_dim, "embed_dim", 1), check_int(groups, "groups", 1)
        if any(width % groups for width in (*widths, embed_dim)):
            raise ValueError(f"groups={groups} must divide {embed_dim} and channels={widths}")
        pairs = zip((3, *widths[:-1]), widths, strict=True)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.GroupNorm(groups, b), nn.ReLU())
            for a, b in pairs
        )
        self.lateral = nn.ModuleList(nn.Conv2d(width, embed_dim, 1) for width in widths[1:])
        self.smooth = nn.ModuleList(
            nn.Sequential(nn.Conv2d(embed_dim, embed_dim, 3, 1, 1), nn.GroupNorm(groups, embed_dim))
            for _ in widths[1:]
        )
        self.mask_features = nn.Conv2d(embed_dim, embed_dim, 1)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """(B, 3, H, W) -> ([1/32, 1/16, 1/8], 1/4), maps (B, D, h, w), coarsest first."""
        check_images(images)
        check_dtype(images, self.stages[0][0].weight, "images")
        maps, x = [], images
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        out: list[Tensor] = []
        for x, lateral, smooth in zip(maps[:0:-1], self.lateral[::-1], self.smooth, strict=True):
            y = lateral(x)
            if out:
                y = y + F.interpolate(out[-1], size=y.shape[-2:], mode="bilinear")
            out.append(F.relu(smooth(y)))
        return out[:3], self.mask_features(out[3])
