"""Functions that run the monitors, for a schedule or a person to call, and that show what they found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from toque.featurestore import FeatureStore
from toque.functions.arguments import Model
from toque.functions.monitoring.alarms import Alarm
from toque.functions.monitoring.diagnosis import (
    MIN_CHANGED_ROWS,
    ChangeFindings,
    SliceFindings,
    SliceOptions,
    find_changes,
    find_slices,
)
from toque.functions.monitoring.drift.answers import ANSWERED, AnswerMonitor
from toque.functions.monitoring.drift.monitor import DriftMonitor
from toque.functions.monitoring.drift.reference import DatasetRows
from toque.functions.monitoring.drift.watch import watch_features
from toque.functions.monitoring.estimate_monitor import EstimateMonitor
from toque.functions.monitoring.estimators import watch_estimates, watch_number_estimates
from toque.functions.monitoring.language.figures import watch_drift_of_answers
from toque.functions.monitoring.operations import OperationsMonitor, watch_service
from toque.functions.monitoring.performance import PerformanceMonitor, watch_loss
from toque.functions.monitoring.quality.monitor import QualityMonitor
from toque.functions.monitoring.quality.watch import Views, spoiled_columns, watch_rows
from toque.functions.monitoring.results import MonitorStatus, RunningFigures, last_judged
from toque.functions.monitoring.settings import CohortMonitor
from toque.functions.monitoring.skew import SkewMonitor, watch_skewed
from toque.functions.monitoring.vectors import VectorMonitor, watch_vectors
from toque.functions.monitoring.watch import MonitorResult, MonitorRun, ReadRows, alarms, monitor_run
from toque.functions.prediction_log import (
    LABELS_TABLE,
    outcomes,
    predicted_within,
    predictions,
    predictions_table,
)
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration.command import View
from toque.functions.runtime.function import function
from toque.registry import ModelVersion, ObjectStore, Table

_SETTINGS = Field(description="Settings of the monitor.")
_EXAMPLES = 5  # of unknown ids
_SCORED = ("prediction_id", "version", "shadow", "unit", "predicted_at", "latency_ms", "outputs")
_FEATURES = ("prediction_id", "version", "shadow", "predicted_at", "numeric", "categorical")


class UnknownLabels(BaseModel):
    """Labels received since a time, and those of IDs that no logged prediction of the last days has. examples: of such IDs."""

    model_config = ConfigDict(frozen=True)

    since: AwareDatetime
    labels: int
    unknown: int
    examples: tuple[str, ...] = ()


@function(http=True, timeout_s=300)
def watch_performance(
    model: Model,
    monitor: Annotated[PerformanceMonitor, _SETTINGS] = PerformanceMonitor(),  # noqa: B008 — frozen
) -> MonitorResult:
    """Judge the realised loss of every cohort whose labels are due, and raise alarms."""
    labelled = _labelled(model, *_SCORED, "arm")

    def read(start: datetime, end: datetime) -> pa.Table:
        rows = labelled(start, end)
        counted = rows.filter(pc.is_in(rows["arm"], pa.array(monitor.arms))) if monitor.arms else rows
        return counted.drop_columns("arm")

    return _watched(model, monitor, lambda run, champion: watch_loss(run, champion, monitor, read))


@function(http=True, timeout_s=300)
def watch_quality(
    model: Model,
    monitor: Annotated[QualityMonitor, _SETTINGS] = QualityMonitor(),  # noqa: B008 — frozen
) -> MonitorResult:
    """Check each cohort of requests, and the views behind them, for a broken feed; raise and close incidents.

    An incident never leads to a retrain, and drift that it explains is reported as explained: run this before `watch_drift`.
    Raises: ValueError if the champion's version names no columns.
    """
    read = _logged(model, *_FEATURES)
    return _watched(model, monitor, lambda run, own: watch_rows(run, own, monitor, read, _views_of(own)))


@function(
    http=True,
    timeout_s=300,
    command="monitor drift MODEL",
    view=View(
        facts="model | monitor | version | cohorts judged: cohorts | what: text",
        rows="alarms",
        columns="raised: raised_at | monitor | subject | version | what: text",
        texts="what",
    ),
)
def watch_drift(
    model: Model,
    monitor: Annotated[DriftMonitor, _SETTINGS] = DriftMonitor(),  # noqa: B008 — frozen
    quality: Annotated[
        QualityMonitor,
        Field(
            description="Data-quality monitor whose incidents explain drift of the columns that they spoil."
        ),
    ] = QualityMonitor(),  # noqa: B008 — frozen
) -> MonitorResult:
    """Compare requests with the champion's training set, window by window, and raise alarms of drift.

    Raises: ValueError if the champion's version names no columns or no training set.
    """
    read = _logged(model, *_FEATURES)
    table = Table(context().store, predictions_table(model))

    def logged(start: datetime, end: datetime) -> DatasetRows | None:
        """Point at the vectors logged in [start, end) without reading them; None before the first."""
        if not table.exists():
            return None
        return DatasetRows(table, table.version(), _FEATURES, predicted_within(start, end))

    return _watched(
        model,
        monitor,
        lambda run, own: watch_features(run, own, monitor, read, spoiled_columns(run, quality), logged),
    )


@function(http=True, timeout_s=300)
def watch_operations(
    model: Model,
    monitor: Annotated[OperationsMonitor, _SETTINGS] = OperationsMonitor(),  # noqa: B008 — frozen
) -> MonitorResult:
    """Record latency, errors, saturation and cost of each cohort of requests, and raise alarms where a limit is broken."""
    prices, read = context().prices, _logged(model, *ANSWERED)
    cpu_hour = None if prices is None else prices.cpu_hour
    return _watched(model, monitor, lambda run, own: watch_service(run, own, monitor, read, cpu_hour))


@function(http=True, timeout_s=300)
def watch_embeddings(
    model: Model,
    monitor: Annotated[VectorMonitor, _SETTINGS],
) -> MonitorResult:
    """Compare embeddings and texts of requests with those of the champion's training set, and raise alarms of drift.

    Raises: ValueError if the champion's version names no columns or no training set, or does not read what is watched.
    """
    read = _logged(model, *_FEATURES, "unit")
    return _watched(model, monitor, lambda run, champion: watch_vectors(run, champion, monitor, read))


@function(http=True, timeout_s=300)
def watch_answers(
    model: Model,
    monitor: Annotated[AnswerMonitor, _SETTINGS] = AnswerMonitor(),  # noqa: B008 — frozen
) -> MonitorResult:
    """Compare the champion's answers with those of its own first days, window by window, and raise alarms of drift.

    Of a language model also what is asked, of the share of the answers that `set_language_monitors` has.
    """
    return watch_drift_of_answers(model, monitor)


@function(http=True, timeout_s=300)
def watch_skew(
    model: Model,
    monitor: Annotated[SkewMonitor, _SETTINGS] = SkewMonitor(),  # noqa: B008 — frozen
) -> MonitorResult:
    """Compare a version's first hours with its training set, and a sample of logged rows with the offline store.

    Raises: ValueError if the champion's version names no columns or no training set.
    """
    read = _logged(model, *_FEATURES, "missing", "entities")
    return _watched(model, monitor, lambda run, own: watch_skewed(run, own, monitor, read, _views_of(own)))


@function(http=True, timeout_s=300)
def estimate_performance(
    model: Model,
    monitor: Annotated[EstimateMonitor, _SETTINGS] = EstimateMonitor(),  # noqa: B008 — frozen
) -> MonitorResult:
    """Estimate the performance of each cohort before its labels arrive, and compare with the labels once they do.

    Of probabilities of label 1 or of classes, with the shares of the classes; of a number (`loss="squared_error"`) or a count
    (`loss="poisson_deviance"`). It raises and ends no alarm and is no proof of health. Raises: ValueError for another outcome.
    """
    numbers = monitor.loss != "log_loss"
    watch = watch_number_estimates if numbers else watch_estimates
    read = _labelled(model, *_SCORED, *(("numeric", "categorical") if numbers else ()))
    return _watched(model, monitor, lambda run, champion: watch(run, champion, monitor, read))


@function(http=True, timeout_s=300)
def worst_slices(
    model: Model,
    options: Annotated[
        SliceOptions, Field(description="Rows that are searched, and what counts as a slice.")
    ] = SliceOptions(),  # noqa: B008 — frozen
) -> SliceFindings | None:
    """Search the slices of the champion's labelled requests that lose most; None if no champion serves the model."""
    champion = context().registry().find_version(model, "champion")
    if champion is None:
        return None
    read = _labelled(model, *_SCORED, "numeric", "categorical", labelled_only=True)
    return find_slices(monitor_run(model), champion, options, read)


