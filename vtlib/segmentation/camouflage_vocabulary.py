"""Masks in the space of texts, and classes by likeness: the open vocabulary that `camouflage` takes
from ODISE (Xu and others, CVPR 2023, arXiv 2303.04803). Parameter names are ODISE's."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..nn.checks import check_axes, check_float, check_int, check_ints, check_map, describe
from ..tokens.cosine import unit
from .oneformer_nets import MLP

LARGEST_SCALE = 100.0


def pool_masks(features: Tensor, mask_logits: Tensor) -> Tensor:
    """Mean of the map inside each mask: (B, C, H, W), (B, N, H, W) -> (B, N, C).

    Inside is where the probability exceeds 1/2, without a gradient to the mask; an empty mask
    gives zeros.
    """
    check_map(features, "features")
    check_axes(mask_logits, "mask_logits", "(B, N, H, W)")
    if features.shape[::2] != mask_logits.shape[::2] or features.shape[3] != mask_logits.shape[3]:
        shapes = f"{tuple(features.shape)} and mask_logits {tuple(mask_logits.shape)}"
        raise ValueError(f"features has shape {shapes}: both need the same B, H and W")
    inside = (mask_logits.detach() > 0).to(features.dtype)                           # b n h w
    area = inside.sum((2, 3))[..., None] + 1e-8
    return torch.einsum("bnhw,bchw->bnc", inside, features) / area


class MaskEmbedding(nn.Module):
    """z_i = MLP(LN(q_i + linear(LN(pooled_i)))): a mask in the texts' space. ODISE's names.

    Args:
        embed_dim: D of queries and map.
        text_dim: of texts.
    """

    def __init__(self, embed_dim: int = 256, text_dim: int = 768) -> None:
        super().__init__()
        self.pool_proj = nn.Sequential(nn.LayerNorm(embed_dim), nn.Linear(embed_dim, embed_dim))
        self.mask_embed = nn.Sequential(
            nn.LayerNorm(embed_dim), MLP(embed_dim, embed_dim, text_dim, 3)
        )

    def forward(self, queries: Tensor, features: Tensor, mask_logits: Tensor) -> Tensor:
        """Masks' embeddings (B, N, text_dim).

        Args:
            queries: (B, N, D).
            features: (B, D, H, W).
            mask_logits: (B, N, H, W).
        """
        return self.mask_embed(queries + self.pool_proj(pool_masks(features, mask_logits)))


class OpenVocabulary(nn.Module):
    """Cosines with texts over a learnt temperature: the class list is an input.

        scale cos(z, T), scale = min(1 / tau, 100), tau = 0.07 at first; a class has the largest
        value of its synonyms, and the last one, "no object", has a learnt embedding

    Args:
        text_dim: of z and texts.
    """

    def __init__(self, text_dim: int = 768) -> None:
        super().__init__()
        self.null_embed = nn.Parameter(torch.randn(1, check_int(text_dim, "text_dim", 1)))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def scale(self) -> Tensor:
        """1 / tau, at most 100."""
        return self.logit_scale.exp().clamp(max=LARGEST_SCALE)

    def forward(self, z: Tensor, text: Tensor, synonyms: Sequence[int] | None = None) -> Tensor:
        """(B, N, C) -> (B, N, K + 1).

        Args:
            z: mask embeddings, of any length.
            text: (P, C), a row a phrase, those of a class side by side. A row of zeros has
                cosine 0 with everything.
            synonyms: how many phrases each class has, adding up to P; None: one each.
        """
        counts = check_texts(text, self.null_embed.shape[1], synonyms)
        dtype, z = z.dtype, unit(z)
        each = z @ unit(text.to(z.dtype)).T                                          # b n p
        classes = [part.amax(-1) for part in each.split(list(counts), dim=-1)]
        null = z @ unit(self.null_embed.to(z.dtype)).T
        return (self.scale() * torch.cat([torch.stack(classes, -1), null], -1)).to(dtype)


def check_texts(text: Tensor, text_dim: int, synonyms: Sequence[int] | None) -> tuple[int, ...]:
    """Phrases of each class. ValueError for texts of another form and for other sums.

    Args:
        text: (P, text_dim).
        text_dim: as above.
        synonyms: of `OpenVocabulary`.
    """
    check_float(text, "text")
    if text.dim() != 2 or text.shape[1] != text_dim or not text.shape[0]:
        raise ValueError(f"text is {describe(text)} but needs to be (P, {text_dim}), P > 0")
    if synonyms is None:
        return (1,) * text.shape[0]
    counts = check_ints(synonyms, "synonyms", 1)
    if sum(counts) != text.shape[0]:
        raise ValueError(f"synonyms={counts}: add up to {sum(counts)} for {text.shape[0]} texts")
    return counts
