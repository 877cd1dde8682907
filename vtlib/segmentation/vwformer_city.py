"""VWFormer's decoder for Cityscapes, the release's VWCityHead: the same windows, plainer layers."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..nn import attend, check_heads
from .conv_module import ConvModule
from .vwformer import VWHead, check_pair


class MultiheadVWA(nn.Module):
    """The same by standard multi-head attention (Cityscapes): biases, no norm; names as in torch.

    Args:
        channels: C.
        num_heads: must divide C.
    """

    def __init__(self, channels: int, num_heads: int = 1) -> None:
        super().__init__()
        check_heads(channels, num_heads)
        channels, self.num_heads = int(channels), int(num_heads)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, context: Tensor, return_attn: bool = False) -> Any:
        """As `VWA.forward`.

        Args:
            query: query windows (N, C, P, Q).
            context: of each of them (N, C, P', Q').
            return_attn: also return the weights (N, heads, P Q, P' Q').
        """
        channels = self.in_proj_weight.shape[1]
        check_pair(query, context, channels)
        tokens = [rearrange(t, "n c p q -> n (p q) c") for t in (query, context)]
        q = F.linear(tokens[0], self.in_proj_weight[:channels], self.in_proj_bias[:channels])
        kv = F.linear(tokens[1], self.in_proj_weight[channels:], self.in_proj_bias[channels:])
        heads = (q, *kv.chunk(2, dim=-1))
        q, k, v = (rearrange(t, "n l (m d) -> n m l d", m=self.num_heads) for t in heads)
        out = attend(q, k, v, return_attn=return_attn)
        out, attn = out if return_attn else (out, None)
        out = self.out_proj(rearrange(out, "n m l d -> n l (m d)"))
        out = rearrange(out, "n (p q) c -> n c p q", p=query.shape[2])
        return (out, attn) if return_attn else out


class VWCityHead(VWHead):
    """The decoder for Cityscapes: every projection is convolution, norm, ReLU; levels grow by
    nearest neighbours; no image pool; standard multi-head attention.

    Args:
        in_channels: of the four maps.
        num_classes: K.
        num_heads: of the attention.
        short_cut: whether the fused levels are added to what each scale gives.
        options: the rest of `VWHead`.
    """

    level_mode = "nearest"
    pools = False

    def __init__(
        self,
        in_channels: Sequence[int] = (96, 192, 384, 768),
        num_classes: int = 19,
        num_heads: int = 16,
        short_cut: bool = False,
        **options: Any,
    ) -> None:
        options = dict(options, num_heads=num_heads, short_cut=short_cut)
        super().__init__(in_channels, num_classes, **options)

    def _project(self, in_channels: int, out_channels: int) -> nn.Module:
        return ConvModule(in_channels, out_channels)

    def _attention(self, channels: int, num_heads: int) -> nn.Module:
        return MultiheadVWA(channels, num_heads)
