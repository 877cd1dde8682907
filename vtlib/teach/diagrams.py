"""A method as boxes and arrows, with shapes at the arrows, and the same in words.

    teach.diagram(
        "A linear classifier",
        boxes={
            "image": (0, 0, "image", "data"),
            "head": (1, 0, "Linear\\nto 12 classes", "layer"),
            "logits": (2, 0, "logits", "data"),
        },
        arrows=[("image", "head", "(3, 96, 96)"), ("head", "logits", "(12)")],
    )

Drawings of the papers stand in `vtlib.teach.drawings`. Where things lie is in `vtlib.teach.layout`.
"""

import functools
import html
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, FancyArrowPatch, FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path

from vtlib.nn.checks import check_flag, check_list, check_number
from vtlib.teach import figures
from vtlib.teach.layout import ROUTES, Arrow, Box, Frame, Layout, Rect

DPI = 100
MOST = 900                                    # pixels of width: a notebook's column
MARGIN = 10
UNDER = 6                                     # between a label and the picture below it
NAME, SMALL, TITLE = 9.5, 8.5, 11             # points
INK, GREY = "#000000", "#4d4d4d"

styled = matplotlib.rc_context(figures.STYLE)
"""Decorates what draws: matplotlib's defaults, which a notebook may have changed, do not matter."""


@dataclass(frozen=True)
class Kind:
    """How a box looks: colour, and border or shape, since not all see colours."""

    meaning: str
    fill: str
    edge: str
    shape: str
    width: float = 1.2
    line: str = "-"


KINDS = {
    "data": Kind("what flows", "#E3EFF8", "#0072B2", "square"),
    "layer": Kind("layer with weights", "#FCEFCF", "#9A6B00", "round"),
    "step": Kind("computed, no weights", "#FFFFFF", "#555555", "round", line=(0, (4, 2))),
    "learned": Kind("learned tokens", "#D6EFE6", "#00734F", "octagon"),
    "idea": Kind("the paper's idea", "#F9DCCB", "#D55E00", "round", width=2.8),
    "text": Kind("words", "#F6E3EE", "#9C4F7D", "square", width=2.0),
    "sum": Kind("", "#FFFFFF", "#000000", "circle"),
}
"""data: pixels, tokens, maps; layer: weights that training moves; step: cutting, sorting, warping;
learned: [CLS], positions, parameter tokens; idea: what is new here; text: words of a question; sum:
a small circle for one sign, such as +."""


def diagram(
    title: str,
    boxes: Mapping[str, tuple],
    arrows: Sequence[tuple] = (),
    groups: Sequence[tuple] = (),
    note: str = "",
    legend: bool = True,
    meanings: Mapping[str, str] | None = None,
) -> None:
    """Publish a drawing of boxes and arrows; its alt text is made of them.

    ValueError for an arrow from an unknown box, for two boxes on one place, for text that meets
    other text, a box or an arrow, and for what is wider than 900 pixels.

    Args:
        title: what the drawing says.
        boxes: name -> (column, row, label, kind), or with a picture of
            `vtlib.teach.drawings.sketches` behind, which is drawn below the label. Places count
            from 0, halves are allowed. The label's first line says what it is, further ones ("\\n")
            are small print. kind: one of `KINDS`.
        arrows: (from, to, shape) or (from, to, shape, route). By default an arrow is straight, or
            goes sideways, up or down, sideways ("hvh"); "hv", "vh", "vhv" are the other ways to
            bend. "above", "below", "left", "right" are skip arrows, which run beside a whole row
            or column.
        groups: (names of boxes, title): a dashed frame.
        note: a line below, such as what the letters in shapes stand for.
        legend: whether a last line names the kinds of boxes.
        meanings: {kind: what the legend calls it here}, where the words of `KINDS` do not fit.
    """
    drawing = Drawing(title, boxes, arrows, groups, note, legend, meanings)
    publish(drawing.figure(), drawing.words())


def chain(*names: str) -> list[tuple[str, str, str]]:
    """Arrows without shapes from each box to the next."""
    return [(source, target, "") for source, target in itertools.pairwise(names)]


def publish(fig: Figure, sentences: list[str]) -> None:
    """One output: the picture with its alt text, and the same folded under it."""
    alt = " ".join(sentences)
    picture = figures.image_html(figures.png(fig, DPI, level=9), alt)
    folded = "<br>".join(html.escape(sentence) for sentence in sentences)
    folded = f"<details><summary>The drawing in words</summary><p>{folded}</p></details>"
    figures.publish({"text/html": f"{picture}\n{folded}", "text/plain": alt})


