"""Small pictures inside the boxes of a diagram: rows of tokens, scores, and a few dots and lines.

One colour means one thing in all of them: a kept token is full and blue, a dropped one empty, grey
and crossed out, a word purple and round, a score the browner the higher. A mark says the same where
colours do not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyArrowPatch, Polygon, Rectangle

from vtlib.teach.diagrams import GREY, INK, SMALL

KEPT, TOKEN, DROPPED, WORD, SCORE, LEARNED = (
    "#0072B2", "#CFE3F2", "#FFFFFF", "#CC79A7", "#8A4B00", "#00734F"
)
PALE = "#FFF6E5"                              # the lowest score
LINE = "#C4C4C4"
NAMES = {
    "o": "undecided", "#": "kept", ".": "dropped", "+": "merged", "t": "words", "*": "[CLS]",
    "x": "cross token",
}


def shade(score: float) -> tuple[float, ...]:
    """The colour of a score from 0 to 1."""
    ends = zip(to_rgb(PALE), to_rgb(SCORE), strict=True)
    return tuple(low + score * (high - low) for low, high in ends)


@dataclass(frozen=True)
class Cells:
    """Tokens in rows, a character each.

    Args:
        rows: "#" kept, a capital letter: kept, with that letter; "+" kept, others merged into it;
            "." dropped; "o" not decided yet; "t" a word; "*" [CLS]; "x" a cross token; 0 to 9 its
            score; " " nothing. A row "-" is a narrow gap.
        side: of a cell, in pixels.
        notes: words to the right of a row, by its number.
    """

    rows: Sequence[str]
    side: float = 11
    notes: dict[int, str] = field(default_factory=dict)

    @property
    def size(self) -> tuple[float, float]:
        """(width, height) in pixels."""
        beside = max((6 + 7.5 * len(note) for note in self.notes.values()), default=0)
        height = sum(self._height(row) for row in self.rows)
        return max(map(len, self.rows)) * self.side + beside, height

    def _height(self, row: str) -> float:
        return 5 if row == "-" else self.side

    @property
    def words(self) -> str:
        """What there is to see: how many of each, and where the highest score is."""
        rows = [row for row in self.rows if row != "-"]
        marks = "".join(rows)
        scores = sorted(mark for mark in marks if mark.isdigit())
        parts = []
        if scores:
            row = next(i for i, row in enumerate(rows) if scores[-1] in row)
            column = rows[row].index(scores[-1])
            parts.append(
                f"{len(scores)} scores, the highest in row {row + 1}, column {column + 1}"
            )
        letters = {mark: mark for mark in sorted(set(marks)) if mark.isupper()}
        for mark, name in {**NAMES, **letters}.items():
            if mark in marks:
                parts.append(f"{marks.count(mark)} {name}")
        parts += [f"row {row + 1}: {note}" for row, note in self.notes.items()]
        return "picture: " + ", ".join(parts)

    def draw(self, ax, left: float, top: float, gid: str) -> None:
        """Put it on axes that count pixels; its letters bear the name gid.

        Args:
            ax: axes.
            left: of its upper left corner.
            top: likewise.
            gid: of the box.
        """
        panel(ax, left, top, self.size)
        for number, row in enumerate(self.rows):
            if row == "-":
                top += 5
                continue
            for column, mark in enumerate(row):
                token(ax, left + column * self.side, top, self.side, mark, gid)
            if number in self.notes:
                x = left + len(row) * self.side + 6
                write(ax, x, top + self.side / 2, self.notes[number], gid, align="left")
            top += self.side


def token(ax, left: float, top: float, side: float, mark: str, gid: str) -> None:
    """One cell.

    Args:
        ax: axes.
        left: of its upper left corner.
        top: likewise.
        side: in pixels.
        mark: of `Cells.rows`.
        gid: of the box it stands in.
    """
    if mark == " ":
        return
    middle = left + side / 2, top + side / 2
    if mark == "t":
        add(ax, Circle(middle, side / 2 - 0.8, facecolor=WORD, edgecolor="white", lw=0.6))
        return
    fill = {"o": TOKEN, ".": DROPPED, "*": LEARNED, "x": LEARNED}.get(mark, KEPT)
    if mark.isdigit():
        fill = shade((int(mark) / 9) ** 1.4)
    edge = LINE if mark == "." else "white"
    add(ax, Rectangle((left + 0.5, top + 0.5), side - 1, side - 1, facecolor=fill, edgecolor=edge,
                      lw=0.6))
    if mark == ".":
        cross(ax, middle, side * 0.28, (1, 3), LINE, 0.8)
    elif mark in "+*x":
        arms = {"+": (0, 2), "x": (1, 3), "*": (0, 1, 2, 3)}[mark]
        cross(ax, middle, side * 0.3, arms)
    elif mark.isupper():
        inscribe(ax, middle, mark, gid)


def cross(ax, middle, reach: float, arms: Sequence[int], color="white", width=1.1) -> None:
    """Lines through a point.

    Args:
        ax: axes.
        middle: (x, y).
        reach: half their length in pixels.
        arms: their directions in multiples of 45 degrees.
        color: of the lines.
        width: of the lines.
    """
    for arm in arms:
        x, y = reach * math.cos(arm * math.pi / 4), reach * math.sin(arm * math.pi / 4)
        ends = [middle[0] - x, middle[0] + x], [middle[1] - y, middle[1] + y]
        add(ax, Line2D(*ends, color=color, lw=width))


def panel(ax, left: float, top: float, size: tuple[float, float]) -> None:
    """White ground, so that colours look alike in boxes of all colours.

    Args:
        ax: axes.
        left: of its upper left corner.
        top: likewise.
        size: (width, height) of what will stand on it.
    """
    edges = size[0] + 4, size[1] + 4
    ax.add_artist(Rectangle((left - 2, top - 2), *edges, facecolor="white", lw=0, zorder=3.5))


def add(ax, artist) -> None:
    """Above the boxes."""
    artist.set_zorder(4)
    ax.add_artist(artist)


def write(ax, x, y, text: str, gid: str, align="center", color=INK, weight="normal") -> None:
    """Text around the height y.

    Args:
        ax: axes.
        x: its middle, or left edge.
        y: its middle.
        text: what to write.
        gid: of the box it stands in.
        align: "center", "left" or "right".
        color: of the letters.
        weight: of the letters.
    """
    look = {"fontsize": SMALL, "ha": align, "va": "center", "color": color, "weight": weight}
    ax.text(x, y, text, zorder=6, **look).set_gid(gid)


def inscribe(ax, middle: tuple[float, float], mark: str, gid: str) -> None:
    """A white capital or digit around a point; it has no part below the line, so it goes lower.

    Args:
        ax: axes.
        middle: (x, y).
        mark: the letter.
        gid: of the box it stands in.
    """
    write(ax, middle[0], middle[1] + 1.3, mark, gid, color="white", weight="bold")


@dataclass(frozen=True)
class Scene:
    """The picture behind all these drawings: a large ball and a small star on 8 x 8 patches."""

    side: float = 11
    words: str = "picture: a large ball, 3 x 3 of 8 x 8 patches, and a small star on one patch"

    @property
    def size(self) -> tuple[float, float]:
        """(width, height) in pixels."""
        return 8 * self.side, 8 * self.side

    def draw(self, ax, left: float, top: float, gid: str) -> None:
        """As `Cells.draw`.

        Args:
            ax: axes.
            left: of its upper left corner.
            top: likewise.
            gid: not used, there are no letters.
        """
        whole, side = 8 * self.side, self.side
        add(ax, Rectangle((left, top), whole, whole, facecolor="#E4E4E4", edgecolor="none"))
        ball = left + 2.5 * side, top + 2.5 * side
        add(ax, Circle(ball, 1.45 * side, facecolor="#7A7A7A", edgecolor=INK, lw=0.8))
        add(ax, Circle((ball[0] - 5, ball[1] - 5), 0.35 * side, facecolor="white", lw=0))
        middle = left + 6.5 * side, top + 5.5 * side
        add(ax, Polygon(five_pointed(middle, 0.52 * side), closed=True, facecolor=INK, lw=0))
        for i in range(9):
            step = i * side
            for xs, ys in (((0, whole), (step, step)), ((step, step), (0, whole))):
                ends = [left + x for x in xs], [top + y for y in ys]
                add(ax, Line2D(*ends, color="white", lw=0.8))


def five_pointed(middle: tuple[float, float], reach: float) -> list[tuple[float, float]]:
    """The corners of a star."""
    corners = []
    for i in range(10):
        far, turn = reach * (0.4 if i % 2 else 1), i * math.pi / 5
        corners.append((middle[0] + far * math.sin(turn), middle[1] - far * math.cos(turn)))
    return corners


@dataclass(frozen=True)
class Dots:
    """Tokens as dots in a plane, lines between them, and words.

    Args:
        size: (width, height) in pixels.
        words: what there is to see, for the alt text.
        dots: (x, y, mark): "o" not decided yet, "#" kept, "." dropped, "+" merged, "*" [CLS] or
            cross token, "t" a word; anything else is written into a kept dot.
        lines: (x, y, x', y', look): "-" plain, "--" dashed, "->" an arrow, "=>" a thick one, "<->";
            arrows end beside a dot at (x', y').
        texts: (x, y, text).
    """

    size: tuple[float, float]
    words: str
    dots: Sequence[tuple] = ()
    lines: Sequence[tuple] = ()
    texts: Sequence[tuple] = ()

    def draw(self, ax, left: float, top: float, gid: str) -> None:
        """As `Cells.draw`.

        Args:
            ax: axes.
            left: of its upper left corner.
            top: likewise.
            gid: of the box.
        """
        panel(ax, left, top, self.size)
        for x, y, to_x, to_y, look in self.lines:
            line(ax, (left + x, top + y), (left + to_x, top + to_y), look)
        for x, y, mark in self.dots:
            dot(ax, (left + x, top + y), mark, gid)
        for x, y, text in self.texts:
            write(ax, left + x, top + y, text, gid, color=GREY)


def line(ax, start: tuple[float, float], end: tuple[float, float], look: str) -> None:
    """A line of `Dots`.

    Args:
        ax: axes.
        start: (x, y).
        end: (x, y).
        look: of `Dots.lines`.
    """
    if look in ("-", "--"):
        xs, ys = zip(start, end, strict=True)
        style = "-" if look == "-" else (0, (3, 2))
        add(ax, Line2D(xs, ys, color=GREY, lw=1, linestyle=style))
        return
    head = "<|-|>" if look == "<->" else "-|>"
    width = 2.6 if look == "=>" else 1.2
    short = 5.5 if look == "<->" else 0                          # points, not under the dot
    add(ax, FancyArrowPatch(
        start, end, arrowstyle=head, mutation_scale=8, lw=width, color=INK, shrinkA=short,
        shrinkB=5.5,
    ))


def dot(ax, middle: tuple[float, float], mark: str, gid: str) -> None:
    """A dot of `Dots`.

    Args:
        ax: axes.
        middle: (x, y).
        mark: of `Dots.dots`.
        gid: of the box.
    """
    fills = {"o": TOKEN, ".": DROPPED, "*": LEARNED, "t": WORD, "#": KEPT, "+": KEPT}
    if mark in fills:
        edge = {"o": KEPT, ".": LINE}.get(mark, "white")
        reach = 3.6 if mark in "o." else 5.5
        add(ax, Circle(middle, reach, facecolor=fills[mark], edgecolor=edge, lw=0.7))
        if mark in "+*":
            cross(ax, middle, 3, (0, 2) if mark == "+" else (0, 1, 2, 3))
        return
    add(ax, Circle(middle, 7.5, facecolor=KEPT, edgecolor="white", lw=0.8))
    inscribe(ax, middle, mark, gid)
