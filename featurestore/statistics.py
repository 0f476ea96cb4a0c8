"""Health of a view and statistics of its values, computed in batches for any number of rows.

Counts, bounds, mean and deviation are of all rows; quartiles, histograms and frequent values of a sample of rows.
Sizes come from the table's log, all else from the newest span of rows.
"""

import math
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from toque.featurestore.definitions.expectations import missing
from toque.featurestore.definitions.fields import EVENT_TIMESTAMP, Field
from toque.featurestore.definitions.views import FeatureView, ViewOrName
from toque.featurestore.offline.versions import Version
from toque.featurestore.online.keys import row_keys
from toque.featurestore.online.materialize import Materializer
from toque.featurestore.online.serving import Status
from toque.featurestore.store import FeatureStore
from toque.featurestore.windows.distinct import DistinctSketch
from toque.registry.times import MICROSECOND, from_epoch_us

DAY = timedelta(days=1)
_ROWS_AT_ONCE = 200_000
PERSONAL = "personal"
"""Tag of a view that names, with commas, its features and keys that are personal; their values are not shown."""
MASKED = "(personal)"
SAMPLE_ROWS = 50_000
_COURSE_TOP = 5  # frequent values of a part
_QUARTILES = (0.25, 0.5, 0.75)

Floats = np.ndarray[Any, np.dtype[np.float64]]


class ViewHealth(BaseModel):
    """Measured health of one view.

    rows, files: of the table's newest version; newest_event: of rows up to now; freshness_s: its age;
    recent_rows: in the span that ends with it, on which `keys` (distinct, within 1.6 %), `fill` (share of values
    present, by feature) and `samples` (the newest rows, personal values masked) are measured; coverage: share of sampled recent keys that an online
    read finds within the ttl, None without an online store; online_until: event time up to which rows are materialized.
    """

    model_config = ConfigDict(frozen=True)

    view: str
    owner: str = ""
    measured_at: datetime
    ttl_s: float | None = None
    rows: int = 0
    files: int = 0
    newest_event: datetime | None = None
    freshness_s: float | None = None
    recent_rows: int = 0
    keys: int = 0
    fill: dict[str, float] = {}
    coverage: float | None = None
    online_until: datetime | None = None
    samples: list[dict[str, Any]] = []


def view_health(
    fs: FeatureStore, view: ViewOrName, *, span: timedelta = DAY, samples: int = 3, sampled_keys: int = 1_000
) -> ViewHealth:
    """Measure a view's health as of now.

    span: how much of the newest event time is read; sampled_keys: how many online rows are looked up.
    Raises: UnknownDefinition, OnlineStoreUnavailable.
    """
    found = fs.get_feature_view(view if isinstance(view, str) else view.name)
    now = fs.now()
    ttl_s = None if found.ttl is None else found.ttl.total_seconds()
    health = ViewHealth(view=found.name, owner=found.owner, measured_at=now, ttl_s=ttl_s)
    version = fs.offline.version(found)
    if version is None:
        return health
    recent = _Recent(found, samples=samples)
    for batch in recent_rows(fs, found, version, span=span, now=now):
        recent.add(batch, fs.project)
    return health.model_copy(
        update={
            "rows": sum(f.rows for f in version.files),
            "files": len(version.files),
            "newest_event": recent.newest,
            "freshness_s": None if recent.newest is None else (now - recent.newest).total_seconds(),
            "recent_rows": recent.rows,
            "keys": round(recent.keys.estimate()),
            "fill": recent.fill(),
            "samples": [_masked(found, row) for row in recent.samples],
        }
        | (_online(fs, found, recent.last, sampled_keys) if fs.has_online else {})
    )


def newest_event(fs: FeatureStore, view: ViewOrName) -> datetime | None:
    """Find the event time of a view's newest row up to now; None without rows. Raises: UnknownDefinition."""
    found = fs.get_feature_view(view if isinstance(view, str) else view.name)
    version = fs.offline.version(found)
    return None if version is None else _newest(fs, found, version, now=fs.now())