class Drawing:
    """A checked diagram: see `diagram` for the arguments."""

    def __init__(
        self, title, boxes, arrows=(), groups=(), note="", legend=True, meanings=None
    ):
        self.title, self.note = check_text(title, "title"), note
        self.legend, self.meanings = check_flag(legend, "legend"), read_meanings(meanings)
        self.boxes = read_boxes(boxes)
        self.arrows = [read_arrow(arrow, self.boxes) for arrow in check_list(arrows, "arrows")]
        self.frames = [read_frame(group, self.boxes) for group in check_list(groups, "groups")]
        self.texts: list[Rect] = []

    # ------------------------------------------------------------------------------------- words
    def words(self) -> list[str]:
        """The drawing as sentences: each chain of arrows, the skips, the frames."""
        chains: list[list[Arrow]] = []
        for arrow in self.arrows:
            if arrow.skips:
                continue
            if chains and chains[-1][-1].target is arrow.source:
                chains[-1].append(arrow)
            else:
                chains.append([arrow])
        skips = [[arrow] for arrow in self.arrows if arrow.skips]
        sentences, told = [f"{self.title}."], set()

        def say(box: Box) -> str:
            """The small print once, then the name alone."""
            words = called(box) if box.name in told else spoken(box)
            told.add(box.name)
            return words

        for kind, links in [("", c) for c in chains] + [("Skip: ", c) for c in skips]:
            steps = [say(arrow.source) + _after(arrow.label) for arrow in links]
            sentences.append(kind + " -> ".join([*steps, say(links[-1].target)]) + ".")
        for frame in self.frames:
            inside = ", ".join(called(box) for box in frame.boxes)
            sentences.append(f"{_line(frame.title)}: {inside}.")
        return sentences + ([f"{self.note}"] if self.note else [])

    # ----------------------------------------------------------------------------------- picture
    @styled
    def figure(self) -> Figure:
        """The picture. ValueError where something does not fit."""
        for box in self.boxes.values():
            box.width, box.height = self._needs(box)
        head = size("x", SMALL)[1] + 3
        layout = Layout(
            list(self.boxes.values()), self.arrows, self.frames, lambda t: size(t, SMALL), head
        )
        kinds = [kind for kind in KINDS if any(b.kind == kind for b in self.boxes.values())]
        entries = [(kind, self.meanings[kind]) for kind in kinds if self.meanings[kind]]
        entries = entries if self.legend else []
        top = MARGIN + size(self.title, TITLE)[1] + 10
        layout.place(0, 0)
        right = max(rect.right for rect in layout.extents())
        width = max(right, size(self.title, TITLE)[0], 420) + 2 * MARGIN
        left = (width - right) / 2
        _, bottom = layout.place(left, top)
        if width > MOST:
            raise ValueError(
                f"{self.title!r} is {width:.0f} pixels wide and needs at most {MOST}: break labels "
                f"with \\n, or use fewer columns"
            )
        note = wrap(self.note, width - 2 * MARGIN)
        below = bottom + 12 + (size(note, SMALL)[1] + 12 if note else 0)
        rows = legend_rows(entries, width)
        height = below + 20 * len(rows) + MARGIN / 2
        fig, ax = canvas(width, height)
        self.texts = []
        self._write(ax, MARGIN, MARGIN, self.title, "left", TITLE, gid="title")
        self._draw(ax)
        if note:
            self._write(ax, MARGIN, bottom + 12, note, "left", SMALL, GREY, gid="note")
        for i, row in enumerate(rows):
            self._legend(ax, row, below + 20 * i)
        self._check()
        return fig

    def _needs(self, box: Box) -> tuple[float, float]:
        """Width and height of a box around its label."""
        if box.kind == "sum":
            return 20, 20
        name, *rest = box.label.split("\n")
        width, height = size(name, NAME)
        if rest:
            small = size("\n".join(rest), SMALL)
            width, height = max(width, small[0]), height + 3 + small[1]
        if box.picture is not None:
            drawn = box.picture.size
            width, height = max(width, drawn[0]), height + UNDER + drawn[1]
        return max(width + 16, 44), height + 14

    def _draw(self, ax) -> None:
        for frame in self.frames:
            draw_frame(ax, frame.rect)
            rect = frame.rect
            place = rect.left + 8, rect.top + 4
            self._write(ax, *place, frame.title, "left", SMALL, GREY, gid=rect.name)
        for arrow in self.arrows:
            draw_arrow(ax, arrow)
            if arrow.label:
                x, y = arrow.text
                y -= size(arrow.label, SMALL)[1] / 2
                align = "left" if arrow.align == "left" else "center"
                self._write(ax, x, y, arrow.label, align, SMALL, gid=arrow.name)
        for box in self.boxes.values():
            draw_box(ax, box.rect, box.kind)
            self._label(ax, box)

    def _label(self, ax, box: Box) -> None:
        name, *rest = box.label.split("\n")
        lines = [(name, NAME, INK)] + ([("\n".join(rest), SMALL, GREY)] if rest else [])
        heights = [size(text, points)[1] for text, points, _ in lines]
        whole = sum(heights) + 3 * len(rest[:1])
        if box.picture is not None:
            whole += UNDER + box.picture.size[1]
        y = box.y - whole / 2
        for (text, points, color), height in zip(lines, heights, strict=True):
            self._write(ax, box.x, y, text, "center", points, color, gid=box.rect.name)
            y += height + 3
        if box.picture is not None:
            left = box.x - box.picture.size[0] / 2
            box.picture.draw(ax, left, y - 3 + UNDER, gid=box.rect.name)

    def _write(self, ax, x, y, text, align, points, color=INK, gid="") -> None:
        """Text whose upper edge is y; x is its left edge or its middle."""
        width, height = size(text, points)
        left = x - (width / 2 if align == "center" else 0)
        self.texts.append(Rect(f"{text!r} ({gid})", left, y, left + width, y + height))
        # the middle of the ink, not of the line, so that boxes look balanced
        written = ax.text(
            left + width / 2, y + height / 2, text, fontsize=points, color=color, ha="center",
            va="center", linespacing=1.25, multialignment=align,
        )
        written.set_gid(gid)

    def _legend(self, ax, row: list[tuple[float, str, str]], y: float) -> None:
        for x, kind, meaning in row:
            draw_box(ax, Rect("legend", x, y, x + 20, y + 13), kind)
            self._write(ax, x + 26, y, meaning, "left", SMALL, GREY, gid="legend")

    # ------------------------------------------------------------------------------------ checks
    def _check(self) -> None:
        """ValueError where two things lie on each other."""
        boxes = [box.rect for box in self.boxes.values()]
        loose = [text for text in self.texts if "(box " not in text.name]
        pairs = list(itertools.combinations(boxes, 2)) + list(itertools.combinations(loose, 2))
        pairs += list(itertools.product(loose, boxes))
        for arrow in self.arrows:
            ends = arrow.source.rect, arrow.target.rect
            others = [rect for rect in boxes if rect not in ends] + loose
            pairs += itertools.product(segments(arrow), others)
        for frame in self.frames:
            pairs += itertools.product(borders(frame.rect), boxes + loose)
        for one, other in pairs:
            if one.meets(other):
                raise ValueError(
                    f"{self.title!r}: {one.name} and {other.name} lie on each other; break labels "
                    f"with \\n, or give them more room"
                )


