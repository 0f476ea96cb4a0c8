"""Parallel coordinates as SVG made on the server: an axis for each parameter and metric, a line for each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from toque.ray_apps.console.rendering import number

_HEIGHT, _TOP, _BOTTOM, _LEFT = 320, 46, 26, 60
_GAP: Final = 150
_MOST_TEXTS: Final = 12
_MISSING: Final = "–"
_NAME_CHARS, _VALUE_CHARS = 20, 14
_SVG = Markup(
    '<svg class="chart parallel" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="group" '
    'aria-label="{label}">{parts}</svg>'
)
_AXIS = Markup(
    '<path class="level" d="M{x} {top}V{bottom}"/>'
    '<text x="{x}" y="{name_y}" text-anchor="middle" class="name">{name}<title>{whole}</title></text>'
)
_TICK = Markup('<text class="tick" x="{x}" y="{y}" dx="6" dy="4">{text}</text>')
_LINE = Markup('<path class="line series-{index}" d="{path}"><title>{name}</title></path>')

Value = str | float | None


@dataclass(frozen=True, slots=True)
class Line:
    """Line of the drawing: values by axis; link: where it leads; index: which colour it has."""

    name: str
    values: Mapping[str, Value]
    index: int
    link: str = ""


def draw_parallel(axes: Sequence[str], lines: Sequence[Line], *, label: str) -> Markup:
    """Draw lines over vertical axes. An axis whose values are all numbers is to scale; of others each text has a place."""
    if not axes or not lines:
        return Markup()
    shapes: list[Markup] = []
    texts: list[Markup] = []
    places: list[dict[int, float]] = []
    for position, axis in enumerate(axes):
        drawn, ys = _axis(axis, _LEFT + position * _GAP, [line.values.get(axis) for line in lines])
        texts += drawn
        places.append(ys)
    for row, line in enumerate(lines):
        path = "M" + "L".join(f"{_LEFT + at * _GAP} {ys[row]:g}" for at, ys in enumerate(places))
        shape = _LINE.format(index=line.index, path=path, name=line.name)
        shapes.append(Markup('<a href="{}">{}</a>').format(line.link, shape) if line.link else shape)
    width = 2 * _LEFT + (len(axes) - 1) * _GAP + 30
    return _SVG.format(width=width, height=_HEIGHT, label=label, parts=Markup().join(shapes + texts))


def _axis(name: str, x: int, values: Sequence[Value]) -> tuple[list[Markup], dict[int, float]]:
    """Draw an axis; returns it and the height of each line on it. What is missing lies below the axis."""
    numbers = [_as_number(value) for value in values]
    known = [each for each in numbers if each is not None]
    to_scale = bool(known) and all(
        value is None or each is not None for value, each in zip(values, numbers, strict=True)
    )
    shares: list[float | None]
    if to_scale:
        low, high = min(known), max(known)
        shares = [
            None if each is None else (each - low) / (high - low) if high > low else 0.5 for each in numbers
        ]
        ticks = {0.0: number(low), 1.0: number(high)} if high > low else {0.5: number(low)}
    else:
        texts = sorted({str(value) for value in values if value is not None})
        place = {text: at / max(1, len(texts) - 1) for at, text in enumerate(texts)}
        shares = [None if value is None else place[str(value)] for value in values]
        shown = texts if len(texts) <= _MOST_TEXTS else [texts[0], texts[-1]]
        ticks = {place[text]: text for text in shown}
    bottom = _HEIGHT - _BOTTOM
    ys = {row: bottom + 16 if share is None else _y(share) for row, share in enumerate(shares)}
    axis = _AXIS.format(
        x=x, top=_TOP, bottom=bottom, name_y=_TOP - 22, name=_cut(name, _NAME_CHARS), whole=name
    )
    labels = [
        _TICK.format(x=x, y=f"{_y(share):g}", text=_cut(text, _VALUE_CHARS)) for share, text in ticks.items()
    ]
    if None in shares:
        labels.append(_TICK.format(x=x, y=bottom + 16, text=_MISSING))
    return [axis, *labels], ys


def _y(share: float) -> float:
    return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)


def _as_number(value: Value) -> float | None:
    """Read a value as a finite number; None if it is no such."""
    try:
        found = None if value is None else float(value)
    except ValueError:
        return None
    return found if found is not None and abs(found) < float("inf") else None


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
