"""Declaration of a batch source: where rows come from, what their columns mean, and which of them are kept aside.

A source's rows land in a table of the store, each once, however often and from wherever it is loaded; views take them from
there. `semantics()` is the part that decides which rows those are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc

from toque.featurestore.definitions.dtypes import DType
from toque.featurestore.definitions.expectations import Expectation, refuse_unknown
from toque.featurestore.definitions.fields import EVENT_TIMESTAMP, Field, check_name, refuse_doubles
from toque.featurestore.errors import InvalidDefinition

Position = Mapping[str, Any]
"""How far a source was read, as JSON values that the reader gave."""
Secrets = Callable[[str], str]
"""Finds the value of a secret by its name, as in `$WAREHOUSE_URL`."""
KNOWN_AT = "known_at"
UNMARKED = "has no value, so that the row is beyond no watermark"
"""Part of the reason of rows of a table without a value in the column by which it is read on."""
_ZONES_DIFFER = timedelta(days=1)  # no zone is that far from UTC


def secrets_in(*settings: str) -> list[str]:
    """List the names of the secrets that settings take, each as `$NAME`."""
    return [setting[1:] for setting in settings if setting.startswith("$")]


def revealed(setting: str, secrets: Secrets) -> str:
    """Give the value of a setting: of `$NAME` that of the secret."""
    return secrets(setting[1:]) if str(setting).startswith("$") else setting  # a number may stand unquoted


@dataclass(frozen=True, slots=True)
class TimeRange:
    """Range of event times `start <= time < end`, of a backfill; column: their name at the source."""

    column: str
    start: datetime
    end: datetime

    def bounds(self, *, has_zone: bool) -> tuple[datetime, datetime]:
        """Least and greatest time that a row of the range may have there; of times without a zone a day is added to either end."""
        if has_zone:
            return self.start, self.end
        start, end = (each.astimezone(UTC).replace(tzinfo=None) for each in (self.start, self.end))
        return start - _ZONES_DIFFER, end + _ZONES_DIFFER

    def condition(self, schema: pa.Schema) -> pc.Expression | None:
        """Condition that all rows of the range meet, for a reader that takes one; None for times of another type."""
        dtype = schema.field(self.column).type
        if not pa.types.is_timestamp(dtype):
            return None
        low, high = self.bounds(has_zone=dtype.tz is not None)
        unit = pa.timestamp("us", dtype.tz)
        return (pc.field(self.column) >= pa.scalar(low, unit)) & (
            pc.field(self.column) <= pa.scalar(high, unit)
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a source that are read in one go: a file, or the result of a query.

    name: for people. position: what is known once all its rows are stored, to be merged into the source's position.
    batches: reads them, in tables of bounded size. Raises, while it is read: UnreadableSource.
    torn: lines that are no rows, or rows that cannot be read on, with the reason `tears`; removed: numbers of rows that went at the source since, both found while it is read.
    again: whether its rows were read before, but for some that may have come since, which only `unique` tells apart; more: how many
    have come at least. waiting: what of it is left for a later load, and why.
    """

    name: str
    position: Position
    batches: Callable[[], Iterator[pa.Table]] = field(compare=False)
    torn: list[str] = field(default_factory=list, compare=False)
    removed: list[int] = field(default_factory=list, compare=False)
    again: bool = False
    more: int = 0
    waiting: str = ""
    tears: str = "the line has more or fewer values than there are columns"


class Reader(Protocol):
    """Reads one kind of source; knows nothing of what its columns mean."""

    def describe(self) -> dict[str, Any]:
        """Describe the reader as JSON, with a `type`; without the values of secrets."""

    def pieces(
        self, after: Position, columns: Sequence[str], secrets: Secrets, within: TimeRange | None = None
    ) -> Iterator[Piece]:
        """Find what was not read at position `after`.

        columns: of the source, to read. within: of event times; the reader may leave out others, and need not.
        Raises: UnreadableSource if it does not answer, or no longer has what was read before.
        """