# ----------------------------------------------------------------------------------- what is given
def check_text(text, name: str) -> str:
    """`text`; ValueError unless it is a string that says something."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{name}={text!r}: needs a string that is not empty")
    return text


def read_boxes(boxes) -> dict[str, Box]:
    """The boxes by their names. ValueError for what makes none."""
    if not isinstance(boxes, Mapping) or not boxes:
        raise ValueError(f"boxes={boxes!r}: needs {{name: (column, row, label, kind)}}")
    found: dict[str, Box] = {}
    places: dict[tuple[float, float], str] = {}
    for name, entry in boxes.items():
        if not isinstance(entry, (tuple, list)) or len(entry) not in (4, 5):
            raise ValueError(
                f"boxes[{name!r}]={entry!r}: needs (column, row, label, kind), or a picture behind"
            )
        column = check_number(entry[0], f"column of {name!r}", 0, 100)
        row = check_number(entry[1], f"row of {name!r}", 0, 100)
        label, kind = check_text(entry[2], f"label of {name!r}"), entry[3]
        if not isinstance(kind, str) or kind not in KINDS:
            raise ValueError(f"kind of {name!r} is {kind!r} and must be one of {tuple(KINDS)}")
        if (column, row) in places:
            raise ValueError(
                f"boxes {places[column, row]!r} and {name!r} both stand at column {column:g}, "
                f"row {row:g}"
            )
        places[column, row] = name
        picture = entry[4] if len(entry) == 5 else None
        if picture is not None and not hasattr(picture, "words"):
            raise ValueError(
                f"picture of {name!r} is {picture!r}: needs one of vtlib.teach.drawings.sketches"
            )
        found[name] = Box(name, column, row, label, kind, picture)
    return found


def read_meanings(meanings) -> dict[str, str]:
    """What the legend calls each kind. ValueError for a kind that is none."""
    given = dict(meanings or {})
    unknown = [kind for kind in given if kind not in KINDS]
    if unknown:
        raise ValueError(f"meanings: {unknown[0]!r} is no kind; there are {tuple(KINDS)}")
    own = {kind: check_text(text, f"meaning of {kind!r}") for kind, text in given.items()}
    return {kind: look.meaning for kind, look in KINDS.items()} | own


def _known(name, boxes: dict[str, Box], where: str) -> Box:
    if not isinstance(name, str) or name not in boxes:
        raise ValueError(f"{where}: there is no box {name!r}; there are {', '.join(boxes)}")
    return boxes[name]


def read_arrow(entry, boxes: dict[str, Box]) -> Arrow:
    """(from, to, shape) or (from, to, shape, route) as an arrow with its route."""
    if not isinstance(entry, (tuple, list)) or len(entry) not in (3, 4):
        raise ValueError(f"arrow {entry!r}: needs (from, to, shape) or (from, to, shape, route)")
    source, target = (_known(name, boxes, f"arrow {tuple(entry)!r}") for name in entry[:2])
    if source is target:
        raise ValueError(f"arrow {tuple(entry)!r}: leads from a box to itself")
    label, route = entry[2], entry[3] if len(entry) == 4 else ""
    if not isinstance(label, str):
        raise ValueError(f"arrow {tuple(entry)!r}: its shape needs to be a string, '' for none")
    if route not in ROUTES:
        raise ValueError(f"arrow {tuple(entry)!r}: route={route!r} must be one of {ROUTES}")
    level, plumb = source.row == target.row, source.column == target.column
    if not route:
        route = "h" if level else "v" if plumb else "hvh"
    elif (level or plumb) and route in ("hv", "vh", "hvh", "vhv"):
        raise ValueError(f"arrow {tuple(entry)!r}: route={route!r} but the way is straight")
    return Arrow(source, target, label, route)


def read_frame(entry, boxes: dict[str, Box]) -> Frame:
    """(names of boxes, title) as a frame."""
    if not isinstance(entry, (tuple, list)) or len(entry) != 2:
        raise ValueError(f"group {entry!r}: needs (names of boxes, title)")
    names, title = check_list(entry[0], "names of a group"), check_text(entry[1], "title")
    if not names:
        raise ValueError(f"group {title!r}: needs one box at least")
    return Frame([_known(name, boxes, f"group {title!r}") for name in names], title)


# ------------------------------------------------------------------------------------------- words
def _line(text: str) -> str:
    return text.replace("\n", " ")


def _after(label: str) -> str:
    """A shape follows its box; other words do so after a colon."""
    if not label:
        return ""
    return f" {_line(label)}" if label.startswith("(") else f": {_line(label)}"


def called(box: Box) -> str:
    """A box's name: the first line of its label."""
    return "add" if box.kind == "sum" and box.label == "+" else box.label.split("\n")[0]


