"""Loads a user's rows into the tables that a model learns from: features into a view, questions and labels beside them.

Rows come in batches and are never all in memory. Loading the same rows again writes nothing: of each key and time the newest
row is remembered by a hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import polars as pl
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from toque.featurestore import FeatureStore, FeatureView
from toque.featurestore.rows import conform
from toque.functions.features.entity_rows import EVENT_TIMESTAMP, LABEL_KNOWN_AT
from toque.functions.runtime.context import context
from toque.registry import InvalidInput, Table
from toque.registry.store import Part, check_table_name, overwrite_with_parts, write_part

__all__ = ["LoadedRows", "load_rows"]

_CREATED = "created_timestamp"
_BATCH_ROWS = 500_000


class LoadedRows(BaseModel):
    """Result of one load of rows. rows: read; written: feature rows that were new or had changed; labelled: rows with a label."""

    model_config = ConfigDict(frozen=True)

    rows: int = 0
    written: int = 0
    labelled: int = 0


@dataclass(slots=True)
class _Known:
    """Newest row of each key and time in a view's table, as hashes."""

    rows: dict[int, int] = field(default_factory=dict)

    def new(self, batch: pl.DataFrame, keys: list[str], columns: list[str]) -> pl.DataFrame:
        """Select the rows that differ from what is known, and remember them."""
        names = batch.select(keys).hash_rows().to_list()
        contents = batch.select(columns).hash_rows().to_list()
        fresh = [self.rows.get(name) != content for name, content in zip(names, contents, strict=True)]
        self.rows.update(zip(names, contents, strict=True))
        return batch.filter(pl.Series(fresh, dtype=pl.Boolean))


def load_rows(
    rows: pl.LazyFrame | pl.DataFrame | Iterable[pl.DataFrame],
    *,
    view: FeatureView,
    entities: str,
    label: str,
    label_delay: timedelta = timedelta(0),
) -> LoadedRows:
    """Write rows to a view's offline table and to a model's table of entities; what is there already is not written again.

    rows: the view's keys and features, `event_timestamp` and the label, which may be null; perhaps `label_known_at`.
    view: applied already. entities: name of the table of entities, which is replaced as a whole, at once.
    label_delay: how long after its time a row's label becomes known, where the rows do not say.
    Raises: InvalidRows for rows that do not fit the view; InvalidInput if the label's column or all rows are missing.
    """
    used = context()
    features, table = used.features(), Table(used.store, check_table_name(entities, what="entities"))
    keys = [*(key.name for key in view.join_keys), EVENT_TIMESTAMP]
    columns = [*keys, *view.features]
    known, total = _known(features, view, keys, columns), LoadedRows()
    parts: list[Part] = []
    schema: pa.Schema | None = None
    for batch in _batches(rows):
        if label not in batch.columns:
            raise InvalidInput(f"the rows have no column {label!r}; they have {batch.columns}")
        typed = pl.DataFrame(conform(view, batch.select(columns), clock=used.clock))
        fresh = known.new(typed, keys, columns)
        if fresh.height:
            features.write_offline(view, fresh.drop(_CREATED))  # the rows do not say when they became known
        asked = _entities(batch, keys, label, label_delay).to_arrow()
        schema = schema or pa.schema([field.with_nullable(True) for field in asked.schema])
        if not parts and not table.exists():
            table.create(schema)
        parts.append(write_part(table, asked.cast(schema)))
        total = LoadedRows(
            rows=total.rows + batch.height,
            written=total.written + fresh.height,
            labelled=total.labelled + batch.height - batch[label].null_count(),
        )
    if schema is None:
        raise InvalidInput("there are no rows to load; is the source empty?")
    overwrite_with_parts(table, parts, schema)
    return total


def _batches(rows: pl.LazyFrame | pl.DataFrame | Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    if isinstance(rows, pl.LazyFrame):
        rows = rows.collect_batches(chunk_size=_BATCH_ROWS)
    for batch in [rows] if isinstance(rows, pl.DataFrame) else rows:
        yield from (part for part in batch.iter_slices(_BATCH_ROWS) if part.height)


def _entities(batch: pl.DataFrame, keys: list[str], label: str, delay: timedelta) -> pl.DataFrame:
    """Select what is asked about each row: its key and time, its label, and when that became known."""
    given = LABEL_KNOWN_AT in batch.columns
    known_at = pl.col(LABEL_KNOWN_AT) if given else pl.col(EVENT_TIMESTAMP) + delay
    return batch.select(*keys, pl.col(label), known_at.alias(LABEL_KNOWN_AT))


def _known(features: FeatureStore, view: FeatureView, keys: list[str], columns: list[str]) -> _Known:
    """Read the newest row of each key and time, a part of the table at a time."""
    found = _Known()
    version = features.offline.version(view)
    if version is None:
        return found
    newest: dict[int, int] = {}
    for rows, _ in features.offline.batches(
        view, version, version.files, start=None, end=None, rows=_BATCH_ROWS
    ):
        batch = pl.DataFrame(rows).sort(_CREATED)
        names = batch.select(keys).hash_rows().to_list()
        contents = batch.select(columns).hash_rows().to_list()
        made = batch[_CREATED].to_physical().to_list()
        for name, content, at in zip(names, contents, made, strict=True):
            if at >= newest.get(name, at):
                newest[name], found.rows[name] = at, content
    return found
