"""Declaration of a stream source: a log of events in partitions, what their fields mean, and which are kept aside.

The log gives each event a position in its partition and the time at which it took it. From both follows when the
event became known (`known_at`), the same for whoever reads it again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from toque.featurestore.definitions.batch_source import (
    KNOWN_AT,
    Secrets,
    check_columns,
    check_timezone,
    secrets_in,
)
from toque.featurestore.definitions.expectations import Expectation, InRange, refuse_unknown
from toque.featurestore.definitions.fields import EVENT_TIMESTAMP, Field, check_name
from toque.featurestore.errors import InvalidDefinition
from toque.registry.times import MICROSECOND

PARTITION, POSITION = "stream_partition", "stream_position"
"""Columns of stored events: where the event stands in the log."""
ASIDE_REASON, ASIDE_ROW = "stream_reason", "stream_row"
"""Columns of messages that were kept aside, which are stored among the events: why, and the message. Null for events."""
CLOCK_TOLERANCE = timedelta(minutes=5)
"""How far a clock of a producer may be ahead before its events are kept aside."""
_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}


class Unread(bytes):
    """Message that its schema does not read, as it was sent; it is kept aside. reason: why."""

    reason: str

    @classmethod
    def of(cls, value: bytes, reason: str) -> Unread:
        """Mark a message with the reason."""
        made = cls(value)
        made.reason = reason
        return made


@dataclass(slots=True)
class Messages:
    """Messages of some partitions as parallel lists, each partition's in order.

    positions: of each in its partition. taken_us: when the log took it, microseconds since 1970. values: bytes as sent.
    """

    partitions: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    taken_us: list[int] = field(default_factory=list)
    values: list[bytes | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.positions)

    def add(self, partition: int, position: int, taken_us: int, value: bytes | None) -> None:
        """Add a message to the lists."""
        self.partitions.append(partition)
        self.positions.append(position)
        self.taken_us.append(taken_us)
        self.values.append(value)


class Connection(Protocol):
    """Open connection to a log. A position is that of the next message to read. Raises throughout: UnreadableSource."""

    def partitions(self) -> list[int]:
        """List the partitions that the log has now."""

    def assign(self, positions: Mapping[int, int | None]) -> None:
        """Choose the partitions to read on, each from a position; None: from the oldest message that the log has."""

    def poll(self, *, timeout_s: float, limit: int) -> Messages:
        """Read up to about `limit` messages of the chosen partitions; waits for the first one up to `timeout_s`."""

    def lag(self, positions: Mapping[int, int | None]) -> dict[int, int]:
        """Count the messages of each partition from a position on."""

    def position_at(self, partition: int, at: datetime) -> int:
        """Find the position of the first message that the log took at or after a time."""

    def close(self) -> None:
        """End the connection to the log."""


class StreamReader(Protocol):
    """Reads one kind of log; knows nothing of what its events mean."""

    def describe(self) -> dict[str, Any]:
        """Describe the reader as JSON, with a `type`; without the values of secrets."""

    @property
    def secret_names(self) -> tuple[str, ...]:
        """Names of the secrets that a connection needs."""

    def connect(self, secrets: Secrets) -> Connection:
        """Connect to the log by its client. Raises: UnreadableSource."""


@dataclass(frozen=True, slots=True)
class StreamSource:
    """Source of events, one object a message, that is followed as they come.

    reads: the log. schema: fields that are kept, by the names they get here; columns: names there, where they differ.
    timestamp: field there of the time at which the event happened: ISO 8601 text (in `timezone` if it names none) or a
    number in `timestamp_unit` since 1970.
    unique: fields (as named here) that, with those of `partitioned_by` and the event time, name one event: of one sent again, or
    corrected, the last counts from when it became known.
    partitioned_by: fields by which the producers choose the partition; views with windows must have them all as join keys.
    Empty for a log of one partition.
    allowed_lateness: how far an event may lie behind the watermark, the greatest event time before it in its partition; later
    ones are kept aside. None: however late.
    schemas: registry by whose schemas the messages are written (Avro or JSON); None: each is JSON by itself.
    expectations: events out of an `InRange` are kept aside. commit_every: from one commit of the offline table to the next.
    generation: of its table, which `apply` counts up when a field gets another meaning; leave it out.
    Raises: InvalidDefinition.
    """

    name: str
    reads: StreamReader
    schema: Sequence[Field]
    timestamp: str
    timezone: str = "UTC"
    timestamp_unit: str = "ms"
    columns: Mapping[str, str] = field(default_factory=dict, hash=False)
    unique: Sequence[str] = ()
    partitioned_by: Sequence[str] = ()
    allowed_lateness: timedelta | None = None
    expectations: Sequence[Expectation] = ()
    commit_every: timedelta = timedelta(seconds=5)
    schemas: SchemaRegistry | None = None
    tags: Mapping[str, str] = field(default_factory=dict, hash=False)
    owner: str = ""
    description: str = ""
    generation: int = field(default=1, compare=False)

    def __post_init__(self) -> None:
        check_name("stream source", self.name)
        for name in ("schema", "unique", "partitioned_by", "expectations"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("columns", "tags"):
            object.__setattr__(self, name, dict(getattr(self, name)))
        where, fields = f"stream source {self.name!r}", {each.name: each for each in self.schema}
        check_columns(where, self.schema, columns=self.columns, unique=self.unique)
        check_columns(where, self.schema, columns={}, unique=self.partitioned_by)
        check_timezone(where, self.timezone)
        refuse_unknown(where, tuple(self.expectations), fields)
        own = sorted({PARTITION, POSITION, ASIDE_REASON, ASIDE_ROW} & fields.keys())
        if own:
            raise InvalidDefinition(f"{where}: column {own[0]!r} is the store's own; rename it")
        for each in self.expectations:
            if not isinstance(each, InRange):
                raise InvalidDefinition(
                    f"{where}: {type(each).__name__} judges batches, and a stream has none; only InRange can stand here"
                )
        if self.timestamp_unit not in _UNITS:
            raise InvalidDefinition(
                f"{where}: timestamp_unit is one of {sorted(_UNITS)}, got {self.timestamp_unit!r}"
            )
        if self.commit_every <= timedelta(0):
            raise InvalidDefinition(f"{where}: commit_every must be positive, got {self.commit_every}")
        if self.allowed_lateness is not None and self.allowed_lateness < timedelta(0):
            raise InvalidDefinition(
                f"{where}: allowed_lateness must not be negative, got {self.allowed_lateness}"
            )

    @property
    def stored_as(self) -> str:
        """Name under which its events are stored; a new one in each generation, so that no two meanings share a table."""
        return self.name if self.generation == 1 else f"{self.name}.{self.generation}"

    @property
    def read_columns(self) -> dict[str, str]:
        """Names of all fields that are read, by their names here; the log itself says when an event became known."""
        named = {each.name: self.columns.get(each.name, each.name) for each in self.schema}
        return named | {EVENT_TIMESTAMP: self.timestamp, KNOWN_AT: KNOWN_AT}

    @property
    def event_name(self) -> tuple[str, ...]:
        """Columns that name an event, with its time: `unique`, and what chooses the partition; empty without `unique`.

        Events of different partitions have no order in which one could replace the other, and no consumer sees both.
        """
        return tuple(dict.fromkeys([*self.unique, *self.partitioned_by])) if self.unique else ()

    @property
    def secret_names(self) -> tuple[str, ...]:
        """Names of the secrets that its log and its schema registry need."""
        return (*self.reads.secret_names, *(self.schemas.secret_names if self.schemas else ()))

    @property
    def unit_us(self) -> int:
        """Microseconds of one unit of a time that is given as a number."""
        return _UNITS[self.timestamp_unit]

    def semantics(self) -> dict[str, Any]:
        """Describe as JSON what decides which events are stored, and when they count."""
        late = self.allowed_lateness
        return {
            "kind": "stream_source",
            "name": self.name,
            "reads": self.reads.describe(),
            "schema": [each.describe() for each in self.schema],
            "timestamp": self.timestamp,
            "timezone": self.timezone,
            "timestamp_unit": self.timestamp_unit,
            "columns": dict(self.columns),
            "unique": list(self.unique),
            "partitioned_by": list(self.partitioned_by),
            "allowed_lateness_us": None if late is None else late // MICROSECOND,
            "expectations": [each.describe() for each in self.expectations],
            "commit_every_us": self.commit_every // MICROSECOND,
            **({} if self.schemas is None else {"schemas": self.schemas.describe()}),
        }

    def describe(self) -> dict[str, Any]:
        """Describe the whole definition as JSON."""
        people = {"tags": dict(self.tags), "owner": self.owner, "description": self.description}
        return self.semantics() | people | ({} if self.generation == 1 else {"generation": self.generation})


@dataclass(frozen=True, slots=True)
class SchemaRegistry:
    """Schema registry with Confluent's REST interface; each message begins with a zero byte and the number of its schema.

    url: `https://…`, or `$NAME`, a secret that holds it. login: `$NAME`, a secret that holds `user:password`; empty for a
    registry that asks for none.
    Raises: InvalidDefinition.
    """

    url: str
    login: str = ""

    def __post_init__(self) -> None:
        if not re.match(r"https?://[^/@]+|\$\w+$", self.url) or "@" in self.url:
            raise InvalidDefinition(
                f"SchemaRegistry: url is like https://registry:8081, without user and password, or names a secret as $REGISTRY; "
                f"got {self.url.rpartition('@')[2]!r}"
            )
        if self.login and not re.match(r"\$\w+$", self.login):
            raise InvalidDefinition(
                "SchemaRegistry: login holds a password; name a secret that holds user:password, as login='$REGISTRY_LOGIN'"
            )

    def describe(self) -> dict[str, Any]:
        """Describe the registry as JSON."""
        return {"url": self.url, "login": self.login}

    @property
    def secret_names(self) -> tuple[str, ...]:
        """Names of the secrets that a request needs."""
        return tuple(secrets_in(self.url, self.login))
