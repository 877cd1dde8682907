"""Score, select, apply: the selection is a value, kept indices in ascending order.

Tokens move as whole rows. A place that does not exist never gives a wrong token: on the CPU it is
an error at once, elsewhere the device's own assertion, so that nothing waits for the GPU.
"""

import math
import numbers
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn.checks import at_hand, check_index, check_int, check_range, describe, readable
from .checks import is_fraction


def check_keep(keep: Any, least: int = 1) -> int | float:
    """A budget before it is known of how many tokens: an integer (tokens; of Python, NumPy or
    torch) of at least `least`, or a float in (0, 1] (fraction).

    With least=0 the fraction may be 0.0 too. ValueError for anything else.
    """
    number = _number(keep, least)
    if number < least:
        raise ValueError(f"keep={number}: needs at least {least}")
    return number


def resolve_keep(keep: Any, num_tokens: int, least: int = 1) -> int:
    """Number of tokens to keep out of num_tokens.

    Args:
        keep: an integer (tokens; of Python, NumPy or torch) or a float in (0, 1] (fraction,
            rounded, at least 1).
        num_tokens: how many there are.
        least: 0 allows to keep none.

    Raises ValueError for anything else, also for keep > num_tokens.
    """
    num_tokens = check_int(num_tokens, "num_tokens", 0)
    number = _number(keep, least)
    if isinstance(number, float):
        return max(1, round(number * num_tokens)) if number else 0
    if not least <= number <= num_tokens:
        raise ValueError(
            f"keep={number} but there are {num_tokens} tokens; it must lie in "
            f"{least} ... {num_tokens}"
        )
    return number


def _number(keep: Any, least: int) -> int | float:
    """`keep` as an int of any size, or as a float in (0, 1]; 0.0 too with least=0."""
    if is_fraction(keep):
        share = float(keep)
        if not 0.0 < share <= 1.0 and not (share == 0.0 and least == 0):
            raise ValueError(
                f"keep={keep} is a float, so it is a fraction and must lie in (0, 1]; "
                f"use an int to count tokens"
            )
        return share
    try:
        return check_int(keep, "keep")
    except ValueError:
        raise ValueError(
            f"keep={keep!r} must be an int (tokens kept) or a float in (0, 1] (fraction kept)"
        ) from None


def top_tokens(score: Tensor, keep: int | float, num_prefix: int = 0) -> Tensor:
    """Indices of the highest-scoring tokens, ascending, each once; ties go to the lower index.

    Infinities are scores like others. ValueError for NaN (on the CPU, in eager mode; elsewhere,
    where a look at values would wait for the device, NaN counts as lowest). So there are always
    exactly `keep` real tokens; a method that needs finite scores asks `vtlib.tokens.check_scores`.

    Args:
        score: (B, N) over all tokens, prefix included (its scores are ignored).
        keep: how many of the others: an integer, or a fraction of N - num_prefix.
        num_prefix: the first tokens ([CLS], registers), which are always kept.

    Returns (B, num_prefix + keep) long.
    """
    if not isinstance(score, Tensor) or score.dim() != 2 or score.is_complex():
        raise ValueError(f"score is {describe(score)} but needs to be a real tensor (B, N)")
    num_prefix = check_int(num_prefix, "num_prefix", 0, score.shape[1])
    rest = score[:, num_prefix:] if num_prefix else score
    keep = resolve_keep(keep, rest.shape[1])
    _check_no_nan(rest)
    chosen = best(rest, keep)
    if num_prefix == 0:
        return chosen
    prefix = torch.arange(num_prefix, device=score.device).expand(score.shape[0], -1)
    return torch.cat([prefix, chosen + num_prefix], dim=1)


def _check_no_nan(score: Tensor) -> None:
    if not (score.is_floating_point() and score.numel() and at_hand(score)):
        return
    if math.isnan(score.detach().max()):                                # max hands NaN on
        rows = score.isnan().any(dim=1).nonzero().flatten().tolist()
        raise ValueError(
            f"score holds NaN in rows {rows}: the tokens or weights behind it are non-finite"
        )


