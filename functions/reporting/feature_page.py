"""Page of a feature view: its freshness, coverage, statistics and newest rows, as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise
from typing import Annotated

from pydantic import Field

from toque.featurestore import FeatureStatistics, ViewHealth, view_health, view_statistics
from toque.functions.arguments import View
from toque.functions.features.jobs import SpanHours
from toque.functions.reporting.html import document, figure_html, linked, new_figure, table, write_page
from toque.functions.runtime.context import context
from toque.functions.runtime.function import function

_HEADER = ("feature", "type", "filled", "distinct", "mean", "std", "least", "quartiles", "most")


@function(http=True, timeout_s=600)
def feature_report(
    view: View,
    span_hours: Annotated[
        SpanHours, Field(description="Hours of the newest event time that are read, up to ten years.")
    ] = 24.0,
    samples: Annotated[
        int, Field(ge=0, le=1_000, description="Number of the newest rows that are shown.")
    ] = 5,
) -> str:
    """Write the page of one view into the store; returns its key, `reports/features-{view}.html`.

    Raises: UnknownDefinition; OnlineStoreUnavailable if Redis does not answer.
    """
    used, span = context(), timedelta(hours=span_hours)
    features = used.features()
    health = view_health(features, view, span=span, samples=samples)
    figures = view_statistics(features, view, span=span)
    key = f"reports/features-{view}.html"
    page = linked(render_view(health, figures, span=span), used.page("features", view))
    write_page(used.store, key, page)
    return key


def render_view(health: ViewHealth, figures: Sequence[FeatureStatistics], *, span: timedelta) -> str:
    """Render the page as one HTML file. figures: of each feature over the newest span."""
    sections = [("Features", table(_HEADER, [_line(each) for each in figures], numbers_from=2))]
    sections += [(each.name, _values(each)) for each in figures if each.counts or each.top]
    rows = [[str(value) for value in row.values()] for row in health.samples]
    sections.append(("Newest rows", table(list(health.samples[0]) if rows else [], rows)))
    return document(f"Feature view {health.view}", _summary(health, span), sections)


def _summary(health: ViewHealth, span: timedelta) -> list[str]:
    sentences = [
        f"Measured {health.measured_at:%Y-%m-%d %H:%M} UTC.{f' Owner: {health.owner}.' if health.owner else ''}"
    ]
    if health.newest_event is None or health.freshness_s is None:
        return [*sentences, "It has no rows up to now."]
    sentences.append(
        f"{health.rows:,} rows in {health.files:,} files; the newest is of {health.newest_event:%Y-%m-%d %H:%M:%S}, "
        f"{timedelta(seconds=round(health.freshness_s))} ago. The newest {span} has {health.recent_rows:,} rows of about "
        f"{health.keys:,} keys."
    )
    if health.coverage is not None:
        until = (
            "nothing"
            if health.online_until is None
            else f"rows up to {health.online_until:%Y-%m-%d %H:%M:%S}"
        )
        sentences.append(f"Online: {until}; {health.coverage:.1%} of recent keys are found within the ttl.")
    return sentences


def _line(each: FeatureStatistics) -> tuple[str, ...]:
    filled = "-" if not each.rows else f"{each.values / each.rows:.1%}"
    quartiles = " / ".join(map(_number, each.quartiles)) or "-"
    moments = (_number(each.mean), _number(each.std), _number(each.least), quartiles, _number(each.most))
    return (each.name, each.dtype, filled, f"{each.distinct:,}", *moments)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}"


def _values(each: FeatureStatistics) -> str:
    """Draw a histogram of numbers, or list the frequent values of other types."""
    if each.top:
        return table(
            ("value", "share"), [(value, f"{share:.1%}") for value, share in each.top], numbers_from=1
        )
    edges, total = each.edges, sum(each.counts)
    middles = [(a + b) / 2 for a, b in pairwise(edges)]
    widths = [b - a for a, b in pairwise(edges)]
    shares = [count / total for count in each.counts]
    figure = new_figure()
    figure.add_bar(x=middles, y=shares, width=widths)
    figure.update_layout(bargap=0, yaxis_tickformat=".0%")
    return figure_html(figure, "share of sampled values")
