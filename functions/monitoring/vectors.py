"""Drift of embeddings and texts, whose columns mean nothing one by one: a kernel two-sample test on samples of rows.

Held against the training set, over the last cohorts, with a floor under the distance and k of n windows before an alarm. Rows are
taken as independent, at most one of a unit: rows of one day are not quite, which is what the floor and the k are for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, model_validator

from functions.monitoring.alarms import Alarm
from functions.monitoring.cohorts import Cohorts
from functions.monitoring.drift.dataset_sketches import Rows
from functions.monitoring.logged_features import FeatureColumns, feature_arrays, feature_table, fits, sampled
from functions.monitoring.watch import Post, Read, Watched
from functions.stats import holm, k_of_n, mmd, one_row_per_unit
from functions.stats.moments import Floats
from functions.stats.text import text_vectors
from registry import ModelVersion, Table


class VectorMonitor(BaseModel):
    """How embeddings and texts are watched.

    embeddings: for each, the model's numeric columns that hold it. texts: string columns, compared by their words and trigrams.
    window: cohorts, of which at most `max_rows` rows are compared with as many of the training set. alpha: bound on the chance of
    any false one in a window. min_distance: between the samples, 0 to about 1.4, below which nothing is drift.
    k, n: windows that must agree before an alarm. lookback: how far back a monitor without a state begins.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["vectors"] = "vectors"
    embeddings: dict[str, tuple[str, ...]] = {}
    texts: tuple[str, ...] = ()
    cohort: timedelta = timedelta(days=1)
    delay: timedelta = timedelta(hours=1)
    window: int = Field(default=7, ge=1)
    max_rows: int = Field(default=500, ge=50)
    min_rows: int = Field(default=50, ge=2)
    alpha: float = Field(default=0.01, gt=0, lt=0.5)
    min_distance: float = Field(default=0.1, ge=0)
    k: int = Field(default=2, ge=1)
    n: int = Field(default=3, ge=1)
    lookback: timedelta = timedelta(days=3)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.k > self.n:
            raise ValueError(f"k of n windows needs k <= n, got k={self.k}, n={self.n}")
        if not self.embeddings and not self.texts:
            raise ValueError(
                "a VectorMonitor needs embeddings or texts; without either there is nothing to watch"
            )
        if set(self.embeddings) & set(self.texts):
            raise ValueError(
                f"embeddings and texts share the names {sorted(set(self.embeddings) & set(self.texts))}"
            )
        return self


class VectorState(BaseModel):
    """What the monitor remembers. flagged: whether the last windows differed; alarmed: what was told and is not well."""

    model_config = ConfigDict(frozen=True)

    version: int
    next_cohort: int
    flagged: dict[str, tuple[bool, ...]] = {}
    alarmed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Distance:
    """How far a window lies from the training set. distance: root of the discrepancy, 0 where that is negative; p: corrected."""

    name: str
    rows: int
    distance: float
    p: float

    def text(self, monitor: VectorMonitor) -> str:
        """The finding in a sentence."""
        return (
            f"{self.name}: distance {self.distance:.3f} from the training set (floor {monitor.min_distance}), "
            f"p = {self.p:.2g} (level {monitor.alpha})"
        )


def watch_vectors(post: Post, champion: ModelVersion, monitor: VectorMonitor, read: Read) -> Watched:
    """Judge the window that ends with each cohort that is due.

    read: logged predictions in [start, end), with `unit`, `numeric` and `categorical`.
    Raises: ValueError for a column that the model does not read, or a version without a training set.
    """
    grid, due = Cohorts(monitor.cohort), Cohorts(monitor.cohort).index(post.now - monitor.delay)
    state = _state(post, champion, monitor, grid)
    first = state.next_cohort
    if first >= due:
        return post.nothing_due(monitor.kind, champion)
    learnt = _learnt(post, champion, monitor)
    alarms, findings, text = [], [], "too few rows to compare"
    for index in range(first, due):
        start, end = grid.start(index - monitor.window + 1), grid.start(index + 1)
        asked = _asked(read(start, end), champion, monitor)
        distances = _distances(learnt, asked, monitor)
        state, told = _conclude(state, index, distances, monitor)
        findings += [_finding(post, champion, (start, end), one, monitor) for one in distances]
        alarms += [
            _alarm(post, champion, (start, end), index, name, distances, monitor, over=over)
            for name, over in told
        ]
        text = "; ".join(one.text(monitor) for one in distances) or text
    return post.conclude(
        monitor.kind, champion, state, range(first, due), text=text, findings=findings, alarms=alarms
    )


def _state(post: Post, champion: ModelVersion, monitor: VectorMonitor, grid: Cohorts) -> VectorState:
    kept = post.remembered(monitor.kind)
    if kept is None:
        begin = grid.index(post.now - monitor.delay - monitor.lookback)
        return VectorState(version=champion.version, next_cohort=begin)
    state = VectorState.model_validate_json(kept)
    if state.version == champion.version:
        return state
    return VectorState(version=champion.version, next_cohort=state.next_cohort, alarmed=state.alarmed)


