"""Rows of derived views: a row for each moment at which an input changed, also for what became known of it later.

Rows of a key are taken in the order in which they became known. Each changes what the inputs were from its event time
on, up to the next row of the same input; for every moment of the key in between, and for its own, there is a new row.
Only rows with a part that was not consumed before are written, so a refresh costs what changed.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from toque.featurestore.definitions.computed import Compute, Derived, to_arrow
from toque.featurestore.definitions.dtypes import TIMESTAMP
from toque.featurestore.definitions.encoding import HEADER_BYTES, RowLayout
from toque.featurestore.definitions.fields import CREATED_TIMESTAMP, EVENT_TIMESTAMP
from toque.featurestore.definitions.views import FeatureView, Projection
from toque.featurestore.errors import InvalidRows
from toque.featurestore.offline.retrieval import stored_view
from toque.featurestore.offline.tables import OfflineStore
from toque.featurestore.offline.versions import File, Version, scan
from toque.featurestore.rows import offline_schema
from toque.registry.times import MICROSECOND

_EVENT, _CREATED, _KEY, _AT, _NEW, _UNTIL = "__event", "__created", "__key", "__at", "__new", "__until"


@dataclass(frozen=True, slots=True)
class InputRows:
    """Rows of one input, all that moments from the first new one on may see; fresh: which of them were not consumed."""

    projection: Projection
    rows: pa.Table
    fresh: Sequence[bool]


@dataclass(frozen=True, slots=True)
class _Moment:
    """What the inputs of a key were at a moment, as known from a time on: a row of each, or None.

    until_us: when they became known to be something else; None if they did not.
    """

    key: int
    event_us: int
    created_us: int
    rows: tuple[int | None, ...]
    until_us: int | None = None


@dataclass(slots=True)
class _Input:
    """Rows of one input for one key that are known so far: their event times in order, and the row of each."""

    ttl_us: int | None
    times: list[int] = field(default_factory=list)
    rows: dict[int, int] = field(default_factory=dict)

    def put(self, event_us: int, row: int) -> None:
        """Take a row in; of one event time the one that became known later counts."""
        if event_us not in self.rows:
            insort(self.times, event_us)
        self.rows[event_us] = row

    def at(self, moment_us: int) -> int | None:
        """Find the row at a moment, if there is one within its ttl."""
        place = bisect_right(self.times, moment_us)
        if not place or (self.ttl_us is not None and moment_us - self.times[place - 1] > self.ttl_us):
            return None
        return self.rows[self.times[place - 1]]

    def next_after(self, event_us: int) -> int | None:
        """Find the event time of the next row, None after the last."""
        place = bisect_right(self.times, event_us)
        return self.times[place] if place < len(self.times) else None


def derive(
    view: FeatureView, inputs: Sequence[InputRows], stored: pa.Table, *, transform: Compute, now: datetime
) -> pa.Table:
    """Compute the rows of a derived view that follow from rows which were not consumed yet.

    stored: rows of the view from the first moment that changes on. now: the earliest time at which a row counts that takes the
    place of a stored one which became known no earlier.
    Returns: rows in the view's offline schema. Raises: InvalidRows if the transform fails or returns something else.
    """
    keyed, keys = _keyed(view, inputs)
    moments = [
        each
        for _, rows in groupby(keyed.iter_rows(), key=lambda row: row[0])
        for each in _moments(list(rows), [_ttl_us(given.projection) for given in inputs])
    ]
    if not moments:
        return offline_schema(view).empty_table()
    columns = [_taken(given, [each.rows[number] for each in moments]) for number, given in enumerate(inputs)]
    made = _transformed(view, transform, pl.concat(columns, how="horizontal"))
    named = keys.to_arrow().take(pa.array([each.key for each in moments]))
    times = {
        EVENT_TIMESTAMP: pa.array([each.event_us for each in moments], pa.int64()).cast(TIMESTAMP),
        CREATED_TIMESTAMP: pa.array([each.created_us for each in moments], pa.int64()).cast(TIMESTAMP),
    }
    table = pa.table({name: named.column(name) for name in named.column_names} | made | times)
    until = pl.Series(_UNTIL, [moment.until_us for moment in moments], pl.Int64)
    return _standing(view, table.cast(offline_schema(view)), until, stored, now)


def _ttl_us(of: Projection) -> int | None:
    ttl = stored_view(of).ttl
    return None if ttl is None else ttl // MICROSECOND


def _taken(given: InputRows, rows: Sequence[int | None]) -> pl.DataFrame:
    """Columns of an input at some rows; null where there is none."""
    at = pa.array(rows, pa.int64())
    columns = given.projection.columns.items()
    return pl.DataFrame(pa.table({name: given.rows.column(f.name).take(at) for name, f in columns}))


def _keyed(view: FeatureView, inputs: Sequence[InputRows]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Number the keys of all rows; of rows alike in key and both times one is left, by content.

    Returns: rows as (key, input, row, event, created, new), and the keys by their numbers.
    """
    names = [key.name for key in view.join_keys]
    parts = []
    for number, given in enumerate(inputs):
        frame = pl.DataFrame(given.rows.select([*names, EVENT_TIMESTAMP, CREATED_TIMESTAMP])).with_columns(
            pl.col(EVENT_TIMESTAMP).to_physical().alias(_EVENT),
            pl.col(CREATED_TIMESTAMP).to_physical().alias(_CREATED),
            pl.Series(_NEW, list(given.fresh), pl.Boolean),
            pl.lit(number).alias("input"),
        )
        parts.append(_one_of_each(given, frame.with_row_index(_AT), [*names, _EVENT, _CREATED]))
    rows = pl.concat(parts)
    keys = rows.select(names).unique(maintain_order=True) if names else pl.DataFrame({_KEY: [0]})
    if names:
        rows = rows.join(keys.with_row_index(_KEY), on=names, nulls_equal=True)
    else:
        rows, keys = rows.with_columns(pl.lit(0).alias(_KEY)), keys.select([])
    return rows.select(_KEY, "input", _AT, _EVENT, _CREATED, _NEW).sort(_KEY, _CREATED), keys


