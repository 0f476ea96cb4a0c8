"""A numbered entry of a journal, chained to the one before by its digest; with audit keys, authenticated by a MAC."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Any

from toque.registry.errors import Damaged, InvalidInput, NewerFormat, RegistryError
from toque.registry.times import from_text, to_text

FORMAT = 1
"""Newest format of an entry that is read here; one without the field `format` has the first, which all releases read.

A release that writes what older ones would fold wrongly marks the entry, and they refuse it.
"""
NO_DIGEST = "0" * 64  # what the first entry names as its predecessor


@dataclass(frozen=True, slots=True)
class Entry:
    """One change that a journal records.

    number: position, from 0; body: what changed, as JSON; actor: who changed it; at: when; txn: unique to the attempt;
    previous, digest: SHA-256 (hex) of the entry before and of this one; mac: made of path, number and digest by an audit
    key, "" if its writer had none.
    """

    number: int
    body: dict[str, Any]
    actor: str
    at: datetime
    txn: str
    previous: str
    digest: str = ""
    mac: str = ""

    def with_digest(self) -> Entry:
        """Return this entry with its digest filled in."""
        return replace(self, digest=hashlib.sha256(_canonical(self._content())).hexdigest())

    def to_json(self) -> dict[str, Any]:
        """The stored content as JSON values."""
        return {**self._content(), "digest": self.digest} | ({"mac": self.mac} if self.mac else {})

    def to_bytes(self, carried: Sequence[Entry] = ()) -> bytes:
        """The stored bytes of the entry.

        carried: entries before this one, repeated beside it so that a cold reader needs fewer reads. They
        are not part of the digest; their own digests and the chain verify them.
        """
        content = self.to_json()
        return _canonical(
            content | {"carried": [entry.to_json() for entry in carried]} if carried else content
        )

    def _content(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "body": self.body,
            "actor": self.actor,
            "at": to_text(self.at),
            "txn": self.txn,
            "previous": self.previous,
        }


def parse_entry(data: bytes, where: str) -> tuple[Entry, list[Entry]]:
    """Parse stored bytes: the entry, and the earlier ones that it carries.

    Raises: Damaged, naming `where`, if the bytes are not an entry, do not give its digest, or carry others than its
    predecessors; NewerFormat if a newer release wrote them.
    """
    try:
        fields = json.loads(data)
        for each in (fields, *fields.get("carried", ())):
            if each.get("format", FORMAT) > FORMAT:
                raise NewerFormat(where, each["format"], FORMAT)
        carried = [_from_json(before) for before in fields.pop("carried", ())]
        entry = _from_json(fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"{where} is not readable: {error}") from error
    for each in (*carried, entry):
        if each.with_digest().digest != each.digest:
            raise Damaged(f"{where} does not give its digest {each.digest[:12]}…: its bytes were changed")
    if entry.to_bytes(carried) != data:
        raise Damaged(f"{where} is not written as its content is: its bytes were changed")
    for before, after in pairwise([*carried, entry]):
        if after.previous != before.digest or after.number != before.number + 1:
            raise Damaged(f"{where} carries an entry {before.number} that is not in its chain")
    return entry, carried


def _from_json(fields: dict[str, Any]) -> Entry:
    return Entry(**{**fields, "at": from_text(fields["at"])})


def _canonical(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def normalise_body(body: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Normalise `body` to what a reader will see. Raises: InvalidInput unless it is JSON without NaN or infinity."""
    try:
        normalised: dict[str, Any] = json.loads(_canonical(body))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{path}: entry body is not finite JSON: {error}") from error
    return normalised


class Conflict(RegistryError):  # noqa: N818 - as in `toque.registry.errors`
    """Another writer's entry has the number that this one was to get: reread and decide again.

    number: of the entry; entry: the other writer's.
    """

    def __init__(self, number: int, entry: Entry, *, path: str = "journal") -> None:
        self.number = number
        self.entry = entry
        self.path = path
        super().__init__(
            f"{path}: entry {number} was written by {entry.actor!r} at {entry.at.isoformat()}; "
            "reread the journal and decide again"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_conflict, (self.number, self.entry, self.path)


def _rebuild_conflict(number: int, entry: Entry, path: str) -> Conflict:
    return Conflict(number, entry, path=path)
