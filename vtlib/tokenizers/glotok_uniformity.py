"""How evenly latents lie: the three numbers of GloTok's table 3 (arXiv 2511.14184), which follows
VA-VAE (Yao, Yang, Wang, 2025, arXiv 2501.01423).

    f_i = mean_j N(x_i; x_j, h^2 S)                 density: a kernel estimate at each point
    CV = std(f) / mean(f)                           variation
    H = -sum_i g_i log g_i / log n, g = f / sum f   entropy
    G = sum_ij |f_i - f_j| / (2 n^2 mean(f))        gini

S is the covariance of the points and h = n^(-1 / (d + 4)), Scott's rule; points are the first two
principal components. Even latents have small CV and G and H near 1. The paper gives no details:
plane, kernel and bandwidth are chosen here (t-SNE is as good a plane). Its differences are tiny
(CV .217 against .221, Gini .117 against .119): compare seeds before methods. Density is asked where
points are, so lumps of one size pass for even: look at the picture, too.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..nn.checks import check_axes, check_finite, check_int, check_number
from ..tokens.precision import exp_normal, full_precision, widen

BLOCK = 2**20
"""Pairs of points at a time."""


class Uniformity(NamedTuple):
    """Each 0-dim.

    Args:
        variation: coefficient of variation of the density; 0 is even.
        entropy: of the density, over that of an even one; 1 is even.
        gini: its Gini coefficient; 0 is even.
    """

    variation: Tensor
    entropy: Tensor
    gini: Tensor


@torch.no_grad()
def uniformity(latents: Tensor, bandwidth: float | None = None) -> Uniformity:
    """How evenly latents (n, d) lie in the plane of their first two principal components.

    Args:
        latents: (n, d), n >= 3, d >= 2: quantised semantic latents, say.
        bandwidth: h; None: Scott's rule.
    """
    values = density(principal(latents), bandwidth)
    return Uniformity(variation(values), entropy(values), gini(values))


def principal(latents: Tensor, num_components: int = 2) -> Tensor:
    """latents (n, d) -> their first principal components (n, num_components), each up to sign."""
    x = _points(latents, "latents")
    num_components = check_int(num_components, "num_components", 1, x.shape[1])
    x = x - x.mean(dim=0)
    with full_precision(x.device):
        _, axes = torch.linalg.eigh(x.mT @ x)                       # ascending
        return x @ axes[:, -num_components:].flip(1)


def density(points: Tensor, bandwidth: float | None = None) -> Tensor:
    """Gaussian kernel estimate of the density at each of points (n, d) -> (n,), each point's own
    kernel included, as scipy's `gaussian_kde`.

    Args:
        points: (n, d), n > d, not all in a plane of fewer dimensions.
        bandwidth: h, in units of the points' spread; None: n^(-1 / (d + 4)).
    """
    x = _points(points, "points")
    count, dim = x.shape
    if bandwidth is None:
        bandwidth = count ** (-1 / (dim + 4))
    bandwidth = check_number(bandwidth, "bandwidth", above=0)
    x = x - x.mean(dim=0)
    with full_precision(x.device):
        factor, failed = torch.linalg.cholesky_ex(x.mT @ x / (count - 1))
        if not x.is_meta and failed.any():
            raise ValueError(f"points {tuple(x.shape)} lie in fewer than {dim} dimensions")
        white = torch.linalg.solve_triangular(factor, x.mT, upper=False).mT / bandwidth
        rows = white.split(max(1, BLOCK // count))
        sums = [exp_normal(-torch.cdist(part, white).square() / 2).sum(dim=1) for part in rows]
    volume = (2 * math.pi) ** (dim / 2) * bandwidth**dim * factor.diagonal().prod()
    return torch.cat(sums) / (count * volume)


def variation(values: Tensor) -> Tensor:
    """std / mean of values (n,), the standard deviation of all of them, 0-dim."""
    _check_values(values)
    return values.std(correction=0) / values.mean()


def entropy(values: Tensor) -> Tensor:
    """-sum g log g / log n of g = values / sum of values (n,), 0-dim, from 0 to 1."""
    _check_values(values)
    return torch.special.entr(values / values.sum()).sum() / math.log(len(values))


def gini(values: Tensor) -> Tensor:
    """sum_ij |x_i - x_j| / (2 n^2 mean) of values (n,), 0-dim, from 0 to 1 - 1 / n.

    In order, x_(i) is added 2 i - n - 1 times more often than it is taken away: no n^2.
    """
    _check_values(values)
    count = len(values)
    ordered = values.sort().values
    place = torch.arange(1, count + 1, device=values.device, dtype=values.dtype)
    return ((2 * place - count - 1) * ordered).sum() / (count * values.sum())


def _points(x: Tensor, name: str) -> Tensor:
    check_axes(x, name, "(n, d)")
    check_finite(x, name)
    if x.shape[0] <= x.shape[1]:
        raise ValueError(f"{name} has shape {tuple(x.shape)} but needs more points than dimensions")
    return widen(x)


def _check_values(values: Tensor) -> None:
    check_axes(values, "values", "(n,)")
    check_finite(values, "values")
    if len(values) < 2:
        raise ValueError(f"values has shape {tuple(values.shape)} but needs two at least")
