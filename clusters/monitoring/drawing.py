"""Draws a dashboard as a picture from the values of a Prometheus, for who has no Grafana at hand or writes a page about it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toque.clusters.monitoring.panels import Dashboard, Panel
from toque.clusters.monitoring.queries import values_between

_COLUMNS, _POINTS, _MOST_LINES = 3, 240, 8
_SHORT_S = 1_800.0
_ROOM = 1.08
_WIDTH_IN, _HEIGHT_IN, _DPI, _COLOURS = 16.0, 2.7, 75, 96
_UNITS: Mapping[str, str] = {
    "reqps": "requests/s",
    "percentunit": "share",
    "s": "seconds",
    "cps": "1/s",
    "short": "",
    "none": "",
    "bool_yes_no": "1: yes, 0: no",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a panel: its legend, seconds since the epoch, and values, NaN where it has none, at which the line breaks."""

    legend: str
    at: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def greatest(self) -> float:
        """Greatest value of the series, which has one."""
        return max(filter(math.isfinite, self.values))


def draw(dashboard: Dashboard, prometheus: str, file: Path, *, minutes: float) -> None:
    """Draw all panels of a dashboard into a PNG file; one without values says why where its panel does.

    minutes: how far back the charts go.
    Raises: OSError if Prometheus does not answer; ImportError without matplotlib.
    """
    import matplotlib  # noqa: ICN001  # heavy, and only this command needs it

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels, end = list(dashboard.panels()), time.time()
    rows = -(-len(panels) // _COLUMNS)
    figure, axes = plt.subplots(
        rows, _COLUMNS, figsize=(_WIDTH_IN, rows * _HEIGHT_IN), squeeze=False, layout="constrained"
    )
    figure.suptitle(f"Toque: {dashboard.title}. {dashboard.question}", fontsize=14)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, panel in zip(axes.flat, panels, strict=False):
        _plot(axis, panel, list(_lines(panel, prometheus, end - 60 * minutes, end)), end)
    figure.savefig(file, dpi=_DPI)
    plt.close(figure)
    _with_few_colours(file)


def _with_few_colours(file: Path) -> None:
    """Save a picture with a palette, a third of its size."""
    from PIL import Image  # as above

    with Image.open(file) as picture:
        picture.convert("RGB").quantize(_COLOURS).save(file, optimize=True)


def _plot(axis: Any, panel: Panel, lines: Sequence[Line], end: float) -> None:
    shown = sorted(lines, key=lambda line: -line.greatest)[:_MOST_LINES]
    unit, scale = _unit(panel.unit, max((line.greatest for line in shown), default=0.0))
    for line in shown:
        minutes = [(at - end) / 60 for at in line.at]
        axis.plot(
            minutes, [value / scale for value in line.values], label=line.legend, lw=1.3, marker=".", ms=2
        )
    axis.set_title(panel.title, fontsize=10, loc="left")
    axis.set_ylabel(unit, fontsize=8)
    axis.set_xlabel("minutes", fontsize=7)
    axis.tick_params(labelsize=7)
    axis.grid(visible=True, alpha=0.3)
    axis.set_ylim(0, _ROOM * max((line.greatest / scale for line in shown), default=0.0) or 1.0)
    if lines:
        more = f"and {len(lines) - len(shown)} lower" if len(lines) > len(shown) else None
        axis.legend(
            fontsize=7, loc="best", framealpha=0.6, borderpad=0.2, labelspacing=0.2, title=more,
            title_fontsize=7,
        )  # fmt: skip
    else:
        why = panel.meaning if panel.may_be_empty and panel.meaning else "nothing to show"
        axis.text(0.5, 0.5, why, ha="center", va="center", transform=axis.transAxes, fontsize=8, wrap=True)


def _unit(unit: str, greatest: float) -> tuple[str, float]:
    """Name what an axis shows, and what its values are divided by."""
    if unit != "bytes":
        return _UNITS.get(unit, unit), 1.0
    return ("GiB", float(1 << 30)) if greatest >= 1 << 30 else ("MiB", float(1 << 20))


def _lines(panel: Panel, prometheus: str, start: float, end: float) -> Iterator[Line]:
    step_s = max(1.0, (end - start) / _POINTS)
    window = (
        "1m" if end - start < _SHORT_S else "5m"
    )  # else a rate of few minutes only rises: its window is not full
    for query, legend in panel.queries:
        for found in values_between(prometheus, query, start, end, step_s=step_s, window=window):
            values = {round((float(at) - start) / step_s): float(value) for at, value in found["values"]}
            steps = range(round((end - start) / step_s) + 1)
            whole = tuple(
                value if math.isfinite(value) else math.nan
                for value in (values.get(step, math.nan) for step in steps)
            )
            if not all(map(math.isnan, whole)):
                at = tuple(start + step * step_s for step in steps)
                yield Line(_legend(legend, found["metric"]), at, whole)


def _legend(template: str, labels: Mapping[str, str]) -> str:
    for name, value in labels.items():
        template = template.replace(f"{{{{{name}}}}}", value)
    return template
