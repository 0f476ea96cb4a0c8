"""Comparison of runs: a table of what differs, and a plot of a metric's series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from toque.registry.runs.record import Point, RunRecord

if TYPE_CHECKING:
    import pyarrow as pa


def differences(kinds: Mapping[str, Sequence[Mapping[str, object]]]) -> dict[str, list[object]]:
    """Values that differ between runs, by column such as `params.lr` (None: absent); for a single run, all its values.

    kinds: kind such as `params` to the values of each run.
    """
    found: dict[str, list[object]] = {}
    for kind, values in kinds.items():
        for name in dict.fromkeys(name for run_values in values for name in run_values):
            column = [run_values.get(name) for run_values in values]
            if len(set(map(repr, column))) > 1 or len(values) == 1:
                found[f"{kind}.{name}"] = column
    return found


def comparison(records: Sequence[RunRecord]) -> pa.Table:
    """Build a table with one row a run: run, name, status, then each parameter and metric in which they differ."""
    import pyarrow as pa  # late: 40 MB, and few processes that know runs compare them

    facts = {fact: [getattr(record, fact) for record in records] for fact in ("id", "name", "status")}
    kinds = {kind: [getattr(record, kind) for record in records] for kind in ("params", "metrics")}
    return pa.table({"run": facts.pop("id"), **facts, **differences(kinds)})


def plot(metric: str, series: Mapping[str, Sequence[Point]]) -> str:
    """Render a self-contained HTML page with the series of `metric`, one line a run (label -> points)."""
    from plotly import graph_objects  # late: slow to import, and few callers plot

    figure = graph_objects.Figure(layout={"title": metric, "xaxis_title": "step", "yaxis_title": metric})
    for label, points in series.items():
        figure.add_scatter(
            x=[point.step for point in points],
            y=[point.value for point in points],
            name=label,
            mode="lines+markers",
        )
    page: str = figure.to_html(include_plotlyjs=True, full_html=True)
    return page
