"""How many tokens each image of a prompt keeps: `keep` as a number, a list, or a function."""

from collections.abc import Sequence
from typing import Any

from ..nn.checks import check_flag, check_int
from ..tokens.checks import is_fraction


class Budget:
    """`keep` for each image.

    Args:
        keep: an int or a fraction for all; a list or tuple, one a picture in the order of the
            prompts; a function of an image's number of tokens n -> int or fraction; None: the
            method's own.
        clip: an image of fewer than `keep` tokens keeps all of them; otherwise it is a ValueError.
    """

    def __init__(self, keep: Any, clip: bool):
        self.keep, self.clip = keep, check_flag(clip, "clip")

    @property
    def uniform(self) -> bool:
        """Whether it is one number for all images."""
        return not (self.clip or isinstance(self.keep, (list, tuple)) or callable(self.keep))

    def each(self, sizes: Sequence[int], rows: Sequence[int]) -> list[Any]:
        """The budget of each image.

        Args:
            sizes: how many tokens each has, in the order of the prompts.
            rows: the prompt that each is in; rows that `generate` repeats (beams) are neighbours.
        """
        keep: list[Any] = [self.keep] * len(sizes)
        if isinstance(self.keep, (list, tuple)):
            keep = self._listed(rows)
        elif callable(self.keep):
            keep = [self.keep(size) for size in sizes]
        if self.clip:
            keep = [self._clipped(k, size) for k, size in zip(keep, sizes, strict=True)]
        return keep

    def _listed(self, rows: Sequence[int]) -> list[Any]:
        found = repeated(list(self.keep), rows)
        if found is None:
            raise ValueError(
                f"keep={self.keep!r} has {len(self.keep)} entries, but the prompts {len(rows)} "
                "images"
            )
        return found

    def _clipped(self, keep: Any, size: int) -> Any:
        return keep if keep is None or is_fraction(keep) else min(check_int(keep, "keep", 1), size)


def repeated(values: list[Any], rows: Sequence[int]) -> list[Any] | None:
    """`values`, one an image, for images of prompts that `generate` has repeated for beams.

    Args:
        values: one for each image of the prompts as they were.
        rows: the prompt of each image; the copies of one are neighbours.

    None where the images are no whole copies.
    """
    times = len(rows) // len(values) if values else 0
    if not values or len(rows) % len(values):
        return None
    if times == 1:
        return values
    numbers, out = sorted(set(rows)), []
    for first in range(0, len(numbers), times):  # the copies of one prompt
        counts = [list(rows).count(row) for row in numbers[first : first + times]]
        if counts != [counts[0]] * times:
            return None
        out += values[: counts[0]] * times
        values = values[counts[0] :]
    return out