def _learnt(post: Post, champion: ModelVersion, monitor: VectorMonitor) -> dict[str, Floats]:
    if not champion.lineage.datasets:
        raise ValueError(
            f"{champion.model}@{champion.version} has no training set in its lineage; vectors are held against it: "
            "register the version with Lineage(datasets=[…])"
        )
    snapshot, columns = champion.lineage.datasets[0], _columns(champion, monitor)
    names = (*columns.numeric, *columns.categorical)
    rows = Rows(Table(post.store, snapshot.name), snapshot.version, names).sampled(monitor.max_rows)
    return _vectors(feature_arrays(rows, columns), monitor)


def _columns(champion: ModelVersion, monitor: VectorMonitor) -> FeatureColumns:
    return FeatureColumns.of(champion).kept(
        [*(name for one in monitor.embeddings.values() for name in one), *monitor.texts]
    )


def _asked(rows: pa.Table, champion: ModelVersion, monitor: VectorMonitor) -> dict[str, Floats]:
    """The vectors of a sample of what was asked, one row of a unit at most."""
    logged, rng = FeatureColumns.of(champion), np.random.default_rng(0)
    rows = rows.filter(pc.and_(pc.invert(rows["shadow"]), fits(rows, logged)))
    rows = rows.sort_by([("predicted_at", "ascending"), ("prediction_id", "ascending")])
    rows = rows.set_column(
        rows.column_names.index("unit"), "unit", pc.coalesce(rows["unit"], rows["prediction_id"])
    )
    rows = sampled(one_row_per_unit(rows, "unit", rng=rng), monitor.max_rows)
    return _vectors(feature_arrays(feature_table(rows, logged), _columns(champion, monitor)), monitor)


def _vectors(values: Mapping[str, Any], monitor: VectorMonitor) -> dict[str, Floats]:
    """One matrix (rows, width) an embedding or text; rows in which an embedding is not finite are left out."""
    found = {}
    for name, columns in monitor.embeddings.items():
        matrix = np.stack([values[column] for column in columns], axis=1)
        found[name] = matrix[np.isfinite(matrix).all(axis=1)]
    return found | {name: text_vectors(values[name].tolist()) for name in monitor.texts}


def _distances(
    learnt: Mapping[str, Floats], asked: Mapping[str, Floats], monitor: VectorMonitor
) -> list[Distance]:
    """What has enough rows on both sides, its p-value corrected for all of them."""
    rng = np.random.default_rng(0)  # the same rows give the same answer
    names = [name for name in learnt if min(len(learnt[name]), len(asked[name])) >= monitor.min_rows]
    enough = max(499, int(2 * len(names) / monitor.alpha))  # fewer could never be so rare, corrected for all
    sides = [
        _scaled(learnt[name], asked[name]) if name in monitor.embeddings else (learnt[name], asked[name])
        for name in names
    ]
    tests = [mmd(*both, rng=rng, permutations=enough) for both in sides]
    corrected = holm([test.p for test in tests]) if tests else np.zeros(0)
    return [
        Distance(name, test.rows_window, float(np.sqrt(max(test.squared, 0.0))), float(p))
        for name, test, p in zip(names, tests, corrected, strict=True)
    ]


def _scaled(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Both samples with each column over its spread in both together, which favours neither."""
    spread = np.concatenate([x, y]).std(axis=0)
    by = np.where(spread > 0, spread, 1.0)
    return x / by, y / by


def _conclude(
    state: VectorState, index: int, distances: Sequence[Distance], monitor: VectorMonitor
) -> tuple[VectorState, list[tuple[str, bool]]]:
    """The state after a window, and what is news: a name, and whether it is over."""
    flagged, alarmed, told = dict(state.flagged), set(state.alarmed), []
    for one in distances:
        differs = one.p <= monitor.alpha and one.distance >= monitor.min_distance
        flags = (*flagged.get(one.name, ()), differs)[-monitor.n :]
        flagged[one.name] = flags
        if k_of_n(flags, k=monitor.k, n=monitor.n) and one.name not in alarmed:
            alarmed.add(one.name)
            told.append((one.name, False))
        elif one.name in alarmed and len(flags) == monitor.n and not any(flags):
            alarmed.remove(one.name)
            told.append((one.name, True))
    update = {"next_cohort": index + 1, "flagged": flagged, "alarmed": tuple(sorted(alarmed))}
    return state.model_copy(update=update), told


def _finding(
    post: Post, champion: ModelVersion, span: tuple[Any, Any], one: Distance, monitor: VectorMonitor
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
        "judged_at": post.now,
    }


def _alarm(
    post: Post,
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
    key = f"{post.model}/vectors/{name}/{champion.version}/{index}{'/recovered' if over else ''}"
    return Alarm(
        key=key, model=post.model, monitor="drift", subject=name, version=champion.version, raised_at=post.now,
        start=span[0], end=span[1], text=one.text(monitor), statistic=one.p, threshold=monitor.alpha,
        recovered=over, columns=columns,
    )  # fmt: skip
