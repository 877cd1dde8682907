"""The picture behind the drawings of pruning, a large ball and a small star, and its tokens.

Scores are drawn by hand; what is kept is what the package's code makes of them.
"""

import torch
from torch import Tensor

from vtlib.pruning import fastervlm
from vtlib.teach.drawings.sketches import Cells, Dots

SIDE, KEEP = 8, 7
SAME = "The small pictures have 64 tokens, of which 7 stay: the same share as 28 of 256."
QUESTION = "question\nis there a star?"
WORDS, ALL = Cells(["ttttt"]), Cells(["oooooooo"] * 8)
PROMPT = Cells(["#######", "ttttt"])
CLS_SCORES = (
    "22222222", "26762322", "27982222", "26772222", "22222222", "22322242", "22222222", "22222232"
)
"""Attention of [CLS]: the ball stands out, the star hardly."""
MIDDLE_SCORES = (
    "00000000", "03530000", "05940000", "03520000", "00000000", "00000030", "00000000", "00000000"
)
DEEP_SCORES = (
    "11112181", "12111111", "11411112", "11111111", "11116121", "11111131", "19111111", "11112117"
)
WORD_SCORES = (
    "11111111", "12221111", "12321111", "12221111", "11111131", "11111493", "11111121", "11111211"
)
"""Attention of the question's words: they ask for the star."""
S_SCORES = (
    "11111111", "14541211", "15351111", "14541111", "11112111", "21111181", "11111111", "11121112"
)
"""Sensitivity: edges move the projector most."""
TURN_SCORES = (
    "11111111", "13431111", "14541211", "13431111", "11111111", "11211151", "11111111", "11121111"
)
"""Transitions: objects are changed more than the background."""


def numbers(rows) -> Tensor:
    """(1, 64): the digits of a picture."""
    return torch.tensor([[int(mark) for row in rows for mark in row]], dtype=torch.float32)


def rows_of(marks: str, length: int = SIDE) -> list[str]:
    """A string cut into rows."""
    return [marks[i : i + length] for i in range(0, len(marks), length)]


def kept(index, mark: str = "#") -> list[str]:
    """Rows with these of 64 tokens kept."""
    chosen = {int(i) for i in index}
    return rows_of("".join(mark if i in chosen else "." for i in range(SIDE * SIDE)))


def best(scores: Tensor, keep: int = KEEP) -> list[str]:
    """Rows with the highest scores kept."""
    return kept(fastervlm.select(scores, keep).index[0])


def in_bands(rows) -> list[str]:
    """Eight rows as four crops of two rows, with gaps."""
    return [row for i in range(0, SIDE, 2) for row in (*rows[i : i + 2], "-")][:-1]


def plane() -> Tensor:
    """(64, 2): where the scene's tokens lie if unlike ones lie far apart, in pixels of a picture.

    The background is one wide cloud, the ball a small one, the star alone.
    """
    places = []
    for i in range(SIDE * SIDE):
        row, column = divmod(i, SIDE)
        x = 34 + 8 * column + 5 * torch.tensor(2.3 * i).sin().item()
        y = 44 + 7 * row + 6 * torch.tensor(1.7 * i).cos().item()
        if 1 <= row <= 3 and 1 <= column <= 3:
            x, y = 8 * column - 2 + 0.1 * (x % 17), 8 * row - 4 + 0.1 * (y % 23)
        if (row, column) == (5, 6):
            x, y = 112, 8
        places.append((x, y))
    return torch.tensor(places)


def vectors() -> Tensor:
    """(1, 64, 3): tokens whose cosine distances are those of `plane`, nearly."""
    return torch.cat([(plane() - 60) / 120, torch.ones(SIDE * SIDE, 1)], dim=1)[None]


def scatter(order, words: str, lines=()) -> Dots:
    """The plane, with the chosen tokens numbered in their order."""
    order = [int(i) for i in order]
    places = [(round(x, 1), round(y, 1)) for x, y in plane().tolist()]
    rest = [(*place, "o") for i, place in enumerate(places) if i not in order]
    chosen = [(*places[i], str(number + 1)) for number, i in enumerate(order)]
    return Dots((122, 112), words, [*rest, *chosen], lines)


def dominant_rows(dominant: int, contextual: int, length: int = 12) -> Cells:
    """All tokens of a stage, the contextual ones last."""
    marks = "#" * dominant + "+" * contextual
    return Cells([row.ljust(length) for row in rows_of(marks, length)], 10)


def ramp(stages, total: int, layers: int = 6, length: int = 12) -> Cells:
    """A row for each decoder layer: how many of all visual tokens it reads.

    Args:
        stages: the cuts, `vtlib.tokens.Stage`.
        total: visual tokens of the first layer.
        layers: of the decoder.
        length: of a row that holds all.
    """
    left = {stage.after: stage.keep for stage in stages}
    rows, notes, count = [], {}, total
    for layer in range(layers):
        count = left.get(layer, count)
        full = max(min(count, 1), round(length * count / total))
        rows.append("#" * full + "." * (length - full))
        notes[layer] = str(count)
    return Cells(rows, 12, notes)
