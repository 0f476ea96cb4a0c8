"""Reference that windows are compared with: the training set, or the cohorts before, phase by phase of a season.

Requests of one cohort are alike (they share weather, a promotion, an outage), so a window of some cohorts is worth far fewer
rows than it has. How alike they are is measured on the cohorts of the reference, within a phase of the season if there is one,
since what the season does to every Monday is no accident of one of them.
Sketches of parts add up to the sketch of the whole, so nobody holds more than some batches of a table larger than memory: where Ray
runs, Ray Data goes through its files or a dataset's blocks, a task each; elsewhere this process goes through its batches.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from toque.functions.monitoring.results import Cohorts
from toque.functions.stats.moments import Floats
from toque.functions.stats.season import find_season
from toque.functions.stats.sketch import ColumnSketch, TableSketch
from toque.registry import Table

if TYPE_CHECKING:
    import ray.data


NumberedSketch = tuple[int, TableSketch]
"""Number of a cohort, and its sketch."""

_TOP_CELLS = 3  # categories whose shares are tested for a season
Prepare = Callable[[pa.Table], pa.Table]
"""Turns rows as they lie in a table into the columns that are sketched."""
LARGE_ROWS = 2_000_000
"""Rows from which a window is sketched in parts; fewer are read at once, which is quicker."""
_BATCH_ROWS = 131_072
_MAX_PARTS = 64  # partial sketches that are added up together
# By default pyarrow would hold 16 batches of 4 files.
_SMALL_READAHEAD: dict[str, Any] = {"batch_readahead": 2, "fragment_readahead": 1}
_PART_COLUMN = "sketch"


@dataclass(frozen=True, slots=True)
class Cycle:
    """Season that repeats after a number of cohorts: a day of hours, a week of days."""

    cohorts: int

    def phase(self, index: int) -> int:
        """Return the phase of the season in which cohort `index` is."""
        return index % self.cohorts

    def to_json(self) -> int:
        """Convert the season to a JSON value."""
        return self.cohorts


@dataclass(frozen=True, slots=True)
class Months:
    """Season of a year: cohorts that begin in the same calendar month (UTC) of any year are alike."""

    cohort: timedelta

    def phase(self, index: int) -> int:
        """Return the month, 1 to 12, in which cohort `index` begins."""
        return Cohorts(self.cohort).start(index).month

    def to_json(self) -> dict[str, float]:
        """Convert the season to a JSON value."""
        return {"months_of_cohorts_s": self.cohort.total_seconds()}


Season = Cycle | Months


def season_from_json(plain: int | Mapping[str, float]) -> Season:
    """Read a season from its JSON value."""
    if isinstance(plain, int):
        return Cycle(plain)
    return Months(timedelta(seconds=plain["months_of_cohorts_s"]))


@dataclass(frozen=True, slots=True)
class Reference:
    """Sketches of a reference, and how much each of its rows counts.

    sketch: of all of them, whose bins every window is counted in. alike: for each column, how alike rows of a cohort are
    (0 to 1). rows_a_cohort: of the sketched rows, on average. season: that windows are compared within, or None;
    phases: the sketch of each phase of the season.
    """

    sketch: TableSketch
    alike: Mapping[str, float]
    rows_a_cohort: float
    season: Season | None = None
    phases: Mapping[int, TableSketch] = field(default_factory=dict)

    @classmethod
    def of(cls, sketch: TableSketch, cohorts: Sequence[TableSketch]) -> Self:
        """Make a reference from the sketches of all rows and of its cohorts; without cohorts rows are independent."""
        alike = {name: likeness([one.columns[name] for one in cohorts]) for name in sketch.columns}
        return cls(sketch, alike, rows_of(sketch) / len(cohorts) if cohorts else 1.0)

    @classmethod
    def seasonal(cls, cohorts: Sequence[NumberedSketch], season: Season) -> Self:
        """Make a reference from numbered cohorts (at least one), phase by phase of a season."""
        parts: dict[int, list[TableSketch]] = {}
        for index, one in cohorts:
            parts.setdefault(season.phase(index), []).append(one)
        phases = {phase: TableSketch.total(ones) for phase, ones in parts.items()}
        whole = TableSketch.total(list(phases.values()))
        groups = [season.phase(index) for index, _ in cohorts]
        alike = {name: likeness([one.columns[name] for _, one in cohorts], groups) for name in whole.columns}
        return cls(whole, alike, rows_of(whole) / len(cohorts), season, phases)

    def matched(self, window: Sequence[NumberedSketch]) -> tuple[TableSketch, TableSketch]:
        """Return the reference and the window to compare, of the same phases in the same mix.

        Phases of which the reference has no row are left out of both; nothing may be left.
        """
        if self.season is None:
            return self.sketch, TableSketch.total([one for _, one in window])
        rows: dict[int, int] = {}
        for index, one in window:
            phase = self.season.phase(index)
            rows[phase] = rows.get(phase, 0) + rows_of(one)
        shares = {
            phase: count / rows_of(self.phases[phase])
            for phase, count in rows.items()
            if count and phase in self.phases and rows_of(self.phases[phase])
        }
        if not shares:
            columns = self.sketch.columns.items()
            empty = {name: replace(one, counts=(0,) * len(one.counts), nulls=0) for name, one in columns}
            return TableSketch(empty), TableSketch(empty)
        most = max(shares.values())
        parts = ((self.phases[phase], share / most) for phase, share in shares.items())
        reference = [scaled(part, dict.fromkeys(part.columns, share)) for part, share in parts]
        alike = [one for index, one in window if self.season.phase(index) in shares]
        return TableSketch.total(reference), TableSketch.total(alike)

    def row_weights(self, rows_a_cohort: float) -> dict[str, float]:
        """Compute by column how much one row of a cohort counts, up to 1."""
        return {name: 1.0 / (1.0 + max(rows_a_cohort - 1.0, 0.0) * rho) for name, rho in self.alike.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back."""
        return {
            "sketch": self.sketch.to_dict(),
            "alike": dict(self.alike),
            "rows_a_cohort": self.rows_a_cohort,
            "period": None if self.season is None else self.season.to_json(),
            "phases": {str(phase): one.to_dict() for phase, one in self.phases.items()},
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Read a reference from the JSON values of `to_dict`."""
        phases = {int(phase): TableSketch.from_dict(one) for phase, one in stored["phases"].items()}
        sketch = TableSketch.from_dict(stored["sketch"])
        season = None if stored["period"] is None else season_from_json(stored["period"])
        return cls(sketch, stored["alike"], stored["rows_a_cohort"], season, phases)


def season_of(cohorts: Sequence[NumberedSketch], periods: Sequence[int]) -> Cycle | None:
    """Find the season of a table from the values of its columns, cohort by cohort; None without one."""
    filled = [(index, one) for index, one in cohorts if rows_of(one)]
    if len(filled) < 2:  # noqa: PLR2004 - for a difference
        return None
    figures = [_figures([one.columns[name] for _, one in filled]) for name in filled[0][1].columns]
    period = find_season(np.concatenate(figures, axis=1), [index for index, _ in filled], periods)
    return None if period is None else Cycle(period)


def likeness(cohorts: Sequence[ColumnSketch], groups: Sequence[int] | None = None) -> float:
    """Measure how alike the rows of a cohort are: the intraclass correlation of a column's cells, 0 to 1.

    Taken from the variation between cohorts over what independent rows would show; of an ordered column the larger of
    that of its cells and of their cumulative shares, in which a shift of a whole day shows.
    groups: phase of each cohort; then the variation is that between cohorts of one phase.
    Source: Rao and Scott, The analysis of categorical data from complex sample surveys, 1981.
    """
    counts = np.array([[*one.counts, one.nulls] for one in cohorts], dtype=np.float64)
    phase = np.zeros(len(counts), dtype=np.int64) if groups is None else np.array(groups)
    filled = counts.sum(axis=1) > 0 if len(counts) else np.zeros(0, dtype=bool)
    counts, (_, phase) = counts[filled], np.unique(phase[filled], return_inverse=True)
    if len(counts) - len(np.unique(phase)) < 1:
        return 0.0
    size = float(counts.sum(axis=1).mean())
    ordered = cohorts[0].kind == "numeric"
    cumulative = np.cumsum(counts, axis=1)
    effect = max(
        _design_effect(counts, counts, phase), _design_effect(cumulative, counts, phase) if ordered else 0.0
    )
    return float(np.clip((effect - 1) / max(size - 1, 1.0), 0.0, 1.0))


def _design_effect(hits: Floats, of: Floats, phase: Any) -> float:
    """Variance of the cells' shares between cohorts of a phase, over that of independent rows.

    hits: (cohorts, cells).
    """
    sizes = of.sum(axis=1, keepdims=True)
    groups = int(phase.max()) + 1
    summed, total = np.zeros((groups, hits.shape[1])), np.zeros((groups, 1))
    np.add.at(summed, phase, hits)
    np.add.at(total, phase, sizes)
    share = (summed / total)[phase]
    between = (sizes * (hits / sizes - share) ** 2).sum() / (len(hits) - groups)
    within = float((sizes * share * (1 - share)).sum() / sizes.sum())
    return float(between / within) if within > 0 else 1.0


def _figures(cohorts: Sequence[ColumnSketch]) -> Floats:
    """Summarise each cohort of a column (cohorts, figures): the mean rank if ordered, else its largest shares."""
    counts = np.array([one.counts for one in cohorts], dtype=np.float64)
    nulls = np.array([one.nulls / max(one.rows, 1) for one in cohorts])[:, None]
    pooled = counts.sum(axis=0)
    if not pooled.sum():
        return nulls
    present = counts.sum(axis=1, keepdims=True)
    shares = np.where(present > 0, counts / np.maximum(present, 1), pooled / pooled.sum())
    if cohorts[0].kind == "numeric":
        rank = (np.cumsum(pooled) - pooled / 2) / pooled.sum()
        return np.concatenate([shares @ rank[:, None], nulls], axis=1)
    return np.concatenate([shares[:, np.argsort(pooled)[-_TOP_CELLS:]], nulls], axis=1)


def rows_of(sketch: TableSketch) -> int:
    """Return the number of sketched rows."""
    return max((column.rows for column in sketch.columns.values()), default=0)


def scaled(sketch: TableSketch, worth: Mapping[str, float]) -> TableSketch:
    """Multiply counts by how much a row counts, rounded so that a cell with a row keeps one."""
    columns = dict(sketch.columns)
    for name, column in columns.items():
        if worth[name] < 1.0:
            counts = tuple(_rounded(count, worth[name]) for count in column.counts)
            columns[name] = replace(column, counts=counts, nulls=_rounded(column.nulls, worth[name]))
    return TableSketch(columns)


def _rounded(count: int, worth: float) -> int:
    return 0 if count == 0 else max(1, math.floor(count * worth + 0.5))


@dataclass(frozen=True, slots=True)
class DatasetRows:
    """Selected rows of a version of a table.

    columns: that are read; where: an expression of `pyarrow.compute`, None for all.
    """

    table: Table
    version: int
    columns: tuple[str, ...]
    where: Any = None

    def count(self) -> int:
        """Count the rows, reading only what the filter needs."""
        return int(self._dataset().count_rows(filter=self.where))

    def files(self) -> int:
        """Count the files that hold the rows."""
        return len(self._fragments())

    def batches(self, file: int | None = None) -> Iterator[pa.Table]:
        """Iterate over the rows in batches: all in the table's order, or those of one file."""
        found = self._dataset() if file is None else self._fragments()[file]
        for batch in found.to_batches(
            columns=list(self.columns), filter=self.where, batch_size=_BATCH_ROWS, **_SMALL_READAHEAD
        ):
            if batch.num_rows:
                yield pa.Table.from_batches([batch])

    def sample(self, most: int) -> pa.Table:
        """Take at most `most` of the rows, always the same ones, in their order, with one more batch in memory."""
        rows = self.count()
        chosen = np.sort(np.random.default_rng(0).choice(rows, most, replace=False)) if rows > most else None
        schema = self._dataset().schema
        kept, begin = [pa.schema([schema.field(name) for name in self.columns]).empty_table()], 0
        for part in self.batches():
            if chosen is None:
                kept.append(part)
                continue
            first, last = np.searchsorted(chosen, [begin, begin + part.num_rows])
            kept.append(part.take(pa.array(chosen[first:last] - begin)))
            begin += part.num_rows
        return pa.concat_tables(kept)

    def _dataset(self) -> ds.Dataset:
        return self.table.dataset(self.version)

    def _fragments(self) -> list[Any]:
        return list(self._dataset().get_fragments(filter=self.where))


def sketch_rows(rows: DatasetRows, like: TableSketch, *, prepare: Prepare | None = None) -> TableSketch:
    """Count rows of a table in the bins of `like`: over Ray Data, a file a task, where Ray runs; else here, batch by batch.

    prepare: makes the sketched columns of the rows as they lie there; picklable.
    """
    files = rows.files() if _ray_runs() else 0
    if files <= 1:
        parts = (_sketch(part, like, prepare) for part in rows.batches())
        return _total(parts, like)
    import ray.data  # late: a monitor of a small table needs no Ray

    numbers = ray.data.from_items(list(range(files)), override_num_blocks=files)

    def sketch_files(batch: dict[str, Any]) -> dict[str, list[bytes]]:
        parts = (
            _sketch(part, like, prepare) for file in batch["item"].tolist() for part in rows.batches(file)
        )
        return {_PART_COLUMN: [pickle.dumps(_total(parts, like))]}

    return _gathered(numbers.map_batches(sketch_files, batch_format="numpy", batch_size=None), like)


def sketch_dataset(rows: ray.data.Dataset, like: TableSketch) -> TableSketch:
    """Count the rows of a Ray dataset in the bins of `like`, each block in the task that made it where that can be."""

    def sketch_block(block: pa.Table) -> pa.Table:
        return pa.table({_PART_COLUMN: [pickle.dumps(like.window(block))]})

    return _gathered(rows.map_batches(sketch_block, batch_format="pyarrow", batch_size=None), like)


def reference_of_dataset(
    rows: ray.data.Dataset,
    *,
    numeric: Sequence[str] | None = None,
    categorical: Sequence[str] | None = None,
    bins: int = 20,
    sample_rows: int = 200_000,
) -> TableSketch:
    """Make a reference sketch of a Ray dataset: bins and categories come from a sample, and all rows are counted in them.

    The dataset is gone through three times if it does not know its own length, else twice.
    Raises: ValueError if it has no row.
    """
    count = rows.count()
    if not count:
        raise ValueError("the dataset has no row; a reference needs some")
    chosen = rows if count <= sample_rows else rows.random_sample(sample_rows / count, seed=0)
    sample = pa.concat_tables(
        list(chosen.iter_batches(batch_format="pyarrow", batch_size=None)), promote_options="default"
    )
    like = TableSketch.reference(sample, numeric=numeric, categorical=categorical, bins=bins)
    return sketch_dataset(rows, like)


def _sketch(part: pa.Table, like: TableSketch, prepare: Prepare | None) -> TableSketch:
    return like.window(part if prepare is None else prepare(part))


def _gathered(parts: ray.data.Dataset, like: TableSketch) -> TableSketch:
    """Add up the partial sketches that a dataset holds."""
    found = (pickle.loads(row[_PART_COLUMN]) for row in parts.iter_rows())  # noqa: S301 - our own tasks' bytes
    return _total(found, like)


def _total(parts: Iterator[TableSketch], like: TableSketch) -> TableSketch:
    """Add up any number of sketches in little memory; without any, the sketch has no row."""
    nothing = like.window(pa.table({}))
    kept = [nothing]
    for part in parts:
        kept.append(part)
        if len(kept) > _MAX_PARTS:
            kept = [TableSketch.total(kept)]
    return TableSketch.total(kept)


def _ray_runs() -> bool:
    import ray  # late: a monitor of a small table needs no Ray

    return bool(ray.is_initialized())
