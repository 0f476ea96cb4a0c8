"""Page of a feature view: its freshness, coverage, statistics and newest rows, as one HTML file."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import Field

from toque.featurestore import view_health, view_statistics
from toque.functions.arguments import View
from toque.functions.features.jobs import SpanHours
from toque.functions.pages.charts import draw_distribution
from toque.functions.reporting.page import render, write_page
from toque.functions.runtime.context import context
from toque.functions.runtime.function import function


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
    page = render(
        "feature_view.html",
        health=health,
        figures=figures,
        span=span,
        draw=lambda feature: draw_distribution(feature.model_dump(mode="json")),
        link=used.page("features", view),
    )
    write_page(used.store, key, page)
    return key
