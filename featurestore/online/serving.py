"""Serving of online features: packed rows of one round trip to columns, statuses and event times."""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from numbers import Integral, Real
from typing import Any

import pyarrow as pa

from toque.featurestore.definitions.casting import cast_column, column_of_values
from toque.featurestore.definitions.computed import ValueInputs, to_python
from toque.featurestore.definitions.dtypes import DType
from toque.featurestore.definitions.encoding import (
    ENCODING_VERSION,
    Decoded,
    RowLayout,
)
from toque.featurestore.definitions.fields import Field
from toque.featurestore.definitions.views import FeatureView, Projection
from toque.featurestore.errors import InvalidRows, UnreadableRow
from toque.featurestore.offline.retrieval import Retrieval, stored_view
from toque.featurestore.online.keys import RequestKeys
from toque.registry.times import FIRST_TIME, LAST_TIME, MICROSECOND, epoch_us, from_epoch_us

CLOCK_SKEW = timedelta(seconds=5)
"""How much later than its reader's clock a row's event time may be by its writer's: hosts' clocks differ by less."""
EntityRows = Sequence[Mapping[str, Any]]


class Status(StrEnum):
    """Outcome of reading one feature of one entity row."""

    PRESENT = "PRESENT"
    NOT_FOUND = "NOT_FOUND"
    NULL_VALUE = "NULL_VALUE"
    OUTSIDE_MAX_AGE = "OUTSIDE_MAX_AGE"


@dataclass(frozen=True, slots=True)
class _LookupResult:
    """Decoded rows of one lookup.

    columns: index of each output column in the rows; rows: values in schema order; states, events: one a row.
    """

    columns: Mapping[str, int]
    rows: list[tuple[Any, ...]]
    states: list[Status]
    events: list[int | None]

    def values(self, names: Iterable[str]) -> dict[str, list[Any]]:
        """Values of some output columns, by name."""
        at = self.columns
        if len(self.rows) == 1:  # as in most requests; takes a third of the time
            row = self.rows[0]
            return {name: [row[at[name]]] for name in names}
        if not self.rows:
            return {name: [] for name in names}
        fields = list(map(list, zip(*self.rows, strict=True)))
        return {name: fields[at[name]] for name in names}


class OnlineFeatures:
    """Features that answer one request, in the order of its entity rows."""

    def __init__(
        self,
        entity_rows: EntityRows,
        order: Sequence[str],
        results: Sequence[_LookupResult],
        computed: Mapping[str, list[Any]],
    ) -> None:
        self._entity_rows = entity_rows
        self._order = order
        self._results = results
        self._computed = computed

    def columns(self, names: Sequence[str] | None = None) -> dict[str, list[Any]]:
        """Values by column, None where missing; by default all features in the requested order."""
        order = self._order if names is None else names
        if not self._computed and len(self._results) == 1:
            return self._results[0].values(order)
        values = dict(self._computed)
        for part in self._results:
            values |= part.values(part.columns)
        return {name: values[name] for name in order}

    def to_dict(self) -> dict[str, list[Any]]:
        """Convert to the entity rows' columns, then the features, as Feast does."""
        names = dict.fromkeys(name for row in self._entity_rows for name in row)
        return {name: [row.get(name) for row in self._entity_rows] for name in names} | self.columns()

    @property
    def statuses(self) -> dict[str, list[Status]]:
        """Status of each value by feature column; a computed feature is PRESENT or NULL_VALUE."""
        states = {name: part.states for part in self._results for name in part.columns}
        present = [Status.PRESENT] * len(self._entity_rows)
        return {
            name: [
                Status.NULL_VALUE if state is Status.PRESENT and value is None else state
                for value, state in zip(values, states.get(name, present), strict=True)
            ]
            for name, values in self.columns().items()
        }

    @property
    def event_timestamps(self) -> dict[str, list[datetime | None]]:
        """Event time of each value by feature column; None where it was not found or was computed."""
        events = {name: part.events for part in self._results for name in part.columns}
        absent: list[int | None] = [None] * len(self._entity_rows)
        return {
            name: [None if e is None else from_epoch_us(e) for e in events.get(name, absent)]
            for name in self._order
        }


