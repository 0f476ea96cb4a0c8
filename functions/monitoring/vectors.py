"""Drift monitor of embeddings and texts, whose columns mean nothing one by one: a kernel two-sample test.

The last cohorts are compared with the training set, with a floor under the distance. Rows are taken as
independent, at most one of a unit; rows of one day are not quite independent, so there is the floor. It is outside the budget of
false alarms: a permutation test cannot reach the levels of that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, model_validator

from toque.functions.monitoring.alarms import Alarm
from toque.functions.monitoring.drift.reference import DatasetRows
from toque.functions.monitoring.logged_features import (
    FeatureColumns,
    feature_arrays,
    feature_table,
    has_vector_length,
    sample_rows,
)
from toque.functions.monitoring.results import Cohorts, CohortState
from toque.functions.monitoring.settings import (
    CohortLength,
    Delay,
    LastWindows,
    Lookback,
    Window,
    WindowsDrifted,
    check_windows,
    flags_kept,
)
from toque.functions.monitoring.watch import MonitorResult, MonitorRun, ReadRows
from toque.functions.stats import holm, k_of_n, mmd, one_row_per_unit
from toque.functions.stats.moments import Floats
from toque.functions.stats.text import text_vectors
from toque.registry import ModelVersion, Table


class VectorMonitor(BaseModel):
    """Settings of the monitor of embeddings and texts, of which it needs at least one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["vectors"] = Field(default="vectors", description="Kind of the monitor.")
    embeddings: dict[str, tuple[str, ...]] = Field(
        default={}, description="The model's numeric columns that hold each embedding, by a name for it."
    )
    texts: tuple[str, ...] = Field(
        default=(), description="String columns that are compared by their words and trigrams."
    )
    cohort: CohortLength = timedelta(days=1)
    delay: Delay = timedelta(hours=1)
    window: Window = 7
    max_rows: int = Field(
        default=500,
        ge=50,
        description="Rows of a window, and of the training set, that are compared at most.",
    )
    min_rows: int = Field(
        default=50, ge=2, description="Rows on either side below which nothing is compared."
    )
    alpha: float = Field(
        default=0.005, gt=0, lt=0.5, description="Bound on the chance of any false finding in a window."
    )
    min_distance: float = Field(
        default=0.1,
        ge=0,
        description="Distance between the samples, from 0 to about 1.4, below which nothing is drift.",
    )
    k: WindowsDrifted = 1
    n: LastWindows = 1
    lookback: Lookback = timedelta(days=3)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_windows(self.k, self.n)
        if not self.embeddings and not self.texts:
            raise ValueError(
                "a VectorMonitor needs embeddings or texts; without either there is nothing to watch"
            )
        if set(self.embeddings) & set(self.texts):
            raise ValueError(
                f"embeddings and texts share the names {sorted(set(self.embeddings) & set(self.texts))}"
            )
        return self


class VectorState(CohortState):
    """State of the vector monitor.

    flagged: whether the last windows differed; alarmed: subjects with a standing alarm.
    """

    model_config = ConfigDict(frozen=True)

    version: int
    flagged: dict[str, tuple[bool, ...]] = Field(default={})
    alarmed: tuple[str, ...] = ()

    def on_grid(self, moved: Callable[[int], int]) -> Self:
        """Keep the alarms, so that they recover; windows are judged anew."""
        return type(self)(version=self.version, next_cohort=moved(self.next_cohort), alarmed=self.alarmed)


@dataclass(frozen=True, slots=True)
class Distance:
    """Distance of a window from the training set.

    distance: root of the discrepancy, 0 where that is negative; p: corrected.
    """

    name: str
    rows: int
    distance: float
    p: float

    def text(self, monitor: VectorMonitor) -> str:
        """Describe the finding in a sentence."""
        return (
            f"{self.name}: distance {self.distance:.3f} from the training set (floor {monitor.min_distance}), "
            f"p = {self.p:.2g} (level {monitor.alpha})"
        )


