"""Declaration of a batch source: where rows come from, what their columns mean, and which of them are kept aside.

A source's rows land in a table of the store, each once, however often and from wherever it is loaded; views take them from
there. `semantics()` is the part that decides which rows those are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from zoneinfo import ZoneInfo

import pyarrow as pa

from featurestore.definitions.expectations import Expectation, refuse_unknown
from featurestore.definitions.fields import EVENT_TIMESTAMP, Field, check_name, refuse_doubles
from featurestore.errors import InvalidDefinition

Position = Mapping[str, Any]
"""How far a source was read, as JSON values that the reader gave."""
Secrets = Callable[[str], str]
"""Finds the value of a secret by its name, as in `$WAREHOUSE_URL`."""
KNOWN_AT = "known_at"


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a source that are read in one go: a file, or the result of a query.

    name: for people. position: what is known once all its rows are stored, to be merged into the source's position.
    batches: reads them, in tables of bounded size. Raises, while it is read: UnreadableSource.
    torn: lines that are no rows, found while it is read.
    """

    name: str
    position: Position
    batches: Callable[[], Iterator[pa.Table]] = field(compare=False)
    torn: list[str] = field(default_factory=list, compare=False)


class Reader(Protocol):
    """Reads one kind of source; knows nothing of what its columns mean."""

    def describe(self) -> dict[str, Any]:
        """Describe the reader as JSON, with a `type`; without the values of secrets."""

    def pieces(self, after: Position, columns: Sequence[str], secrets: Secrets) -> Iterator[Piece]:
        """Find what was not read at position `after`. columns: of the source, to read.

        Raises: UnreadableSource if it does not answer, or no longer has what was read before.
        """


@dataclass(frozen=True, slots=True)
class BatchSource:
    """Source of rows outside the store that is loaded again and again.

    reads: how it is read. schema: columns that are kept, by the names they get here; columns: names there, where they differ.
    timestamp: column there of the time at which a row's event happened, stored as `event_timestamp`; timezone: of times that
    name none (IANA name). known_at: column there of the time at which the row became known, by default the time of its load.
    unique: columns (as named here) that, with the event time, name one row: a row that comes again is stored once, and of
    corrected ones the last counts.
    expectations: a row out of an `InRange` is kept aside; a load against a `NullShare` or `Freshness` is refused.
    bad_share: of a load's rows that may be kept aside; above it the load is refused, as then the source has changed.
    Raises: InvalidDefinition.
    """

    name: str
    reads: Reader
    schema: Sequence[Field]
    timestamp: str
    timezone: str = ""
    known_at: str = ""
    columns: Mapping[str, str] = field(default_factory=dict, hash=False)
    unique: Sequence[str] = ()
    expectations: Sequence[Expectation] = ()
    bad_share: float = 0.05
    tags: Mapping[str, str] = field(default_factory=dict, hash=False)
    owner: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        check_name("batch source", self.name)
        for name in ("schema", "unique", "expectations"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("columns", "tags"):
            object.__setattr__(self, name, dict(getattr(self, name)))
        where, fields = f"batch source {self.name!r}", {each.name: each for each in self.schema}
        if not fields:
            raise InvalidDefinition(f"{where} has no columns; give it a schema")
        refuse_doubles(where, (each.name for each in self.schema))
        if KNOWN_AT in fields:
            raise InvalidDefinition(
                f"{where}: column {KNOWN_AT!r} is the store's own; say known_at=… or rename it"
            )
        for what, names in (("columns", self.columns), ("unique", self.unique)):
            unknown = sorted(set(names) - fields.keys())
            if unknown:
                raise InvalidDefinition(
                    f"{where}: {what} names {unknown[0]!r}, which its schema lacks: {list(fields)}"
                )
        refuse_unknown(where, tuple(self.expectations), fields)
        if not 0 <= self.bad_share <= 1:
            raise InvalidDefinition(f"{where}: bad_share is a share of 0 to 1, got {self.bad_share}")
        if self.timezone:
            try:
                ZoneInfo(self.timezone)
            except (ValueError, OSError, KeyError) as error:
                raise InvalidDefinition(
                    f"{where}: timezone {self.timezone!r} is not known; use one like 'Europe/Berlin'"
                ) from error

    @property
    def read_columns(self) -> dict[str, str]:
        """Names at the source of all columns that are read, by their names here."""
        named = {each.name: self.columns.get(each.name, each.name) for each in self.schema}
        times = {EVENT_TIMESTAMP: self.timestamp} | ({KNOWN_AT: self.known_at} if self.known_at else {})
        return named | times

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
        }

    def describe(self) -> dict[str, Any]:
        """Describe the whole definition as JSON."""
        people = {"tags": dict(self.tags), "owner": self.owner, "description": self.description}
        return self.semantics() | people