def spoken(box: Box) -> str:
    """A box's whole label, its small print as one line, "Linear, 192 to 96", and its picture."""
    rest = " ".join(box.label.split("\n")[1:])
    words = f"{called(box)}, {rest}" if rest else called(box)
    return words if box.picture is None else f"{words} [{box.picture.words}]"


# -------------------------------------------------------------------------------------------- text
@functools.cache
def _ruler() -> tuple[Figure, FigureCanvasAgg]:
    fig = Figure(dpi=DPI)
    return fig, FigureCanvasAgg(fig)


@functools.cache
@styled
def size(text: str, points: float) -> tuple[float, float]:
    """(width, height) of a text in pixels, as matplotlib writes it."""
    fig, agg = _ruler()
    written = fig.text(0, 0, text, fontsize=points, linespacing=1.25)
    extent = written.get_window_extent(agg.get_renderer())
    written.remove()
    return extent.width, extent.height


def wrap(text: str, width: float) -> str:
    """The text with line breaks, so that no line is wider than that many pixels."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and size(longer, SMALL)[0] <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def legend_rows(entries: list[tuple[str, str]], width: float):
    """Rows of (x, kind, meaning), as many as the width asks for."""
    rows: list[list[tuple[float, str, str]]] = [[]]
    x = float(MARGIN)
    for kind, meaning in entries:
        needs = 26 + size(meaning, SMALL)[0]
        if rows[-1] and x + needs > width - MARGIN:
            rows.append([])
            x = MARGIN
        rows[-1].append((x, kind, meaning))
        x += needs + 22
    return rows if entries else []


# ----------------------------------------------------------------------------------------- drawing
def canvas(width: float, height: float):
    """A figure of that many pixels, and axes that count them from the upper left corner."""
    fig = Figure(figsize=(round(width) / DPI, round(height) / DPI), dpi=DPI)
    FigureCanvasAgg(fig)
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, round(width)), ylim=(round(height), 0))
    ax.axis("off")
    return fig, ax


def draw_box(ax, rect: Rect, kind: str) -> None:
    look = KINDS[kind]
    width, height = rect.right - rect.left, rect.bottom - rect.top
    style = dict(facecolor=look.fill, edgecolor=look.edge, linewidth=look.width)
    if look.shape == "octagon":
        cut = min(8, height / 3)
        xs = (rect.left, rect.left + cut, rect.right - cut, rect.right)
        ys = (rect.top, rect.top + cut, rect.bottom - cut, rect.bottom)
        corners = [(1, 0), (2, 0), (3, 1), (3, 2), (2, 3), (1, 3), (0, 2), (0, 1)]
        patch = Polygon([(xs[i], ys[j]) for i, j in corners], closed=True, **style)
    elif look.shape == "circle":
        patch = Ellipse((rect.left + width / 2, rect.top + height / 2), width, height, **style)
    else:
        shape = "square,pad=0"
        if look.shape == "round":
            shape = f"round,pad=0,rounding_size={min(9, height / 3)}"
        patch = FancyBboxPatch((rect.left, rect.top), width, height, boxstyle=shape, **style)
        patch.set_linestyle(look.line)
    patch.set_gid(rect.name)
    patch.set_zorder(2)
    ax.add_artist(patch)


def draw_arrow(ax, arrow: Arrow) -> None:
    color = GREY if arrow.skips else INK
    line = PathPatch(Path(arrow.points), fill=False, edgecolor=color, linewidth=1.2, zorder=1.5)
    if arrow.skips:
        line.set_linestyle((0, (5, 2)))
    line.set_gid(arrow.name)
    ax.add_artist(line)
    (x0, y0), (x1, y1) = arrow.points[-2:]
    length = max(abs(x1 - x0) + abs(y1 - y0), 1e-6)
    before = x1 - (x1 - x0) / length, y1 - (y1 - y0) / length
    style = "-|>,head_width=3.2,head_length=6"
    head = FancyArrowPatch(
        before, (x1, y1), arrowstyle=style, color=color, shrinkA=0, shrinkB=0, linewidth=0,
        mutation_scale=1, zorder=3,
    )
    ax.add_artist(head)


def draw_frame(ax, rect: Rect) -> None:
    width, height = rect.right - rect.left, rect.bottom - rect.top
    shape = "round,pad=0,rounding_size=6"
    patch = FancyBboxPatch(
        (rect.left, rect.top), width, height, boxstyle=shape, facecolor="none",
        edgecolor="#777777", linewidth=1, linestyle=(0, (3, 3)), zorder=1,
    )
    patch.set_gid(rect.name)
    ax.add_artist(patch)


def segments(arrow: Arrow) -> list[Rect]:
    """The arrow's straight pieces, as thin rectangles."""
    pieces = []
    for (x0, y0), (x1, y1) in itertools.pairwise(arrow.points):
        xs, ys = sorted((x0, x1)), sorted((y0, y1))
        pieces.append(Rect(arrow.name, xs[0], ys[0], xs[1], ys[1]).grown(1))
    return pieces


def borders(rect: Rect) -> list[Rect]:
    """The four sides of a frame, as thin rectangles."""
    left, top, right, bottom = rect.left, rect.top, rect.right, rect.bottom
    sides = [(left, top, right, top), (left, bottom, right, bottom)]
    sides += [(left, top, left, bottom), (right, top, right, bottom)]
    return [Rect(rect.name, *side).grown(1) for side in sides]