def watch_vectors(
    run: MonitorRun, champion: ModelVersion, monitor: VectorMonitor, read: ReadRows
) -> MonitorResult:
    """Judge the window that ends with each cohort that is due.

    read: logged predictions in [start, end), with `unit`, `numeric` and `categorical`.
    Raises: ValueError for a column that the model does not read, or a version without a training set.
    """
    grid, due = Cohorts(monitor.cohort), Cohorts(monitor.cohort).index(run.now - monitor.delay)
    state = _state(run, champion, monitor, grid)
    first = state.next_cohort
    if first >= due:
        return run.nothing_due(monitor, champion, first, monitor.delay)
    training = _training_vectors(run, champion, monitor)
    alarms, findings, text = [], [], "too few rows to compare"
    for index in range(first, due):
        start, end = grid.start(index - monitor.window + 1), grid.start(index + 1)
        requests = _request_vectors(read(start, end), champion, monitor)
        distances = _distances(training, requests, monitor)
        state, changes = _conclude(state, index, distances, monitor)
        findings += [_finding(run, champion, (start, end), one, monitor) for one in distances]
        alarms += [
            _alarm(run, champion, (start, end), index, name, distances, monitor, over=over)
            for name, over in changes
        ]
        text = "; ".join(one.text(monitor) for one in distances) or text
    return run.conclude(
        monitor, champion, state, range(first, due), text=text, findings=findings, alarms=alarms
    )


def _state(run: MonitorRun, champion: ModelVersion, monitor: VectorMonitor, grid: Cohorts) -> VectorState:
    state = run.load_state(monitor, VectorState)
    if state is None:
        begin = grid.index(run.now - monitor.delay - monitor.lookback)
        return VectorState(version=champion.version, next_cohort=begin)
    if state.version == champion.version:
        return state
    return VectorState(version=champion.version, next_cohort=state.next_cohort, alarmed=state.alarmed)


def _training_vectors(run: MonitorRun, champion: ModelVersion, monitor: VectorMonitor) -> dict[str, Floats]:
    if not champion.lineage.datasets:
        raise ValueError(
            f"{champion.model}@{champion.version} has no training set in its lineage; vectors are held against it: "
            "register the version with Lineage(datasets=[…])"
        )
    snapshot, columns = champion.lineage.datasets[0], _columns(champion, monitor)
    names = (*columns.numeric, *columns.categorical)
    rows = DatasetRows(Table(run.store, snapshot.name), snapshot.version, names).sample(monitor.max_rows)
    return _vectors(feature_arrays(rows, columns), monitor)


def _columns(champion: ModelVersion, monitor: VectorMonitor) -> FeatureColumns:
    return FeatureColumns.of(champion).select(
        [*(name for one in monitor.embeddings.values() for name in one), *monitor.texts]
    )


def _request_vectors(rows: pa.Table, champion: ModelVersion, monitor: VectorMonitor) -> dict[str, Floats]:
    """Take the vectors of a sample of requests, one row of a unit at most."""
    logged, rng = FeatureColumns.of(champion), np.random.default_rng(0)
    rows = rows.filter(pc.and_(pc.invert(rows["shadow"]), has_vector_length(rows, logged)))
    rows = rows.sort_by([("predicted_at", "ascending"), ("prediction_id", "ascending")])
    rows = rows.set_column(
        rows.column_names.index("unit"), "unit", pc.coalesce(rows["unit"], rows["prediction_id"])
    )
    rows = sample_rows(one_row_per_unit(rows, "unit", rng=rng), monitor.max_rows)
    return _vectors(feature_arrays(feature_table(rows, logged), _columns(champion, monitor)), monitor)


def _vectors(values: Mapping[str, Any], monitor: VectorMonitor) -> dict[str, Floats]:
    """Make one matrix (rows, width) per embedding or text; rows in which an embedding is not finite are left out."""
    found = {}
    for name, columns in monitor.embeddings.items():
        matrix = np.stack([values[column] for column in columns], axis=1)
        found[name] = matrix[np.isfinite(matrix).all(axis=1)]
    return found | {name: text_vectors(values[name].tolist()) for name in monitor.texts}


