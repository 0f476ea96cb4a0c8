"""Counts each request by version and arm: for who judges a rollout or a champion within seconds, and for Prometheus.

For the series the event loop counts in numbers of its own; see `toque.clusters.telemetry.metrics.flushing`.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from prometheus_client import Counter, Gauge, Histogram

from toque.clusters.telemetry.metrics import OTHER, Bounded, Durations, Rising, flush_regularly
from toque.functions.live_counts import End, SplitArm, Tally, end_of, is_usable
from toque.functions.prediction_log import LOAD_TEST, PINNED
from toque.ray_apps.predictor.protocol.errors import PredictorError
from toque.registry.models.traffic import CHAMPION, Traffic

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
_CLASSES: Final = {429: "overloaded", 499: "gone", 503: "not_ready", 504: "timeout"}
_REMEMBERED: Final = 256  # split arms; a model has a few
_NO_EVIDENCE = frozenset({PINNED, LOAD_TEST})
_FAULT: Final = 500  # of an unforeseen error
_NOT_READY: Final = 503


class Counted(Protocol):
    """A request with its arm, as `LiveCounter` needs it; id: its unit where it named none."""

    id: str
    unit: str | None
    arm: str

    @property
    def traffic(self) -> Traffic | None:
        """Split that the version was chosen by."""
        ...

    @property
    def number(self) -> int:
        """Number of the version that was chosen."""
        ...

    def elapsed_ms(self) -> float:
        """Milliseconds since the request came in."""
        ...


class Numbered(Protocol):
    """A version that is loaded."""

    @property
    def version(self) -> int:
        """Number of the version, unique in its model."""
        ...


class Shadowed(Protocol):
    """A request that a shadow scores; fields as of `Counted`."""

    @property
    def id(self) -> str:
        """Id of the request that was answered."""
        ...

    @property
    def unit(self) -> str | None:
        """Whom the split assigned, or None."""
        ...

    @property
    def version(self) -> Numbered:
        """Version that scores it as a shadow."""
        ...

    @property
    def traffic(self) -> Traffic | None:
        """Split that was in force."""
        ...


class LiveCounter:
    """Tells how each request of one model ended.

    tally: counts by split, among which those for a version by number and of a load test are trials and do not count. series: Prometheus's.
    """

    def __init__(self, tally: Tally | None, series: ModelSeries | None = None) -> None:
        self._tally, self._series = tally, series
        self._arms: dict[tuple[int, int, str], SplitArm] = {}

    def answered(self, call: Counted, outputs: Mapping[str, Any], *, latency_ms: float | None = None) -> None:
        """Count an answer; one that holds a value that is no finite number counts as missing.

        latency_ms: by which the versions are compared; None: all that the answer took.
        """
        if self._tally is None and self._series is None:
            return
        usable, elapsed_ms = all(map(is_usable, outputs.values())), call.elapsed_ms()
        if self._series is not None:
            self._series.of(call.number, call.arm).answered(elapsed_ms / 1e3, usable=usable)
        compared_ms = elapsed_ms if latency_ms is None else latency_ms
        self._count(call, End.ANSWERED if usable else End.MISSING, compared_ms)

    def failed(self, call: Counted, status: int, *, latency_ms: float | None = None) -> None:
        """Count a request that was refused or failed with an HTTP status. latency_ms: as of `answered`."""
        if self._series is not None:
            self._series.of(call.number, call.arm).failed(status)
        self._count(call, end_of(status), call.elapsed_ms() if latency_ms is None else latency_ms)

    def mistaken(self, call: Counted, status: int) -> None:
        """Count what a caller got wrong: in Prometheus's series alone, as it says nothing about the version."""
        if self._series is not None:
            self._series.of(call.number, call.arm).failed(status)

    def unserved(self, unit: str, traffic: Traffic | None) -> None:
        """Count a request that no version could answer as an error of the champion's."""
        if traffic is None:
            return
        champion = traffic.champion
        if self._series is not None:
            self._series.of(champion.version, CHAMPION).failed(_NOT_READY)
        if self._tally is not None:
            arm = SplitArm(traffic.entry, champion.version, CHAMPION, champion.share)
            self._tally.count(arm, unit, End.ERROR, 0.0)

    def scored(self, job: Shadowed, arm: str, outputs: Mapping[str, Any]) -> None:
        """Count what a shadow made of a request that another version answered."""
        usable = all(map(is_usable, outputs.values()))
        self._count_shadow(job, arm, End.ANSWERED if usable else End.MISSING)

    def not_scored(self, job: Shadowed, arm: str, error: Exception) -> None:
        """Count a request that a shadow failed to score."""
        status = error.status if isinstance(error, PredictorError) else _FAULT
        self._count_shadow(job, arm, end_of(status))

    def _count_shadow(self, job: Shadowed, arm: str, end: End) -> None:
        if self._tally is not None:
            split = self._arm(job.traffic, job.version.version, arm)
            self._tally.count(split, job.unit or job.id, end, 0.0)

    def _count(self, call: Counted, end: End, elapsed_ms: float) -> None:
        if self._tally is not None and call.arm not in _NO_EVIDENCE:
            arm = self._arm(call.traffic, call.number, call.arm)
            self._tally.count(arm, call.unit or call.id, end, elapsed_ms)

    def _arm(self, traffic: Traffic | None, version: int, name: str) -> SplitArm:
        entry = 0 if traffic is None else traffic.entry
        found = self._arms.get((entry, version, name))
        if found is None:
            if len(self._arms) >= _REMEMBERED:
                self._arms.clear()
            arms = () if traffic is None else traffic.arms
            share = next((arm.share for arm in arms if arm.name == name), 0.0)
            found = self._arms[entry, version, name] = SplitArm(entry, version, name, share)
        return found


def error_class(status: int) -> str:
    """Name the class of a failed request: whose fault it was, and whether sending it again may help."""
    if status in _CLASSES:
        return _CLASSES[status]
    return "fault" if status >= _FAULT else "refused"


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


__all__ = ["ArmSeries", "LiveCounter", "ModelSeries"]