class Lookup:
    """Decodes one projection's packed rows, including rows of older versions of the view.

    layouts: of all versions of the view, the one in force included.
    """

    def __init__(self, project: str, lookup: Projection, layouts: Iterable[RowLayout]) -> None:
        view = stored_view(lookup)
        self.view = view
        self.keys = RequestKeys(project, view, lookup.key_columns)
        self._ttl_us = None if view.ttl is None else view.ttl // MICROSECOND
        current = RowLayout(view.schema)
        self._fingerprint = current.fingerprint
        self._layouts = {layout.fingerprint: layout for layout in (*layouts, current)}
        at = (current.names.index(name) for name in lookup.features)
        self._columns = dict(zip(lookup.columns, at, strict=True))
        self._current = current
        self._nulls = (None,) * len(current.names)

    def decode(
        self, values: Sequence[bytes | None], *, now_us: int, until_us: int | None = None
    ) -> _LookupResult:
        """Decode packed rows as of a time. until_us: up to which event time they are visible, by default that."""
        until = now_us if until_us is None else until_us
        rows: list[tuple[Any, ...]] = []
        states: list[Status] = []
        events: list[int | None] = []
        for value in values:
            event, row, state = self._row(value, now_us, until)
            rows.append(row)
            states.append(state)
            events.append(event)
        return _LookupResult(self._columns, rows, states, events)

    def _row(
        self, value: bytes | None, now_us: int, until_us: int
    ) -> tuple[int | None, tuple[Any, ...], Status]:
        """Decode one row to event time, values in the order of the current schema, and status."""
        if value is None:
            return None, self._nulls, Status.NOT_FOUND
        event, _, row = self.unpack(value)
        if event > until_us:  # not visible yet
            return None, self._nulls, Status.NOT_FOUND
        if self._ttl_us is not None and now_us - event > self._ttl_us:
            return event, self._nulls, Status.OUTSIDE_MAX_AGE
        return event, row, Status.PRESENT

    def unpack(self, value: bytes) -> Decoded:
        """Unpack a row of any version to event time, created time and the values of the current schema.

        Raises: UnreadableRow.
        """
        fingerprint = int.from_bytes(value[1:5], "little")
        layout = self._layouts.get(fingerprint)
        if value[0] != ENCODING_VERSION or layout is None:
            msg = (
                f"feature view {self.view.name!r}: a row has encoding {value[0]} and layout {fingerprint:08x}, which no "
                "applied version has; apply the definitions that wrote it, or materialize again"
            )
            raise UnreadableRow(msg)
        decoded = layout.decode(value)
        if fingerprint == self._fingerprint:
            return decoded
        event, created, old = decoded
        found = dict(zip(layout.names, old, strict=True))
        return event, created, tuple(found.get(name) for name in self._current.names)


@dataclass(frozen=True, slots=True)
class Request:
    """Planned online read, with a `Lookup` for each lookup of the retrieval."""

    retrieval: Retrieval
    lookups: tuple[Lookup, ...]

    def keys(self, entity_rows: EntityRows) -> list[bytes]:
        """Build the Redis keys of all lookups and rows, lookup by lookup.

        Raises: InvalidRows.
        """
        return [key for lookup in self.lookups for key in lookup.keys.of(entity_rows)]

    def answer(
        self,
        entity_rows: EntityRows,
        values: Sequence[bytes | None],
        *,
        now: datetime,
        ahead: timedelta = timedelta(0),
    ) -> OnlineFeatures:
        """Decode the packed rows of `keys` to features as of `now`; ahead: how much later a row's event time may be."""
        size, now_us, until_us = len(entity_rows), epoch_us(now), epoch_us(now + ahead)
        results = [
            lookup.decode(values[i * size : (i + 1) * size], now_us=now_us, until_us=until_us)
            for i, lookup in enumerate(self.lookups)
        ]
        computed = self._computed(entity_rows, results) if self.retrieval.computed else {}
        return OnlineFeatures(entity_rows, self.retrieval.columns, results, computed)

    def _computed(self, entity_rows: EntityRows, results: Sequence[_LookupResult]) -> dict[str, list[Any]]:
        dtypes = {name: f.dtype for lookup in self.retrieval.lookups for name, f in lookup.columns.items()}
        values = {name: column for part in results for name, column in part.values(part.columns).items()}
        for f in self.retrieval.request:
            dtypes[f.name] = f.dtype
            values[f.name] = [_request_value(f, number, row) for number, row in enumerate(entity_rows)]
        made = self.retrieval.compute(ValueInputs(values, dtypes), rows=len(entity_rows))
        return {name: to_python(f, values) for name, (f, values) in made.items()}


