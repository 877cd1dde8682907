"""The mask generator that `camouflage` builds on: Mask2Former's (Cheng and others, CVPR 2022, arXiv
2112.01527) without classes. Its pixel decoder is a feature pyramid of convolutions here, in place
of deformable attention."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..nn.checks import check_heads, check_int
from .oneformer_nets import (
    MLP,
    CrossAttentionLayer,
    FFNLayer,
    SelfAttentionLayer,
    allowed,
    sine_positions,
)

LEVELS = 4


class PixelDecoder(nn.Module):
    """From coarse to fine, each level is added to a 1 x 1 convolution of its finer neighbour.

    Args:
        embed_dim: D.
        groups: of GroupNorm.
    """

    def __init__(self, embed_dim: int, groups: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(embed_dim, embed_dim, 1) for _ in range(LEVELS))
        self.smooth = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(embed_dim, embed_dim, 3, padding=1), nn.GroupNorm(groups, embed_dim)
            )
            for _ in range(LEVELS)
        )
        self.mask_features = nn.Conv2d(embed_dim, embed_dim, 1)

    def forward(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Four maps (B, D, h, w), finest first -> (the three coarser, coarsest first; the mask
        features at the finest size)."""
        out: list[Tensor] = []
        layers = zip(levels[::-1], self.lateral, self.smooth, strict=True)
        for x, lateral, smooth in layers:
            y = lateral(x)
            if out:
                y = y + F.interpolate(
                    out[-1], size=y.shape[-2:], mode="bilinear", align_corners=False
                )
            out.append(F.relu(smooth(y)))
        return out[:-1], self.mask_features(out[-1])


class MaskDecoder(nn.Module):
    """Learnt queries and masked attention: each query looks where its own mask is.

    Args:
        embed_dim: D.
        num_queries: N.
        num_layers: cross attention, self attention and feed-forward each; levels take turns.
        num_heads: must divide D.
        hidden_dim: of the feed-forward nets.
    """

    def __init__(
        self,
        embed_dim: int,
        num_queries: int,
        num_layers: int,
        num_heads: int,
        hidden_dim: int,
    ) -> None:
        super().__init__()
        check_heads(embed_dim, num_heads)
        every = range(check_int(num_layers, "num_layers", 0))
        num_queries = check_int(num_queries, "num_queries", 1)
        hidden_dim = check_int(hidden_dim, "hidden_dim", 1)
        self.query_feat = nn.Embedding(num_queries, embed_dim)
        self.query_embed = nn.Embedding(num_queries, embed_dim)
        self.level_embed = nn.Embedding(LEVELS - 1, embed_dim)
        self.cross_attention = nn.ModuleList(
            CrossAttentionLayer(embed_dim, num_heads) for _ in every
        )
        self.self_attention = nn.ModuleList(SelfAttentionLayer(embed_dim, num_heads) for _ in every)
        self.feed_forward = nn.ModuleList(FFNLayer(embed_dim, hidden_dim) for _ in every)
        self.decoder_norm = nn.LayerNorm(embed_dim)
        self.mask_embed = MLP(embed_dim, embed_dim, embed_dim, 3)

    def forward(
        self,
        levels: Sequence[Tensor],
        features: Tensor,
        predict: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Queries after the last layer (B, N, D).

        Args:
            levels: three maps (B, D, h, w), coarsest first.
            features: (B, D, H, W), whose products with the queries are the masks.
            predict: called before every layer and after the last with the normed queries
                (B, N, D) and their mask logits (B, N, H, W); the mask logits that it gives back
                say where the queries look next.
        """
        batch, dtype = features.shape[0], features.dtype
        queries = self.query_feat.weight[None].expand(batch, -1, -1).to(dtype)
        place = self.query_embed.weight[None].to(dtype)
        marks = zip(levels, self.level_embed.weight, strict=True)
        memories = [rearrange(x, "b d h w -> b (h w) d") + mark.to(dtype) for x, mark in marks]
        sizes = [(x.shape[2], x.shape[3]) for x in levels]
        positions = [
            sine_positions(size, x.shape[1], x.device)[None].to(dtype)
            for size, x in zip(sizes, levels, strict=True)
        ]
        masks = predict(*self.masks(queries, features))
        layers = zip(self.cross_attention, self.self_attention, self.feed_forward, strict=True)
        for i, (cross_attention, self_attention, feed_forward) in enumerate(layers):
            level = i % len(sizes)
            inside = allowed(masks, sizes[level]).flatten(2)                         # b n hw
            inside = inside | ~inside.any(dim=-1, keepdim=True)     # nothing allowed: everywhere
            queries = cross_attention(
                queries, place, memories[level], positions[level], inside[:, None]
            )
            queries = feed_forward(self_attention(queries, place))
            masks = predict(*self.masks(queries, features))
        return queries

    def masks(self, queries: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Normed queries (B, N, D) and their mask logits (B, N, H, W)."""
        x = self.decoder_norm(queries)
        return x, torch.einsum("bnd,bdhw->bnhw", self.mask_embed(x), features)
