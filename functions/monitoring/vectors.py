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
from pydantic import ConfigDict, Field, model_validator

from toque.functions.monitoring.drift.reference import DatasetRows
from toque.functions.monitoring.logged_features import (
    FeatureColumns,
    feature_arrays,
    feature_table,
    has_vector_length,
    sample_rows,
)
from toque.functions.monitoring.results import CohortState
from toque.functions.monitoring.settings import Lookback, WindowMonitor
from toque.functions.monitoring.watch import Course, MonitorResult, MonitorRun, ReadRows
from toque.functions.stats import holm, k_of_n, mmd, one_row_per_unit
from toque.functions.stats.moments import Floats
from toque.functions.stats.text import text_vectors
from toque.registry import ModelVersion, Table


class VectorMonitor(WindowMonitor):
    """Settings of the monitor of embeddings and texts, of which it needs at least one."""

    kind: Literal["vectors"] = Field(default="vectors", description="Kind of the monitor.")
    lookback: Lookback = timedelta(days=3)
    embeddings: dict[str, tuple[str, ...]] = Field(
        default={}, description="The model's numeric columns that hold each embedding, by a name for it."
    )
    texts: tuple[str, ...] = Field(
        default=(), description="String columns that are compared by their words and trigrams."
    )
    max_rows: int = Field(
        le=10_000_000,
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

    @model_validator(mode="after")
    def _consistent(self) -> Self:
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

    def differs(self, monitor: VectorMonitor) -> bool:
        """Whether the window differs by more than chance and more than the floor."""
        return self.p <= monitor.alpha and self.distance >= monitor.min_distance

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
    course = Course(run, champion, monitor)
    state, grid, due, text = _begun(course), course.grid, course.due, "too few rows to compare"
    first = state.next_cohort
    if first >= due:
        return course.nothing_due(first)
    training = _training_vectors(run, champion, monitor)
    for index in range(first, due):
        rows = read(grid.start(index - monitor.window + 1), grid.start(index + 1))
        distances = _distances(training, _request_vectors(rows, champion, monitor), monitor)
        state, changes = _conclude(state, index, distances, monitor)
        for distance in distances:
            _tell(course, index, distance, is_over=changes.get(distance.name))
        text = "; ".join(distance.text(monitor) for distance in distances) or text
    return course.conclude(state, range(first, due), text)


def _begun(course: Course[VectorMonitor]) -> VectorState:
    state, version = course.load(VectorState), course.champion.version
    if state is None:
        return VectorState(version=version, next_cohort=course.begin)
    if state.version == version:
        return state
    return VectorState(version=version, next_cohort=state.next_cohort, alarmed=state.alarmed)


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
) -> tuple[VectorState, dict[str, bool]]:
    """Update the state by a window, and return changes: by name, whether its drift is over."""
    flagged, alarmed, changes = dict(state.flagged), set(state.alarmed), {}
    for one in distances:
        flags = (*flagged.get(one.name, ()), one.differs(monitor))[-monitor.flags_kept :]
        flagged[one.name] = flags
        if k_of_n(flags, k=monitor.k, n=monitor.n, window=monitor.window) and one.name not in alarmed:
            alarmed.add(one.name)
            changes[one.name] = False
        elif one.name in alarmed and len(flags) >= monitor.n and not any(flags[-monitor.n :]):
            alarmed.remove(one.name)
            changes[one.name] = True
    update = {"next_cohort": index + 1, "flagged": flagged, "alarmed": tuple(sorted(alarmed))}
    return state.model_copy(update=update), changes


def _tell(course: Course[VectorMonitor], index: int, one: Distance, *, is_over: bool | None) -> None:
    """Add the finding on a window, and an alarm where its drift is new, or over; is_over: None if neither."""
    monitor = course.monitor
    figures: dict[str, Any] = {"text": one.text(monitor), "statistic": one.p, "threshold": monitor.alpha}
    course.find(
        one.name,
        "drifted" if one.differs(monitor) else "stable",
        index,
        window=monitor.window,
        rows=one.rows,
        value=one.distance,
        reference=monitor.min_distance,
        **figures,
    )
    if is_over is not None:
        course.alarm(
            f"{one.name}/{course.champion.version}/{index}{'/recovered' if is_over else ''}",
            one.name,
            index,
            window=monitor.window,
            monitor="drift",
            recovered=is_over,
            columns=monitor.embeddings.get(one.name, (one.name,)),
            **figures,
        )
