"""The layers of a Llama-shaped decoder, and what a layer does to its tokens.

    x = x + o(attention(rope(q(n(x))), rope(k(n(x))), v(n(x))))
    x = x + down(silu(gate(n'(x))) * up(n'(x)))        n = RMSNorm

State-dict names are those of Llama and Qwen2 in transformers.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..nn import apply_rope, attend, check_flag, check_heads, check_int, check_number
from ..tokens.precision import widen


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, computed in float32 at least."""

    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(check_int(dim, "dim", 1)))
        self.eps = check_number(eps, "eps", above=0)

    def forward(self, x):
        y = widen(x)
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return y.to(x.dtype) * self.weight


class SelfAttention(nn.Module):
    """The projections of an attention with grouped keys and values.

    Args:
        embed_dim: D.
        num_heads: heads of the queries; must divide D.
        num_kv_heads: heads of keys and values; must divide num_heads.
        qkv_bias: whether q, k, v have biases.
    """

    def __init__(self, embed_dim, num_heads, num_kv_heads, qkv_bias):
        super().__init__()
        self.head_dim = check_heads(embed_dim, num_heads)
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        qkv_bias = check_flag(qkv_bias, "qkv_bias")
        self.q_proj = nn.Linear(embed_dim, num_heads * self.head_dim, bias=qkv_bias)
        self.k_proj = nn.Linear(embed_dim, num_kv_heads * self.head_dim, bias=qkv_bias)
        self.v_proj = nn.Linear(embed_dim, num_kv_heads * self.head_dim, bias=qkv_bias)
        self.o_proj = nn.Linear(num_heads * self.head_dim, embed_dim, bias=False)

    def repeat(self, x):
        """(B, kv heads, N, P) -> (B, heads, N, P): a key and value head serves several queries'."""
        if self.num_heads == self.num_kv_heads:
            return x
        return x.repeat_interleave(self.num_heads // self.num_kv_heads, dim=1)


class Mlp(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, embed_dim, hidden_dim):
        super().__init__()
        self.gate_proj = nn.Linear(embed_dim, hidden_dim, bias=False)
        self.up_proj = nn.Linear(embed_dim, hidden_dim, bias=False)
        self.down_proj = nn.Linear(hidden_dim, embed_dim, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """x + o(attention(n(x))), then x + mlp(n'(x)).

    Args:
        embed_dim: D.
        num_heads: heads of the queries.
        num_kv_heads: heads of keys and values.
        hidden_dim: of the gated MLP.
        qkv_bias: whether q, k, v have biases.
        eps: of the norms.
    """

    def __init__(self, embed_dim, num_heads, num_kv_heads, hidden_dim, qkv_bias, eps):
        super().__init__()
        self.input_layernorm = RMSNorm(embed_dim, eps)
        self.self_attn = SelfAttention(embed_dim, num_heads, num_kv_heads, qkv_bias)
        self.post_attention_layernorm = RMSNorm(embed_dim, eps)
        self.mlp = Mlp(embed_dim, hidden_dim)

    def qk(self, x, rope):
        """Rotated queries (B, heads, S, P) and keys (B, kv heads, S, P) of this layer for its
        input x."""
        y = self.input_layernorm(x)
        split = dict(p=self.self_attn.head_dim)
        q = rearrange(self.self_attn.q_proj(y), "b s (h p) -> b h s p", **split)
        k = rearrange(self.self_attn.k_proj(y), "b s (h p) -> b h s p", **split)
        return rotate(q, *rope), rotate(k, *rope)

    def forward(self, x, rope, mask=None, past=None, watch=False, attention=None):
        """x (B, S, D) -> (x, (k, v), transition).

        Args:
            x: the residual stream.
            rope: tables (B or 1, S, P).
            mask: boolean, True = attend, broadcastable to (B, heads, S, keys); None is causal.
            past: (k, v) of earlier tokens.
            watch: whether the transition is wanted.
            attention: a function (q, k, v) -> (B, heads, S, P) to use instead of the masked one.

        (k, v): rotated keys and values of past and new tokens, (B, kv heads, keys, P).
        transition: None, or with watch {"attention": (magnitude, direction), "mlp": ...}, each
        (B, S): |out| / |in| and cos(in, out) of the module between its norm and the sum.
        """
        y = self.input_layernorm(x)
        attn = self.self_attn
        projections = attn.q_proj, attn.k_proj, attn.v_proj
        q, k, v = (
            rearrange(proj(y), "b s (h p) -> b h s p", p=attn.head_dim) for proj in projections
        )
        q, k = rotate(q, *rope), rotate(k, *rope)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        if attention is not None:
            out = attention(q, attn.repeat(k), attn.repeat(v))
        elif mask is None:
            out = F.scaled_dot_product_attention(
                q, attn.repeat(k), attn.repeat(v), is_causal=q.shape[2] > 1
            )
        else:
            out = attend(q, attn.repeat(k), attn.repeat(v), mask)
        out = attn.o_proj(rearrange(out, "b h s p -> b s (h p)"))
        x = x + out
        z = self.post_attention_layernorm(x)
        change = self.mlp(z)
        seen = {"attention": transition(y, out), "mlp": transition(z, change)} if watch else None
        return x + change, (k, v), seen


def transition(before, after):
    """How a module changes tokens (B, S, D): magnitude |after| / |before| and direction
    cos(before, after), each (B, S)."""
    before, after = widen(before), widen(after)
    magnitude = after.norm(dim=-1) / before.norm(dim=-1).clamp(min=1e-12)
    return magnitude, F.cosine_similarity(before, after, dim=-1)


def rotate(x, cos, sin):
    """Rotary embedding in the rotate-half layout.

    Args:
        x: (B, heads, S, P).
        cos: (B or 1, S, P).
        sin: (B or 1, S, P).
    """
    return apply_rope(x, cos[:, None], sin[:, None])
