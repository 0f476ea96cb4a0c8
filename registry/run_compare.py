"""Runs side by side: a table of what differs, and a plot of a metric's series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from registry.run_record import Point, RunRecord


def comparison(records: Sequence[RunRecord]) -> pa.Table:
    """One row a run: run, name, status, then each parameter and metric in which the runs differ."""
    columns: dict[str, list[object]] = {
        "run": [record.id for record in records],
        "name": [record.name for record in records],
        "status": [record.status for record in records],
    }
    for kind in ("params", "metrics"):
        values: list[Mapping[str, object]] = [getattr(record, kind) for record in records]
        for name in dict.fromkeys(name for one in values for name in one):
            column = [one.get(name) for one in values]
            if len(set(map(repr, column))) > 1 or len(records) == 1:
                columns[f"{kind}.{name}"] = column
    return pa.table(columns)


def plot(metric: str, series: Mapping[str, Sequence[Point]]) -> str:
    """A self-contained HTML page with the series of `metric`, one line a run (label -> points)."""
    from plotly import graph_objects  # takes a while to import, and few ask for plots

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
