"""The images of a prompt: what was read of them, where their tokens stand, and the prompt without
those that a plan leaves out."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..tokens import Plan, VisionOutputs, take
from .cuts import slots_of, take_positions


class Seen:
    """What was read of some images: found, as `encoders` gives it; inputs: the arguments it was
    read from."""

    def __init__(self, found: list[tuple[list[int], VisionOutputs]], inputs: dict[str, Any]):
        self.found, self.inputs = found, inputs

    @property
    def count(self) -> int:
        return sum(len(images) for images, _ in self.found)

    def tokens(self) -> list[Tensor]:
        """One (N, D) an image, projected and unpruned."""
        pairs = [
            pair
            for images, vision in self.found
            for pair in zip(images, vision.tokens, strict=True)
        ]
        return [tokens for _, tokens in sorted(pairs, key=lambda pair: pair[0])]

    def order(self, tokens: list[Tensor]) -> list[int]:
        """The images that a list of `tokens` is of, known by their numbers: `generate` repeats
        them for beams, and others copy them, move them or put them into one piece."""
        known = self.tokens()
        flat = torch.cat([t.reshape(-1, t.shape[-1]) for t in tokens])
        order: list[int] = []
        start = 0
        while start < len(flat):
            first = order[-1] + 1 if order else 0
            turns = ((first + step) % len(known) for step in range(len(known)))
            image = next((i for i in turns if _same(flat[start:], known[i])), None)
            if image is None:
                raise ValueError(
                    "mm_encoder_outputs is not what get_image_features gave last in this thread: "
                    "it was made outside of this block, changed, or split (prefill_chunk_size): "
                    "pass pixel_values, and the whole prompt at once"
                )
            order.append(image)
            start += len(known[image])
        return order


def runs(placeholder: Tensor) -> list[tuple[int, Tensor]]:
    """(row, places (n,)) of each block of neighbours in placeholder (B, S)."""
    found = []
    for row, here in enumerate(placeholder):
        at = here.nonzero()[:, 0]
        ends = [0, *((at.diff() > 1).nonzero()[:, 0] + 1).tolist(), len(at)]
        found += [(row, at[a:b]) for a, b in itertools.pairwise(ends) if b > a]
    return found


def sets(placeholder: Tensor, sizes: list[int] | None) -> list[tuple[int, Tensor]]:
    """(row, places (n,)) of each image, in the order of the prompts.

    Args:
        placeholder: (B, S) bool.
        sizes: how many tokens each has. None, or sizes that do not fit the rows: each block of
            neighbours is an image.
    """
    if sizes is None or sum(sizes) != int(placeholder.sum()):
        return runs(placeholder)
    row, place = placeholder.nonzero().unbind(dim=1)
    found = [
        (int(rows[0]), places)
        for rows, places in zip(row.split(sizes), place.split(sizes), strict=True)
        if len(rows) and bool((rows == rows[0]).all())
    ]
    return found if len(found) == sum(size > 0 for size in sizes) else runs(placeholder)


def frames(videos: list[tuple[int, Tensor]], counts: list[int]) -> list[tuple[int, Tensor]]:
    """Videos as images, one a frame: a video of counts[i] frames and n tokens has n // counts[i] of
    them a frame; what is left at its end (a newline) belongs to none.

    Args:
        videos: as `sets` gives them.
        counts: how many frames each has; videos beyond them stay whole.
    """
    found = []
    for (row, places), count in itertools.zip_longest(videos, counts[: len(videos)], fillvalue=1):
        size = max(len(places) // count, 1)
        found += [(row, part) for part in places.split(size) if len(part) == size]
    return found


def plain(
    x: Tensor,
    shown: Tensor,
    images: list[tuple[int, Tensor]],
    first: int,
    read: list[Any],
) -> Iterator["Group"]:
    """Images as the decoder's input shows them, with what was read of the tower.

    Args:
        x: (B, S, D) embeddings.
        shown: (B, S, D), x, or what tells more of the images where x does not yet hold them.
        images: as `sets` gives them.
        first: the number of the first of them.
        read: for each (signals, its first token there, its last + 1), or None.
    """
    alike: dict[int, list[int]] = {}
    for number, (_, places) in enumerate(images):
        alike.setdefault(len(places), []).append(number)
    for size, numbers in alike.items():
        row = torch.tensor([images[i][0] for i in numbers], device=x.device)
        places = torch.stack([images[i][1] for i in numbers])
        side = math.isqrt(size)
        grid = (side, side) if side * side == size else (1, size)
        tokens = shown[row[:, None], places]
        vision = VisionOutputs(tokens, grid, lambda t: t, num_prefix=0)
        vision.tokens = tokens
        if read[numbers[0]] is not None:
            _tell(vision, [read[i] for i in numbers])
        which = torch.arange(len(numbers), device=x.device)
        rows = None if shown is x else x[row[:, None], places]
        yield Group([first + i for i in numbers], vision, which, row, places, rows)

def _same(flat: Tensor, tokens: Tensor) -> bool:
    first = flat[: len(tokens)].to(tokens)
    return first.shape == tokens.shape and torch.allclose(
        first, tokens, rtol=0.0, atol=0.0, equal_nan=True
    )


def _tell(vision: VisionOutputs, read: list[Any]) -> None:
    """Give `vision` what was read of its images: one (signals, start, stop) each."""
    found = read[0][0]

    def rows(part: Callable[[int, int], Tensor]) -> Tensor:
        return torch.stack([part(start, stop) for _, start, stop in read])

    if found.cls_row is not None:
        vision.cls_row = rows(lambda a, b: found.cls_row[:, a:b])
    if found.keys is not None:
        vision.keys = rows(lambda a, b: found.keys[a:b])
    for layer in found.maps:
        vision.attention[layer] = rows(lambda a, b, layer=layer: found.attention(layer, a, b))
    for index, states in found.hidden.items():
        vision.hidden[index] = rows(lambda a, b, states=states: states[a:b])


@dataclass
class Group:
    """Images of one size in a prompt. images: numbers in the order of the prompts; vision; which
    (M,): the row of vision each is; row (M,): its prompt; places (M, N): its placeholders; rows
    (M, N, D): what stands there, if it is not vision's tokens. source (M,), total: where it is a
    part of another group, the rows of that group's vision, and how many that has."""

    images: list[int]
    vision: VisionOutputs
    which: Tensor
    row: Tensor
    places: Tensor
    rows: Tensor | None = None
    source: Tensor | None = None
    total: int = 0

    def part(self, members: list[int]) -> "Group":
        """Some of its images."""
        rows = torch.tensor(members, device=self.row.device)
        which = self.which[rows]
        again = torch.arange(len(members), device=which.device)
        images = [self.images[i] for i in members]
        return Group(
            images,
            self.vision.rows(which),
            again,
            self.row[rows],
            self.places[rows],
            None if self.rows is None else self.rows[rows],
            source=which,
            total=len(self.vision.features),
        )

    def signals(self, more: dict[str, Any]) -> dict[str, Any]:
        """Signals with a row for each image of the whole group's vision, for this part's."""
        if self.source is None:
            return more

        def rows(value: Any) -> Any:
            fits = isinstance(value, Tensor) and value.dim() and len(value) == self.total
            return value[self.source] if fits else value

        return {name: rows(value) for name, value in more.items()}


