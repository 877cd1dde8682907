"""How often each cosine occurs among all pairs of a set of tokens: the statistic that GloTok (Zhao,
Zhang and others, 2026, arXiv 2511.14184, equations 4 to 7) teaches a codebook.

    D = {cos(t_i, t_j): i <= j},    B_k = -1 + 2 k / (N - 1)     centres
    p_k = sum over D of exp(-a (D - B_k)^2),    P = p / sum p    soft_histogram
    P_t of the teacher's tokens, once                            teacher_histogram, teacher_centres
    L_hist = sum_k P_t log(P_t / P_s)                            histogram_loss

4096 codes have 8.4 million pairs, times 40 bins: values and gradients are computed in blocks. What
is chosen here and not in the paper: see `glotok.py`.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn.checks import (
    check_axes,
    check_finite,
    check_float,
    check_int,
    check_number,
    readable,
)
from ..quantize.vq import kmeans
from ..tokens.cosine import unit
from ..tokens.precision import exp_normal, full_precision, widen

NUM_BINS, SHARPNESS, EPS = 40, 200.0, 1e-8
CACHED, BLOCK = 2**18, 2**24
"""Numbers of a block, pairs times bins, that are in memory at a time: on a CPU what its cache
holds, elsewhere 64 MiB."""


def centres(num_bins: int, like: Tensor) -> Tensor:
    """B_k = -1 + 2 k / (N - 1), (N,), both ends among them; dtype and device of `like`."""
    num_bins = check_int(num_bins, "num_bins", 2)
    return torch.linspace(-1, 1, num_bins, dtype=like.dtype, device=like.device)


def soft_histogram(
    tokens: Tensor, num_bins: int = NUM_BINS, sharpness: float = SHARPNESS,
    block: int | None = None,
) -> Tensor:
    """P (N,): how often each cosine occurs among the n (n + 1) / 2 pairs i <= j of tokens (n, d),
    each pair spread over the bins by exp(-a (cos - B_k)^2); the sum of P is 1. Of equations 4 to 6.

    The n cosines of a token with itself are among them, so P at 1 is never 0. Invariant to order,
    length and rotation of the tokens. Float32 at least, also under autocast. ValueError for tokens
    that are not floating (n, d), empty or not finite.

    Args:
        tokens: (n, d).
        num_bins: N, at least 2.
        sharpness: a, above 0; the standard deviation of a bin is 1 / sqrt(2 a).
        block: how many numbers of pairs times bins are in memory at a time, for values and for
            gradients: blocks of rows, of one row at least; None: 2^18 on a CPU, else 2^24.
    """
    check_axes(tokens, "tokens", "(n, d)")
    check_finite(tokens, "tokens")
    sharpness = check_number(sharpness, "sharpness", above=0)
    if block is None:
        block = CACHED if tokens.device.type == "cpu" else BLOCK
    block = check_int(block, "block", 1)
    with full_precision(tokens.device):
        vectors = unit(tokens)
        where = centres(num_bins, vectors)
        sums = _PairSums.apply(vectors, where, sharpness, block)
        return sums / sums.sum()                                                     # k


@torch.no_grad()
def teacher_histogram(
    tokens: Tensor, num_bins: int = NUM_BINS, sharpness: float = SHARPNESS,
    block: int | None = None,
) -> Tensor:
    """P_t (N,): `soft_histogram` without a gradient, computed once, before training.

    Args:
        tokens: (n, d), of a pretrained model: `teacher_centres` of its features, or the codebook of
            another tokenizer. Neither n nor d need be those of the student.
        num_bins: N.
        sharpness: a, the same as the student's.
        block: as in `soft_histogram`.
    """
    return soft_histogram(tokens, num_bins, sharpness, block)


@torch.no_grad()
def teacher_centres(features: Tensor, num_centres: int, rounds: int = 10) -> Tensor:
    """The centres of k-means of a teacher's features: tokens (K, D) that stand for a data set.

    Args:
        features: (..., D) patch features of all images.
        num_centres: K. ValueError where there are fewer different features.
        rounds: of k-means.
    """
    check_float(features, "features")
    if features.dim() < 2 or 0 in features.shape:
        raise ValueError(f"features has shape {tuple(features.shape)}: needs (..., D), not empty")
    check_finite(features, "features")
    num_centres = check_int(num_centres, "num_centres", 1)
    rows = widen(features).reshape(-1, features.shape[-1])
    found = torch.full_like(rows[:1], torch.nan).repeat(num_centres, 1)
    kmeans(found, torch.zeros_like(found[:, 0]), rows, None, check_int(rounds, "rounds", 0), False)
    if readable(found) and found.isnan().any():
        missing = int(found.isnan().any(dim=1).sum())
        raise ValueError(
            f"num_centres={num_centres} but only {num_centres - missing} features differ"
        )
    return found


def histogram_loss(
    codebook: Tensor, teacher: Tensor, sharpness: float = SHARPNESS, eps: float = EPS,
    block: int | None = None,
) -> Tensor:
    """L_hist = sum_k P_t log(P_t / P_s), 0-dim, at least 0, with the gradient of the codebook only.

    Args:
        codebook: (n, d), the student's codes.
        teacher: P_t (N,), see `teacher_histogram`.
        sharpness: a.
        eps: added to both; with 0 a bin that only the teacher has makes the loss infinite and
            its gradient NaN.
        block: as in `soft_histogram`.
    """
    check_axes(teacher, "teacher", "(N,)")
    check_finite(teacher, "teacher")
    eps = check_number(eps, "eps", 0)
    student = soft_histogram(codebook, teacher.shape[0], sharpness, block)
    target = teacher.detach().to(student.dtype)
    return F.kl_div((student + eps).log(), target + eps, reduction="sum")


class _PairSums(torch.autograd.Function):
    """p_k = sum over i <= j of exp(-a (t_i . t_j - B_k)^2), and its gradient: one pass of blocks
    each, in which

        dL/d(t_i . t_j) = sum_k dL/dp_k (-2 a) (t_i . t_j - B_k) exp(-a (t_i . t_j - B_k)^2).

    torch's own gradient would keep n^2 N numbers several times.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, where: Tensor, sharpness: float, block: int) -> Tensor:
        ctx.save_for_backward(vectors, where)
        ctx.sharpness, ctx.block = sharpness, block
        sums = torch.zeros_like(where)
        for rows in _bands(len(vectors), len(where), block):
            _, bump, weight = _pairs(vectors, where, sharpness, rows)
            sums = sums + bump.flatten(1) @ weight.flatten()
        return sums                                                                  # k

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        vectors, where = ctx.saved_tensors
        slope = -2 * ctx.sharpness * grads[0]                                        # k
        out = torch.zeros_like(vectors)
        with full_precision(vectors.device):
            for rows in _bands(len(vectors), len(where), ctx.block):
                gap, bump, weight = _pairs(vectors, where, ctx.sharpness, rows)
                change = (slope @ (gap * bump).flatten(1)).view_as(weight) * weight  # r m
                out[rows] += change @ vectors[rows.start:]
                out[rows.start:] += change.mT @ vectors[rows]
        return out, None, None, None


def _bands(count: int, num_bins: int, block: int) -> Iterator[slice]:
    """Bands of rows that have `block` numbers at most, each of one row at least. A row meets only
    what comes after it, so bands become higher."""
    start = 0
    while start < count:
        height = max(1, block // (num_bins * (count - start)))
        stop = min(count, start + height)
        yield slice(start, stop)
        start = stop


def _pairs(
    vectors: Tensor, where: Tensor, sharpness: float, rows: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """Of rows r and the m vectors from the first of them on: cos - B_k and exp(-a (cos - B_k)^2),
    (k, r, m), and 1 for the pairs i <= j, 0 for the others, (r, m). Sharp bins are far from most
    cosines: what underflows there is 0."""
    cosine = vectors[rows] @ vectors[rows.start:].mT                                 # r m
    gap = cosine - where[:, None, None]                                              # k r m
    bump = exp_normal(-sharpness * gap.square())
    return gap, bump, torch.ones_like(cosine).triu()
