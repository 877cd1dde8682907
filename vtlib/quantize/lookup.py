"""The nearest code of each vector: exact, whatever the offset, and without a table of N x K.

    |x - e|^2 = |x|^2 + 2 s,    s = |e|^2 / 2 - x . e

`nearest` takes the least s, by a matrix product. In float32 that alone goes wrong where distances
are small against the vectors: with latents around 100 and 256 channels for one vector in sixteen.
So here vectors and codes are moved by the mean of the codes first, products are made in blocks of
ROWS vectors and CODES codes, and each vector's best two are compared: where they lie closer than
what rounding can do, every code that may be the nearest is measured again in float64, as
sum((x - e)^2). Of codes equally far the first is taken.
"""

import torch
from torch import Tensor

from ..nn.checks import check_axes, check_finite
from ..tokens.precision import full_precision, widen

ROWS, CODES = 512, 2048
"""A block of scores: 4 MiB in float32."""
PAIRS = 2**20
"""Numbers at a time that are subtracted in float64."""
ROUNDOFF = {"bf16": 2.0**-8, "tf32": 2.0**-10}
"""What a product of float32 loses of its inputs, where a setting of torch allows it to."""


def nearest(x: Tensor, codes: Tensor) -> Tensor:
    """x (N, D), codes (K, D) -> (N,) long, the place of the code at the least Euclidean distance.

    The same as comparing all distances in float64. No gradient passes. ValueError for what is
    empty, not floating or not finite, and for another D.
    """
    check_axes(x, "x", "(N, D)")
    check_axes(codes, "codes", "(K, D)")
    if x.shape[1] != codes.shape[1]:
        raise ValueError(f"x has shape {tuple(x.shape)} and codes {tuple(codes.shape)}: other D")
    check_finite(x, "x")
    check_finite(codes, "codes")
    dtype = torch.promote_types(widen(x).dtype, widen(codes).dtype)
    return nearest_code(x.detach().to(dtype), codes.detach().to(dtype))


@torch.library.custom_op("vtlib::nearest_code", mutates_args=())
def nearest_code(x: Tensor, codes: Tensor) -> Tensor:
    """`nearest` of what fits, both float32 or both float64: one step to compile and export."""
    with full_precision(x.device):
        return _Search(x, codes).run()


@nearest_code.register_fake
def _(x: Tensor, codes: Tensor) -> Tensor:
    return x.new_empty(x.shape[:1], dtype=torch.long)


class _Search:
    """One search: what is common to its blocks."""

    def __init__(self, x: Tensor, codes: Tensor) -> None:
        self.x, self.codes = x, codes
        # a power of two loses nothing, and squares of what is at most 1 do not overflow
        largest = torch.maximum(x.abs().amax(), codes.abs().amax())
        self.scale = torch.exp2(-torch.frexp(largest).exponent.to(x.dtype))
        self.centre = (codes * self.scale).mean(dim=0)

    def run(self) -> Tensor:
        index, best, second = self.sweep()
        slack = self.slack(best)
        doubtful = (second - best <= 2 * slack).nonzero()[:, 0]
        for rows in doubtful.split(ROWS):
            index[rows] = self.settle(rows, best[rows] + 2 * slack[rows])
        return index

    def vectors(self, rows: Tensor | slice) -> Tensor:
        return self.x[rows] * self.scale - self.centre

    def blocks(self):                                                                  # type: ignore
        """(first place, codes (k, D), their half squared norms (k,)) of each block of codes."""
        for start in range(0, len(self.codes), CODES):
            codes = self.codes[start:start + CODES] * self.scale - self.centre
            yield start, codes, codes.square().sum(dim=1) / 2

    def sweep(self) -> tuple[Tensor, Tensor, Tensor]:
        """(index, s, the next best s), each (N,)."""
        num = len(self.x)
        best = self.x.new_full((num,), torch.inf)
        second, index = best.clone(), torch.zeros_like(best, dtype=torch.long)
        for start, codes, half in self.blocks():
            for row in range(0, num, ROWS):
                here = slice(row, row + ROWS)
                score = torch.addmm(half, self.vectors(here), codes.T, alpha=-1)             # r k
                low, place = score.min(dim=1)
                score.scatter_(1, place[:, None], torch.inf)
                after = torch.minimum(score.amin(dim=1), second[here])
                second[here] = torch.minimum(torch.maximum(best[here], low), after)
                index[here] = torch.where(low < best[here], place + start, index[here])
                best[here] = torch.minimum(best[here], low)
        return index, best, second

    def slack(self, best: Tensor) -> Tensor:
        """(N,), the most by which s of a code that can be the nearest is wrong: g (|x| r + r^2 / 2)
        for codes as long as r, and none longer than |x| plus the distance found can be nearer."""
        dtype, dim = self.x.dtype, self.x.shape[1]
        longest = self.x.new_zeros(())
        for _, _, half in self.blocks():
            longest = torch.maximum(longest, (2 * half.amax()).sqrt())
        norm = torch.cat([
            torch.linalg.vector_norm(self.vectors(slice(row, row + ROWS)), dim=1)
            for row in range(0, len(self.x), ROWS)
        ])
        distance = (norm.square() + 2 * best).clamp_min(0).sqrt()
        reach = torch.minimum(longest * 1.01, 1.25 * (norm + distance))
        rounding = 2 * _roundoff(self.x) + (dim + 8) * torch.finfo(dtype).eps
        return rounding * (norm * reach + reach.square() / 2) + dim * torch.finfo(dtype).tiny

    def settle(self, rows: Tensor, most: Tensor) -> Tensor:
        """The nearest codes of the vectors `rows` (n,), among those with s of at most `most` (n,),
        by differences in float64."""
        least = rows.new_full((len(rows),), torch.inf, dtype=_widest(self.x))
        index = torch.zeros_like(rows)
        for start, codes, half in self.blocks():
            score = torch.addmm(half, self.vectors(rows), codes.T, alpha=-1)
            pairs = (score <= most[:, None]).nonzero()                        # p 2, rows in order
            for row, place in (part.T for part in pairs.split(max(1, PAIRS // self.x.shape[1]))):
                self.measure(rows, row, place + start, least, index)
        return index

    def measure(
        self, rows: Tensor, row: Tensor, code: Tensor, least: Tensor, index: Tensor
    ) -> None:
        """Note which of the pairs (row, code) come nearer than what stands there.

        Args:
            rows: (n,), vectors.
            row: (p,), places in `rows`.
            code: (p,), codes.
            least: (n,), the least distance of each, changed in place.
            index: (n,), its code, changed in place.
        """
        dtype = least.dtype
        apart = self.x[rows[row]].to(dtype) - self.codes[code].to(dtype)
        distance = apart.square().sum(dim=1)
        low = torch.full_like(least, torch.inf).scatter_reduce(0, row, distance, "amin")
        tied = torch.where(distance == low[row], code, len(self.codes))
        first = torch.full_like(index, len(self.codes)).scatter_reduce(0, row, tied, "amin")
        nearer = low < least
        index.copy_(torch.where(nearer, first, index))
        least.copy_(torch.minimum(low, least))


def _widest(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64    # which has no float64


def _roundoff(x: Tensor) -> float:
    """What the settings of torch let a product lose of float32 inputs, relative to each."""
    if x.dtype != torch.float32:
        return 0.0
    backend = torch.backends.cuda if x.is_cuda else torch.backends.mkldnn
    return ROUNDOFF.get(backend.matmul.fp32_precision, 0.0)
