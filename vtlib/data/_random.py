"""Random numbers from a generator, float32 on the CPU whatever torch's defaults are."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..nn.checks import check_generator, check_int


def seeded(seed: Any) -> torch.Generator:
    """A generator on the CPU; seed: an integer of 64 bits. ValueError for anything else."""
    seed = check_int(seed, "seed", -(2**63), 2**64 - 1)
    return torch.Generator("cpu").manual_seed(seed)


def unit(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Uniform in [0, 1)."""
    check_generator(generator)
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float32, device="cpu")


def uniform(
    shape: Sequence[int], bounds: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Uniform in [low, high).

    Args:
        shape: of the result.
        bounds: (low, high).
        generator: decides.
    """
    check_generator(generator)
    empty = torch.empty(tuple(shape), dtype=torch.float32, device="cpu")
    return empty.uniform_(*bounds, generator=generator)


def below(count: int, shape: Sequence[int], generator: torch.Generator, start: int = 0) -> Tensor:
    """Integers from `start` to `count` - 1, each as likely, long.

    Args:
        count: one more than the largest.
        shape: of the result.
        generator: decides.
        start: the smallest.
    """
    check_generator(generator)
    return torch.randint(start, count, tuple(shape), generator=generator, device="cpu")
