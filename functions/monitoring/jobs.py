"""The monitors as functions, for a schedule or a person to call."""

from __future__ import annotations

from functions.monitoring.alarms import Alarm, Alarms
from functions.monitoring.drift import DriftMonitor
from functions.monitoring.performance import PerformanceMonitor
from functions.monitoring.watch import Post, Watched, watch_loss
from functions.monitoring.watch_features import watch_features
from functions.prediction_log import outcomes, predictions
from functions.runtime.context import context
from functions.runtime.events import publish
from functions.runtime.function import function
from registry import ModelVersion

_SCORED = ("prediction_id", "version", "shadow", "unit", "predicted_at", "latency_ms", "outputs")
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
    return watch_loss(
        _post(model),
        champion,
        monitor,
        lambda start, end: outcomes(store, model, start, end, labelled_only=False, columns=_SCORED),
    )


@function(timeout_s=300)
def watch_drift(model: str, monitor: DriftMonitor = DriftMonitor()) -> Watched:  # noqa: B008 — frozen
    """Compare what is asked with the champion's training set, window by window, and raise alarms.

    Raises: ValueError if the champion's version names no columns or no training set.
    """
    champion = _champion(model)
    if champion is None:
        return Watched(model=model, monitor=monitor.kind, text="no champion serves this model")
    store = context().store
    return watch_features(
        _post(model),
        champion,
        monitor,
        lambda start, end: predictions(store, model, start, end, columns=_FEATURES),
    )


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


def _post(model: str) -> Post:
    used = context()
    return Post(model=model, store=used.store, alarms=alarms(model), now=used.clock())


def _champion(model: str) -> ModelVersion | None:
    return context().registry().find_version(model, "champion")