def best(score: Tensor, keep: int) -> Tensor:
    """(B, keep) long, ascending: where the largest scores (B, N) are, ties to the lower index.

    `top_tokens` without a check of `score`, for those who have looked that it is finite.
    """
    if score.dtype == torch.bool:
        score = score.to(torch.uint8)
    if not at_hand(score):
        if score.is_floating_point():
            score = score.masked_fill(score.isnan(), -torch.inf)
        order = score.argsort(dim=1, descending=True, stable=True)[:, :keep]
        return order.sort(dim=1).values

    values, order = score.detach().topk(min(keep + 1, score.shape[1]), dim=1)
    if keep < score.shape[1]:
        order = order[:, :keep]
        if not _clear_cut(values):
            order = score.argsort(dim=1, descending=True, stable=True)[:, :keep]  # equals: by place
    return order.sort(dim=1).values


def _clear_cut(values: Tensor) -> bool:
    """Whether the last of values (B, K >= 2), falling, is below the one before it in every row.

    Of one image two numbers are compared: half the time of tensors.
    """
    if values.shape[0] == 1:
        last_in, first_out = values[0, -2:].tolist()
        return bool(last_in > first_out)
    return bool((values[:, -2] > values[:, -1]).all())


def take(x: Tensor, index: Tensor) -> Tensor:
    """Gather tokens, bit-identical: x (B, N, ...), index (B, K) long -> (B, K, ...).

    A token may be taken more than once. ValueError for an index of another dtype or batch, and on
    the CPU for a place outside 0 ... N - 1 (IndexError when compiled).
    """
    if not isinstance(x, Tensor) or x.dim() < 2:
        raise ValueError(f"x is {describe(x)} but needs to be a tensor (B, N, ...)")
    check_index(index, "index", "(B, K)", (x.shape[0], None))
    try:
        if x.dim() == 2:
            return x.gather(1, index)
        if x.shape[0] == 1:
            return x.index_select(1, index[0])
        table = as_rows(x)
        if table is None:                       # memory holds no table of rows: read where they lie
            image = torch.arange(x.shape[0], device=x.device)[:, None]
            return x[image, torch.where(index < 0, x.shape[1], index)]
        rows, step = table
        return rows.index_select(0, row_numbers(index, x.shape[1], step, rows)).unflatten(
            0, index.shape
        )
    except (IndexError, RuntimeError):
        if index.device.type != "cpu":
            raise
        check_range(index, "index", 0, x.shape[1])
        raise


def scatter_back(x: Tensor, index: Tensor, num_tokens: int, fill: float = 0.0) -> Tensor:
    """The inverse of `take`: tokens go to their places, all other places hold `fill`.

    Args:
        x: (B, K, ...).
        index: (B, K) long, each place at most once an image.
        num_tokens: N, how many places there are.
        fill: what the others hold, a number that the dtype of x has.

    Returns (B, N, ...). ValueError as in `take`, and on the CPU for a place that comes twice.
    """
    if not isinstance(x, Tensor) or x.dim() < 2:
        raise ValueError(f"x is {describe(x)} but needs to be a tensor (B, K, ...)")
    check_index(index, "index", "(B, K)", (x.shape[0], None))
    if index.shape[1] != x.shape[1]:
        raise ValueError(f"index has {index.shape[1]} places but x has {x.shape[1]} tokens")
    num_tokens = check_int(num_tokens, "num_tokens", 0)
    _check_fill(fill, x.dtype)
    check_once(index, "index", num_tokens, "place")
    rows = x.new_full((x.shape[0] * num_tokens, *x.shape[2:]), fill)
    numbers = row_numbers(index, num_tokens, num_tokens, rows)
    return rows.index_copy(0, numbers, x.flatten(0, 1)).unflatten(0, (x.shape[0], num_tokens))


