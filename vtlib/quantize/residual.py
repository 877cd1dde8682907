"""Residual quantisation: each level quantises what the levels before left over.

Plain (Zeghidour, Luebs, Omran, Skoglund, Tagliasacchi, "SoundStream: An End-to-End Neural Audio
Codec", 2021, arXiv 2107.03312, algorithm 1; for images Lee, Kim, Kim, Cho, Han, "Autoregressive
Image Generation using Residual Quantization", 2022, arXiv 2203.01941), for L levels:

    r_1 = x,    r_(l+1) = r_l - q_l(r_l),    codes = q_1 + ... + q_L

In scales (Tian, Jiang, Yuan, Peng, Wang, "Visual Autoregressive Modeling", 2024, arXiv 2404.02905,
algorithm 1, without its convolutions, as TokenFlow, arXiv 2412.03069, does): level l sees the
residual pooled to h_l x w_l, and its codes come back to full size,

    r_(l+1) = r_l - up(q_l(down(r_l))),    down: means over areas,  up: bicubic

The first numbers are the coarsest: any number of levels can be decoded.

The input gets the gradient of the codes once. Where each level passes it on by itself, an encoder
before L levels trains with L times the gradient. The terms of all levels' losses reach the input.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.checks import check_flag, check_generator, check_index, check_int, check_ints, check_map
from ..tokens.precision import widen
from .contract import Quantized, check_counted, check_latents
from .vq import GRADIENT, VectorQuantizer


class _Levels(nn.Module):
    """Quantisers by level: one for each, or the same for all. A subclass may name another class of
    them, one that compares vectors in its own way."""

    quantizer = VectorQuantizer

    def __init__(
        self, dim: int, codebook_size: int, num_levels: int, shared: bool, dropout: bool,
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        self.num_levels = check_int(num_levels, "num_levels", 1)
        self.shared = check_flag(shared, "shared")
        self.dropout = check_flag(dropout, "dropout")
        books = 1 if self.shared else self.num_levels
        self.quantizers = nn.ModuleList(
            self.quantizer(dim, codebook_size, **options) for _ in range(books)
        )

    @property
    def first(self) -> VectorQuantizer:
        return self.level(0)

    @property
    def dim(self) -> int:
        return self.first.dim

    @property
    def codebook_size(self) -> int:
        """K of each level."""
        return self.first.codebook_size

    @property
    def frozen(self) -> bool:
        """Whether all codebooks stay as they are, also in training."""
        return all(self.level(i).frozen for i in range(self.num_levels))

    @frozen.setter
    def frozen(self, value: bool) -> None:
        for i in range(self.num_levels):
            self.level(i).frozen = value

    def level(self, i: int) -> VectorQuantizer:
        """The quantiser of level i, counted from 0."""
        return self.quantizers[0 if self.shared else i]                   # type: ignore[return-value]

    def chosen(self, num_levels: int | None, generator: torch.Generator | None) -> int:
        """How many levels to use: as many as are asked for; by dropout, in training, any number."""
        check_generator(generator, optional=True)
        if num_levels is not None:
            return check_int(num_levels, "num_levels", 1, self.num_levels)
        if not (self.dropout and self.training):
            return self.num_levels
        drawn = torch.randint(self.num_levels, (), generator=generator, device=_home(generator))
        return 1 + int(drawn)

    def usage(self, steps: list["_Step"]) -> Tensor:
        """Share of all codes of these levels that occur."""
        books: dict[int, list[Tensor]] = {}
        for step in steps:
            book = 0 if self.shared else step.level
            books.setdefault(book, []).append(step.hits(self.codebook_size))
        return torch.stack([torch.stack(hits).amax(dim=0) for hits in books.values()]).mean()


class _Step:
    """What a level has found: rows (N, D), their codes' places (N,), which of them count."""

    def __init__(
        self, level: int, rows: Tensor, indices: Tensor, counted: Tensor | None
    ) -> None:
        self.level, self.rows, self.indices, self.counted = level, rows, indices, counted

    def hits(self, size: int) -> Tensor:
        """(size,), 1 for codes that occur."""
        one = torch.ones_like(self.indices, dtype=torch.float32)
        one = one if self.counted is None else self.counted.to(one.dtype)
        return (one.new_zeros(size).index_add(0, self.indices, one) > 0).to(one.dtype)


