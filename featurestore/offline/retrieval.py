"""Training sets: the features of a service as they were at each entity row's time, at pinned table versions.

The plan (which stored rows to look up, which on-demand features to compute, the order of columns) is serving's, too.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from toque.featurestore.definitions.casting import cast_column
from toque.featurestore.definitions.computed import Column, Inputs, TableInputs, compute, to_arrow
from toque.featurestore.definitions.encoding import RowLayout
from toque.featurestore.definitions.fields import EVENT_TIMESTAMP, Field
from toque.featurestore.definitions.views import (
    FeatureLike,
    FeatureService,
    FeatureView,
    OnDemandFeatureView,
    Projection,
)
from toque.featurestore.errors import InvalidDefinition, InvalidRows
from toque.featurestore.offline import point_in_time
from toque.featurestore.offline.tables import OfflineStore
from toque.featurestore.rows import offline_schema, time_column
from toque.registry.store import TableSnapshot

Features = FeatureService | FeatureLike | str | Sequence[FeatureLike | str]
Times: TypeAlias = tuple[datetime | None, datetime | None]
"""First and last time, both inclusive; None where unbounded."""

_ENTITY_TABLE = "entity table"  # named in messages
_CHECKED_ROWS = 7  # that are computed once more; odd, so that they fill no register of a processor


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Plan of a retrieval, which training and serving share.

    lookups: projections of stored views, each (view, alias, join keys) once; computed: projections of on-demand views;
    request: fields that the caller must give; columns: of the output, in order.
    """

    lookups: tuple[Projection, ...]
    computed: tuple[Projection, ...]
    request: tuple[Field, ...]
    columns: tuple[str, ...]

    def compute(self, inputs: Inputs, *, rows: int) -> dict[str, tuple[Field, Column]]:
        """Compute on-demand columns from columns of all lookups and request fields, each of length `rows`."""
        computed: dict[str, tuple[Field, Column]] = {}
        for projection in self.computed:
            view = projection.view
            if isinstance(view, OnDemandFeatureView):
                results = compute(view, inputs, rows=rows)
                computed |= {column: (f, results[f.name]) for column, f in projection.columns.items()}
        return computed


def plan_retrieval(features: FeatureService | Iterable[Projection]) -> Retrieval:
    """Plan a service or a list of projections.

    Raises: InvalidDefinition if two different features would have one column name.
    """
    wanted = features.projections if isinstance(features, FeatureService) else tuple(features)
    if not wanted:
        raise InvalidDefinition("no features were asked for; name a service, views or 'view:feature'")
    columns = [name for p in wanted for name in p.columns]
    if len(set(columns)) < len(columns):
        double = next(name for name in columns if columns.count(name) > 1)
        raise InvalidDefinition(f"two features would come out as {double!r}; rename one with view.with_name")
    computed = tuple(p for p in wanted if isinstance(p.view, OnDemandFeatureView))
    views = [p.view for p in computed if isinstance(p.view, OnDemandFeatureView)]
    sources = [source for view in views for source in view.projections]
    lookups = _merged([p for p in wanted if isinstance(p.view, FeatureView)] + sources)
    request = {f.name: f for view in views for f in view.request_fields}
    _refuse_collisions(lookups, computed, request)
    return Retrieval(lookups, computed, tuple(request.values()), tuple(columns))


def _merged(projections: Sequence[Projection]) -> tuple[Projection, ...]:
    merged: dict[Any, Projection] = {}
    for p in projections:
        key = (p.view.name, p.alias, p.join_key_map)
        before = merged.get(key)
        features = (*before.features, *p.features) if before else p.features
        merged[key] = replace(p, features=tuple(dict.fromkeys(features)))
    return tuple(merged.values())


def _refuse_collisions(
    lookups: Sequence[Projection], computed: Sequence[Projection], request: Mapping[str, Field]
) -> None:
    names = [name for p in (*lookups, *computed) for name in p.columns] + list(request)
    for name in names:
        if names.count(name) > 1:
            msg = f"column {name!r} comes from two places (views, sources of on-demand views or the request); rename one"
            raise InvalidDefinition(msg)


