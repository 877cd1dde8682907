"""Unit vectors and cosines of all pairs, right for tokens of any length."""

import torch
from torch import Tensor

from ..nn.checks import at_hand, check_finite, check_float, check_tokens, readable
from .precision import widen

BAND, BANDS = 48, 4
"""The symmetric cosine matrix is computed in at most BANDS bands of rows, of about BAND at least:
5/8 of all products where there are four. They are of one height, give or take a row or three: a
last band of a few rows would go through another routine of the BLAS, and in float32 exact copies of
a token would no longer have the same cosines."""


def unit(tokens: Tensor, eps: float = 1e-12) -> Tensor:
    """tokens (..., D) -> x / max(|x|, eps), float32 at least.

    A zero token stays zero: its cosine to all is 0, its distance 1. A finite token whose square
    overflows (|x| beyond 1e19 in float32) is divided by its largest entry first.
    """
    check_float(tokens, "tokens")
    x = widen(tokens)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    if not at_hand(norm) or not norm.isfinite().all():
        scale = torch.where(norm.isfinite(), 1, x.abs().amax(dim=-1, keepdim=True))
        x = x / scale
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.clamp_min(eps)


def within_range(tokens: Tensor) -> Tensor:
    """tokens (B, N, ...) whose products and sums stay finite: as they are, or, where the largest
    entry is beyond 1e12, divided by it. Directions and ratios are the same."""
    check_float(tokens, "tokens")
    if tokens.numel() == 0:
        return tokens
    low, high = tokens.detach().aminmax()        # one pass, and the fastest that there is
    largest = torch.maximum(high, -low)
    if at_hand(tokens) and largest < 1e12:
        return tokens
    return tokens / torch.where(largest < 1e12, 1, largest)


def cosines(tokens: Tensor) -> Tensor:
    """(B, N, D) -> (B, N, N), symmetric to the bit: of two tokens, each is as near to the other.

    On a CPU in bands of rows; what lies below a band is a copy of its mirror image.
    """
    check_tokens(tokens)
    batch, num_tokens, _ = tokens.shape
    if tokens.device.type != "cpu" or torch.compiler.is_compiling():
        x = unit(tokens)
        half = (x @ x.transpose(1, 2)).triu()
        return half + half.triu(1).transpose(1, 2)
    cosine = widen(tokens[:, :, :0]).new_empty(batch, num_tokens, num_tokens)
    bands = min(BANDS, max(1, num_tokens // BAND))
    height = -(-num_tokens // bands)
    for image, out in zip(tokens, cosine, strict=True):             # unit vectors of one at a time
        x = unit(image)
        for start in range(0, num_tokens, height):
            stop = min(start + height, num_tokens)
            torch.mm(x[start:stop], x[start:].T, out=out[start:stop, start:])
            out[stop:, start:stop] = out[start:stop, stop:].T
            corner = out[start:stop, start:stop]
            if not torch.equal(corner, corner.T):                   # some sizes of some BLAS
                corner.copy_(corner.triu() + corner.triu(1).T)
    return cosine


def check_cosines(cosine: Tensor, tokens: Tensor, name: str) -> None:
    """`check_finite(tokens, name)` without another pass over the tokens: one that is not finite has
    NaN as its cosine to itself.

    Args:
        cosine: (B, N, N), `cosines` of all tokens or of those of some images.
        tokens: (B', N, D), all of them.
        name: what the message calls them.
    """
    if readable(cosine) and cosine.diagonal(dim1=1, dim2=2).isnan().any():
        check_finite(tokens, name)
