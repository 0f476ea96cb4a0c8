"""Training-serving skew: served features compared with their recomputation from the offline store.

Also finds which stored rows the features of one entity came from at some moment.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from toque.featurestore.definitions.casting import texts_of
from toque.featurestore.definitions.encoding import RowLayout
from toque.featurestore.definitions.fields import CREATED_TIMESTAMP, EVENT_TIMESTAMP
from toque.featurestore.definitions.views import Projection
from toque.featurestore.offline import point_in_time
from toque.featurestore.offline.prefilter import answers_of
from toque.featurestore.offline.retrieval import Features, stored_view, typed_keys
from toque.featurestore.rows import Tabular, to_table
from toque.featurestore.store import FeatureStore

Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True)
class SkewReport:
    """Comparison of served features with recomputed ones.

    rows: compared; mismatches: differing rows by feature, equal features left out; examples: the differing values, one row
    each: `row` (of the log), `event_timestamp`, `feature`, `served`, `recomputed` (as text, null where null).
    """

    rows: int
    mismatches: dict[str, int]
    examples: pa.Table

    @property
    def rate(self) -> float:
        """Share of (row, feature) pairs that differ among the features that differ at all; 0 if no feature differs."""
        return sum(self.mismatches.values()) / (self.rows * len(self.mismatches)) if self.mismatches else 0.0


def skew_report(
    fs: FeatureStore,
    served: Tabular,
    features: Features,
    *,
    as_known: bool = True,
    tolerance: float = 1e-6,
    examples: int = 100,
) -> SkewReport:
    """Recompute logged online features point-in-time and list what differs.

    served: join keys, request values, `event_timestamp` (when they were read) and the feature columns.
    as_known: compare with what was known then, so that rows which arrived later do not count as skew.
    tolerance: relative, for numbers (a log may hold float32); examples: how many differing values to list.
    Raises: InvalidRows, UnknownDefinition.
    """
    log = to_table(served)
    columns = [name for name in fs.plan_features(features).columns if name in log.column_names]
    recomputed = fs.get_historical_features(log.drop_columns(columns), features, as_known=as_known).to_arrow()
    masks: dict[str, Mask] = {
        name: _differs(log.column(name), recomputed.column(name), tolerance) for name in columns
    }
    mismatches = {name: int(mask.sum()) for name, mask in masks.items() if mask.any()}
    tables = [
        _examples_of(log, recomputed, name, np.flatnonzero(masks[name])[:examples]) for name in mismatches
    ]
    table = pa.concat_tables(tables).slice(0, examples) if tables else _EXAMPLES.empty_table()
    return SkewReport(log.num_rows, mismatches, table)


def _differs(served: pa.ChunkedArray, recomputed: pa.ChunkedArray, tolerance: float) -> Mask:
    """Mark values that differ; null and NaN equal each other and no other value."""
    if pa.types.is_floating(recomputed.type) or pa.types.is_integer(recomputed.type):
        a, b = (
            column.cast(pa.float64(), safe=False).fill_null(float("nan")).to_numpy()
            for column in (served, recomputed)
        )
        same: Mask = np.isclose(a, b, rtol=tolerance, atol=tolerance * 1e-3, equal_nan=True)
        return ~same
    if pa.types.is_nested(recomputed.type):
        typed = pa.chunked_array([texts_of(served.cast(recomputed.type))])
        return _differs(typed, pa.chunked_array([texts_of(recomputed)]), tolerance)
    equal = pc.equal(served.cast(recomputed.type), recomputed).fill_null(False).to_numpy()
    both_null = pc.and_(served.is_null(), recomputed.is_null()).to_numpy()
    differs: Mask = ~(equal | both_null)
    return differs


_EXAMPLES = pa.schema(
    [
        ("row", pa.int64()),
        (EVENT_TIMESTAMP, pa.timestamp("us", "UTC")),
        ("feature", pa.string()),
        ("served", pa.string()),
        ("recomputed", pa.string()),
    ]
)


def _examples_of(log: pa.Table, recomputed: pa.Table, name: str, rows: np.ndarray[Any, Any]) -> pa.Table:
    at = pa.array(rows)
    return pa.table(
        {
            "row": at,
            EVENT_TIMESTAMP: recomputed.column(EVENT_TIMESTAMP).take(at),
            "feature": pa.array([name] * len(rows)),
            "served": texts_of(log.column(name).take(at)),
            "recomputed": texts_of(recomputed.column(name).take(at)),
        },
        schema=_EXAMPLES,
    )


@dataclass(frozen=True, slots=True)
class RowTime:
    """Row of a view that a read at a moment finds by point in time; the times are None where there is none.

    columns: of the output, with the feature that each is. event_at: the row's time; created_at: when it was written.
    """

    view: str
    columns: Mapping[str, str]
    event_at: datetime | None
    created_at: datetime | None


def row_times(
    fs: FeatureStore, keys: Mapping[str, Any], features: Features, *, at: datetime
) -> list[RowTime]:
    """Find the row of each stored view that features of one entity came from at a moment, as far as it was written by then.

    keys: values of join keys by column; a view whose keys are not all among them is left out.
    Raises: UnknownDefinition; InvalidRows for a key of another type.
    """
    lookups = fs.plan_features(features).lookups
    return [_found(fs, keys, one, at) for one in lookups if set(one.key_columns) <= set(keys)]


def _found(fs: FeatureStore, keys: Mapping[str, Any], lookup: Projection, at: datetime) -> RowTime:
    view = stored_view(lookup)
    entity = pa.table({name: [keys[name]] for name in lookup.key_columns} | {EVENT_TIMESTAMP: [at]})
    job = fs.get_historical_features(entity, [lookup], as_known=True)
    rows = answers_of(job, lookup)
    match = point_in_time.search(
        typed_keys(job.entities, lookup),
        rows,
        keys=list(zip(lookup.key_columns, (key.name for key in view.join_keys), strict=True)),
        layout=RowLayout(list(view.schema)),
        ttl=view.ttl,
        as_known=True,
    )
    row = int(np.asarray(match.index)[0])
    times = (
        {name: rows.column(name)[row].as_py() for name in (EVENT_TIMESTAMP, CREATED_TIMESTAMP)}
        if row >= 0
        else {}
    )
    columns = {column: field.name for column, field in lookup.columns.items()}
    return RowTime(view.name, columns, times.get(EVENT_TIMESTAMP), times.get(CREATED_TIMESTAMP))
