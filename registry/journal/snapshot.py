"""Stored snapshots of folded states: a line with the digest, then JSON, which begins with its MAC if there are audit keys."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toque.registry.errors import Damaged, NewerFormat

if TYPE_CHECKING:
    from toque.registry.audit_keys import AuditKeys
    from toque.registry.store import ObjectStore

SUFFIX = "/snapshot.json"
_KIND = "snapshot"
_FORMAT = 1  # of a snapshot without the field `format`
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A folded state as JSON values.

    schema: of the fold; next: number of entries that the state contains; head: digest of the last of them; mac: "" if it
    was stored without audit keys.
    """

    schema: str
    next: int
    head: str
    state: Any
    mac: str = ""

    def to_bytes(self, keys: AuditKeys, path: str) -> bytes:
        """Write the snapshot of the journal at `path`, with a MAC if there are keys."""
        content = {"schema": self.schema, "next": self.next, "head": self.head, "state": self.state}
        text = json.dumps(content, separators=(",", ":"))
        if keys:
            text = _with_mac(text, keys.mac(_KIND, path, _sha256(text.encode())))
        return f"{_sha256(text.encode())}\n{text}".encode()


def key(path: str) -> str:
    """Key under which the snapshot of the journal at `path` is stored."""
    return f"{path}{SUFFIX}"


def load(store: ObjectStore, path: str) -> Snapshot | None:
    """Read the snapshot of a journal; None where it is absent or not to be trusted, since the entries hold everything."""
    data = store.find(key(path))
    if data is None:
        return None
    try:
        return parse(data, store.audit_keys, path)
    except NewerFormat as error:
        _logger.info("%s; reading every entry instead", error)
    except Damaged as error:
        _logger.error("%s; reading every entry instead", error)  # noqa: TRY400 - the message says it all
    return None


def parse(data: bytes, keys: AuditKeys, path: str) -> Snapshot:
    """Parse a stored snapshot, and verify its MAC if there are keys. Raises: Damaged; NewerFormat."""
    digest, _, text = data.partition(b"\n")
    try:
        if _sha256(text).encode() != digest:
            raise ValueError("its bytes do not give its digest")  # noqa: TRY301 - one message for all
        content: dict[str, Any] = json.loads(text)
        if content.get("format", _FORMAT) > _FORMAT:
            raise NewerFormat(f"{path}: snapshot", content["format"], _FORMAT)
        found = Snapshot(**{"mac": "", **content})
        prefix = _with_mac("{", found.mac).encode()
        unmarked = b"{" + text[len(prefix) :] if text.startswith(prefix) else text
    except (ValueError, TypeError) as error:
        raise Damaged(f"{path}: snapshot is not readable: {error}") from error
    problem = keys.problem(found.mac, _KIND, path, _sha256(unmarked)) if keys else ""
    if problem:
        raise Damaged(f"{path}: snapshot {problem}")
    return found


def authenticate_again(store: ObjectStore, path: str, *, trusted: bool) -> None:
    """Give the snapshot of a journal a MAC of the newest key, or delete it if the keys do not accept it.

    trusted: accept one without a MAC.
    """
    data = store.find(key(path))
    if data is None:
        return
    keys = store.audit_keys
    try:
        found = parse(data, type(keys)() if trusted else keys, path)
        if found.mac and trusted:
            found = parse(data, keys, path)
    except Damaged as error:
        _logger.error("%s; it is deleted, and the entries are read instead", error)  # noqa: TRY400 - as above
        store.delete(key(path))
        return
    store.put(key(path), found.to_bytes(keys, path))


def _with_mac(text: str, mac: str) -> str:
    return f'{{"mac":"{mac}",{text[1:]}'


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