@function(http=True, timeout_s=300)
def what_changed(
    model: Model,
    days: Annotated[int, Field(ge=1, le=36_500, description="Days of requests, counted back from now.")] = 7,
    max_rows: Annotated[
        int,
        Field(
            le=10_000_000,
            ge=MIN_CHANGED_ROWS,
            description="Most requests, and rows of the training set, that are compared; drawn at random.",
        ),
    ] = 5_000,
) -> ChangeFindings | None:
    """Find the features that tell the last days' requests from the champion's training set; None without a champion.

    This finds changes that no column shows alone. Rows of one day are alike, and are taken as independent here: read it beside
    `watch_drift`, which raises the alarms.
    """
    champion = context().registry().find_version(model, "champion")
    if champion is None:
        return None
    read = _logged(model, *_FEATURES)
    return find_changes(monitor_run(model), champion, read, days=days, max_rows=max_rows)


@function(http=True, role="viewer", timeout_s=60, in_thread=True)
def monitor_status(model: Model) -> list[MonitorStatus]:
    """Report what each monitor of a model judged last, and the problems it found."""
    return last_judged(context().store, model)


@function(http=True, role="viewer", timeout_s=60)
def running_figures(model: Model) -> RunningFigures:
    """Count today's requests of a model, by the platform's clock in UTC, as far as they are in the log."""
    used = context()
    now = used.clock()
    since = now.replace(hour=0, minute=0, second=0, microsecond=0)
    columns = ("prediction_id", "shadow", "predicted_at", "outputs")
    rows = outcomes(used.store, model, since, now, labelled_only=False, columns=columns)
    rows = rows.filter(pc.invert(rows["shadow"]))
    answered = pc.fill_null(pc.greater(pc.list_value_length(rows["outputs"]), 0), False)
    answers = int(pc.sum(answered).as_py() or 0)
    return RunningFigures(
        since=since,
        answers=answers,
        unanswered=rows.num_rows - answers,
        labels=rows.num_rows - rows["label"].null_count,
        logged_until=pc.max(rows["predicted_at"]).as_py(),
    )


