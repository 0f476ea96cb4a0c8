"""Figures of one feature view: how its values are distributed, and how fresh and full it was over time."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field

from toque.featurestore import FeatureStatistics, PartStatistics, view_course, view_statistics
from toque.functions.arguments import View
from toque.functions.features.jobs import HEALTH_TABLE, SpanHours
from toque.functions.runtime.context import context
from toque.functions.runtime.function import function
from toque.registry import Table


class HealthPoint(BaseModel, frozen=True):
    """Figure of a view at a time: `rows`, `freshness_s`, `recent_rows`, `coverage`, or the `fill` of a feature."""

    metric: str
    feature: str | None
    value: float | None
    measured_at: datetime


@function(http=True, role="viewer", timeout_s=300)
def feature_statistics(view: View, span_hours: SpanHours = 24.0) -> list[FeatureStatistics]:
    """Compute the distribution of each feature over the newest span of a view's rows. Raises: UnknownDefinition."""
    return view_statistics(context().features(), view, span=timedelta(hours=span_hours))


@function(http=True, role="viewer", timeout_s=300)
def feature_course(
    view: View,
    span_hours: SpanHours = 24.0,
    parts: Annotated[
        int, Field(ge=1, le=100, description="Number of equal parts of the span, 100 at most.")
    ] = 12,
) -> list[PartStatistics]:
    """Compute the distribution of each feature over equal parts of the newest span of a view's rows, oldest first.

    Raises: UnknownDefinition.
    """
    return view_course(context().features(), view, span=timedelta(hours=span_hours), parts=parts)


@function(http=True, role="viewer", timeout_s=60, in_thread=True)
def feature_health_history(
    view: View,
    days: Annotated[int, Field(ge=1, le=36_500, description="Days of measurements, back from now.")] = 30,
) -> list[HealthPoint]:
    """List the figures of a view that `record_feature_health` measured in the last days, oldest first."""
    used = context()
    table = Table(used.store, HEALTH_TABLE)
    if not table.exists():
        return []
    since = pa.scalar(used.clock() - timedelta(days=days), pa.timestamp("us", "UTC"))
    rows = table.read(where=(pc.field("view") == view) & (pc.field("measured_at") >= since))
    return [HealthPoint.model_validate(row) for row in rows.sort_by("measured_at").to_pylist()]
