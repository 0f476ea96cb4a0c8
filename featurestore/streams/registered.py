"""Messages that were written by schemas of a registry, as JSON: a zero byte, the number of the schema, and the value by it.

A schema never changes, so each is asked for once and kept in the store. A message by one that is not known waits with its stream while
the registry does not answer; those by schemas that are known go on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx
import orjson

from toque.featurestore.definitions.batch_source import Secrets
from toque.featurestore.definitions.schema_registry import SchemaRegistry
from toque.featurestore.definitions.stream_source import Connection, Messages, Unread
from toque.featurestore.errors import UnreadableSource
from toque.featurestore.streams.avro import reader_of
from toque.registry.store import ObjectStore

PATIENCE_S = 5.0
_ZERO, _HEAD_BYTES = 0, 5
_UNKNOWN = 40403  # the registry's code for a number under which it has no schema
_JSON = {"Accept": "application/vnd.schemaregistry.v1+json, application/json"}


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

        def value(given: str) -> str:
            return secrets(given[1:]) if given.startswith("$") else given

        user, _, password = value(declared.login).partition(":")
        return cls(value(declared.url).rstrip("/"), (user, password) if user else None, store)

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
            return httpx.get(f"{self.url}/{path}", auth=self.login, headers=_JSON, timeout=PATIENCE_S)
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