@dataclass(frozen=True, slots=True)
class PinnedRetrieval:
    """A retrieval for given entity rows; the versions of all tables are fixed, so it always gives the same rows.

    entities: checked entity rows; versions: the offline table read for each view (None: no rows yet).
    as_known: use only rows that were created by the entity row's time, of all views or of those with these names.
    """

    entities: pa.Table
    retrieval: Retrieval
    offline: OfflineStore
    versions: Mapping[str, TableSnapshot | None]
    as_known: bool | frozenset[str]

    def reads_as_known(self, lookup: Projection) -> bool:
        """Whether only rows of this lookup's view count that were created by the entity row's time."""
        return self.as_known if isinstance(self.as_known, bool) else lookup.view.name in self.as_known

    def known_else(self, lookup: Projection) -> str | None:
        """Name the column that says since when rows are known which do not say so themselves; None: `created_timestamp` of all.

        Only rows that a person or a program writes may say so one by one, and only of views given by name is it asked.
        """
        view = stored_view(lookup)
        written = view.events is None and view.source is None
        if isinstance(self.as_known, bool) or not (written and self.reads_as_known(lookup)):
            return None
        return self.offline.known_else(view)

    def read(self, lookup: Projection, features: Sequence[str]) -> pa.Table:
        """Read the stored rows that any entity row could see."""
        view = stored_view(lookup)
        version = self.versions[view.name]
        if version is None or not self.entities.num_rows:
            return offline_schema(view).empty_table()
        start, end = self.bounds(lookup)
        return self.offline.read(
            view,
            features=features,
            start=start,
            end=end,
            version=version.version,
            known_else=self.known_else(lookup),
        )

    def bounds(self, lookup: Projection) -> Times:
        """First and last event time of rows that any entity row could see; None where unbounded."""
        times = pc.min_max(self.entities.column(EVENT_TIMESTAMP)).as_py()
        return within_ttl((times["min"], times["max"]), stored_view(lookup))

    def stored_bytes(self, between: Times) -> int:
        """Estimate the memory that the stored rows take which entity rows of these times could see, by the tables' logs."""
        rows = self._stored_rows(between)
        views = [stored_view(lookup) for lookup in self.retrieval.lookups]
        return sum(rows[view.name] * row_bytes(offline_schema(view)) for view in views)

    def most_stored_rows(self, between: Times = (None, None)) -> int:
        """Count the rows of the largest table that entity rows of these times could see, by the tables' logs."""
        return max(self._stored_rows(between).values(), default=0)

    def _stored_rows(self, between: Times) -> dict[str, int]:
        rows: dict[str, int] = {}
        for view in (stored_view(lookup) for lookup in self.retrieval.lookups):
            snapshot = self.versions[view.name]
            version = None if snapshot is None else self.offline.version(view, snapshot.version)
            files = () if version is None else version.files
            bounds = within_ttl(between, view)
            rows[view.name] = sum(file.rows for file in files if file.may_hold(*bounds))
        return rows


def within_ttl(between: Times, view: FeatureView) -> Times:
    """First and last event time of a view's rows that entity rows of the times `between` could see."""
    first, last = between
    return (None if view.ttl is None or first is None else first - view.ttl), last


def row_bytes(schema: pa.Schema) -> int:
    """Estimate the bytes of a row in memory; a text counts 32, and a list of any length 64."""
    return sum(_bytes_of(field.type) for field in schema)


