"""Token maps: cells with the letter and colour of their group."""

from collections.abc import Sequence

from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from vtlib.teach.diagrams import GREY, INK, NAME, SMALL, TITLE, canvas, size, wrap
from vtlib.teach.figures import PALETTE

MARGIN = 10
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def tint(i: int) -> tuple[float, ...]:
    """Colour i of the palette, light enough for black letters."""
    return tuple(0.45 + 0.55 * part for part in to_rgb(PALETTE[i % len(PALETTE)]))


def page(width: float, height: float, title: str, note: str):
    """A figure in the look of a diagram: its axes, and where free space begins."""
    note = wrap(note, width - 2 * MARGIN)
    top = MARGIN + size(title, TITLE)[1] + 12
    fig, ax = canvas(width, top + height + size(note, SMALL)[1] + 22)
    write(ax, (MARGIN, MARGIN), title, TITLE, gid="title")
    write(ax, (MARGIN, top + height + 12), note, SMALL, GREY, gid="note")
    return fig, ax, top


def write(ax, place, text: str, points: float = NAME, color: str = INK, gid: str = "") -> None:
    """Text whose upper left corner is at place (x, y)."""
    written = ax.text(
        *place, text, fontsize=points, color=color, ha="left", va="top", linespacing=1.25
    )
    written.set_gid(gid)


def cells(ax, place, groups: Sequence[Sequence[int]], side: float, strong: int | None = None):
    """Rows of cells, each with the letter of its group.

    Args:
        ax: axes in pixels, see `page`.
        place: upper left corner (x, y).
        groups: rows of group numbers.
        side: of a cell.
        strong: the group whose cells get a thick border.
    """
    for r, row in enumerate(groups):
        for c, group in enumerate(row):
            cell(ax, (place[0] + c * side, place[1] + r * side), side, int(group), group == strong)


def cell(ax, place, side: float, group: int, strong: bool = False) -> None:
    """One cell with its letter.

    Args:
        ax: axes in pixels.
        place: upper left corner (x, y).
        side: in pixels.
        group: its number.
        strong: whether it gets a thick border.
    """
    inset = 1.5 if strong else 0
    corner, edge = (place[0] + inset, place[1] + inset), side - 2 * inset
    patch = Rectangle(
        corner, edge, edge, facecolor=tint(group), edgecolor=INK if strong else "#ffffff",
        linewidth=2.2 if strong else 1, zorder=3 if strong else 2,
    )
    ax.add_artist(patch)
    ax.text(
        place[0] + side / 2, place[1] + side / 2, LETTERS[group], fontsize=SMALL, color=INK,
        ha="center", va="center", zorder=4,
    ).set_gid("cell")


def outline(ax, place, width: float, height: float) -> None:
    """A thick frame around some cells.

    Args:
        ax: axes in pixels.
        place: upper left corner (x, y).
        width: in pixels.
        height: in pixels.
    """
    ax.add_artist(
        Rectangle(place, width, height, fill=False, edgecolor=INK, linewidth=2.4, zorder=5)
    )


def blank(place, side: float) -> Rectangle:
    """An empty cell."""
    return Rectangle(place, side, side, facecolor="#f2f2f2", edgecolor="#bbbbbb", zorder=1)