def groups(placeholder: Tensor, seen: Seen, order: list[int]) -> Iterator[Group]:
    """Where images stand.

    Args:
        placeholder: (B, S) bool.
        seen: what was read of the images.
        order: the image behind each block of placeholders.

    ValueError for too many or too few placeholders, and for an image's that are spread over two
    prompts.
    """
    device, width = placeholder.device, placeholder.shape[1]
    flat = placeholder.flatten().nonzero()[:, 0]
    sizes = {image: vision.features.shape[1] for images, vision in seen.found for image in images}
    ends = [0, *itertools.accumulate(sizes[image] for image in order)]
    if len(flat) != ends[-1]:
        raise ValueError(
            f"input_ids has {len(flat)} placeholders of images, but the {len(order)} images in "
            f"pixel_values have {ends[-1]} tokens"
        )
    starts = list(zip(ends[:-1], order, strict=True))
    for images, vision in seen.found:
        here = [(start, image) for start, image in starts if image in images]
        if not here:
            continue
        start = torch.tensor([s for s, _ in here], device=device)[:, None]
        at = flat[start + torch.arange(sizes[images[0]], device=device)]  # m n
        row, place = at // width, at % width
        if (row != row[:, :1]).any():
            raise ValueError(
                "input_ids: the placeholders of an image are spread over two prompts of the batch"
            )
        which = torch.tensor([images.index(image) for _, image in here], device=device)
        yield Group([image for _, image in here], vision, which, row[:, 0], place)


@dataclass
class Sheet:
    """A prompt while its images' tokens are put in.

    x (B, S, D): embeddings. positions, moved (..., B, S): as the model numbers it, and as
    survivors carry them along. columns (B, S): where each token comes from. stay (B, S) bool.
    """

    x: Tensor
    positions: Tensor
    moved: Tensor
    columns: Tensor
    stay: Tensor

    def put(self, group: Group, plan: Plan, tokens: Tensor | None, behind: int) -> Tensor:
        """What is left of a group's images goes to its places; -> these (M, T), -1 where there is
        none.

        Args:
            group: the images.
            plan: what is left of them.
            tokens: (M, T, D) that; None: what stands there already.
            behind: how many other tokens the plan counts before the patches.
        """
        count, here, at = len(plan), group.places, group.row[:, None]
        if count > here.shape[1]:
            raise ValueError(
                f"the plan leaves {count} tokens but an image has {here.shape[1]} places in the "
                "prompt"
            )
        slots, seed = slots_of(here, (plan.index - behind).clamp(min=0))
        if tokens is not None:
            self.x = self.x.index_put((at, slots), tokens.to(self.x.dtype))
        self.stay[at, here] = False
        self.stay[at, slots] = plan.index >= 0
        self.moved[..., at, slots] = self.positions[..., at, seed]
        self.columns[at, slots] = seed
        return slots.masked_fill(plan.index < 0, -1)

    def rectangle(self, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """index (B, S') of what stays, and valid (B, S'). Rows that are shorter than others are
        filled with padding, first their own, then tokens that were dropped."""
        size = self.stay.shape[1]
        real = self.stay if mask is None else self.stay & mask.bool()
        length = size if self.stay.all() else int(real.sum(dim=1).amax())
        rank = torch.where(real, 2, self.stay.long())
        best = rank.argsort(dim=1, stable=True)[:, size - length :]
        index = best.sort(dim=1).values  # b s'
        return index, take(real, index)

    @property
    def gone(self) -> Tensor:
        """(B, S): how many tokens are dropped up to each."""
        return (~self.stay).long().cumsum(dim=1)

    def numbers(self, renumber: bool, index: Tensor) -> Tensor:
        """The positions of the tokens `index` (B, S')."""
        return take_positions(self.positions - self.gone if renumber else self.moved, index)
