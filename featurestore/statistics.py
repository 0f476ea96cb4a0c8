"""Statistics of a view's values, computed in batches for any number of rows.

Counts, bounds, mean and deviation are of all rows; quartiles, histograms and frequent values of a sample of rows.
"""

import math
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from toque.featurestore.applied.definitions import ViewOrName
from toque.featurestore.definitions.expectations import missing
from toque.featurestore.definitions.fields import EVENT_TIMESTAMP, Field
from toque.featurestore.definitions.views import FeatureView
from toque.featurestore.health import DAY, newest_event, recent_rows
from toque.featurestore.store import FeatureStore
from toque.featurestore.windows.distinct import DistinctSketch

SAMPLE_ROWS = 50_000
_COURSE_TOP = 5  # frequent values of a part
_QUARTILES = (0.25, 0.5, 0.75)

Floats = np.ndarray[Any, np.dtype[np.float64]]


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
        places = pc.min_element_wise(pc.divide(ages, width // timedelta(microseconds=1)), parts - 1)
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