def _check_fill(fill: Any, dtype: torch.dtype) -> None:
    """Raise unless `fill` is a real number, and a whole one where the dtype has no others."""
    real = isinstance(fill, numbers.Real)
    if not real or not (dtype.is_floating_point or float(fill).is_integer()):
        raise ValueError(
            f"fill={fill!r} ({type(fill).__name__}): needs a number that {dtype} has"
        )


# -------------------------------------------------------------------------------------------- rows
def as_rows(x: Tensor) -> tuple[Tensor, int] | None:
    """x (B, N, ...) as rows (R, ...) without a copy, and the step from an image's first row to the
    next image's; None where memory does not allow it."""
    if x.shape[0] == 1:
        return x[0], 0
    if x.is_contiguous():
        return x.flatten(0, 1), x.shape[1]
    if not readable(x) or x.requires_grad or 0 in x.shape or 0 in x.stride()[1:]:
        return None
    if x.stride(0) % x.stride(1):
        return None
    step = x.stride(0) // x.stride(1)                               # patches behind a [CLS]: N + 1
    shape = ((x.shape[0] - 1) * step + x.shape[1], *x.shape[2:])
    return x.as_strided(shape, x.stride()[1:]), step


def row_numbers(index: Tensor, num_tokens: int, step: int, rows: Tensor) -> Tensor:
    """(B K,) long: the rows that the places mean.

    A place outside 0 ... N - 1 becomes a row that does not exist, never one of the next image.

    Args:
        index: (B, K) long, places in each image.
        num_tokens: N, how many places an image has.
        step: rows from the first of one image to the first of the next.
        rows: the rows of all images, one after the other; only their number is read.
    """
    if index.shape[0] == 1:
        return index[0]
    first = step * torch.arange(index.shape[0], device=index.device)[:, None]
    real = (index >= 0) & (index < num_tokens)
    return torch.where(real, index + first, rows.shape[0]).flatten()


def add_rows(
    rows: Tensor, numbers: Tensor, slot: Tensor, count: int, weight: Tensor | None = None
) -> Tensor:
    """out_s = sum over e with slot[e] = s of weight[e] rows[numbers[e]]: (B, count, P).

    Rows are read once, slot by slot, and added in the order of the entries.

    Args:
        rows: (R, P), of all images, as `as_rows` gives them.
        numbers: (B, E) long, the row of each entry, as `row_numbers` gives them.
        slot: (B, E) long, where it is added, 0 ... count - 1.
        count: slots of an image.
        weight: (B, E), how much of it; None: 1.
    """
    batch = slot.shape[0]
    slot, order = slot.sort(dim=1, stable=True)
    image = torch.arange(batch, device=slot.device)[:, None]
    slots = torch.arange(batch * count, device=slot.device)
    starts = torch.searchsorted((slot + count * image).flatten(), slots)
    share = None if weight is None else weight.gather(1, order).flatten().to(rows.dtype)
    numbers = numbers.gather(1, order).flatten()
    out = F.embedding_bag(numbers, rows, starts, mode="sum", per_sample_weights=share)
    return out.unflatten(0, (batch, count))


# ------------------------------------------------------------------------------------------ checks
def check_once(index: Tensor, name: str, stop: int, what: str = "token") -> None:
    """Raise for a place that does not exist and for one that an image holds twice: another would be
    lost. It looks where a look waits for nothing.

    Args:
        index: (B, K) long.
        name: what the message calls it.
        stop: one more than the largest that is allowed.
        what: what the message calls a place.
    """
    if not at_hand(index):
        return
    check_range(index, name, 0, stop)
    if twice := repeated(index):
        image, place = twice
        raise ValueError(f"{name}[{image}] holds {what} {place} twice: it needs each at most once")


def repeated(index: Tensor) -> tuple[int, int] | None:
    """(row, token) of the first token that a row of `index` (B, K) holds twice; -1 is none.

    Reads values. None where every row holds each at most once.
    """
    if (index[:, 1:] > index[:, :-1]).all():
        return None
    ordered = index.sort(dim=1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if not twice.any():
        return None
    row, place = twice.nonzero()[0].tolist()
    return row, int(ordered[row, place])
