"""Names, categories and splits of the 1,911 pictograms that both artists drew."""

import difflib
import functools

import torch
from torch import Tensor

from vtlib.data.assets import read_rows

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
"""Twelve pictograms that differ in colour and shape in both artists' hands: the default closed set of the notebooks."""

LEVELS = ("pictogram", "category", "subcategory")


@functools.cache
def table() -> list[dict]:
    """One dict a pictogram: name, short, code (points), char, category, subcategory, twin (first that looks the same), split."""
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
    """Index of a pictogram by its Unicode name ("red apple"), short name ("apple") or character. ValueError names the closest."""
    found = _lookup()
    key = name.lower().strip() if isinstance(name, str) else ""
    if key not in found:
        close = [row["name"] for row in table() if key and key in row["name"].lower().split()][:3]
        close += [name_of(found[k]) for k in difflib.get_close_matches(key, [k for k in found if len(k) > 2], n=4, cutoff=0.5)]
        hint = "; close: " + ", ".join(dict.fromkeys(close)) if close else ""
        raise ValueError(f"pictogram {name!r} is not among the {len(table()):,} that both artists drew{hint}")
    return found[key]


def name_of(index: int) -> str:
    """Unicode name of a pictogram, in lower case."""
    return table()[index]["name"]


def in_split(split: str) -> list[int]:
    """Indices of the pictograms of "train", "test" (about a fifth, by a hash of the code points; twins stay together) or "all"."""
    if split not in ("train", "test", "all"):
        raise ValueError(f"split={split!r}: needs train, test or all")
    return [i for i, row in enumerate(table()) if split in ("all", row["split"])]


@functools.cache
def _ids(key: str) -> Tensor:
    order = {"category": categories, "subcategory": subcategories}[key]()
    return torch.tensor([order.index(row[key]) for row in table()])


def level_ids(level: str) -> Tensor:
    """(1911,) long: index of each pictogram's class at "category" or "subcategory"; at "pictogram" its own index."""
    if level not in LEVELS:
        raise ValueError(f"level={level!r}: needs one of {', '.join(LEVELS)}")
    return torch.arange(len(table())) if level == "pictogram" else _ids(level)


@functools.cache
def twins() -> Tensor:
    """(1911,) long: index of the first pictogram that looks the same to at least one artist (mostly flags), else its own."""
    return torch.tensor([row["twin"] for row in table()])
