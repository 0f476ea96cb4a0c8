"""Charts and the drawing of a version's lineage, as SVG made on the server: without a script, in both colour schemes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from markupsafe import Markup

from toque.ray_apps.console.rendering import number

if TYPE_CHECKING:
    from toque.ray_apps.console.page import Page


WIDTH, HEIGHT = 860, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 34, 18, 28
_Y_TICKS, _X_TICKS = 5, 6
_ALONE_S: Final = 3_600.0  # width in time of a chart of a single moment
_BARS_HEIGHT, _BAR_TEXT = 160, 62
_STEPS: Final = (1.0, 2.0, 2.5, 5.0, 10.0)
_SVG = Markup(
    '<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{parts}</svg>'
)
_TICK_Y = Markup(
    '<path class="grid" d="M{x0} {y}H{x1}"/><text class="tick" x="{x}" y="{y}" dy="4" text-anchor="end">{text}</text>'
)
_TICK_X = Markup('<text class="tick" x="{x}" y="{y}" text-anchor="middle" data-time="{time}">{text}</text>')
_STEP_X = Markup('<text class="tick" x="{x}" y="{y}" text-anchor="middle">{text}</text>')
_BAR = Markup(
    '<rect class="bar-of series-0" x="{x}" y="{y}" width="{width}" height="{height}"><title>{title}</title></rect>'
)
_LEGEND = Markup('<ul class="legend">{names}</ul>')
_NAME = Markup('<li><span class="swatch series-{index}"></span>{name}</li>')
_LINE = Markup('<path class="line series-{index}" d="{path}"><title>{name}</title></path>')
_BAND = Markup('<path class="band series-{index}" d="{path}"/>')
_POINT = Markup(
    '<circle class="point series-{index}" cx="{x}" cy="{y}" r="3"><title>{title}</title></circle>'
)
_LEVEL = Markup(
    '<path class="level {kind}" d="M{x0} {y}H{x1}"/><text class="tick" x="{x0}" y="{y}" dx="4" dy="13">{text}</text>'
)
_MARK = Markup(
    '<path class="mark" d="M{x} {y0}V{y1}"/><text class="tick" x="{x}" y="{y0}" dx="4" dy="9">{text}</text>'
)

_BOX_WIDTH, _BOX_HEIGHT = 188, 46  # of a drawing of boxes, such as a lineage; and so all below
_GAP, _ROW = 28, 60  # five columns, of which a served version has no more, fit the page in a window of 1,280
_CHARS: Final = 24
_CHARS_OF_ANY_WIDTH: Final = 20
_TEXT_WIDTH: Final = _BOX_WIDTH - 24
_NODE = Markup(
    '<g class="node {kind}"><title>{title}</title><rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>'
    '<text class="above" x="{text_x}" y="{above_y}">{above}</text>'
    '<text x="{text_x}" y="{name_y}"{fit}>{name}</text></g>'
)
_LINEAGE_SVG = Markup(
    '<svg class="graph" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="group" aria-label="{label}">'
)
# The browser presses a long name into its box, whose letters may be wide, as a run's id has them.
_FIT = Markup(' textLength="{}" lengthAdjust="spacingAndGlyphs"').format(_TEXT_WIDTH)
_EDGE = Markup('<path class="edge" d="M{x0} {y0} C{x1} {y0} {x1} {y1} {x2} {y1}"/>')


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
    """Vertical line at the moment or step of an event."""

    at: datetime | float
    text: str


@dataclass(frozen=True, slots=True)
class _Scale:
    """Maps moments or steps and values to places in a drawing of some width."""

    start: float
    end: float
    low: float
    high: float
    width: int

    @property
    def right(self) -> int:
        return self.width - _RIGHT

    def x(self, at: datetime | float) -> float:
        share = (_number(at) - self.start) / (self.end - self.start)
        return round(_LEFT + share * (self.right - _LEFT), 1)

    def y(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM), 1)


def draw_lines(
    series: Sequence[Series],
    *,
    label: str,
    levels: Sequence[Level] = (),
    marks: Sequence[Mark] = (),
    width: int = WIDTH,
) -> Markup:
    """Draw lines over time or steps with their bands, below them the names of several; empty text if no series has a point.

    label: what a screen reader says; width: smaller for a chart that stands beside others, so that its texts stay as large.
    """
    points = [point for each in series for point in each.points]
    if not points:
        return Markup()
    scale = _scale(points, levels, width)
    parts: list[Markup] = [*_axes(scale, in_time=isinstance(points[0].at, datetime))]
    for index, each in enumerate(series):
        parts += _series(each, index, scale)
    for level in levels:
        if scale.low <= level.value <= scale.high:
            ends = {"x0": _LEFT, "x1": scale.right, "y": scale.y(level.value)}
            parts.append(_LEVEL.format(kind=level.kind, text=level.text, **ends))
    for mark in marks:
        parts.append(_MARK.format(x=scale.x(mark.at), y0=_TOP, y1=HEIGHT - _BOTTOM, text=mark.text))
    drawn = _SVG.format(width=width, height=HEIGHT, label=label, parts=Markup().join(parts))
    if len(series) == 1:
        return drawn
    names = [_NAME.format(index=index, name=each.name) for index, each in enumerate(series)]
    return drawn + _LEGEND.format(names=Markup().join(names))


def draw_bars(bars: Sequence[tuple[float | str, float]], *, label: str, width: int = WIDTH) -> Markup:
    """Draw a bar for each place or name with its size; empty text without bars. label: what a screen reader says."""
    if not bars:
        return Markup()
    most = max(size for _, size in bars) or 1.0
    slot, floor = (width - 2 * _RIGHT) / len(bars), _BARS_HEIGHT - _BOTTOM
    every = -(-len(bars) * _BAR_TEXT // (width - 2 * _RIGHT))
    parts: list[Markup] = []
    for at, (place, size) in enumerate(bars):
        height = round(size / most * (floor - _TOP), 1)
        x, title = _RIGHT + at * slot, f"{number(place)}: {number(size)}"
        shape = {
            "x": f"{x:.1f}",
            "y": f"{floor - height:g}",
            "width": f"{slot * 0.9:.1f}",
            "height": f"{height:g}",
        }
        parts.append(_BAR.format(title=title, **shape))
        if at % every == 0:
            parts.append(_STEP_X.format(x=f"{x + slot / 2:.1f}", y=_BARS_HEIGHT - 8, text=number(place)))
    return _SVG.format(width=width, height=_BARS_HEIGHT, label=label, parts=Markup().join(parts))


def _number(at: datetime | float) -> float:
    return at.timestamp() if isinstance(at, datetime) else float(at)


def _scale(points: Sequence[Point], levels: Sequence[Level], width: int) -> _Scale:
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
    times = [_number(point.at) for point in points]
    start, end = min(times), max(times)
    if (
        end == start
    ):  # one moment stands in the middle, with as much time around it as its ticks can tell apart
        half = _ALONE_S / 2 if isinstance(points[0].at, datetime) else 0.5
        start, end = start - half, end + half
    return _Scale(start, end, least, most, width)


def _axes(scale: _Scale, *, in_time: bool) -> list[Markup]:
    rows = [
        _TICK_Y.format(x0=_LEFT, x1=scale.right, x=_LEFT - 8, y=scale.y(value), text=number(value))
        for value in _ticks(scale.low, scale.high)
    ]
    return rows + (_moments(scale) if in_time else _steps(scale))


def _moments(scale: _Scale) -> list[Markup]:
    span, many = scale.end - scale.start, max(2, _X_TICKS * scale.width // WIDTH)
    moments = [
        datetime.fromtimestamp(scale.start + span * (index + 0.5) / many, UTC) for index in range(many)
    ]
    shown = "%d %b" if span > 2 * 86_400 else "%H:%M"
    return [
        _TICK_X.format(
            x=scale.x(at), y=HEIGHT - 8, time=at.isoformat(timespec="seconds"), text=f"{at:{shown}}"
        )
        for at in moments
    ]


def _steps(scale: _Scale) -> list[Markup]:
    return [
        _STEP_X.format(x=scale.x(step), y=HEIGHT - 8, text=number(step))
        for step in _ticks(scale.start, scale.end)
    ]


def _ticks(low: float, high: float) -> list[float]:
    """Choose round values between two."""
    raw = (high - low) / _Y_TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(each * power for each in _STEPS if each * power >= raw)
    first = math.ceil(low / step)
    return [round(index * step, 12) for index in range(first, math.floor(high / step) + 1)]


def _series(series: Series, index: int, scale: _Scale) -> list[Markup]:
    drawn: list[Markup] = []
    bounded = [p for p in series.points if p.lower is not None and p.upper is not None]
    if bounded:
        upper = [(scale.x(p.at), scale.y(p.upper)) for p in bounded if p.upper is not None]
        lower = [(scale.x(p.at), scale.y(p.lower)) for p in reversed(bounded) if p.lower is not None]
        drawn.append(_BAND.format(index=index, path=f"{_path([*upper, *lower])}Z"))
    line = [(scale.x(point.at), scale.y(point.value)) for point in series.points]
    drawn.append(_LINE.format(index=index, path=_path(line), name=series.name))
    drawn += [
        _POINT.format(index=index, x=x, y=y, title=point.note)
        for point, (x, y) in zip(series.points, line, strict=True)
        if point.note or len(line) == 1  # a path of one place draws nothing
    ]
    return drawn


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in places)


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


def draw_lineage(
    version: dict[str, Any],
    aliases: list[str],
    arms: list[dict[str, Any]],
    page: Page,
    *,
    run_is_known: bool = False,
) -> Markup:
    """Draw the tables and feature views that a version was made from, its run, where it answers now, and its predictions."""
    model, lineage = version["model"], version["lineage"]
    data = [Node("table", f"{each['name']}@{each['version']}") for each in lineage["datasets"]]
    views = [Node("feature view", name, link=page.link("features", name)) for name in lineage["features"]]
    to_run = page.link("runs", lineage["run"]) if run_is_known else ""
    made = [Node("run", lineage["run"], link=to_run)] if lineage["run"] else []
    origins = [Node("code", lineage["code"][:12], is_root=True)] if lineage["code"] else []
    if lineage["parent"]:
        link = page.link("models", model, "versions", lineage["parent"])
        origins.append(Node("parent", f"version {lineage['parent']}", link=link, is_root=True))
    columns = [data + views, made + origins] if made else [data + views + origins]
    used = [Node("alias", alias, "live", page.link("models", model)) for alias in aliases]
    to_traffic = page.link("traffic", model)
    used += [
        Node("traffic", f"{arm['name']}, {100 * arm['share']:.4g} %", "live", to_traffic) for arm in arms
    ]
    answers = page.link("predictions", model=model, version=version["version"])
    logged = [Node("predictions", "of this version", link=answers)] if used else []
    own = [Node("version", f"{model}@{version['version']}", "own")]
    columns = [column for column in (*columns, own, used, logged) if column]
    return draw_columns(columns, label=f"Lineage of {model}@{version['version']}")


def draw_columns(columns: list[list[Node]], *, label: str) -> Markup:
    """Draw boxes in columns, each box joined to every box of the next column that is no root."""
    rows = max(len(column) for column in columns)
    width = len(columns) * (_BOX_WIDTH + _GAP) - _GAP + 2
    height = rows * _ROW - (_ROW - _BOX_HEIGHT) + 2
    places = [
        [(1 + i * (_BOX_WIDTH + _GAP), 1 + (j + (rows - len(column)) / 2) * _ROW) for j in range(len(column))]
        for i, column in enumerate(columns)
    ]
    ends = [
        [place for node, place in zip(column, spots, strict=True) if not node.is_root]
        for column, spots in zip(columns, places, strict=True)
    ]
    edges = [
        _edge(start, end)
        for left, right in pairwise(zip(places, ends, strict=True))
        for start in left[0]
        for end in right[1]
    ]
    boxes = [
        _box(node, *place)
        for column, spots in zip(columns, places, strict=True)
        for node, place in zip(column, spots, strict=True)
    ]
    head = _LINEAGE_SVG.format(width=width, height=f"{height:g}", label=label)
    return head + Markup().join(edges + boxes) + Markup("</svg>")


def _edge(start: tuple[float, float], end: tuple[float, float]) -> Markup:
    x0, x2 = start[0] + _BOX_WIDTH, end[0]
    y0, y1 = start[1] + _BOX_HEIGHT / 2, end[1] + _BOX_HEIGHT / 2
    return _EDGE.format(x0=x0, y0=f"{y0:g}", x1=f"{(x0 + x2) / 2:g}", y1=f"{y1:g}", x2=x2)


def _box(node: Node, x: float, y: float) -> Markup:
    shown = node.name if len(node.name) <= _CHARS else f"{node.name[: _CHARS - 1]}…"
    drawn = _NODE.format(
        kind=node.kind,
        title=f"{node.above} {node.name}",
        x=x,
        y=f"{y:g}",
        width=_BOX_WIDTH,
        height=_BOX_HEIGHT,
        text_x=x + 12,
        above=node.above,
        above_y=f"{y + 17:g}",
        name=shown,
        name_y=f"{y + 35:g}",
        fit=_FIT if len(shown) > _CHARS_OF_ANY_WIDTH else "",
    )
    return Markup('<a href="{}">{}</a>').format(node.link, drawn) if node.link else drawn
