"""What tokenizers are usually judged by: PSNR, SSIM, bits a pixel, a Frechet distance of features.

    psnr, ssim                      of each picture, all three channels, in dB and at most 1
    bits_per_pixel                  what the codes alone cost
    frechet                         between two sets of features, whose name goes with the number
    frechet_infinity                the same without the bias of a small sample

FID and rFID are Frechet distances between features of Inception-v3: the features are part of the
measure, and numbers of two nets can't be compared. It is never zero on a finite sample: with N
pictures and D features it is too high by about c / N, which for D = 2,048 is several points at
N = 5,000 (Chong and Forsyth, CVPR 2020, arXiv 1911.07023). LPIPS and DISTS: `vtlib.hub.perceptual`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..nn.checks import (
    check_axes,
    check_finite,
    check_generator,
    check_int,
    check_ints,
    check_number,
)
from ..superres import quality


def psnr(got: Tensor, want: Tensor) -> Tensor:
    """10 log10(1 / mean squared error) in dB of each picture, all channels together: (B,).

    got is clamped to [0, 1] first, as a file would be. got, want: (B, 3, H, W).
    """
    return quality.psnr(got.clamp(0, 1), want, y=False)


def ssim(got: Tensor, want: Tensor) -> Tensor:
    """Structural similarity of each picture, mean of the channels: (B,). Needs torchmetrics.

    got is clamped to [0, 1] first. got, want: (B, 3, H, W), at least 11 x 11 pixels.
    """
    return quality.ssim(got.clamp(0, 1), want, y=False)


def bits_per_pixel(bits: float, size: tuple[int, int]) -> float:
    """Bits a picture / pixels a picture. bits: of the codes; size: (H, W)."""
    height, width = check_ints(size, "size", 1, length=2)
    return check_number(bits, "bits", 0) / (height * width)


class Frechet(NamedTuple):
    """A Frechet distance, and what it is a distance of."""

    distance: float
    features: str
    count: int  # of the smaller set

    def __str__(self) -> str:
        return f"{self.distance:.3f} (Frechet, {self.features}, N = {self.count})"


def frechet(x: Tensor, y: Tensor, features: str) -> Frechet:
    """|m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)), means and covariances of two sets.

    Args:
        x: features (N, D), a row a picture.
        y: of the other set (M, D), in any order: nothing is paired.
        features: what they are, "dinov2 [CLS]" say: two distances of different ones say nothing.

    It is at least 0, and 0 for a set and itself; ValueError for fewer than two rows.
    """
    _check_sets(x, y)
    return Frechet(_distance(x, y), features, min(len(x), len(y)))


def _check_sets(x: Tensor, y: Tensor) -> None:
    for name, z in (("x", x), ("y", y)):
        check_axes(z, name, "(N, D)")
        check_finite(z, name)
        if len(z) < 2:
            raise ValueError(f"{name} has {len(z)} rows: a covariance needs two at least")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x has {x.shape[1]} features but y {y.shape[1]}: needs the same")


def _distance(x: Tensor, y: Tensor) -> float:
    """In double precision. tr (S_x S_y)^(1/2) is the sum of the singular values of X_c Y_c^T,
    centred rows over the roots of N - 1 and M - 1: no root of a matrix is taken."""
    x, y = x.double(), y.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    a, b = (x - mean_x) / (len(x) - 1) ** 0.5, (y - mean_y) / (len(y) - 1) ** 0.5
    if len(x) > x.shape[1] and len(y) > y.shape[1]:          # D x D in place of N x M
        a, b = torch.linalg.qr(a, mode="r").R, torch.linalg.qr(b, mode="r").R
    both = torch.linalg.svdvals(a @ b.T).sum()
    apart = (mean_x - mean_y).square().sum()
    return max(float(apart + a.square().sum() + b.square().sum() - 2 * both), 0.0)


def frechet_infinity(
    x: Tensor,
    y: Tensor,
    features: str,
    sizes: Sequence[int],
    generator: torch.Generator,
    repeats: int = 4,
) -> Frechet:
    """The distance that a straight line through (1 / n, distance of n rows each) has at 1 / n = 0.

    Args:
        x: features (N, D).
        y: of the other set (M, D).
        features: what they are.
        sizes: numbers of rows n, two different ones at least, none above N and M.
        generator: draws the rows.
        repeats: so many draws a size.

    It may be a little below 0. `count` is the largest n.
    """
    _check_sets(x, y)
    check_generator(generator)
    sizes, repeats = check_ints(sizes, "sizes", 2), check_int(repeats, "repeats", 1)
    most = min(len(x), len(y))
    if len(set(sizes)) < 2 or max(sizes) > most:
        raise ValueError(f"sizes={sizes}: needs two different numbers, none above {most}")
    points = []
    for n in sizes:
        for _ in range(repeats):
            parts = [z[_some(len(z), n, generator).to(z.device)] for z in (x, y)]
            points.append((1 / n, _distance(*parts)))
    table = torch.tensor(points, dtype=torch.float64, device="cpu")                  # n 2
    line = torch.stack([torch.ones_like(table[:, 0]), table[:, 0]], dim=1)
    start = torch.linalg.lstsq(line, table[:, 1:]).solution[0, 0]
    return Frechet(float(start), features, max(sizes))


def _some(rows: int, count: int, generator: torch.Generator) -> Tensor:
    """(count,) of so many rows, each at most once."""
    return torch.randperm(rows, generator=generator, device=generator.device)[:count]
