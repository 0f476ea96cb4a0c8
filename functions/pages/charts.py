"""Charts and drawings of boxes, as SVG made on the server by `charts.html`: without a script, in both colour schemes.

`label` is what a screen reader says. Without anything to show, a drawing is empty text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final

from markupsafe import Markup

from toque.functions.pages.rendering import NOTHING, as_moment, make_templates, number

WIDTH: Final = 860
NARROW: Final = 430
"""Width of a chart that stands beside others, so that its texts stay as large."""
_HEIGHT = 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 34, 18, 28
_Y_TICKS, _X_TICKS = 5, 6
_ALONE_S: Final = 3_600.0  # width in time of a chart of a single moment
_BARS_HEIGHT, _BAR_TEXT = 160, 62
_STEPS: Final = (1.0, 2.0, 2.5, 5.0, 10.0)
_BOX, _GAP, _ROW = (
    (188, 46),
    28,
    60,
)  # five columns, of which a served version has no more, fit a window of 1,280
_AXIS_HEIGHT, _AXIS_TOP, _AXIS_BOTTOM, _AXIS_LEFT, _AXIS_GAP = 320, 46, 294, 60, 150
_MOST_TEXTS: Final = 12  # of an axis
_SHAPES: Final = make_templates().get_template("charts.html").module
Value = str | float | None
Bar = tuple[float | str, float]
"""Place or name of a bar, and its size."""


@dataclass(frozen=True, slots=True)
class Point:
    """Value at a moment or a step, with the ends of its interval where it has one. note: told when the pointer is on it."""

    at: datetime | float
    value: float
    lower: float | None = None
    upper: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """Named line of a chart; its points in order, all at moments or all at steps."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Level:
    """Horizontal line that the values are held against. kind: class of its colour."""

    value: float
    text: str
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """Vertical line at the moment or step of an event. kind: names its colour in the legend; note: as of a point."""

    at: datetime | float
    text: str
    kind: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """Line over parallel axes: values by axis. link: where it leads."""

    name: str
    values: Mapping[str, Value]
    link: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """Box of a drawing: a small line of what it is above its name.

    link: where it leads, empty: nowhere. is_root: nothing of the column before was used for it, so no line leads to it.
    """

    above: str
    name: str
    kind: str = ""
    link: str = ""
    is_root: bool = False


@dataclass(frozen=True, slots=True)
class _Scale:
    """Maps moments or steps and values to places in a drawing of some width."""

    start: float
    end: float
    low: float
    high: float
    width: int
    left: int = _LEFT
    top: int = _TOP
    bottom: int = _HEIGHT - _BOTTOM

    @property
    def right(self) -> int:
        return self.width - _RIGHT

    def x(self, at: datetime | float) -> float:
        share = (_number(at) - self.start) / (self.end - self.start)
        return round(_LEFT + share * (self.right - _LEFT), 1)

    def y(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.bottom - share * (self.bottom - _TOP), 1)


def draw_lines(
    series: Sequence[Series],
    *,
    label: str,
    levels: Sequence[Level] = (),
    marks: Sequence[Mark] = (),
    width: int = WIDTH,
) -> Markup:
    """Draw lines over time or steps with their bands, below them the names of several and of the kinds of marks."""
    points = [point for each in series for point in each.points]
    if not points:
        return Markup()
    scale = _scale(points, levels, marks, width)
    in_time = isinstance(points[0].at, datetime)
    return _draw(
        "lines",
        label=label,
        scale=scale,
        height=_HEIGHT,
        moments=_moments(scale) if in_time else [],
        steps=[] if in_time else [(scale.x(step), number(step)) for step in _ticks(scale.start, scale.end)],
        values=[(scale.y(value), number(value)) for value in _ticks(scale.low, scale.high)],
        series=[_shapes(each, scale) for each in series],
        levels=[(scale.y(level.value), level) for level in levels if scale.low <= level.value <= scale.high],
        marks=[(scale.x(mark.at), mark) for mark in marks],
        kinds=sorted({mark.kind for mark in marks if mark.kind}),
    )


