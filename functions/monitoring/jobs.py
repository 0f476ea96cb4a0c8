"""The monitors as functions, for a schedule or a person to call."""

from __future__ import annotations

from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from featurestore import FeatureStore
from functions.monitoring.alarms import Alarm, Alarms
from functions.monitoring.diagnosis.explain import (
    Changed,
    SliceFindings,
    SliceOptions,
    find_changes,
    find_slices,
)
from functions.monitoring.drift.dataset_sketches import Rows
from functions.monitoring.drift.monitor import DriftMonitor
from functions.monitoring.drift.watch import watch_features
from functions.monitoring.estimates.classes import EstimateMonitor, watch_estimates
from functions.monitoring.estimates.numbers import watch_number_estimates
from functions.monitoring.operations import OperationsMonitor, watch_service
from functions.monitoring.performance import PerformanceMonitor
from functions.monitoring.quality.monitor import QualityMonitor
from functions.monitoring.quality.watch import Views, spoiled_columns, watch_rows
from functions.monitoring.results import MonitorStatus, last_judged
from functions.monitoring.skew import SkewMonitor, watch_skewed
from functions.monitoring.vectors import VectorMonitor, watch_vectors
from functions.monitoring.watch import Post, Watched, watch_loss
from functions.prediction_log import made_within, outcomes, predictions, predictions_table
from functions.runtime.context import context
from functions.runtime.function import function
from functions.runtime.triggers.events import publish
from registry import ModelVersion, ObjectStore, Table

_SCORED = ("prediction_id", "version", "shadow", "unit", "predicted_at", "latency_ms", "outputs")
_ANSWERED = ("prediction_id", "version", "shadow", "predicted_at", "latency_ms", "outputs")
_FEATURES = ("prediction_id", "version", "shadow", "predicted_at", "numeric", "categorical")


@function(timeout_s=300)
def watch_performance(
    model: str,
    monitor: PerformanceMonitor = PerformanceMonitor(),  # noqa: B008 — frozen
) -> Watched:
    """Judge the realised loss of every cohort whose labels are due, and raise alarms."""
    champion = _champion(model)
    if champion is None:
        return Watched(model=model, monitor=monitor.kind, text="no champion serves this model")
    store = context().store

    def read(start: datetime, end: datetime) -> pa.Table:
        rows = outcomes(store, model, start, end, labelled_only=False, columns=(*_SCORED, "arm"))
        counted = rows.filter(pc.is_in(rows["arm"], pa.array(monitor.arms))) if monitor.arms else rows
        return counted.drop_columns("arm")

    return watch_loss(_post(model), champion, monitor, read)


@function(timeout_s=300)
def watch_quality(model: str, monitor: QualityMonitor = QualityMonitor()) -> Watched:  # noqa: B008 — frozen
    """Ask of each cohort of requests, and of the views behind them, whether the feed is broken; raise and close incidents.

    Nothing is ever retrained for an incident, and drift that one explains is told as such: run it before `watch_drift`.
    Raises: ValueError if the champion's version names no columns.
    """
    champion = _champion(model)
    if champion is None:
        return Watched(model=model, monitor=monitor.kind, text="no champion serves this model")
    used = context()
    # Without Redis: a view's age is that of its table, and must be known while Redis is away.
    views = Views.of(FeatureStore(used.store, clock=used.clock, actor=used.actor), champion)
    return watch_rows(
        _post(model),
        champion,
        monitor,
        lambda start, end: predictions(used.store, model, start, end, columns=_FEATURES),
        views,
    )


@function(timeout_s=300)
def watch_drift(
    model: str,
    monitor: DriftMonitor = DriftMonitor(),  # noqa: B008 — frozen
    quality: QualityMonitor = QualityMonitor(),  # noqa: B008 — frozen
) -> Watched:
    """Compare what is asked with the champion's training set, window by window, and raise alarms.

    quality: the monitor whose incidents explain drift of the columns they spoil.
    Raises: ValueError if the champion's version names no columns or no training set.
    """
    champion = _champion(model)
    if champion is None:
        return Watched(model=model, monitor=monitor.kind, text="no champion serves this model")
    store, post = context().store, _post(model)
    return watch_features(
        post,
        champion,
        monitor,
        lambda start, end: predictions(store, model, start, end, columns=_FEATURES),
        spoiled_columns(post, quality),
        lambda start, end: _logged(store, model, start, end),
    )


@function(timeout_s=300)
def watch_operations(model: str, monitor: OperationsMonitor = OperationsMonitor()) -> Watched:  # noqa: B008 — frozen
    """Record latency, errors, saturation and cost of each cohort of requests, and raise alarms where a limit is broken."""
    champion = _champion(model)
    if champion is None:
        return Watched(model=model, monitor=monitor.kind, text="no champion serves this model")
    used = context()
    return watch_service(
        _post(model),
        champion,
        monitor,
        lambda start, end: predictions(used.store, model, start, end, columns=_ANSWERED),
        None if used.prices is None else used.prices.cpu_hour,
    )


