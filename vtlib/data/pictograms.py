"""Names, categories and splits of the 1,911 pictograms that both artists drew."""

import difflib
import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..nn.checks import check_int
from ._arguments import one_of
from .assets import Rows, read_rows

EASY = (
    "red apple",
    "dog face",
    "automobile",
    "sunflower",
    "soccer ball",
    "octopus",
    "cactus",
    "rocket",
    "umbrella",
    "guitar",
    "butterfly",
    "slice of pizza",
)
"""Twelve pictograms that differ in colour and shape in both artists' hands: the default closed set
of the notebooks."""

LEVELS = ("pictogram", "category", "subcategory")
SPLITS = ("train", "test", "all")


def table() -> Rows:
    """One row a pictogram, read-only.

    name, short, code (points), char, category, subcategory, twin (the first that looks the same),
    split.
    """
    return read_rows("emoji.json")


@functools.cache
def categories() -> tuple[str, ...]:
    """The 9 categories, in Unicode's order."""
    return tuple(dict.fromkeys(row["category"] for row in table()))


@functools.cache
def subcategories() -> tuple[str, ...]:
    """The 99 sub-categories, in Unicode's order."""
    return tuple(dict.fromkeys(row["subcategory"] for row in table()))


@functools.cache
def _lookup() -> dict[str, int]:
    found = {}
    for key in ("char", "short", "name"):  # a later key wins: the full name is the strongest
        found.update({row[key].lower(): i for i, row in enumerate(table())})
    return found


def pictogram(name: str) -> int:
    """Index of a pictogram by its Unicode name ("red apple"), short name ("apple") or character.

    ValueError names the closest.
    """
    found = _lookup()
    key = name.lower().strip() if isinstance(name, str) else ""
    if key not in found:
        known = f"{len(table()):,} that both artists drew"
        raise ValueError(f"pictogram {name!r} is not among the {known}{_hint(key)}")
    return found[key]


def _hint(key: str) -> str:
    """Names that share a word with `key`, or most letters."""
    if not key:
        return ""
    found = _lookup()
    close = [row["name"] for row in table() if key in row["name"].lower().split()][:3]
    words = [word for word in found if len(word) > 2]
    similar = difflib.get_close_matches(key, words, n=4, cutoff=0.5)
    close += [name_of(found[word]) for word in similar]
    return "; close: " + ", ".join(dict.fromkeys(close)) if close else ""


def name_of(index: int) -> str:
    """Unicode name of a pictogram, in lower case."""
    return table()[check_int(index, "index", 0, len(table()) - 1)]["name"]


def check_split(split: Any) -> str:
    """`split`, if it is one of `SPLITS`."""
    return one_of(split, "split", SPLITS)


def in_split(split: str) -> list[int]:
    """Indices of the pictograms of "train", "test" or "all".

    About a fifth is in "test", by a hash of the code points; twins stay together.
    """
    check_split(split)
    return [i for i, row in enumerate(table()) if split in ("all", row["split"])]


def check_level(level: str) -> str:
    """`level`, if it is one of `LEVELS`."""
    return one_of(level, "level", LEVELS)


@functools.cache
def _ids(level: str) -> np.ndarray:
    if level == "pictogram":
        return np.arange(len(table()), dtype=np.int64)
    order = {"category": categories, "subcategory": subcategories}[level]()
    place = {name: i for i, name in enumerate(order)}
    return np.array([place[row[level]] for row in table()], np.int64)


def level_ids(level: str) -> Tensor:
    """(1911,) long: index of each pictogram's class at "pictogram" (its own), "category" or
    "subcategory"."""
    return torch.tensor(_ids(check_level(level)), device="cpu")


def classes_at(level: str, pictogram: Tensor, empty: Tensor) -> Tensor:
    """Class of each pictogram at a level, (...) long.

    Args:
        level: "pictogram", "category" or "subcategory".
        pictogram: (...) long, indices into `table()`.
        empty: (...) bool: the class is -1 there.
    """
    return level_ids(level).to(pictogram.device)[pictogram].masked_fill(empty, -1)


@functools.cache
def _twins() -> np.ndarray:
    return np.array([row["twin"] for row in table()], np.int64)


def twins() -> Tensor:
    """(1911,) long: index of the first pictogram that looks the same to at least one artist, mostly
    flags, else its own."""
    return torch.tensor(_twins(), device="cpu")
