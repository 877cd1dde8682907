"""Multi-head attention.

    Attention(Q, K, V) = softmax(Q K^T / sqrt(P) + bias) V          P = channels of one head
                                                                    (Vaswani et al. 2017, eq. 1)
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .checks import check_flag, check_float, check_heads, check_int, check_tokens, describe
from .positions import apply_rope


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, return_attn: bool = False
) -> Any:
    """softmax(q k^T / sqrt(P) + bias) v on (B, heads, N, P) tensors.

    Args:
        q: (B, heads, queries, P).
        k: (B, heads, keys, P).
        v: (B, heads, keys, P_v); P_v may differ from P.
        bias: None, a boolean mask (True = attend) or a float tensor added to the logits,
            broadcastable to (B, heads, queries, keys).
        return_attn: also return the weights (B, heads, queries, keys), which the fused kernel
            never writes down.

    Returns (B, heads, queries, P_v). ValueError for shapes that do not fit each other.
    """
    _check(q, k, v, bias)
    return_attn = check_flag(return_attn, "return_attn")
    if bias is not None and bias.dtype != torch.bool:
        bias = bias.to(q.dtype)
    if not return_attn:
        return _fused(q, k, v, bias)
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)                     # b h q k
    if bias is not None and bias.dtype == torch.bool:
        logits = logits.masked_fill(~bias, float("-inf"))
    elif bias is not None:
        logits = logits + bias
    attn = logits.softmax(dim=-1)
    return attn.to(v.dtype) @ v, attn


def _check(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> None:
    needs = "broadcastable to (B, heads, queries, keys)"
    for tensor, name in ((q, "q"), (k, "k"), (v, "v")):
        check_float(tensor, name)
    shapes = tuple(q.shape), tuple(k.shape), tuple(v.shape)
    if min(map(len, shapes)) < 2 or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        raise ValueError(
            f"q, k, v have shapes {shapes}: need (B, heads, queries, P), (B, heads, keys, P) and "
            f"(B, heads, keys, P_v)"
        )
    if bias is None:
        return
    if not isinstance(bias, Tensor) or not 2 <= bias.dim() <= q.dim():
        raise ValueError(f"bias is {describe(bias)} but needs to be a tensor or None, {needs}")
    if bias.dtype != torch.bool and not bias.is_floating_point():
        raise ValueError(f"bias is {describe(bias)} but needs to be boolean or floating")
    if bias.shape[-2] not in (1, q.shape[-2]) or bias.shape[-1] not in (1, k.shape[-2]):
        raise ValueError(f"bias has shape {tuple(bias.shape)} but needs to be {needs}")


def _fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """`scaled_dot_product_attention`, with channels of zeros where P and P_v differ.

    The fused kernel of the CPU takes heads of one size only; with uneven ones torch writes all
    weights down without a word (CATANet, 9 and 10 channels: 4 times slower, 16 times the memory).
    Channels of zeros add nothing to q k^T, and those of v are cut off again. Heads are filled up
    to a multiple of 8 channels: whole vector registers, 1.3 to 1.7 times faster than 10 are.
    Channels that are not side by side in memory (a map's, rearranged) are copied, for the same
    reason.
    """
    q, k, v = (t if t.stride(-1) == 1 else side_by_side(t) for t in (q, k, v))
    head_dim, value_dim = q.shape[-1], v.shape[-1]
    if head_dim == value_dim:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    width = -(-max(head_dim, value_dim) // 8) * 8
    q, k, v = (F.pad(t, (0, width - t.shape[-1])) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=head_dim**-0.5)
    return out[..., :value_dim]


@torch.no_grad()
def start_alike(weight: Tensor) -> None:
    """Keys begin with the weights of queries, in place: like looks at like (Trockman and Kolter,
    "Mimetic initialization", ICML 2023, arXiv 2305.09828).

    Args:
        weight: (3 D, D), of queries, keys and values, in this order.
    """
    check_float(weight, "weight")
    if weight.dim() != 2 or weight.shape[0] != 3 * weight.shape[1]:
        raise ValueError(f"weight has shape {tuple(weight.shape)} but needs (3 D, D)")
    queries, keys, _ = weight.chunk(3)
    keys.copy_(queries)


def side_by_side(x: Tensor) -> Tensor:
    """A copy whose last axis has stride 1. `contiguous` leaves an axis of one channel as it is, and
    the fused kernel then refuses it."""
    return x.clone(memory_format=torch.contiguous_format)


class Attention(nn.Module):
    """Self-attention with one fused qkv projection; state-dict names `qkv`, `proj` as in timm.

    Args:
        embed_dim: D.
        num_heads: must divide D.
        qkv_bias: whether the projection to queries, keys and values has a bias.
    """

    def __init__(self, embed_dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        head_dim = check_heads(embed_dim, num_heads)
        self.num_heads, qkv_bias = int(num_heads), check_flag(qkv_bias, "qkv_bias")
        embed_dim = head_dim * self.num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)

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
            bias: boolean mask (True = attend) or additive float, broadcastable to (B, heads, N, N).
            rope: (cos, sin) tables of `rope_1d` / `rope_2d`, applied to queries and keys.
            return_attn: also return the weights.
        """
        check_tokens(x, self.qkv.in_features, "x")
        qkv = rearrange(self.qkv(x), "b n (three h p) -> three b h n p", three=3, h=self.num_heads)
        q, k, v = qkv
        if rope is not None:
            if not isinstance(rope, (tuple, list)) or len(rope) != 2:
                raise ValueError(f"rope is {describe(rope)} but needs to be a pair (cos, sin)")
            q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        out = attend(q, k, v, bias, return_attn)
        out, attn = out if return_attn else (out, None)
        out = self.proj(rearrange(out, "b h n p -> b n (h p)"))
        return (out, attn) if return_attn else out


class CrossAttention(nn.Module):
    """Attention of some tokens to others: queries from one set, keys and values from another.

    The queries may be learned: a parameter (1, Q, D), expanded over the batch, reads a set of any
    length into Q tokens. Cost Q N instead of N^2. State-dict names as in CrossViT: `wq`, `wk`,
    `wv`, `proj`.

    Args:
        embed_dim: D, of the queries, the result, and inside.
        num_heads: must divide D.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        context_dim: channels of what is read; None: D.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        context_dim: int | None = None,
    ) -> None:
        super().__init__()
        head_dim = check_heads(embed_dim, num_heads)
        self.num_heads, qkv_bias = int(num_heads), check_flag(qkv_bias, "qkv_bias")
        embed_dim = head_dim * self.num_heads
        context_dim = embed_dim if context_dim is None else check_int(context_dim, "context_dim", 1)
        self.wq = nn.Linear(embed_dim, embed_dim, bias=qkv_bias)
        self.wk = nn.Linear(context_dim, embed_dim, bias=qkv_bias)
        self.wv = nn.Linear(context_dim, embed_dim, bias=qkv_bias)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, queries: Tensor, context: Tensor, return_attn: bool = False) -> Any:
        """Queries (B, Q, D), context (B, N, context_dim) -> (B, Q, D).

        Args:
            queries: the tokens that ask.
            context: the tokens that are read.
            return_attn: also return the weights (B, heads, Q, N).
        """
        check_tokens(queries, self.wq.in_features, "queries")
        check_tokens(context, self.wk.in_features, "context")
        parts = (self.wq(queries), self.wk(context), self.wv(context))
        q, k, v = (rearrange(t, "b n (h p) -> b h n p", h=self.num_heads) for t in parts)
        out = attend(q, k, v, return_attn=return_attn)
        out, attn = out if return_attn else (out, None)
        out = self.proj(rearrange(out, "b h n p -> b n (h p)"))
        return (out, attn) if return_attn else out