def recent_rows(
    fs: FeatureStore, view: FeatureView, version: Version, *, span: timedelta, now: datetime
) -> Iterator[pa.Table]:
    """Iterate over rows of the newest span up to now, in batches, oldest files first."""
    newest = _newest(fs, view, version, now=now)
    if newest is None:
        return
    start = newest - span
    files = [f for f in version.files if f.may_hold(start, now)]
    for batch, _ in fs.offline.batches(view, version, files, start=start, end=now, rows=_ROWS_AT_ONCE):
        if batch.num_rows:
            yield batch


def _newest(fs: FeatureStore, view: FeatureView, version: Version, *, now: datetime) -> datetime | None:
    begun = [f.first for f in version.files if f.first is not None and f.first <= now]
    if not begun:
        return None
    newest = max(begun)  # a file has a row at its first time, so the newest row is not earlier
    files = [f for f in version.files if f.may_hold(newest, now)]
    for batch, _ in fs.offline.batches(view, version, files, start=newest, end=now, rows=_ROWS_AT_ONCE):
        newest = max(newest, pc.max(batch.column(EVENT_TIMESTAMP)).as_py() or newest)
    return newest


def _masked(view: FeatureView, row: dict[str, Any]) -> dict[str, Any]:
    hidden = {name.strip() for name in view.tags.get(PERSONAL, "").split(",")}
    return {name: MASKED if name in hidden else value for name, value in row.items()}


class _Recent:
    """Running totals over batches of a view's rows."""

    def __init__(self, view: FeatureView, *, samples: int) -> None:
        self._view = view
        self._wanted = samples
        self._missing = dict.fromkeys(view.features, 0)
        self.rows = 0
        self.newest: datetime | None = None
        self.keys = DistinctSketch.of(pa.array([], pa.string()))
        self.last: pa.Table | None = None
        self._newest_rows: pa.Table | None = None

    def add(self, batch: pa.Table, project: str) -> None:
        """Add a batch to the totals."""
        self.rows += batch.num_rows
        for name in self._missing:
            self._missing[name] += missing(batch.column(name))
        self.keys += DistinctSketch.of(pa.array(row_keys(project, self._view, batch)).cast(pa.string()))
        ends = pc.max(batch.column(EVENT_TIMESTAMP)).as_py()
        self.newest = ends if self.newest is None else max(self.newest, ends)
        self.last = batch
        both = batch if self._newest_rows is None else pa.concat_tables([self._newest_rows, batch])
        self._newest_rows = both.sort_by([(EVENT_TIMESTAMP, "descending")]).slice(0, self._wanted)

    def fill(self) -> dict[str, float]:
        """Share of values present, by feature."""
        return {name: 1 - count / self.rows for name, count in self._missing.items()} if self.rows else {}

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Newest rows of all batches, as dicts."""
        return [] if self._newest_rows is None else self._newest_rows.to_pylist()


def _online(fs: FeatureStore, view: FeatureView, rows: pa.Table | None, sampled_keys: int) -> dict[str, Any]:
    claim = Materializer(fs.offline, fs.online).claimed(view)
    until = None if claim is None else from_epoch_us(claim.end_us)
    if rows is None:
        return {"online_until": until}
    at = np.unique(np.linspace(0, rows.num_rows - 1, min(sampled_keys, rows.num_rows)).astype(np.int64))
    keys = rows.select([key.name for key in view.join_keys]).take(pa.array(at)).to_pylist() or [{}]
    answer = fs.get_online_features(view, keys)
    states = answer.statuses[view.features[0]]
    readable = sum(state in {Status.PRESENT, Status.NULL_VALUE} for state in states)
    return {"online_until": until, "coverage": readable / len(states)}


class FeatureStatistics(BaseModel):
    """Statistics of one feature over some rows.

    values: how many are neither null nor NaN; distinct: of these, within 1.6 %; mean, std (of a sample), least, most:
    of finite numbers. quartiles; edges (bins + 1) and counts (bins): of sampled numbers, the last bin holds its upper edge.
    top: the most frequent sampled values of other scalar types, each with its share.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    dtype: str
    rows: int
    values: int
    distinct: int
    mean: float | None = None
    std: float | None = None
    least: float | None = None
    most: float | None = None
    quartiles: tuple[float, ...] = ()
    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    top: tuple[tuple[str, float], ...] = ()