@function(
    http=True,
    role="viewer",
    timeout_s=300,
    command="monitor labels",
    view=View(
        text="{labels} labels since {since}, {unknown} of them for no prediction in the log",
    ),
)
def unknown_labels(
    hours: Annotated[
        float,
        Field(
            ge=0, le=876_000, description="Hours, counted back from now, in which the labels were received."
        ),
    ] = 24.0,
    days: Annotated[
        int,
        Field(
            ge=0,
            le=36_500,
            description="Days, counted back from now, of the predictions among which the labels' IDs are sought.",
        ),
    ] = 30,
) -> UnknownLabels:
    """Count the labels of the last hours whose ID no logged prediction of the last days has, of any model of the workspace."""
    used = context()
    return find_unknown(used.store, used.registry().list_models(), used.clock(), hours=hours, days=days)


@function(
    http=True,
    role="viewer",
    timeout_s=60,
    in_thread=True,
    command="monitor incidents MODEL",
    view=View(
        columns="raised: raised_at | monitor | subject | version | what: text",
        wide="ended: recovered | features: columns | rows from: start | rows until: end | statistic | threshold"
        " | explained by: explained_by | key",
        texts="what",
        newest="raised_at",
        empty="no alarm of {model} stands",
        page="monitors/{model}",
    ),
)
def standing_alarms(model: Model) -> list[Alarm]:
    """List the alarms of a model that were raised and have not recovered, oldest first."""
    return alarms(model).standing()


def find_unknown(
    store: ObjectStore, models: Iterable[str], now: datetime, *, hours: float, days: int
) -> UnknownLabels:
    """Look up the labels received in the last hours among the predictions of the last days."""
    since = now - timedelta(hours=hours)
    table = Table(store, LABELS_TABLE)
    if not table.exists():
        return UnknownLabels(since=since, labels=0, unknown=0)
    where = (pc.field("day") >= f"{since:%Y-%m-%d}") & (pc.field("received_at") >= pa.scalar(since))
    received = table.read(columns=["prediction_id"], where=where)["prediction_id"]
    left = pc.unique(received)
    for model in models:
        if not len(left):
            break
        logged = predictions(store, model, now - timedelta(days=days), now, columns=("prediction_id",))
        left = left.filter(pc.invert(pc.is_in(left, logged["prediction_id"].combine_chunks())))
    unknown = int(pc.sum(pc.is_in(received, left)).as_py() or 0)
    return UnknownLabels(
        since=since, labels=len(received), unknown=unknown, examples=tuple(left[:_EXAMPLES].to_pylist())
    )


def _watched(
    model: str,
    monitor: CohortMonitor | SkewMonitor,
    watch: Callable[[MonitorRun, ModelVersion], MonitorResult],
) -> MonitorResult:
    """Run a monitor on the champion of a model, if it has one."""
    champion = context().registry().find_version(model, "champion")
    if champion is None:
        return MonitorResult(model=model, monitor=monitor.kind, text="no champion serves this model")
    return watch(monitor_run(model), champion)


def _logged(model: str, *columns: str) -> ReadRows:
    """Make the reader of columns of a model's log."""
    store = context().store
    return lambda start, end: predictions(store, model, start, end, columns=columns)


def _labelled(model: str, *columns: str, labelled_only: bool = False) -> ReadRows:
    """Make the reader of columns of a model's log, beside their labels."""
    store = context().store
    return lambda start, end: outcomes(store, model, start, end, labelled_only=labelled_only, columns=columns)


def _views_of(version: ModelVersion) -> Views:
    """Views behind a version, without Redis: a view's age is that of its table, and must be known while Redis is away."""
    used = context()
    return Views.of(FeatureStore(used.store, clock=used.clock, actor=used.actor), version)
