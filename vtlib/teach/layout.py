"""Where the boxes, arrows and frames of a diagram lie, in pixels; y grows downward.

Columns and rows are as wide as what stands in them, gaps as what is written in them. A label is
text beside an arrow; a lane is the free strip beside a row or column in which a skip arrow runs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

GAP = 30                                      # between two columns or rows, at least
LANE = 18                                     # a strip for one skip arrow
PAD = 12                                      # between a frame and what it holds
TURN = 14                                     # from a box to the bend of an arrow
LANES = ("above", "below", "left", "right")
ROUTES = ("", "hv", "vh", "hvh", "vhv", *LANES)

Measure = Callable[[str], tuple[float, float]]                    # text -> (width, height)


@dataclass(frozen=True)
class Rect:
    """A rectangle and what the message calls it."""

    name: str
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "Rect", by: float = 1.0) -> bool:
        """Whether the two share more than `by` pixels in both directions."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return wide > by and high > by

    def grown(self, by: float) -> "Rect":
        """The rectangle with a margin."""
        edges = self.left - by, self.top - by, self.right + by, self.bottom + by
        return Rect(self.name, *edges)


@dataclass
class Box:
    """One step: its place in columns and rows, (x, y), its middle, and what is drawn in it."""

    name: str
    column: float
    row: float
    label: str
    kind: str
    picture: Any = None                                           # below the label
    width: float = 0
    height: float = 0
    x: float = 0
    y: float = 0

    @property
    def rect(self) -> Rect:
        half_w, half_h = self.width / 2, self.height / 2
        edges = self.x - half_w, self.y - half_h, self.x + half_w, self.y + half_h
        return Rect(f"box {self.name!r}", *edges)


@dataclass
class Arrow:
    """From one box to another, with the shape of what flows."""

    source: Box
    target: Box
    label: str
    route: str
    level: int = 0                                                # which of several lanes
    points: list[tuple[float, float]] = field(default_factory=list)
    text: tuple[float, float] = (0, 0)
    align: str = "middle"                                         # or "left": the label's anchor

    @property
    def skips(self) -> bool:
        return self.route in LANES

    @property
    def name(self) -> str:
        return f"arrow {self.source.name!r} -> {self.target.name!r}"


@dataclass
class Frame:
    """A dashed frame around boxes, with a title."""

    boxes: list[Box]
    title: str
    inner: int = 0                                               # how deep frames lie inside
    rect: Rect = Rect("", 0, 0, 0, 0)


class Tracks:
    """Columns or rows: their sizes, and what lies between them."""

    def __init__(self, count: int):
        self.size = [0.0] * count
        self.gap = [0.0] * count                                 # after each
        self.lane = [[0.0, 0.0] for _ in range(count)]           # before, after
        self.frame = [[0.0, 0.0] for _ in range(count)]
        self.low, self.high = [0.0] * count, [0.0] * count

    def lay(self, start: float) -> float:
        """Give each its place from `start` on; returns where the last one ends."""
        at = start
        for i, size in enumerate(self.size):
            at += self.frame[i][0] + self.lane[i][0]
            self.low[i], self.high[i] = at, at + size
            at += size + self.lane[i][1] + self.frame[i][1]
            end, at = at, at + max(self.gap[i], GAP)
        return end

    def middle(self, place: float) -> float:
        """The middle of a column or row, or a point between two of them."""
        i, part = int(place), place % 1
        here = (self.low[i] + self.high[i]) / 2
        if not part:
            return here
        return here + part * ((self.low[i + 1] + self.high[i + 1]) / 2 - here)

    def between(self, i: int) -> float:
        """The middle of the gap after track i, without lanes and frames."""
        start = self.high[i] + self.lane[i][1] + self.frame[i][1]
        stop = self.low[i + 1] - self.lane[i + 1][0] - self.frame[i + 1][0]
        return (start + stop) / 2

    def gap_beside(self, place: float, towards: float) -> int:
        """Which gap lies beside a track, on the way to another one."""
        return math.floor(place) if towards > place else math.ceil(place) - 1


def _aside(side: float) -> float:
    """How far from the middle of a side a skip arrow begins and ends."""
    return min(side / 4, 16)


