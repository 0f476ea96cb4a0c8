"""Monitors of a model in the order in which an inspection runs them."""

from __future__ import annotations

from toque.functions.monitoring import (
    MonitorResult,
    QualityMonitor,
    estimate_performance,
    watch_answers,
    watch_drift,
    watch_embeddings,
    watch_operations,
    watch_performance,
    watch_quality,
    watch_skew,
)
from toque.functions.retraining.definition import InspectedModel


def run_monitors(definition: InspectedModel) -> tuple[MonitorResult, ...]:
    """Run the monitors that a model declares; what each found."""
    watched = []
    if definition.quality is not None:  # first: its incidents explain what the others find
        watched.append(watch_quality(definition.name, definition.quality))
    if definition.skew is not None:
        watched.append(watch_skew(definition.name, definition.skew))
    if definition.operations is not None:
        watched.append(watch_operations(definition.name, definition.operations))
    if definition.performance is not None:
        watched.append(watch_performance(definition.name, definition.performance))
    if definition.estimate is not None:
        watched.append(estimate_performance(definition.name, definition.estimate))
    if definition.drift is not None:
        explained = definition.quality or QualityMonitor()
        watched.append(watch_drift(definition.name, definition.drift, explained))
    if definition.vectors is not None:
        watched.append(watch_embeddings(definition.name, definition.vectors))
    if definition.answers is not None:
        watched.append(watch_answers(definition.name, definition.answers))
    return tuple(watched)
