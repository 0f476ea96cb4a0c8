"""Prometheus series of one model's requests, by version and arm.

The event loop counts in numbers of its own; see `toque.clusters.telemetry.metrics.flushing`.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Sequence
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from toque.clusters.telemetry.metrics import OTHER, Bounded, Durations, Rising, flush_regularly

__all__ = ["ArmSeries", "ModelSeries"]

LATENCY_S: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
_ARM = ("workspace", "model", "version", "arm")
_MODEL = ("workspace", "model")
_MOST = 1_000  # models, and arms of models, that one process tells apart

REQUESTS = Counter("toque_predictor_requests", "Requests for which a version was chosen.", _ARM)
ERRORS = Counter(
    "toque_predictor_errors", "Requests that failed after a version was chosen, by class.", (*_ARM, "class")
)
MISSING = Counter("toque_predictor_missing_answers", "Answers with a value that is no finite number.", _ARM)
SECONDS = Histogram(
    "toque_predictor_latency_seconds",
    "Seconds of an answer, from the choice of a version until it is logged.",
    _ARM,
    buckets=LATENCY_S,
)
RESPONSES = Counter(
    "toque_predictor_responses",
    "Responses of a model's or a pool's endpoint, those without a version included.",
    (*_MODEL, "status"),
)
INDIRECT = Counter(
    "toque_predictor_indirect_requests",
    "Predictions that took Serve's Python proxy instead of the replica's port.",
    _MODEL,
)
IN_FLIGHT = Gauge(
    "toque_predictor_in_flight", "Requests that are being answered.", _MODEL, multiprocess_mode="livesum"
)
QUEUED = Gauge(
    "toque_predictor_queued", "Requests that wait for a batch.", _MODEL, multiprocess_mode="livesum"
)
BATCHES = Counter("toque_predictor_batches", "Batches of requests that were scored together.", _MODEL)
BATCH_ROWS = Counter("toque_predictor_batch_rows", "Rows in these batches.", _MODEL)
BATCH_WAIT = Counter(
    "toque_predictor_batch_wait_seconds", "Seconds that requests waited for their batch.", _MODEL
)
SHADOWS = Counter(
    "toque_predictor_shadows", "Copies of requests for shadows, by what became of them.", (*_MODEL, "outcome")
)
LOADS = Counter("toque_predictor_loads", "Versions that were loaded, by outcome.", (*_MODEL, "outcome"))
LOAD_SECONDS = Counter("toque_predictor_load_seconds", "Seconds that loading versions took.", _MODEL)
LOADED = Gauge(
    "toque_predictor_loaded_versions",
    "Versions that can answer, over all replicas.",
    _MODEL,
    multiprocess_mode="livesum",
)
LOGGED = Counter(
    "toque_predictor_logged", "Records of predictions, by what became of them.", (*_MODEL, "outcome")
)

LOOKUP_SECONDS = Histogram(
    "toque_features_lookup_seconds",
    "Seconds of a request's look-up of features by key.",
    _MODEL,
    buckets=LATENCY_S,
)
LOOKUP_ROWS = Counter("toque_features_lookup_rows", "Rows whose features were looked up by key.", _MODEL)
MISSES = Counter("toque_features_missing_values", "Values of features that a look-up did not find.", _MODEL)

_models, _arms = Bounded(_MOST), Bounded(_MOST)


def error_class(status: int) -> str:
    """Name the class of a failed request: whose fault it was, and whether sending it again may help."""
    if status in _CLASSES:
        return _CLASSES[status]
    return "fault" if status >= _FAULT else "refused"


_FAULT: Final = 500
_CLASSES: Final = {429: "overloaded", 499: "gone", 503: "not_ready", 504: "timeout"}


class ArmSeries:
    """Numbers of one version in one arm, counted by the event loop alone."""

    __slots__ = ("_errors", "_labels", "_latency", "_missing", "_requests", "errors", "missing", "requests")

    def __init__(self, labels: tuple[str, ...]) -> None:
        self._labels = labels
        self.requests, self.missing = 0, 0
        self.errors: Counts[int] = Counts()
        self._requests, self._missing = Rising(REQUESTS.labels(*labels)), Rising(MISSING.labels(*labels))
        self._latency = Durations(SECONDS.labels(*labels))
        self._errors: dict[int, Rising] = {}

    def answered(self, seconds: float, *, usable: bool) -> None:
        """Count an answer of a version. usable: whether all its values are finite."""
        self.requests += 1
        self._latency.observe(seconds)
        if not usable:
            self.missing += 1

    def failed(self, status: int) -> None:
        """Count a request that failed with an HTTP status."""
        self.requests += 1
        self.errors[status] += 1

    def flush(self) -> None:
        """Move the numbers to the series."""
        self._requests.to(self.requests)
        self._missing.to(self.missing)
        self._latency.flush()
        for status, count in list(self.errors.items()):
            if status not in self._errors:
                self._errors[status] = Rising(ERRORS.labels(*self._labels, error_class(status)))
            self._errors[status].to(count)


class ModelSeries:
    """Series of one model in one process.

    Totals that others count, as of shadows and batches, are read when it is flushed: see `follow` and `show`.
    """

    def __init__(self, model: str, workspace: str) -> None:
        known = _models(f"{workspace}/{model}") != OTHER
        self.labels = (workspace, model) if known else (OTHER, OTHER)
        self._arms: dict[tuple[int, str], ArmSeries] = {}
        self._followed: list[tuple[Rising, Callable[[], float]]] = []
        self._shown: list[_Shown] = []
        self._statuses: dict[int, Rising] = {}
        self._lookups: Durations | None = None
        self.looked_up_rows, self.missing_values = 0, 0
        self._status_counts: Counts[int] = Counts()
        flush_regularly(self)

    def of(self, version: int, arm: str) -> ArmSeries:
        """Get the numbers of a version in an arm."""
        found = self._arms.get((version, arm))
        if found is None:
            labels = (*self.labels, str(version), arm)
            if _arms("/".join(labels)) == OTHER:
                labels = (*self.labels, OTHER, OTHER)
            found = self._arms[version, arm] = ArmSeries(labels)
        return found

    def looked_up(self, seconds: float, missing: Sequence[Sequence[str]]) -> None:
        """Count a look-up of features. missing: names of those that were not found, for each row."""
        if self._lookups is None:  # most models have no features
            self._lookups = Durations(LOOKUP_SECONDS.labels(*self.labels))
            self.follow(LOOKUP_ROWS, lambda: self.looked_up_rows)
            self.follow(MISSES, lambda: self.missing_values)
        self._lookups.observe(seconds)
        self.looked_up_rows += len(missing)
        self.missing_values += sum(map(len, missing))

    def follow(self, counter: Counter, total: Callable[[], float], *labels: str) -> None:
        """Have a counter of this model follow a total. labels: those after workspace and model."""
        self._followed.append((Rising(counter.labels(*self.labels, *labels)), total))

    def show(self, gauge: Gauge, value: Callable[[], float]) -> None:
        """Have a gauge of this model show a value."""
        self._shown.append(_Shown(gauge.labels(*self.labels), value))

    def responded(self, statuses: Counts[int]) -> None:
        """Have the counts of responses follow those of an endpoint, by status."""
        self._status_counts = statuses

    def flush(self) -> None:
        """Move all numbers to the series."""
        for arm in list(self._arms.values()):
            arm.flush()
        if self._lookups is not None:
            self._lookups.flush()
        for rising, total in list(self._followed):
            rising.to(total())
        for shown in list(self._shown):
            shown.flush()
        for status, count in list(self._status_counts.items()):
            if status not in self._statuses:
                self._statuses[status] = Rising(RESPONSES.labels(*self.labels, str(status)))
            self._statuses[status].to(count)

    def close(self) -> None:
        """Flush for the last time, as the model leaves this process."""
        self.flush()
        for shown in self._shown:
            shown.withdraw()
        self._followed, self._shown, self._arms = [], [], {}


class _Shown:
    """Part that one model has in a gauge, which models beyond the bound share."""

    __slots__ = ("_gauge", "_part", "_value")

    def __init__(self, gauge: Gauge, value: Callable[[], float]) -> None:
        self._gauge, self._value, self._part = gauge, value, 0.0

    def flush(self) -> None:
        self._move(self._value())

    def withdraw(self) -> None:
        self._move(0.0)

    def _move(self, value: float) -> None:
        self._gauge.inc(value - self._part)
        self._part = value
