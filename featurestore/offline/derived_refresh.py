"""Refresh of a derived view: what is new in the tables of its inputs is found, and the rows that follow are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from toque.featurestore.definitions.derived import Compute, Derived
from toque.featurestore.definitions.fields import EVENT_TIMESTAMP
from toque.featurestore.definitions.views import FeatureView, Projection
from toque.featurestore.offline.derived import InputRows, derive, reach
from toque.featurestore.offline.pinned_retrieval import stored_view
from toque.featurestore.offline.tables import OfflineStore
from toque.featurestore.offline.versions import File, Version, scan
from toque.featurestore.rows import offline_schema


@dataclass(frozen=True, slots=True)
class DerivedRows:
    """Rows that follow from what is new; consumed: by input, the version of its table that they rest on, plus one."""

    rows: pa.Table
    consumed: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Read:
    """Table of an input: its newest version, with the files that were consumed and those that were not."""

    of: Projection
    version: Version | None
    known: Sequence[File]
    new: Sequence[File]

    @property
    def schema(self) -> pa.Schema:
        return offline_schema(stored_view(self.of))

    def new_rows(self) -> pa.Table:
        return (
            self.schema.empty_table() if self.version is None else scan(self.version, self.new, self.schema)
        )

    def known_rows(self, start: datetime | None) -> pa.Table:
        if self.version is None:
            return self.schema.empty_table()
        return scan(self.version, self.known, self.schema, start=start)


def consumed_as(view: str) -> str:
    """Name under which a derived view's table says which version of an input it has consumed."""
    return f"view:{view}"


def new_derived_rows(
    offline: OfflineStore, view: FeatureView, source: Derived, *, transform: Compute, now: datetime
) -> DerivedRows | None:
    """Compute the rows that follow from rows of the inputs which the view has not consumed; None if there are none.

    Holds all rows of the keys that have new ones, from the first moment that changes. Raises: InvalidRows.
    """
    reads = [_read(offline, view, each) for each in source.projections]
    fresh = [each.new_rows() for each in reads]
    if not any(each.num_rows for each in fresh):
        return None
    names = [key.name for key in view.join_keys]
    keys = pl.concat([pl.DataFrame(each.select(names)) for each in fresh]).unique() if names else None
    first = min(pc.min(each.column(EVENT_TIMESTAMP)).as_py() for each in fresh if each.num_rows)
    back = reach(source)
    inputs = []
    for each, new in zip(reads, fresh, strict=True):
        old = _of_keys(each.known_rows(None if back is None else first - back), keys)
        flags = [False] * old.num_rows + [True] * new.num_rows
        inputs.append(InputRows(each.of, pa.concat_tables([old, new]), flags))
    stored = _of_keys(offline.read(view, start=first), keys)
    consumed = {
        consumed_as(each.of.view.name): each.version.number + 1 for each in reads if each.version is not None
    }
    return DerivedRows(derive(view, inputs, stored, transform=transform, now=now), consumed)


def _read(offline: OfflineStore, view: FeatureView, of: Projection) -> _Read:
    given = stored_view(of)
    version = offline.version(given)
    if version is None:
        return _Read(of, None, (), ())
    before = offline.consumed(view, consumed_as(given.name)) - 1
    known = offline.known_since(given, before, version.number) if before >= 0 else frozenset()
    return _Read(
        of,
        version,
        [file for file in version.files if file.path in known],
        [file for file in version.files if file.path not in known],
    )


def _of_keys(rows: pa.Table, keys: pl.DataFrame | None) -> pa.Table:
    if keys is None or not rows.num_rows:
        return rows
    found = pl.DataFrame(rows).join(keys, on=keys.columns, how="semi", nulls_equal=True)
    return found.to_arrow().cast(rows.schema)