def _bytes_of(dtype: pa.DataType) -> int:
    if pa.types.is_fixed_size_list(dtype):
        return int(dtype.list_size) * _bytes_of(dtype.value_type)
    try:
        return max(int(dtype.bit_width) // 8, 1)
    except ValueError:  # no fixed width
        return 64 if pa.types.is_nested(dtype) else 32


def stored_view(lookup: Projection) -> FeatureView:
    """Get the stored view of a lookup.

    Raises: InvalidDefinition if the view is computed on demand.
    """
    if not isinstance(lookup.view, FeatureView):
        raise InvalidDefinition(f"{lookup.view.name!r} is computed on demand and has no stored rows")
    return lookup.view


def attach(entities: pa.Table, rows: pa.Table, lookup: Projection, *, as_known: bool) -> tuple[pa.Table, int]:
    """Append one lookup's columns to entity rows; also returns how many ties only the content of rows decided.

    rows: of the view, with the lookup's features or all features.
    """
    view = stored_view(lookup)
    keys = list(zip(lookup.key_columns, (key.name for key in view.join_keys), strict=True))
    match = point_in_time.search(
        typed_keys(entities, lookup),
        rows,
        keys=keys,
        layout=RowLayout([f for f in view.schema if f.name in rows.column_names]),
        ttl=view.ttl,
        as_known=as_known,
    )
    features = {column: f.name for column, f in lookup.columns.items()}
    return point_in_time.take(entities, rows, match, features=features), match.ties


def typed_keys(entities: pa.Table, lookup: Projection) -> pa.Table:
    """Cast the entity table's key columns to the view's types; keeps the event time.

    Raises: InvalidRows for a column that is missing, of another kind, or with a value that does not fit.
    """
    typed = {EVENT_TIMESTAMP: entities.column(EVENT_TIMESTAMP)}
    for column, key in zip(lookup.key_columns, stored_view(lookup).join_keys, strict=True):
        if column not in entities.column_names:
            msg = f"{_ENTITY_TABLE}: join key {column!r} of view {lookup.view.name!r} is missing; got {entities.column_names}"
            raise InvalidRows(msg)
        typed[column] = cast_column(_ENTITY_TABLE, Field(column, key.dtype), entities.column(column))
    return pa.table(typed)


def check_entities(entities: pa.Table, retrieval: Retrieval) -> pa.Table:
    """Check an entity table, and cast its time to microseconds UTC and its request columns to their types.

    Raises: InvalidRows for a missing, duplicated or naive column, or one named like a feature.
    """
    names = entities.column_names
    double = [name for name in names if names.count(name) > 1]
    clash = [name for name in retrieval.columns if name in names]
    if double:
        raise InvalidRows(f"{_ENTITY_TABLE}: column {double[0]!r} appears twice; keep one")
    if clash:
        raise InvalidRows(
            f"{_ENTITY_TABLE}: column {clash[0]!r} has the name of a feature; rename or drop it"
        )
    times = time_column(_ENTITY_TABLE, entities, EVENT_TIMESTAMP)
    entities = entities.set_column(names.index(EVENT_TIMESTAMP), EVENT_TIMESTAMP, times)
    for f in retrieval.request:
        if f.name not in names:
            raise InvalidRows(f"{_ENTITY_TABLE}: request value {f.name!r} is missing; got {names}")
        entities = entities.set_column(
            names.index(f.name), f.name, cast_column(_ENTITY_TABLE, f, entities.column(f.name))
        )
    for lookup in retrieval.lookups:
        typed_keys(entities, lookup)
    return entities


def finish(table: pa.Table, entity_columns: Sequence[str], retrieval: Retrieval) -> pa.Table:
    """Compute the on-demand columns of joined rows and order all columns as requested."""
    if retrieval.computed:
        dtypes = {name: f.dtype for lookup in retrieval.lookups for name, f in lookup.columns.items()}
        dtypes |= {f.name: f.dtype for f in retrieval.request}
        inputs = TableInputs(table, dtypes)
        for column, values in _computed(inputs, retrieval).items():
            table = table.append_column(column, values)
    return table.select([*entity_columns, *retrieval.columns])


def _computed(inputs: TableInputs, retrieval: Retrieval) -> dict[str, pa.Array]:
    """Compute on-demand columns, and some rows once more without the others.

    Raises: InvalidRows if these come out otherwise: so it would be for a request, which has few rows.
    """
    rows = inputs.table.num_rows
    whole = {name: to_arrow(f, made) for name, (f, made) in retrieval.compute(inputs, rows=rows).items()}
    some = range(0, rows, max(1, rows // _CHECKED_ROWS))[:_CHECKED_ROWS]
    again = retrieval.compute(inputs.take(some), rows=len(some)) if rows > len(some) else {}
    for name, (f, made) in again.items():
        alone, among = to_arrow(f, made), whole[name].take(pa.array(some))
        if not alone.equals(among):
            row = next(n for n in range(len(some)) if not alone[n].equals(among[n]))
            raise InvalidRows(
                f"on-demand feature {name!r}: row {some[row]} is {among[row].as_py()!r} among {rows} rows and {alone[row].as_py()!r} "
                f"among {len(some)}; compute each row from itself alone, without random numbers or the time"
            )
    return whole