def _distances(
    training: Mapping[str, Floats], requests: Mapping[str, Floats], monitor: VectorMonitor
) -> list[Distance]:
    """Test what has enough rows on both sides, with p-values corrected for all tests."""
    rng = np.random.default_rng(0)  # the same rows give the same answer
    names = [name for name in training if min(len(training[name]), len(requests[name])) >= monitor.min_rows]
    enough = max(
        499, int(2 * len(names) / monitor.alpha)
    )  # fewer permutations could never reach alpha after the correction
    sides = [
        _scaled(training[name], requests[name])
        if name in monitor.embeddings
        else (training[name], requests[name])
        for name in names
    ]
    tests = [mmd(*both, rng=rng, permutations=enough) for both in sides]
    corrected = holm([test.p for test in tests]) if tests else np.zeros(0)
    return [
        Distance(name, test.rows_window, float(np.sqrt(max(test.squared, 0.0))), float(p))
        for name, test, p in zip(names, tests, corrected, strict=True)
    ]


def _scaled(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Divide each column of both samples by its spread in both together, which favours neither."""
    spread = np.concatenate([x, y]).std(axis=0)
    by = np.where(spread > 0, spread, 1.0)
    return x / by, y / by


def _conclude(
    state: VectorState, index: int, distances: Sequence[Distance], monitor: VectorMonitor
) -> tuple[VectorState, list[tuple[str, bool]]]:
    """Update the state by a window, and list changes: a name, and whether its drift is over."""
    flagged, alarmed, changes = dict(state.flagged), set(state.alarmed), []
    for one in distances:
        differs = one.p <= monitor.alpha and one.distance >= monitor.min_distance
        flags = (*flagged.get(one.name, ()), differs)[-flags_kept(monitor.window, monitor.n) :]
        flagged[one.name] = flags
        if k_of_n(flags, k=monitor.k, n=monitor.n, window=monitor.window) and one.name not in alarmed:
            alarmed.add(one.name)
            changes.append((one.name, False))
        elif one.name in alarmed and len(flags) >= monitor.n and not any(flags[-monitor.n :]):
            alarmed.remove(one.name)
            changes.append((one.name, True))
    update = {"next_cohort": index + 1, "flagged": flagged, "alarmed": tuple(sorted(alarmed))}
    return state.model_copy(update=update), changes


def _finding(
    run: MonitorRun, champion: ModelVersion, span: tuple[Any, Any], one: Distance, monitor: VectorMonitor
) -> dict[str, Any]:
    differs = one.p <= monitor.alpha and one.distance >= monitor.min_distance
    return {
        "monitor": monitor.kind,
        "subject": one.name,
        "version": champion.version,
        "start": span[0],
        "end": span[1],
        "rows": one.rows,
        "verdict": "drifted" if differs else "stable",
        "value": one.distance,
        "reference": monitor.min_distance,
        "statistic": one.p,
        "threshold": monitor.alpha,
        "text": one.text(monitor),
        "judged_at": run.now,
    }


def _alarm(
    run: MonitorRun,
    champion: ModelVersion,
    span: tuple[Any, Any],
    index: int,
    name: str,
    distances: Sequence[Distance],
    monitor: VectorMonitor,
    *,
    over: bool,
) -> Alarm:
    one = next(each for each in distances if each.name == name)
    columns = monitor.embeddings.get(name, (name,))
    key = f"{run.model}/vectors/{name}/{champion.version}/{index}{'/recovered' if over else ''}"
    return Alarm(
        key=key, model=run.model, monitor="drift", subject=name, version=champion.version, raised_at=run.now,
        start=span[0], end=span[1], text=one.text(monitor), statistic=one.p, threshold=monitor.alpha,
        recovered=over, columns=columns,
    )  # fmt: skip
