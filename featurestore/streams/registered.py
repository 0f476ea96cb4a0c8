"""Messages that were written by schemas of a registry, as JSON: a zero byte, the number of the schema, and the value.

A schema never changes, so each is asked for once and kept in the store. A message by one that is not known waits with
its stream while the registry does not answer; those by schemas that are known go on.

Source: Apache Avro 1.12, Specification, "Binary Encoding" and "Logical Types".
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeAlias

import httpx
import orjson

from toque.featurestore.definitions.batch_source import Secrets, revealed
from toque.featurestore.definitions.stream_source import Connection, Messages, SchemaRegistry, Unread
from toque.featurestore.errors import UnreadableSource
from toque.featurestore.streams.table import StreamTable
from toque.registry.store import ObjectStore

PATIENCE_S = 5.0  # for an answer of the registry
_ZERO, _HEAD_BYTES = 0, 5
_UNKNOWN = 40403  # the registry's code for a number under which it has no schema
_ACCEPTED = {"Accept": "application/vnd.schemaregistry.v1+json, application/json"}
Read: TypeAlias = Callable[[bytes, int], tuple[Any, int]]
"""Reads a value that begins at a place; returns it, and the place after it."""

_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - of local times, which have no zone
_LOGICAL: Mapping[str, Callable[[int], Any]] = {
    "timestamp-millis": lambda at: (_EPOCH + timedelta(milliseconds=at)).replace(tzinfo=UTC),
    "timestamp-micros": lambda at: (_EPOCH + timedelta(microseconds=at)).replace(tzinfo=UTC),
    "local-timestamp-millis": lambda at: _EPOCH + timedelta(milliseconds=at),
    "local-timestamp-micros": lambda at: _EPOCH + timedelta(microseconds=at),
    "date": lambda day: date(1970, 1, 1) + timedelta(days=day),
}


@dataclass
class Schemas:
    """Functions that make JSON of messages, by the number of the schema; what the registry said is kept in a store."""

    url: str
    login: tuple[str, str] | None
    store: ObjectStore
    _readers: dict[int, Callable[[bytes], bytes] | str] = field(default_factory=dict)

    @classmethod
    def of(cls, declared: SchemaRegistry, store: ObjectStore, secrets: Secrets) -> Schemas:
        """Open a registry that was declared; nothing is asked yet."""
        user, _, password = revealed(declared.login, secrets).partition(":")
        url = revealed(declared.url, secrets).rstrip("/")
        return cls(url, (user, password) if user else None, store)

    def json_of(self, value: bytes | None) -> bytes | None:
        """Make JSON of a message, or say why not. Raises: UnreadableSource while the registry does not answer."""
        if value is None:
            return None
        if len(value) < _HEAD_BYTES or value[0] != _ZERO:
            return Unread.of(value, "the message does not begin with a zero byte and the number of a schema")
        number = int.from_bytes(value[1:_HEAD_BYTES], "big")
        if number not in self._readers:
            self._readers[number] = self._reader(number)
        reader = self._readers[number]
        if isinstance(reader, str):
            return Unread.of(value, reader)
        try:
            return reader(value[_HEAD_BYTES:])
        except ValueError as error:
            return Unread.of(value, f"the message is not of schema {number}: {error}")

    def _reader(self, number: int) -> Callable[[bytes], bytes] | str:
        """Make the function for messages of a schema, or say why there is none. Raises: UnreadableSource."""
        said = self._said(number)
        if said is None:
            return f"the schema registry knows no schema {number}"
        try:
            found = orjson.loads(said)
            kind, refers = found.get("schemaType", "AVRO"), bool(found.get("references"))
            if kind == "JSON":
                return bytes
            if kind == "AVRO" and not refers:
                return _avro_json(orjson.loads(found["schema"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return f"schema {number} cannot be read: {error!r}"
        more = " that refers to others" if refers else ""
        return f"schema {number} is of type {kind}{more}; AVRO without references and JSON are read"

    def _said(self, number: int) -> bytes | None:
        """Find what the registry says of a schema, None if it knows none of the number. Raises: UnreadableSource."""
        key = f"schema-registries/{hashlib.sha256(self.url.encode()).hexdigest()[:16]}/{number}.json"
        kept = self.store.find(key)
        if kept is not None:
            return kept
        said = self._get(f"schemas/ids/{number}")
        found = _object(said)
        if said.status_code == httpx.codes.OK and "schema" in found:
            self.store.put(key, said.content)
            return said.content
        if said.status_code == httpx.codes.NOT_FOUND and found.get("error_code") == _UNKNOWN:
            return None
        raise self._away(f"answers {said.status_code} {said.reason_phrase} for schema {number}")

    def require_answer(self) -> None:
        """Check that the registry answers. Raises: UnreadableSource."""
        said = self._get("schemas/types")
        if said.status_code >= httpx.codes.INTERNAL_SERVER_ERROR or said.status_code in (401, 403):
            raise self._away(f"answers {said.status_code} {said.reason_phrase}")

    def _get(self, path: str) -> httpx.Response:
        try:
            return httpx.get(f"{self.url}/{path}", auth=self.login, headers=_ACCEPTED, timeout=PATIENCE_S)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._away(f"does not answer: {error}") from error

    def _away(self, what: str) -> UnreadableSource:
        shown = re.sub(r"//[^/@]*@", "//", self.url)  # a secret may hold a password, too
        return UnreadableSource(
            f"schema registry {shown} {what}; messages by schemas that are not known yet wait until it does"
        )


def _object(said: httpx.Response) -> dict[str, Any]:
    """Read an answer that should be a JSON object; another, such as a proxy's page, is empty."""
    try:
        found = orjson.loads(said.content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _avro_json(schema: Any) -> Callable[[bytes], bytes]:
    read = reader_of(schema)
    return lambda data: orjson.dumps(read(data), default=str)  # decimals as text


@dataclass
class RegisteredConnection:
    """Connection to a log whose messages were written by schemas of a registry; it gives them as JSON."""

    log: Connection
    schemas: Schemas

    def partitions(self) -> list[int]:
        """List the partitions that the log has now."""
        return self.log.partitions()

    def assign(self, positions: Mapping[int, int | None]) -> None:
        """Choose the partitions to read on, each from a position."""
        self.log.assign(positions)

    def poll(self, *, timeout_s: float, limit: int) -> Messages:
        """Read messages, and give them as JSON. Raises: UnreadableSource if the log or the registry does not answer; what was read is lost then."""
        found = self.log.poll(timeout_s=timeout_s, limit=limit)
        found.values = [self.schemas.json_of(each) for each in found.values]
        return found

    def lag(self, positions: Mapping[int, int | None]) -> dict[int, int]:
        """Count the messages of each partition from a position on."""
        return self.log.lag(positions)

    def position_at(self, partition: int, at: datetime) -> int:
        """Find the position of the first message that the log took at or after a time."""
        return self.log.position_at(partition, at)

    def close(self) -> None:
        """End the connection to the log."""
        self.log.close()


def reader_of(schema: Any) -> Callable[[bytes], Any]:
    """Make a function that reads messages of a schema, given as parsed JSON.

    Times become datetimes and dates, decimals `Decimal`, bytes text of one character a byte. The function raises ValueError for a
    message that is not of the schema.
    Raises: ValueError for a schema that names what it does not define, or another type than Avro's.
    """
    read = _Types().read_of(schema)

    def message(data: bytes) -> Any:
        try:
            value, end = read(data, 0)
        except (IndexError, struct.error, OverflowError, RecursionError, ArithmeticError) as error:
            raise ValueError(f"it ends early, or is of another schema: {error}") from error
        if end != len(data):
            raise ValueError(f"{len(data) - end} bytes are left after it")
        return value

    return message


class _Types:
    """Named types of one schema, by full name, each with its function."""

    def __init__(self) -> None:
        self._named: dict[str, Read] = {}

    def read_of(self, schema: Any, space: str = "") -> Read:
        """Make the function of a type. space: namespace of names without one."""
        if isinstance(schema, list):
            return _union([self.read_of(each, space) for each in schema])
        if isinstance(schema, str):
            return _PRIMITIVES[schema] if schema in _PRIMITIVES else self._reference(schema, space)
        if not isinstance(schema, dict) or "type" not in schema:
            raise ValueError(f"{schema!r} is no Avro schema")
        return self._read_of_object(schema, space)

    def _read_of_object(self, schema: Mapping[str, Any], space: str) -> Read:
        match schema["type"]:
            case "record" | "error":
                read = self._record(schema, space)
            case "array":
                read = _array(self.read_of(schema["items"], space))
            case "map":
                read = _map(self.read_of(schema["values"], space))
            case "enum":
                read = self._named[_full_name(schema, space)] = _enum(schema["symbols"])
            case "fixed":
                read = self._named[_full_name(schema, space)] = _logical(schema, _fixed(schema["size"]))
            case kind:
                read = _logical(schema, self.read_of(kind, space))
        return read

    def _reference(self, name: str, space: str) -> Read:
        full = name if "." in name or not space else f"{space}.{name}"
        if full not in self._named:
            raise ValueError(f"type {full!r} is not defined in the schema")
        return self._named[full]

    def _record(self, schema: Mapping[str, Any], space: str) -> Read:
        full, fields = _full_name(schema, space), list[tuple[str, Read]]()

        def read(data: bytes, at: int) -> tuple[Any, int]:
            found = {}
            for name, each in fields:
                found[name], at = each(data, at)
            return found, at

        self._named[full] = read  # before its fields, which may be of it
        inner = full.rpartition(".")[0]
        fields += [(each["name"], self.read_of(each["type"], inner)) for each in schema["fields"]]
        return read


def _full_name(schema: Mapping[str, Any], space: str) -> str:
    name, own = schema["name"], schema.get("namespace", space)
    return name if "." in name or not own else f"{own}.{name}"


def _long(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the last byte's mark
            return (value >> 1) ^ -(value & 1), at
        shift += 7
        if shift > 63:  # noqa: PLR2004 - bits of a long
            raise ValueError("a number has more than ten bytes")


def _boolean(data: bytes, at: int) -> tuple[bool, int]:
    if data[at] > 1:
        raise ValueError(f"{data[at]} is no boolean")
    return data[at] == 1, at + 1


def _float(data: bytes, at: int) -> tuple[float, int]:
    return struct.unpack_from("<f", data, at)[0], at + 4


def _double(data: bytes, at: int) -> tuple[float, int]:
    return struct.unpack_from("<d", data, at)[0], at + 8


def _raw(data: bytes, at: int) -> tuple[bytes, int]:
    size, at = _long(data, at)
    if not 0 <= size <= len(data) - at:
        raise ValueError(f"{size} bytes are said, {len(data) - at} are there")
    return data[at : at + size], at + size


def _string(data: bytes, at: int) -> tuple[str, int]:
    value, at = _raw(data, at)
    return value.decode(), at


def _bytes(data: bytes, at: int) -> tuple[str, int]:
    value, at = _raw(data, at)
    return value.decode("latin-1"), at


_PRIMITIVES: Mapping[str, Read] = {
    "null": lambda _, at: (None, at),
    "boolean": _boolean,
    "int": _long,
    "long": _long,
    "float": _float,
    "double": _double,
    "bytes": _bytes,
    "string": _string,
}


def _fixed(size: int) -> Read:
    def read(data: bytes, at: int) -> tuple[str, int]:
        if len(data) - at < size:
            raise ValueError(f"{size} bytes are said, {len(data) - at} are there")
        return data[at : at + size].decode("latin-1"), at + size

    return read


def _chosen(given: Sequence[Any], number: int) -> Any:
    if not 0 <= number < len(given):
        raise ValueError(f"number {number} is chosen of {len(given)}")
    return given[number]


def _union(reads: list[Read]) -> Read:
    def read(data: bytes, at: int) -> tuple[Any, int]:
        number, at = _long(data, at)
        one: Read = _chosen(reads, number)
        return one(data, at)

    return read


def _enum(symbols: list[str]) -> Read:
    def read(data: bytes, at: int) -> tuple[str, int]:
        number, at = _long(data, at)
        return _chosen(symbols, number), at

    return read


def _count(data: bytes, at: int) -> tuple[int, int]:
    """Read how many items a block has; a negative number is followed by the block's size in bytes."""
    count, at = _long(data, at)
    if count < 0:
        count, (_, at) = -count, _long(data, at)
    if count > len(data):  # no more than bytes: items of no bytes would be counted for ever
        raise ValueError(f"{count} items are said, {len(data) - at} bytes are there")
    return count, at


def _array(item: Read) -> Read:
    def read(data: bytes, at: int) -> tuple[list[Any], int]:
        found = []
        count, at = _count(data, at)
        while count:
            for _ in range(count):
                value, at = item(data, at)
                found.append(value)
            count, at = _count(data, at)
        return found, at

    return read


def _map(item: Read) -> Read:
    def read(data: bytes, at: int) -> tuple[dict[str, Any], int]:
        found = {}
        count, at = _count(data, at)
        while count:
            for _ in range(count):
                name, at = _string(data, at)
                found[name], at = item(data, at)
            count, at = _count(data, at)
        return found, at

    return read


def _decimal(scale: int) -> Callable[[str], Decimal]:
    def mean(text: str) -> Decimal:
        unscaled = int.from_bytes(text.encode("latin-1"), "big", signed=True)
        return Decimal(f"{unscaled}e{-scale}")  # exact, however many digits

    return mean


def _logical(schema: Mapping[str, Any], plain: Read) -> Read:
    """Give a type its meaning; one of a meaning that is not known here stays as it is, as the specification says."""
    logical = schema.get("logicalType")
    mean: Callable[[Any], Any] | None = (
        _decimal(schema.get("scale", 0)) if logical == "decimal" else _LOGICAL.get(str(logical))
    )
    if mean is None:
        return plain

    def read(data: bytes, at: int) -> tuple[Any, int]:
        value, at = plain(data, at)
        return mean(value), at

    return read


def connect(table: StreamTable, secrets: Secrets) -> Connection:
    """Connect to the log of a source; its messages come as JSON. Raises: UnreadableSource."""
    log, declared = table.source.reads.connect(secrets), table.source.schemas
    return (
        log
        if declared is None
        else RegisteredConnection(log, Schemas.of(declared, table.table.store, secrets))
    )