def _one_of_each(given: InputRows, rows: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    """Leave of rows alike in names and times the one that a read takes: with the greatest bytes."""
    double = rows.select(names).is_duplicated()
    if not double.any():
        return rows
    some = rows.filter(double)
    layout = RowLayout(stored_view(given.projection).schema)
    packed = layout.encode(given.rows.take(some.get_column(_AT).to_list()))
    content = pl.Series("content", [bytes(each[HEADER_BYTES:]) for each in packed])
    best = some.with_columns(content).sort("content").unique(names, keep="last").drop("content")
    return pl.concat([rows.filter(~double), best])


def _moments(rows: list[tuple[int, ...]], ttls: list[int | None]) -> list[_Moment]:
    """Moments of one key that rest on a new row. rows: (key, input, row, event, created, new), in order of created."""
    inputs = [_Input(ttl) for ttl in ttls]
    times: list[int] = []
    new: set[tuple[int, int]] = {(number, at) for _, number, at, _, _, fresh in rows if fresh}
    found: list[_Moment] = []
    open_at: dict[int, int] = {}
    for created, together in groupby(rows, key=lambda row: row[4]):
        changed: dict[int, list[int]] = defaultdict(list)
        for _, number, at, event, _, _ in together:
            inputs[number].put(event, at)
            changed[number].append(event)
            place = bisect_right(times, event)
            if not place or times[place - 1] != event:
                times.insert(place, event)
        for moment in sorted(_affected(inputs, times, changed)):
            used = tuple(each.at(moment) for each in inputs)
            if moment in open_at:
                place = open_at.pop(moment)
                found[place] = replace(found[place], until_us=created)
            if any((number, at) in new for number, at in enumerate(used) if at is not None):
                open_at[moment] = len(found)
                found.append(_Moment(rows[0][0], moment, created, used))
    return found


def _affected(inputs: list[_Input], times: list[int], changed: dict[int, list[int]]) -> set[int]:
    """Moments of a key at which one of the changed rows is what its input was."""
    found: set[int] = set()
    for number, events in changed.items():
        of = inputs[number]
        for event in events:
            following = of.next_after(event)
            place = bisect_right(times, event) - 1
            while place < len(times) and (following is None or times[place] < following):
                if of.ttl_us is not None and times[place] - event > of.ttl_us:
                    break
                found.add(times[place])
                place += 1
    return found


def _transformed(view: FeatureView, transform: Compute, rows: pl.DataFrame) -> dict[str, pa.Array]:
    where = f"feature view {view.name!r}"
    try:
        made = transform(rows)
    except Exception as error:  # a user's function may raise anything
        raise InvalidRows(f"{where} fails on its inputs: {type(error).__name__}: {error}") from error
    if not isinstance(made, pl.DataFrame) or made.height != rows.height:
        raise InvalidRows(f"{where}: its transform must return a polars.DataFrame of {rows.height} rows")
    missing = [name for name in view.features if name not in made.columns]
    if missing:
        raise InvalidRows(f"{where}: its transform did not return {missing[0]!r}; it returned {made.columns}")
    return {f.name: to_arrow(f, made.get_column(f.name)) for f in view.schema}


def _standing(
    view: FeatureView, derived: pa.Table, until: pl.Series, stored: pa.Table, now: datetime
) -> pa.Table:
    """Leave out rows that are stored, and let the others follow the stored rows whose place they take.

    A row stands from when its inputs were known until they were known to be something else. What is stored of that time was
    computed without an input that came in late, or by another clock: the row becomes known now, after all of those and never
    before its inputs, or not at all if by then it no longer stands.
    """
    if not stored.num_rows:
        return derived
    moment = [*(key.name for key in view.join_keys), EVENT_TIMESTAMP]
    there = pl.DataFrame(stored.select(derived.column_names))
    rows = pl.DataFrame(derived).with_columns(until.cast(pl.Datetime("us", "UTC"))).with_row_index(_AT)
    rows = rows.join(there, on=derived.column_names, how="anti", nulls_equal=True, maintain_order="left")
    stands = pl.col(_UNTIL).fill_null(datetime.max.replace(tzinfo=UTC))
    replaced = (
        rows.select(_AT, *moment, CREATED_TIMESTAMP, _UNTIL)
        .join(there.select(*moment, pl.col(CREATED_TIMESTAMP).alias(_CREATED)), on=moment, nulls_equal=True)
        .filter(pl.col(_CREATED).is_between(CREATED_TIMESTAMP, stands, closed="left"))
        .group_by(_AT)
        .agg(pl.col(_CREATED).max() + MICROSECOND)
    )
    rows = rows.join(replaced, on=_AT, how="left", maintain_order="left")
    after = pl.max_horizontal(_CREATED, pl.lit(now, pl.Datetime("us", "UTC")))
    created = pl.when(pl.col(_CREATED).is_null()).then(CREATED_TIMESTAMP).otherwise(after)
    rows = rows.with_columns(created.alias(CREATED_TIMESTAMP)).filter(pl.col(CREATED_TIMESTAMP) < stands)
    return rows.select(derived.column_names).to_arrow().cast(derived.schema)


def reach(source: Derived) -> timedelta | None:
    """How far back a moment of a derived view sees; None without bound."""
    ttls = [stored_view(each).ttl for each in source.projections]
    bounded = [ttl for ttl in ttls if ttl is not None]
    return max(bounded) if len(bounded) == len(ttls) else None


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
        consumed_as(stored_view(each.of).stored_as): each.version.number + 1
        for each in reads
        if each.version is not None
    }
    return DerivedRows(derive(view, inputs, stored, transform=transform, now=now), consumed)


def _read(offline: OfflineStore, view: FeatureView, of: Projection) -> _Read:
    given = stored_view(of)
    version = offline.version(given)
    if version is None:
        return _Read(of, None, (), ())
    before = offline.consumed(view, consumed_as(given.stored_as)) - 1
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
