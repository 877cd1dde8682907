"""The pre-norm transformer block: x = x + Attention(LN(x)); x = x + MLP(LN(x))."""

from typing import Any

import torch
from torch import Tensor, nn

from .attention import Attention
from .checks import check_channels, check_float, check_int, check_number, check_tokens


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): identity in eval mode.

    In training it drops the whole residual branch of a sample with probability `rate`, and scales
    the survivors by 1 / (1 - rate).
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = check_number(rate, "drop_path rate", 0)
        if self.rate >= 1:
            raise ValueError(f"drop_path rate={rate} must lie in [0, 1)")

    def forward(self, x: Tensor) -> Tensor:
        check_float(x, "x")
        if self.rate == 0.0 or not self.training:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) >= self.rate   # b 1 1
        return x * keep.to(x.dtype) / (1.0 - self.rate)


class Mlp(nn.Module):
    """fc2(GELU(fc1(x))), hidden width `hidden_dim`; works on the last axis."""

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        embed_dim = check_int(embed_dim, "embed_dim", 1)
        hidden_dim = check_int(hidden_dim, "hidden_dim", 1)
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        check_channels(x, self.fc1.in_features)
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """One encoder layer of the ViT (Dosovitskiy et al. 2021, eq. 2-3); state-dict names as in timm.

    Args:
        embed_dim: D.
        num_heads: must divide D.
        mlp_ratio: hidden width of the MLP / D.
        qkv_bias: whether the projection to queries, keys and values has a bias.
        drop_path: rate of stochastic depth.
        eps: of the LayerNorms.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        embed_dim, eps = check_int(embed_dim, "embed_dim", 1), check_number(eps, "eps", 0)
        self.norm1 = nn.LayerNorm(embed_dim, eps=eps)
        self.attn = Attention(embed_dim, num_heads, qkv_bias)
        self.norm2 = nn.LayerNorm(embed_dim, eps=eps)
        self.mlp = Mlp(embed_dim, int(embed_dim * check_number(mlp_ratio, "mlp_ratio", 0, 1e4)))
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        rope: tuple[Tensor, Tensor] | None = None,
        return_attn: bool = False,
    ) -> Any:
        """x: (B, N, D) -> (B, N, D); with return_attn=True also the weights (B, heads, N, N).

        Args:
            x: tokens.
            bias: see `Attention.forward`.
            rope: see `Attention.forward`.
            return_attn: also return the weights.
        """
        check_tokens(x, self.norm1.normalized_shape[0], "x")
        y = self.attn(self.norm1(x), bias, rope, return_attn)
        y, attn = y if return_attn else (y, None)
        x = x + self.drop_path(y)
        del y                                   # or it lies in memory while the MLP, the peak, runs
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return (x, attn) if return_attn else x