class PartStatistics(BaseModel):
    """Statistics of a view's features over the rows with start < event time <= end, in schema order."""

    model_config = ConfigDict(frozen=True)

    start: datetime
    end: datetime
    features: list[FeatureStatistics]


def view_statistics(
    fs: FeatureStore, view: ViewOrName, *, span: timedelta = DAY, bins: int = 30, top: int = 10
) -> list[FeatureStatistics]:
    """Compute statistics of each feature over the newest span of a view's rows, in schema order.

    Raises: UnknownDefinition.
    """
    found = fs.get_feature_view(view if isinstance(view, str) else view.name)
    version = fs.offline.version(found)
    batches = [] if version is None else recent_rows(fs, found, version, span=span, now=fs.now())
    return statistics(found, batches, bins=bins, top=top)


def view_course(
    fs: FeatureStore, view: ViewOrName, *, span: timedelta = DAY, parts: int = 12
) -> list[PartStatistics]:
    """Compute statistics of each feature over equal parts of the newest span of a view's rows, oldest first.

    Parts without rows are left out. Histograms have one bin. Raises: UnknownDefinition; ValueError without a part or a span.
    """
    if parts < 1 or span <= timedelta(0):
        raise ValueError(f"parts={parts} and span={span} must be positive")
    found = fs.get_feature_view(view if isinstance(view, str) else view.name)
    version, newest = fs.offline.version(found), newest_event(fs, found)
    if version is None or newest is None:
        return []
    width = span / parts
    taken = [_Rows(found) for _ in range(parts)]
    for batch in recent_rows(fs, found, version, span=span, now=fs.now()):
        ages = pc.subtract(pa.scalar(newest), batch.column(EVENT_TIMESTAMP)).cast(pa.int64())
        places = pc.min_element_wise(pc.divide(ages, width // MICROSECOND), parts - 1)
        for place in pc.unique(places).to_pylist():
            taken[place].add(batch.filter(pc.equal(places, place)))
    return [
        PartStatistics(
            start=newest - (place + 1) * width,
            end=newest - place * width,
            features=rows.figures(1, _COURSE_TOP),
        )
        for place, rows in reversed(list(enumerate(taken)))
        if rows.seen
    ]


def statistics(
    view: FeatureView, batches: Iterable[pa.Table], *, bins: int = 30, top: int = 10
) -> list[FeatureStatistics]:
    """Compute statistics of each feature over batches of a view's rows."""
    rows = _Rows(view)
    for batch in batches:
        rows.add(batch)
    return rows.figures(bins, top)


class _Rows:
    """Running totals and a sample of the rows of a view."""

    def __init__(self, view: FeatureView) -> None:
        self._features = view.features
        self._columns = [_Column(field) for field in view.schema]
        self._sample = _Sample()
        self.seen = 0

    def add(self, batch: pa.Table) -> None:
        """Add a batch of rows to the totals and the sample."""
        self.seen += batch.num_rows
        for column in self._columns:
            column.add(batch.column(column.field.name))
        self._sample.add(batch.select(self._features))

    def figures(self, bins: int, top: int) -> list[FeatureStatistics]:
        """Compute the statistics of each feature."""
        return [
            column.figures(self._sample.of(column.field.name), bins=bins, top=top) for column in self._columns
        ]


class _Column:
    """Running totals over batches of one column."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self._rows = self._missing = self._finite = 0
        self._mean = self._squares = 0.0
        self._least, self._most = math.inf, -math.inf
        self._distinct: DistinctSketch | None = None

    def add(self, values: pa.ChunkedArray) -> None:
        """Add values to the totals."""
        self._rows += len(values)
        self._missing += missing(values)
        sketch = DistinctSketch.of(values)
        self._distinct = sketch if self._distinct is None else self._distinct + sketch
        if self.field.dtype.is_number:
            self._add_numbers(_finite(values))

    def _add_numbers(self, numbers: Floats) -> None:
        """Update mean and squared deviations. Source: Chan, Golub, LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979."""
        count = len(numbers)
        if not count:
            return
        mean = float(numbers.mean())
        delta, both = mean - self._mean, self._finite + count
        self._squares += float(((numbers - mean) ** 2).sum()) + delta**2 * self._finite * count / both
        self._mean += delta * count / both
        self._finite = both
        self._least, self._most = (
            min(self._least, float(numbers.min())),
            max(self._most, float(numbers.max())),
        )

    def figures(self, sample: pa.ChunkedArray | None, *, bins: int, top: int) -> FeatureStatistics:
        """Combine totals and sample into the feature's statistics."""
        given: dict[str, Any] = {}
        if self.field.dtype.is_number:
            given = self._numbers() | ({} if sample is None else _distribution(_finite(sample), bins))
        elif sample is not None and not pa.types.is_nested(sample.type):
            given = {"top": _most_frequent(sample, top)}
        return FeatureStatistics(
            name=self.field.name,
            dtype=self.field.dtype.value,
            rows=self._rows,
            values=self._rows - self._missing,
            distinct=0 if self._distinct is None else round(self._distinct.estimate()),
            **given,
        )

    def _numbers(self) -> dict[str, Any]:
        if not self._finite:
            return {}
        deviation = math.sqrt(self._squares / (self._finite - 1)) if self._finite > 1 else None
        return {"mean": self._mean, "std": deviation, "least": self._least, "most": self._most}


class _Sample:
    """Systematic sample: every n-th row, at most twice `SAMPLE_ROWS`; all rows if fewer."""

    def __init__(self) -> None:
        self._rows: pa.Table | None = None
        self._stride, self._seen = 1, 0

    def add(self, batch: pa.Table) -> None:
        """Sample the rows of a batch."""
        first = -self._seen % self._stride
        self._seen += batch.num_rows
        taken = _every(batch.slice(first), self._stride)
        self._rows = taken if self._rows is None else pa.concat_tables([self._rows, taken])
        while self._rows.num_rows > 2 * SAMPLE_ROWS:
            self._rows = _every(self._rows, 2)
            self._stride *= 2

    def of(self, name: str) -> pa.ChunkedArray | None:
        """Column of the sampled rows, None without rows."""
        return None if self._rows is None else self._rows.column(name)


def _every(table: pa.Table, stride: int) -> pa.Table:
    return table if stride == 1 else table.take(pa.array(range(0, table.num_rows, stride), pa.int64()))


def _finite(values: pa.ChunkedArray) -> Floats:
    numbers: Floats = values.drop_null().cast(pa.float64(), safe=False).to_numpy()
    return numbers[np.isfinite(numbers)]


def _distribution(numbers: Floats, bins: int) -> dict[str, Any]:
    """Compute quartiles and an equal-width histogram; few whole numbers get a bin each."""
    if not len(numbers):
        return {}
    least, most = float(numbers.min()), float(numbers.max())
    edges: Floats = (
        np.linspace(least, most, bins + 1) if most > least else np.array([least - 0.5, least + 0.5])
    )
    if most - least < bins and (numbers == np.rint(numbers)).all():
        edges = np.arange(least - 0.5, most + 1)
    return {
        "quartiles": tuple(np.quantile(numbers, _QUARTILES).tolist()),
        "edges": tuple(edges.tolist()),
        "counts": tuple(np.histogram(numbers, edges)[0].tolist()),
    }


def _most_frequent(values: pa.ChunkedArray, top: int) -> tuple[tuple[str, float], ...]:
    present = values.drop_null().cast(pa.string())
    counted = pa.Table.from_arrays(pc.value_counts(present).flatten(), ["value", "count"])
    order = [("count", "descending"), ("value", "ascending")]
    rows = counted.sort_by(order).slice(0, top).to_pylist()
    return tuple((row["value"], row["count"] / len(present)) for row in rows)
