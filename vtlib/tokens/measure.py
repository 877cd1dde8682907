"""Numbers that describe a set of tokens or where attention goes."""

import torch
from torch import Tensor

from ..nn.checks import check_finite, check_float, check_tokens, readable
from .cosine import unit
from .precision import full_precision, widen


def entropy(attn: Tensor) -> Tensor:
    """Entropy of each attention row in nats: H = -sum_k a_k log a_k, attn (..., keys) -> (...),
    float32 at least.

    0 when all weight is on one key, log(keys) when it is spread evenly. ValueError for weights that
    are not floating, not finite or negative.
    """
    check_float(attn, "attn")
    if attn.dim() < 1:
        raise ValueError("attn is a single number but needs an axis of keys: (..., keys)")
    check_finite(attn, "attn")
    if readable(attn) and (attn < 0).any():
        raise ValueError(f"attn has a weight of {attn.amin().item()}: weights need to be >= 0")
    return torch.special.entr(widen(attn)).sum(dim=-1)


def redundancy(tokens: Tensor) -> Tensor:
    """How replaceable the tokens are: mean over tokens of the largest cosine similarity to another
    token of the same image.

    tokens (B, N, D), N >= 2 -> (B,), float32 at least. 1 = every token has an exact twin.
    """
    check_tokens(tokens)
    if tokens.shape[1] < 2:
        raise ValueError(
            f"tokens has shape {tuple(tokens.shape)} but needs (B, N, D) with N >= 2: "
            f"twins need a pair"
        )
    check_finite(tokens, "tokens")
    x = unit(tokens)
    with full_precision(tokens.device):
        cosine = x @ x.transpose(1, 2)                              # b n n
    itself = torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
    return cosine.masked_fill(itself, -1.0).amax(dim=-1).mean(dim=-1)