class ResidualQuantizer(_Levels):
    """x (..., D) -> `Quantized`: codes (..., D), indices (..., L), the coarsest level first.

    Args:
        dim: D.
        codebook_size: K, codes of a level.
        num_levels: L.
        shared: one codebook for all levels; it learns once a step, from all of them.
        dropout: in training, a random number of levels from 1 to L is used in each call; indices
            are then (..., that number).
        options: of `VectorQuantizer`, for each level.

    The loss is the mean of the levels' losses. Everything else is as there, ValueErrors too.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        num_levels: int,
        shared: bool = False,
        dropout: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(dim, codebook_size, num_levels, shared, dropout, options)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        num_levels: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Quantized:
        """x (..., D) -> `Quantized`.

        Args:
            x: floating, finite, not empty.
            mask: (...) bool, True where a vector counts; None: all.
            num_levels: how many levels to use; None: all, or what dropout draws.
            generator: for dropout.
        """
        check_latents(x, self.dim)
        counted = None
        if mask is not None:
            check_counted(mask, x.shape[:-1])
            counted = mask.flatten()
        residual = _rows(x, self.first)
        steps = []
        for i in range(self.chosen(num_levels, generator)):
            step, codes = _quantize(self, i, residual, counted)
            residual = residual - codes
            steps.append(step)
        losses = _losses(self, steps)
        indices = torch.stack([step.indices for step in steps], dim=-1)
        indices = indices.reshape(*x.shape[:-1], len(steps))
        codes = self.decode(indices).detach()
        out = GRADIENT[self.first.gradient](codes, x)
        return Quantized(out, indices, losses, self.usage(steps))

    def decode(self, indices: Tensor) -> Tensor:
        """indices (..., l) long, of the first l levels -> codes (..., D), bit for bit those that
        forward returned."""
        check_index(indices, "indices", stop=self.codebook_size)
        if indices.dim() < 1 or not 1 <= indices.shape[-1] <= self.num_levels:
            needs = f"(..., l) with l of 1 to {self.num_levels} levels"
            raise ValueError(f"indices has shape {tuple(indices.shape)} but needs {needs}")
        total = self.level(0).decode(indices[..., 0])
        for i in range(1, indices.shape[-1]):
            total = total + self.level(i).decode(indices[..., i])
        return total


class MultiScaleQuantizer(_Levels):
    """x (B, H, W, D) -> `Quantized`: codes (B, H, W, D), indices (B, T) with T = sum of h_l w_l,
    the coarsest scale first, each in row-major order.

    Args:
        dim: D.
        codebook_size: K.
        scales: (l_1, ..., l_L), each an int for a square or a pair (rows, columns); the last one
            is the size of x.
        shared: one codebook for all scales, as in VAR and TokenFlow; it learns once a step.
        dropout: in training, a random number of scales from 1 to L is used in each call; indices
            are then (B, places of those).
        options: of `VectorQuantizer`.

    The loss is the mean of the scales' losses. With k-means start a shared codebook begins with
    what all scales would see if codes were exact.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        scales: Sequence[int | Sequence[int]],
        shared: bool = True,
        dropout: bool = False,
        **options: Any,
    ) -> None:
        self_scales = check_scales(scales)
        super().__init__(dim, codebook_size, len(self_scales), shared, dropout, options)
        self.scales = self_scales

    def forward(
        self,
        x: Tensor,
        num_levels: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Quantized:
        """x (B, H, W, D) -> `Quantized`.

        Args:
            x: floating, finite, of the size of the last scale.
            num_levels: how many scales to use; None: all, or what dropout draws.
            generator: for dropout.
        """
        check_map(x)
        check_latents(x, self.dim)
        if tuple(x.shape[1:3]) != self.scales[-1]:
            raise ValueError(f"x has shape {tuple(x.shape)} but the last scale {self.scales[-1]}")
        residual = _rows(x, self.first).reshape(x.shape)
        if self.shared and self.first.waits:
            self.first.start(self.first.rows(self.pyramid(residual.detach())))
        steps, levels = [], self.used_levels(num_levels, generator)
        for i in levels:
            pooled = to_scale(residual, self.scales[i])
            flat = pooled.reshape(-1, self.dim)
            step, codes = _quantize(self, i, flat, None)
            residual = residual - from_scale(codes.reshape(pooled.shape), self.scales[-1])
            steps.append(step)
        loss = _losses(self, steps)
        indices = torch.cat([step.indices.reshape(x.shape[0], -1) for step in steps], dim=1)
        codes = self.decode(indices, levels).detach()
        out = self.with_gradient(codes, x, {step.level: step.rows for step in steps})
        return Quantized(out, indices, loss, self.usage(steps))

    def used_levels(
        self, num_levels: int | None, generator: torch.Generator | None
    ) -> tuple[int, ...]:
        """The scales that a call uses, the coarsest first. A subclass may leave some out.

        Args:
            num_levels: how many are asked for, the first ones; None: as many as there are, or what
                dropout draws.
            generator: for what is drawn.
        """
        return tuple(range(self.chosen(num_levels, generator)))

    def with_gradient(self, codes: Tensor, x: Tensor, rows: dict[int, Tensor]) -> Tensor:
        """`codes`, with the gradient that x gets of them: once. A subclass may pass it on in
        another way.

        Args:
            codes: (B, H, W, D), without a gradient.
            x: (B, H, W, D), what came in.
            rows: (B h_l w_l, D) by scale: what was compared with its codes, a function of x.
        """
        return GRADIENT[self.first.gradient](codes, x)

    def pyramid(self, x: Tensor) -> Tensor:
        """x (B, H, W, D) -> (B T, D), what the scales would see if codes were exact."""
        parts = []
        for scale in self.scales:
            pooled = to_scale(x, scale)
            parts.append(pooled.reshape(-1, self.dim))
            x = x - from_scale(pooled, self.scales[-1])
        return torch.cat(parts)

    def decode(self, indices: Tensor, levels: Sequence[int] | None = None) -> Tensor:
        """indices (B, t) long, each scale complete -> codes (B, H, W, D) at the size of the last
        scale, bit for bit those that forward returned.

        Args:
            indices: of the scales one after another.
            levels: which scales those are, counted from 0; None: the first ones.
        """
        total = None
        for i, part in self.parts(indices, levels):
            codes = from_scale(self.level(i).decode(part), self.scales[-1])
            total = codes if total is None else total + codes
        return total                                                      # type: ignore[return-value]

    def parts(
        self, indices: Tensor, levels: Sequence[int] | None = None
    ) -> list[tuple[int, Tensor]]:
        """indices (B, t) long -> (scale, its indices (B, h_l, w_l)) of each scale.

        Args:
            indices: of the scales one after another, each complete.
            levels: which scales those are, counted from 0; None: the first ones.
        """
        check_index(indices, "indices", "(B, T)", stop=self.codebook_size)
        places = [rows * columns for rows, columns in self.scales]
        ends = [sum(places[:i + 1]) for i in range(len(places))]
        if levels is None:
            if indices.shape[1] not in ends:
                needs = f"the first scales complete, {', '.join(map(str, ends))} places"
                raise ValueError(f"indices has shape {tuple(indices.shape)} but needs {needs}")
            levels = range(1 + ends.index(indices.shape[1]))
        given = check_ints(levels, "levels", 0)
        if not given or given != tuple(sorted(set(given))) or given[-1] >= self.num_levels:
            needs = f"some of 0 ... {self.num_levels - 1} in order"
            raise ValueError(f"levels={given}: needs {needs}")
        sizes = [places[i] for i in given]
        if indices.shape[1] != sum(sizes):
            needs = f"{sum(sizes)} places for levels={given}"
            raise ValueError(f"indices has shape {tuple(indices.shape)} but needs {needs}")
        parts = indices.split(sizes, dim=1)
        return [
            (i, part.unflatten(1, self.scales[i])) for i, part in zip(given, parts, strict=True)
        ]


# --------------------------------------------------------------------------------- the scales
def check_scales(scales: Any, name: str = "scales") -> tuple[tuple[int, int], ...]:
    """`scales` as pairs (rows, columns), at least one, none smaller than the one before. ValueError
    for anything else."""
    if isinstance(scales, (str, bytes)) or not isinstance(scales, Sequence) or not len(scales):
        raise ValueError(f"{name}={scales!r}: needs a sequence of sizes, an int or a pair each")
    pairs = []
    for i, scale in enumerate(scales):
        square = not isinstance(scale, Sequence) or isinstance(scale, str)
        sides = check_ints((scale, scale) if square else scale, f"{name}[{i}]", 1, 2)
        pairs.append((sides[0], sides[1]))
    for before, after in zip(pairs, pairs[1:], strict=False):
        if before[0] > after[0] or before[1] > after[1]:
            raise ValueError(f"{name}={scales!r}: no scale may be smaller than the one before")
    return tuple(pairs)


def to_scale(x: Tensor, scale: tuple[int, int]) -> Tensor:
    """x (B, H, W, D) -> (B, h, w, D), means over the areas of a coarser grid."""
    if tuple(x.shape[1:3]) == tuple(scale):
        return x
    return F.interpolate(x.permute(0, 3, 1, 2), scale, mode="area").permute(0, 2, 3, 1)


def from_scale(x: Tensor, scale: tuple[int, int]) -> Tensor:
    """x (B, h, w, D) -> (B, H, W, D), bicubic with a = -0.75 and half-pixel centres."""
    if tuple(x.shape[1:3]) == tuple(scale):
        return x
    grown = F.interpolate(x.permute(0, 3, 1, 2), scale, mode="bicubic", align_corners=False)
    return grown.permute(0, 2, 3, 1)


# ----------------------------------------------------------------------------------- a level
def _home(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device


def _rows(x: Tensor, quantizer: VectorQuantizer) -> Tensor:
    """x (..., D) -> (N, D) in the dtype of distances, as it is: a residual is of the vectors."""
    dtype = torch.promote_types(widen(x).dtype, widen(quantizer.codebook).dtype)
    return x.reshape(-1, quantizer.dim).to(dtype)


def _quantize(
    levels: _Levels, i: int, residual: Tensor, counted: Tensor | None
) -> tuple[_Step, Tensor]:
    """Level i: what it found, and its codes (N, D) without a gradient."""
    quantizer = levels.level(i)
    rows = quantizer.rows(residual)
    quantizer.start(rows.detach(), counted)
    indices = quantizer.search(rows)
    if not levels.shared:
        quantizer.learn(rows.detach(), indices, counted)
    codes = quantizer.decode(indices).detach().to(residual.dtype)
    return _Step(i, rows, indices, counted), codes


def _losses(levels: _Levels, steps: list[_Step]) -> Tensor:
    """The mean of the levels' losses, 0-dim; a shared codebook learns before."""
    if levels.shared:
        rows = torch.cat([step.rows.detach() for step in steps])
        indices = torch.cat([step.indices for step in steps])
        masks = [step.counted for step in steps if step.counted is not None]
        levels.first.learn(rows, indices, torch.cat(masks) if masks else None)
    losses = [
        levels.level(step.level).loss(step.rows, step.indices, step.counted) for step in steps
    ]
    return torch.stack(losses).mean()
