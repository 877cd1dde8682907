"""Greedy max-min selection: tokens that lie far from each other, one at a time."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn.checks import check_tokens
from .precision import full_precision, widen
from .select import resolve_keep


def unit(tokens: Tensor, eps: float = 1e-12) -> Tensor:
    """tokens (..., D) -> x / max(|x|, eps), float32 at least. A zero token stays zero: its cosine to all is 0, its distance 1."""
    return F.normalize(widen(tokens), dim=-1, eps=eps)


def greedy_maxmin(tokens: Tensor, keep: int | float, weight: Tensor | None = None, first: str | Tensor | None = None,
                  ) -> tuple[Tensor, Tensor]:
    """Greedy max-min selection: again and again the token farthest from its nearest chosen one.

        i_t = argmax over i not chosen of  w_i min over chosen j of d(i, j),        d(i, j) = 1 - cos(x_i, x_j)

    tokens (B, N, D). keep: int or fraction (`resolve_keep`) -> T. weight (B, N): w >= 0, None is 1. The first token:
    None: argmax of w_i min over j != i of d(i, j), the most isolated token; "weight": argmax w; a tensor (B,): these tokens.
    Returns index (B, T) long in order of choice, and gains (B, T): the score of each choice when it was made; gains[:, 0] is w
    when first="weight", otherwise the weighted distance to the nearest other token (inf when N = 1).

    Without weights gains[:, 1:] never rise and gains[:, -1] is the smallest distance in the set. A chosen token is masked, so no
    token comes twice, not even among exact copies; ties go to the lower index. Computed in float32 at least, gains come in the
    dtype of the tokens; no gradient. Cost N^2 D for the cosines and N T for the choices: one running vector "nearest chosen"
    instead of T scans of the whole set. ValueError: keep out of range, shapes that do not fit, an unknown `first`.
    """
    check_tokens(tokens)
    batch, num_tokens, _ = tokens.shape
    keep = resolve_keep(keep, num_tokens)
    if weight is not None and weight.shape != tokens.shape[:2]:
        raise ValueError(f"weight has shape {tuple(weight.shape)} but the tokens need (B, N) = {(batch, num_tokens)}")
    if isinstance(first, Tensor) and first.shape != (batch,):
        raise ValueError(f"first has shape {tuple(first.shape)} but needs one token an image, ({batch},)")
    if not isinstance(first, Tensor) and first not in (None, "weight"):
        raise ValueError(f"first={first!r} must be None (most isolated), 'weight' (largest weight) or a tensor (B,) of indices")
    if isinstance(first, str) and weight is None:
        raise ValueError("first='weight' but weight=None: it needs weights (B, N)")

    with torch.no_grad(), full_precision(tokens.device):
        x = unit(tokens)
        cosine = x @ x.transpose(1, 2)                                           # b n n
        cosine.diagonal(dim1=1, dim2=2).fill_(-torch.inf)                        # nobody is its own neighbour
        rows = cosine.view(batch * num_tokens, num_tokens)                       # row of token i of image b: b n + i
        offset = torch.arange(batch, device=x.device) * num_tokens
        weight = 1 if weight is None else weight.to(x.dtype)
        if isinstance(first, str):
            gain, chosen = weight.max(dim=1)
        else:
            gain = weight * (1 - cosine.amax(dim=2))                             # b n
            gain, chosen = gain.max(dim=1) if first is None else (gain.gather(1, first[:, None])[:, 0], first)
        index, gains = [chosen], [gain]
        near = torch.full_like(rows[:batch], torch.inf)                          # distance to the nearest chosen token, b n
        taken = torch.zeros_like(near, dtype=torch.bool)
        for _ in range(keep - 1):
            torch.minimum(near, 1 - rows.index_select(0, offset + chosen), out=near)
            taken.scatter_(1, chosen[:, None], True)
            gain, chosen = (weight * near).masked_fill_(taken, -torch.inf).max(dim=1)
            index.append(chosen)
            gains.append(gain)
        return torch.stack(index, dim=1), torch.stack(gains, dim=1).to(tokens.dtype)