@dataclass(frozen=True, slots=True)
class BatchSource:
    """Source of rows outside the store that is loaded again and again.

    reads: how it is read. schema: columns that are kept, by the names they get here; columns: names there, where they differ.
    timestamp: column there of the time at which a row's event happened, stored as `event_timestamp`; empty: the rows carry no
    time, and happened in the second before they were loaded, in an order that is not the source's. timezone: of times that
    name none (IANA name). row_number: column of the schema that is not there, in which rows are numbered from 0 in the order in which
    they are read, over all loads; empty: none. known_at: column there of the time at which the row became known, by default the time of its load.
    unique: columns (as named here) that, with the event time, name one row: a row that comes again is stored once, and of
    corrected ones the last counts.
    expectations: a row out of an `InRange` is kept aside; a load against a `NullShare` or `Freshness` is refused.
    bad_share: of a load's rows that may be kept aside; above it the load is refused, as then the source has changed.
    generation: of its table, which `apply` counts up when a column gets another meaning; leave it out.
    Raises: InvalidDefinition.
    """

    name: str
    reads: Reader
    schema: Sequence[Field]
    timestamp: str = ""
    timezone: str = ""
    known_at: str = ""
    columns: Mapping[str, str] = field(default_factory=dict, hash=False)
    unique: Sequence[str] = ()
    expectations: Sequence[Expectation] = ()
    bad_share: float = 0.05
    tags: Mapping[str, str] = field(default_factory=dict, hash=False)
    owner: str = ""
    description: str = ""
    row_number: str = ""
    generation: int = field(default=1, compare=False)

    def __post_init__(self) -> None:
        check_name("batch source", self.name)
        for name in ("schema", "unique", "expectations"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("columns", "tags"):
            object.__setattr__(self, name, dict(getattr(self, name)))
        where, fields = f"batch source {self.name!r}", {each.name: each for each in self.schema}
        check_columns(where, self.schema, columns=self.columns, unique=self.unique)
        refuse_unknown(where, tuple(self.expectations), fields)
        if self.row_number and (
            self.row_number not in fields or fields[self.row_number].dtype is not DType.INT64
        ):
            raise InvalidDefinition(
                f"{where}: row_number={self.row_number!r} must be an Int64 field of its schema"
            )
        if not 0 <= self.bad_share <= 1:
            raise InvalidDefinition(f"{where}: bad_share is a share of 0 to 1, got {self.bad_share}")
        if self.timezone:
            check_timezone(where, self.timezone)

    @property
    def stored_as(self) -> str:
        """Name under which its rows are stored; a new one in each generation, so that no two meanings share a table."""
        return self.name if self.generation == 1 else f"{self.name}.{self.generation}"

    @property
    def read_columns(self) -> dict[str, str]:
        """Names at the source of all columns that are read, by their names here."""
        named = {
            each.name: self.columns.get(each.name, each.name)
            for each in self.schema
            if each.name != self.row_number
        }
        times = {EVENT_TIMESTAMP: self.timestamp, KNOWN_AT: self.known_at}
        return named | {here: there for here, there in times.items() if there}

    def semantics(self) -> dict[str, Any]:
        """Describe as JSON what decides which rows are stored."""
        return {
            "kind": "batch_source",
            "name": self.name,
            "reads": self.reads.describe(),
            "schema": [each.describe() for each in self.schema],
            "timestamp": self.timestamp,
            "timezone": self.timezone,
            "known_at": self.known_at,
            "columns": dict(self.columns),
            "unique": list(self.unique),
            "expectations": [each.describe() for each in self.expectations],
            "bad_share": self.bad_share,
            **({"row_number": self.row_number} if self.row_number else {}),
        }

    def describe(self) -> dict[str, Any]:
        """Describe the whole definition as JSON."""
        people = {"tags": dict(self.tags), "owner": self.owner, "description": self.description}
        return self.semantics() | people | ({} if self.generation == 1 else {"generation": self.generation})


def check_columns(
    where: str, schema: Sequence[Field], *, columns: Mapping[str, str], unique: Sequence[str]
) -> None:
    """Check the columns that a source declares, and those that name a row. Raises: InvalidDefinition."""
    fields = {each.name for each in schema}
    if not fields:
        raise InvalidDefinition(f"{where} has no columns; give it a schema")
    refuse_doubles(where, (each.name for each in schema))
    if KNOWN_AT in fields:
        raise InvalidDefinition(
            f"{where}: column {KNOWN_AT!r} is the store's own; say known_at=… or rename it"
        )
    for what, names in (("columns", columns), ("unique", unique)):
        unknown = sorted(set(names) - fields)
        if unknown:
            known = [each.name for each in schema]
            raise InvalidDefinition(f"{where}: {what} names {unknown[0]!r}, which its schema lacks: {known}")


def check_timezone(where: str, timezone: str) -> None:
    """Check that an IANA name of a time zone is known. Raises: InvalidDefinition."""
    try:
        ZoneInfo(timezone)
    except (ValueError, OSError, KeyError) as error:
        raise InvalidDefinition(
            f"{where}: timezone {timezone!r} is not known; use one like 'Europe/Berlin'"
        ) from error
