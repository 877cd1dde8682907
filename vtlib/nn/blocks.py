"""The pre-norm transformer block: x = x + Attention(LN(x)); x = x + MLP(LN(x))."""

import torch
from torch import nn

from .attention import Attention


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training drop the whole residual branch of a sample with probability `rate`,
    and scale the survivors by 1 / (1 - rate). Identity in eval mode."""

    def __init__(self, rate=0.0):
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop_path rate={rate} must lie in [0, 1)")
        self.rate = rate

    def forward(self, x):
        if self.rate == 0.0 or not self.training:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) >= self.rate      # b 1 1
        return x * keep.to(x.dtype) / (1.0 - self.rate)


class Mlp(nn.Module):
    """fc2(GELU(fc1(x))), hidden width `hidden_dim`; works on the last axis."""

    def __init__(self, embed_dim, hidden_dim):
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """One encoder layer of the ViT (Dosovitskiy et al. 2021, eq. 2-3); state-dict names as in timm.

    Args: embed_dim D, num_heads, mlp_ratio (hidden width of the MLP / D), qkv_bias, drop_path (rate), eps of the LayerNorms.
    """

    def __init__(self, embed_dim, num_heads, mlp_ratio=4.0, qkv_bias=True, drop_path=0.0, eps=1e-6):
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dim, eps=eps)
        self.attn = Attention(embed_dim, num_heads, qkv_bias)
        self.norm2 = nn.LayerNorm(embed_dim, eps=eps)
        self.mlp = Mlp(embed_dim, int(embed_dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x, bias=None, rope=None, return_attn=False):
        """x: (B, N, D) -> (B, N, D); with return_attn=True also the weights (B, heads, N, N)."""
        y = self.attn(self.norm1(x), bias, rope, return_attn)
        y, attn = y if return_attn else (y, None)
        x = x + self.drop_path(y)
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return (x, attn) if return_attn else x
