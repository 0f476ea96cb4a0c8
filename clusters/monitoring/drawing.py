"""Draws a dashboard as a picture from the values of a Prometheus, for who has no Grafana at hand or writes a page about it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clusters.monitoring.panels import Dashboard, Panel
from clusters.monitoring.queries import values_between

_COLUMNS, _POINTS, _MOST_LINES = 3, 240, 8
_WIDTH_IN, _HEIGHT_IN = 18.0, 2.9
_UNITS: Mapping[str, str] = {
    "reqps": "requests/s",
    "percentunit": "share",
    "s": "seconds",
    "cps": "1/s",
    "short": "",
    "none": "",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a panel: its legend, seconds since the epoch, and values, NaN where it has none, at which the line breaks."""

    legend: str
    at: tuple[float, ...]
    values: tuple[float, ...]


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
    figure.savefig(file, dpi=60)
    plt.close(figure)


def _plot(axis: Any, panel: Panel, lines: Sequence[Line], end: float) -> None:
    for line in sorted(lines, key=lambda line: -max(filter(math.isfinite, line.values)))[:_MOST_LINES]:
        axis.plot(
            [(at - end) / 60 for at in line.at], line.values, label=line.legend, lw=1.3, marker=".", ms=2
        )
    axis.set_title(panel.title, fontsize=10, loc="left")
    axis.set_ylabel(_UNITS.get(panel.unit, panel.unit), fontsize=8)
    axis.set_xlabel("minutes", fontsize=7)
    axis.tick_params(labelsize=7)
    axis.grid(visible=True, alpha=0.3)
    axis.set_ylim(bottom=0)
    if lines:
        axis.legend(fontsize=6, loc="upper left")
    else:
        why = panel.meaning if panel.may_be_empty and panel.meaning else "nothing to show"
        axis.text(0.5, 0.5, why, ha="center", va="center", transform=axis.transAxes, fontsize=8, wrap=True)


def _lines(panel: Panel, prometheus: str, start: float, end: float) -> Iterator[Line]:
    step_s = max(1.0, (end - start) / _POINTS)
    for query, legend in panel.queries:
        for found in values_between(prometheus, query, start, end, step_s=step_s):
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