@function(timeout_s=300)
def watch_embeddings(model: str, monitor: VectorMonitor) -> Watched:
    """Compare embeddings and texts of what is asked with those of the champion's training set, and raise alarms of drift.

    Raises: ValueError if the champion's version names no columns or no training set, or does not read what is watched.
    """
    champion = _champion(model)
    if champion is None:
        return Watched(model=model, monitor=monitor.kind, text="no champion serves this model")
    store = context().store
    return watch_vectors(
        _post(model),
        champion,
        monitor,
        lambda start, end: predictions(store, model, start, end, columns=(*_FEATURES, "unit")),
    )


@function(timeout_s=300)
def watch_skew(model: str, monitor: SkewMonitor = SkewMonitor()) -> Watched:  # noqa: B008 — frozen
    """Hold a version's first hours against its training set, and a sample of what was logged against the offline store.

    Raises: ValueError if the champion's version names no columns or no training set.
    """
    champion = _champion(model)
    if champion is None:
        return Watched(model=model, monitor=monitor.kind, text="no champion serves this model")
    used = context()
    return watch_skewed(
        _post(model),
        champion,
        monitor,
        lambda start, end: predictions(
            used.store, model, start, end, columns=(*_FEATURES, "missing", "entities")
        ),
        Views.of(FeatureStore(used.store, clock=used.clock, actor=used.actor), champion),
    )


@function(timeout_s=300)
def estimate_performance(model: str, monitor: EstimateMonitor = EstimateMonitor()) -> Watched:  # noqa: B008 — frozen
    """Estimate the performance of each cohort before its labels are there, and settle what labels have come for.

    For one probability of label 1, or a number (`loss="squared_error"`). An estimate is on record as one: it raises no alarm, ends none, and is never health.
    """
    champion = _champion(model)
    if champion is None:
        return Watched(model=model, monitor=monitor.kind, text="no champion serves this model")
    store, numbers = context().store, monitor.loss == "squared_error"
    columns = (*_SCORED, "numeric", "categorical") if numbers else _SCORED
    return (watch_number_estimates if numbers else watch_estimates)(
        _post(model),
        champion,
        monitor,
        lambda start, end: outcomes(store, model, start, end, labelled_only=False, columns=columns),
    )


@function(timeout_s=300)
def worst_slices(model: str, options: SliceOptions = SliceOptions()) -> SliceFindings | None:  # noqa: B008 — frozen
    """Search the slices of the champion's labelled requests that lose most; None if no champion serves the model."""
    champion = _champion(model)
    if champion is None:
        return None
    store, columns = context().store, (*_SCORED, "numeric", "categorical")
    return find_slices(
        _post(model),
        champion,
        options,
        lambda start, end: outcomes(store, model, start, end, columns=columns),
    )


@function(timeout_s=300)
def what_changed(model: str, days: int = 7, max_rows: int = 5_000) -> Changed | None:
    """Which features tell the last days' requests from the champion's training set; None if no champion serves the model.

    It sees what no column shows alone. Rows of one day are alike, and are taken as independent here: read it beside
    `watch_drift`, which raises the alarms.
    """
    champion = _champion(model)
    if champion is None:
        return None
    store = context().store
    return find_changes(
        _post(model),
        champion,
        lambda start, end: predictions(store, model, start, end, columns=_FEATURES),
        days=days,
        max_rows=max_rows,
    )


@function(timeout_s=60)
def monitor_status(model: str) -> list[MonitorStatus]:
    """What each monitor of a model judged last, and what it found wrong."""
    return last_judged(context().store, model)


@function(timeout_s=60)
def standing_alarms(model: str) -> list[Alarm]:
    """The alarms of a model that were raised and have not recovered, oldest first."""
    return alarms(model).standing()


def alarms(model: str) -> Alarms:
    """The alarms of `model` in the context's store."""
    used = context()
    return Alarms(model, store=used.store, clock=used.clock, actor=used.actor, publish=_tell)


def _tell(topic: str, payload: dict[str, object], key: str) -> object:
    return publish(topic, payload, key=key)


def _logged(store: ObjectStore, model: str, start: datetime, end: datetime) -> Rows | None:
    """The vectors logged in [start, end), unread; None before the first."""
    table = Table(store, predictions_table(model))
    if not table.exists():
        return None
    return Rows(table, table.version(), _FEATURES, made_within(start, end))


def _post(model: str) -> Post:
    used = context()
    return Post(model=model, store=used.store, alarms=alarms(model), now=used.clock())


def _champion(model: str) -> ModelVersion | None:
    return context().registry().find_version(model, "champion")