def draw_bars(bars: Sequence[Bar], *, label: str, width: int = WIDTH) -> Markup:
    """Draw a bar for each place or name with its size."""
    if not bars:
        return Markup()
    most = max(size for _, size in bars) or 1.0
    slot, floor = (width - 2 * _RIGHT) / len(bars), _BARS_HEIGHT - _BOTTOM
    every = -(-len(bars) * _BAR_TEXT // (width - 2 * _RIGHT))
    rects = []
    for at, (place, size) in enumerate(bars):
        height, x = round(size / most * (floor - _TOP), 1), _RIGHT + at * slot
        rects.append(
            {"x": round(x, 1), "y": round(floor - height, 1), "width": round(slot * 0.9, 1), "height": height,
             "title": f"{number(place)}: {number(size)}", "middle": round(x + slot / 2, 1),
             "text": number(place) if at % every == 0 else ""}
        )  # fmt: skip
    return _draw("bars", label=label, width=width, height=_BARS_HEIGHT, floor=floor, rects=rects)


def draw_parallel(axes: Sequence[str], lines: Sequence[Line], *, label: str) -> Markup:
    """Draw lines over vertical axes. An axis whose values are all numbers is to scale; of others each text has a place."""
    if not axes or not lines:
        return Markup()
    drawn: list[dict[str, Any]] = [
        {"name": axis, "x": _AXIS_LEFT + at * _AXIS_GAP} | _axis([line.values.get(axis) for line in lines])
        for at, axis in enumerate(axes)
    ]
    paths = [
        (line, _path([(axis["x"], axis["ys"][row]) for axis in drawn])) for row, line in enumerate(lines)
    ]
    width = 2 * _AXIS_LEFT + (len(axes) - 1) * _AXIS_GAP + 30
    frame = {"height": _AXIS_HEIGHT, "top": _AXIS_TOP, "bottom": _AXIS_BOTTOM}
    return _draw("parallel", label=label, width=width, **frame, axes=drawn, lines=paths)


def draw_columns(columns: Sequence[Sequence[Node]], *, label: str) -> Markup:
    """Draw boxes in columns, each box joined to every box of the next column that is no root."""
    rows = max(len(column) for column in columns)
    places = [
        [
            (1 + i * (_BOX[0] + _GAP), 1 + (j + (rows - len(column)) / 2) * _ROW, node)
            for j, node in enumerate(column)
        ]
        for i, column in enumerate(columns)
    ]
    edges = [
        (x0 + _BOX[0], y0 + _BOX[1] / 2, x1, y1 + _BOX[1] / 2)
        for left, right in pairwise(places)
        for x0, y0, _ in left
        for x1, y1, node in right
        if not node.is_root
    ]
    boxes = [box for column in places for box in column]
    width, height = len(columns) * (_BOX[0] + _GAP) - _GAP + 2, rows * _ROW - (_ROW - _BOX[1]) + 2
    return _draw("columns", label=label, width=width, height=height, box=_BOX, edges=edges, boxes=boxes)


def draw_looks(record: Mapping[str, Any]) -> Markup:
    """Draw how the interval of a rollout's improvement narrowed, with what was decided and what is worth a promotion.

    record: as `rollout_record` gives it in JSON.
    """
    looks = record["looks"]
    lines: dict[int, list[Point]] = {}
    for look in looks:
        for gain in look["gains"]:
            bounds = "no bounds yet"
            if gain["lower"] is not None:
                bounds = f"{number(gain['lower'])} to {number(gain['upper'])}"
            note = (
                f"{number(gain['estimate'])} ({bounds}) on {number(gain['labels'])} labels, {look['action']}"
            )
            point = Point(as_moment(look["at"]), gain["estimate"], gain["lower"], gain["upper"], note)
            lines.setdefault(gain["version"], []).append(point)
    floor = record["state"]["policy"]["min_effect"]
    return draw_lines(
        [Series(f"version {version}", points) for version, points in lines.items()],
        label="Improvement of the mean loss over time, with bounds that hold at every look",
        levels=[Level(floor, "worth a promotion", "floor")]
        + ([Level(0.0, "no difference")] if floor else []),
        marks=[Mark(as_moment(look["at"]), look["action"]) for look in looks if look["action"] != "hold"],
    )


def draw_distribution(feature: Mapping[str, Any]) -> Markup:
    """Draw the histogram of numbers, or the most frequent values of a feature of another type.

    feature: as `feature_statistics` gives it in JSON.
    """
    bars: list[Bar] = [(str(value)[:12], share) for value, share in feature["top"]]
    if feature["counts"]:
        middles = [(low + high) / 2 for low, high in pairwise(feature["edges"])]
        bars = list(zip(middles, feature["counts"], strict=True))
    return draw_bars(bars, label=f"Distribution of {feature['name']}", width=NARROW)


def _draw(shape: str, **values: Any) -> Markup:
    drawn: Markup = getattr(_SHAPES, shape)(**values)
    return drawn


def _number(at: datetime | float) -> float:
    return at.timestamp() if isinstance(at, datetime) else float(at)


def _scale(points: Sequence[Point], levels: Sequence[Level], marks: Sequence[Mark], width: int) -> _Scale:
    """Fit all values, and bounds as far as they are not many times wider than the values."""
    values = [point.value for point in points] + [level.value for level in levels]
    radii = sorted(point.upper - point.value for point in points if point.upper is not None)
    reach = 2.5 * radii[len(radii) // 2] if radii else 0.0
    low = min([*values, *(max(p.lower, p.value - reach) for p in points if p.lower is not None)])
    high = max([*values, *(min(p.upper, p.value + reach) for p in points if p.upper is not None)])
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    least, most = low - margin, high + margin
    if low >= 0.0:  # a rate, an age or a count is never below zero, so neither is its axis
        least = max(least, 0.0)
    times = [_number(point.at) for point in points] + [_number(mark.at) for mark in marks]
    start, end = min(times), max(times)
    if (
        end == start
    ):  # one moment stands in the middle, with as much time around it as its ticks can tell apart
        half = _ALONE_S / 2 if isinstance(points[0].at, datetime) else 0.5
        start, end = start - half, end + half
    return _Scale(start, end, least, most, width)


def _moments(scale: _Scale) -> list[tuple[float, str, str]]:
    span, many = scale.end - scale.start, max(2, _X_TICKS * scale.width // WIDTH)
    shown = "%d %b" if span > 2 * 86_400 else "%H:%M"
    moments = [
        datetime.fromtimestamp(scale.start + span * (index + 0.5) / many, UTC) for index in range(many)
    ]
    return [(scale.x(at), at.isoformat(timespec="seconds"), f"{at:{shown}}") for at in moments]


def _ticks(low: float, high: float) -> list[float]:
    """Choose round values between two."""
    raw = (high - low) / _Y_TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(each * power for each in _STEPS if each * power >= raw)
    first = math.ceil(low / step)
    return [round(index * step, 12) for index in range(first, math.floor(high / step) + 1)]


def _shapes(series: Series, scale: _Scale) -> dict[str, Any]:
    bounded = [p for p in series.points if p.lower is not None and p.upper is not None]
    upper = [(scale.x(p.at), scale.y(p.upper or 0.0)) for p in bounded]
    lower = [(scale.x(p.at), scale.y(p.lower or 0.0)) for p in reversed(bounded)]
    line = [(scale.x(point.at), scale.y(point.value)) for point in series.points]
    points = [
        (x, y, point.note)
        for point, (x, y) in zip(series.points, line, strict=True)
        if point.note or len(line) == 1  # a path of one place draws nothing
    ]
    band = f"{_path([*upper, *lower])}Z" if bounded else ""
    return {"name": series.name, "band": band, "line": _path(line), "points": points}


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in places)


def _axis(values: Sequence[Value]) -> dict[str, Any]:
    """Place the ticks of an axis and the lines on it. What is missing lies below the axis."""
    numbers = [_as_number(value) for value in values]
    known = [each for each in numbers if each is not None]
    shares: list[float | None]
    if known and all(value is None or each is not None for value, each in zip(values, numbers, strict=True)):
        low, high = min(known), max(known)
        span = high - low
        shares = [None if each is None else (each - low) / span if span else 0.5 for each in numbers]
        ticks = {0.0: number(low), 1.0: number(high)} if span else {0.5: number(low)}
    else:
        texts = sorted({str(value) for value in values if value is not None})
        place = {text: at / max(1, len(texts) - 1) for at, text in enumerate(texts)}
        shares = [None if value is None else place[str(value)] for value in values]
        shown = texts if len(texts) <= _MOST_TEXTS else [texts[0], texts[-1]]
        ticks = {place[text]: text for text in shown}
    missing = _AXIS_BOTTOM + 16
    marked = [(_height(share), text) for share, text in ticks.items()]
    return {
        "ys": [missing if share is None else _height(share) for share in shares],
        "ticks": marked + ([(missing, NOTHING)] if None in shares else []),
    }


def _height(share: float) -> float:
    return round(_AXIS_BOTTOM - share * (_AXIS_BOTTOM - _AXIS_TOP), 1)


def _as_number(value: Value) -> float | None:
    """Read a value as a finite number; None if it is no such."""
    try:
        found = math.nan if value is None else float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None