def _request_value(field: Field, number: int, row: Mapping[str, Any]) -> Any:
    """Get and check a value sent with the request; a time may be ISO 8601 text, as JSON has no times."""
    if field.name not in row:
        raise InvalidRows(f"entity row {number}: request value {field.name!r} is missing; got {sorted(row)}")
    value = row[field.name]
    if not isinstance(field.dtype, DType):
        return _composite_value(field, number, value)
    if field.dtype is DType.UNIX_TIMESTAMP and isinstance(value, str):
        value = _time(value)
    if value is not None and not _fits(field.dtype, value):
        msg = f"entity row {number}: request value {field.name!r} must be {field.dtype}, got {row[field.name]!r}"
        raise InvalidRows(msg)
    return value


def _fits(dtype: DType, value: Any) -> bool:
    if not isinstance(value, _REQUEST_TYPES[dtype]) or isinstance(value, bool) is not (dtype is DType.BOOL):
        return False
    if isinstance(value, datetime):
        return value.tzinfo is not None and FIRST_TIME <= value <= LAST_TIME
    if dtype not in _SPANS:
        return True
    least, most = _SPANS[dtype]
    return not (value < least or value > most) or value in (math.inf, -math.inf)


def _composite_value(field: Field, number: int, value: Any) -> Any:
    where = f"entity row {number}"
    try:
        given = pa.chunked_array([column_of_values([value])])
    except (pa.ArrowException, OverflowError) as error:
        raise InvalidRows(
            f"{where}: request value {field.name!r} must be {field.dtype}, got {value!r:.80}: {error}"
        ) from error
    return cast_column(where, field, given)[0].as_py(maps_as_pydicts="strict")


def _time(text: str) -> datetime | str:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return text


_REQUEST_TYPES: dict[DType, Any] = {
    DType.FLOAT64: Real,
    DType.FLOAT32: Real,
    DType.INT64: Integral,
    DType.INT32: Integral,
    DType.BOOL: bool,
    DType.STRING: str,
    DType.UNIX_TIMESTAMP: datetime,
}
_FLOAT32_MAX = math.nextafter((2 - 2**-24) * 2.0**127, 0)  # the last that rounds to a float32
_SPANS: dict[DType, tuple[float, float]] = {
    DType.FLOAT64: (-sys.float_info.max, sys.float_info.max),
    DType.FLOAT32: (-_FLOAT32_MAX, _FLOAT32_MAX),
    DType.INT64: (-(2**63), 2**63 - 1),
    DType.INT32: (-(2**31), 2**31 - 1),
}


def lookups_of(
    project: str, retrieval: Retrieval, layouts: Mapping[str, Sequence[RowLayout]]
) -> tuple[Lookup, ...]:
    """Build a decoder for each lookup; layouts: of all versions of each view, by its name."""
    return tuple(Lookup(project, p, layouts.get(p.view.name, ())) for p in retrieval.lookups if _is_stored(p))


def _is_stored(lookup: Projection) -> bool:
    return isinstance(lookup.view, FeatureView)