class Layout:
    """The places of everything.

    Args:
        boxes: with width and height.
        arrows: between them.
        frames: around some of them.
        measure: the size of a label.
        title_height: of a frame.
    """

    def __init__(
        self, boxes: list[Box], arrows: list[Arrow], frames: list[Frame], measure: Measure,
        title_height: float,
    ):
        self.boxes, self.arrows, self.frames = boxes, arrows, frames
        self.measure, self.title_height = measure, title_height
        self.columns = Tracks(1 + math.ceil(max(box.column for box in boxes)))
        self.rows = Tracks(1 + math.ceil(max(box.row for box in boxes)))
        self._sizes()
        for arrow in arrows:
            self._make_room(arrow)
        for frame in frames:
            self._frame_room(frame)

    def _sizes(self) -> None:
        for box in self.boxes:
            for tracks, place, size in (
                (self.columns, box.column, box.width),
                (self.rows, box.row, box.height),
            ):
                if not place % 1:
                    tracks.size[int(place)] = max(tracks.size[int(place)], size)
        for box in self.boxes:                       # boxes of a column, or row, are alike
            if box.kind != "sum":
                if not box.column % 1:
                    box.width = self.columns.size[int(box.column)]
                if not box.row % 1:
                    box.height = self.rows.size[int(box.row)]

    # -------------------------------------------------------------------------- room for arrows
    def _make_room(self, arrow: Arrow) -> None:
        if arrow.route in LANES:
            self._lane_room(arrow)
            return
        width, height = self.measure(arrow.label) if arrow.label else (0, 0)
        source, target = arrow.source, arrow.target
        if arrow.route[0] == "h":
            turn = TURN if arrow.route == "hvh" else 0
            start, end = (source, target) if not self._turns_early(arrow) else (target, source)
            i = self.columns.gap_beside(start.column, end.column)
            if self._runs_far(arrow):
                width = self._missing(arrow, width)
            self.columns.gap[i] = max(self.columns.gap[i], width + 24 + turn)
        else:
            i = self._level_gap(arrow)
            flat = 16 if arrow.route == "vhv" else 0
            self.rows.gap[i] = max(self.rows.gap[i], height + 20 + flat)

    def _lane_room(self, arrow: Arrow) -> None:
        """A strip for a skip arrow; arrows that share a stretch of it get one each."""
        flat = arrow.route in ("above", "below")
        tracks = self.rows if flat else self.columns
        after = arrow.route in ("below", "right")
        i = self._lane_track(arrow)
        start, end = self._span(arrow)
        for other in self.arrows[: self.arrows.index(arrow)]:
            same = other.route == arrow.route and self._lane_track(other) == i
            low, high = self._span(other)
            if same and min(high, end) > max(low, start):
                arrow.level = max(arrow.level, other.level + 1)
        width, height = self.measure(arrow.label) if arrow.label else (0, 0)
        room = LANE * (arrow.level + 1) + (height if flat else width)
        tracks.lane[i][after] = max(tracks.lane[i][after], room)

    def _span(self, arrow: Arrow) -> tuple[float, float]:
        ends = [arrow.source, arrow.target]
        if arrow.route in ("above", "below"):
            places = [box.column for box in ends]
        else:
            places = [box.row for box in ends]
        return min(places), max(places)

    def _lane_track(self, arrow: Arrow) -> int:
        """The row or column beside which the skip arrow runs."""
        ends = [arrow.source, arrow.target]
        flat = arrow.route in ("above", "below")
        places = [box.row if flat else box.column for box in ends]
        after = arrow.route in ("below", "right")
        return math.ceil(max(places)) if after else math.floor(min(places))

    def _runs_far(self, arrow: Arrow) -> bool:
        """Whether a label may lie over other columns than the gap beside its box."""
        far = abs(arrow.target.column - arrow.source.column) > 1
        return arrow.route == "hv" or (arrow.route == "h" and far)

    def _missing(self, arrow: Arrow, width: float) -> float:
        """What is left of a label's width for one gap, where it lies over columns as well."""
        low, high = sorted((arrow.source.column, arrow.target.column))
        over = sum(self.columns.size[math.floor(low) + 1 : math.ceil(high)])
        if arrow.route == "hv" and not arrow.target.column % 1:
            over += self.columns.size[int(arrow.target.column)] / 2
        return max(width - over, 0)

    def _turns_early(self, arrow: Arrow) -> bool:
        """Whether an arrow bends beside its source, as where several leave one box."""
        leaving = [other for other in self.arrows if other.source is arrow.source]
        return arrow.route == "hvh" and sum(other.route == "hvh" for other in leaving) > 1

    def _level_gap(self, arrow: Arrow) -> int:
        """The gap of rows in which a downward arrow has its label: "vhv" bends there, too."""
        if arrow.route == "vhv":
            return self.rows.gap_beside(arrow.target.row, arrow.source.row)
        return self.rows.gap_beside(arrow.source.row, arrow.target.row)

    def _frame_room(self, frame: Frame) -> None:
        names = {box.name for box in frame.boxes}
        inside = [f for f in self.frames if {box.name for box in f.boxes} < names]
        for other in inside:
            depth = [f for f in inside if {b.name for b in f.boxes} < {b.name for b in other.boxes}]
            frame.inner = max(frame.inner, 1 + len(depth))
        levels = frame.inner + 1
        for tracks, places, head in (
            (self.columns, [box.column for box in frame.boxes], 0),
            (self.rows, [box.row for box in frame.boxes], self.title_height),
        ):
            first, last = math.floor(min(places)), math.ceil(max(places))
            room = tracks.frame[first][0], tracks.frame[last][1]
            tracks.frame[first][0] = max(room[0], levels * (PAD + head))
            tracks.frame[last][1] = max(room[1], levels * PAD)

    # -------------------------------------------------------------------------------- places
    def place(self, left: float, top: float) -> tuple[float, float]:
        """Give everything its place; returns the right and lower end."""
        right, bottom = self.columns.lay(left), self.rows.lay(top)
        for box in self.boxes:
            box.x, box.y = self.columns.middle(box.column), self.rows.middle(box.row)
        for arrow in self.arrows:
            self._draw(arrow)
        for frame in self.frames:
            frame.rect = self._frame(frame)
        return right, bottom

    def extents(self) -> list[Rect]:
        """What takes up room: boxes, frames, labels."""
        found = [box.rect for box in self.boxes] + [frame.rect for frame in self.frames]
        for arrow in self.arrows:
            if arrow.label:
                width, height = self.measure(arrow.label)
                left = arrow.text[0] - (0 if arrow.align == "left" else width / 2)
                top = arrow.text[1] - height / 2
                found.append(Rect(arrow.name, left, top, left + width, top + height))
        return found

    def _draw(self, arrow: Arrow) -> None:
        if arrow.route in LANES:
            self._in_lane(arrow)
        elif arrow.route[0] == "h":
            self._sideways(arrow)
        else:
            self._downward(arrow)

    def _sideways(self, arrow: Arrow) -> None:
        """Leaves its box to the side: h, hv, hvh."""
        source, target = arrow.source, arrow.target
        sign = 1 if target.x > source.x else -1
        start = source.x + sign * source.width / 2
        end = target.x - sign * target.width / 2
        early = self._turns_early(arrow)
        if arrow.route == "h":
            arrow.points = [(start, source.y), (end, source.y)]
        elif arrow.route == "hv":
            edge = target.y - math.copysign(target.height / 2, target.y - source.y)
            arrow.points = [(start, source.y), (target.x, source.y), (target.x, edge)]
        else:
            bend = start + sign * TURN if early else end - sign * (TURN + 6)
            arrow.points = [(start, source.y), (bend, source.y), (bend, target.y), (end, target.y)]
        near, far = (target, source) if early else (source, target)
        if self._runs_far(arrow):
            x = (start + arrow.points[1][0]) / 2
        elif near.column % 1:
            x = (start + end) / 2
        else:
            x = self.columns.between(self.columns.gap_beside(near.column, far.column))
        x -= sign * (TURN / 2 if arrow.route == "hvh" and not early else 2)
        arrow.text = x, near.y - 3 - self.measure(arrow.label)[1] / 2 if arrow.label else near.y

    def _downward(self, arrow: Arrow) -> None:
        """Leaves its box up or down: v, vh, vhv."""
        source, target = arrow.source, arrow.target
        sign = 1 if target.y > source.y else -1
        start = source.y + sign * source.height / 2
        end = target.y - sign * target.height / 2
        middle = (start + end) / 2 if source.row % 1 else self.rows.between(self._level_gap(arrow))
        height = self.measure(arrow.label)[1] if arrow.label else 0
        arrow.align, arrow.text = "left", (source.x + 6, middle - sign * 2)
        if arrow.route == "v":
            arrow.points = [(source.x, start), (source.x, end)]
        elif arrow.route == "vh":
            edge = target.x - math.copysign(target.width / 2, target.x - source.x)
            arrow.points = [(source.x, start), (source.x, target.y), (edge, target.y)]
        else:
            level = middle + height / 2
            bends = [(source.x, level), (target.x, level)]
            arrow.points = [(source.x, start), *bends, (target.x, end)]
            arrow.align = "middle"
            arrow.text = (source.x + target.x) / 2, level - 3 - height / 2

    def _in_lane(self, arrow: Arrow) -> None:
        """A skip arrow beside a row (above, below) or a column (left, right)."""
        source, target, i = arrow.source, arrow.target, self._lane_track(arrow)
        sign = -1 if arrow.route in ("above", "left") else 1
        far = (arrow.level + 1) * LANE - 4
        width, height = self.measure(arrow.label) if arrow.label else (0, 0)
        if arrow.route in ("above", "below"):
            edge = self.rows.low[i] if sign < 0 else self.rows.high[i]
            lane = edge + sign * far
            # a little off the middle: who leaves meets nobody who comes
            way = math.copysign(1, target.x - source.x)
            ends = (source.x + way * _aside(source.width), target.x - way * _aside(target.width))
            tops = [box.y + sign * box.height / 2 for box in (source, target)]
            bends = [(ends[0], lane), (ends[1], lane)]
            arrow.points = [(ends[0], tops[0]), *bends, (ends[1], tops[1])]
            arrow.text = sum(ends) / 2, lane + sign * (3 + height / 2)
            return
        edge = self.columns.low[i] if sign < 0 else self.columns.high[i]
        lane = edge + sign * far
        way = math.copysign(1, target.y - source.y)
        ends = (source.y + way * _aside(source.height), target.y - way * _aside(target.height))
        sides = [box.x + sign * box.width / 2 for box in (source, target)]
        bends = [(lane, ends[0]), (lane, ends[1])]
        arrow.points = [(sides[0], ends[0]), *bends, (sides[1], ends[1])]
        arrow.text = lane + sign * (4 + width / 2), sum(ends) / 2

    def _frame(self, frame: Frame) -> Rect:
        """Around the boxes, and the skip arrows beside them."""
        rects = [box.rect for box in frame.boxes]
        xs = [rect.left for rect in rects] + [rect.right for rect in rects]
        ys = [rect.top for rect in rects] + [rect.bottom for rect in rects]
        for arrow in self.arrows:
            ends = [box for box in (arrow.source, arrow.target) if box in frame.boxes]
            if arrow.skips and (ends or self._passes(arrow, frame)):
                lane_x, lane_y = arrow.points[1]
                if arrow.route in ("above", "below"):
                    ys.append(lane_y)
                else:
                    xs.append(lane_x)
        pad, head = PAD * (frame.inner + 1) - 4, self.title_height * (frame.inner + 1)
        left, right = min(xs) - pad, max(xs) + pad
        return Rect(
            f"frame {frame.title!r}", left, min(ys) - pad - head, right, max(ys) + pad
        )

    def _passes(self, arrow: Arrow, frame: Frame) -> bool:
        """Whether a skip arrow runs along a row, or column, of the frame, past its boxes."""
        flat = arrow.route in ("above", "below")
        low, high = self._span(arrow)
        track = self._lane_track(arrow)
        along = [box.column if flat else box.row for box in frame.boxes]
        across = [box.row if flat else box.column for box in frame.boxes]
        beside = min(across) <= track <= max(across)
        return beside and min(along) < high and max(along) > low
