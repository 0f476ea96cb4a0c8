"""Secret keys outside the store, by which its history is authenticated: MACs (HMAC-SHA256) that only their holder makes.

Who can write the store but has no key cannot make an entry, a snapshot or a published head that a reader with the keys
accepts. Several keys may be valid at once: the newest makes MACs, each of them verifies.
Source: RFC 2104 (HMAC).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toque.registry.errors import InvalidInput

KEY_VARIABLE = "TOQUE_AUDIT_KEY"
FILE_VARIABLE = "TOQUE_AUDIT_KEY_FILE"
_WORKSPACE = re.compile(r"(?:\A|/)(workspaces/[^/]+)\Z")
_SECRET = re.compile(r"[0-9a-f]{64,}\Z")


class AuditKeys:
    """Keys that authenticate what a store holds; without any, nothing is authenticated or verified.

    keys: secrets in hex, at least 64 digits each, oldest first. file: read instead of `keys`, one key a line, and
    again when it changes. scope: where the store lies in the platform's, "" for the platform's own.
    Pickled without its keys: another process reads those that its own environment names, else the same file.
    """

    def __init__(self, keys: Sequence[str] = (), *, file: Path | None = None, scope: str = "") -> None:
        self._file = file
        self._scope = scope
        self._stamp: tuple[int, int] | None = None
        self._secrets = _by_id(keys, "an audit key")

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> AuditKeys:
        """Find the keys of a process: in `TOQUE_AUDIT_KEY_FILE`, else in `TOQUE_AUDIT_KEY`, else none.

        Raises: InvalidInput if the file cannot be read or what is there is not a key.
        """
        file = environment.get(FILE_VARIABLE)
        if file:
            return cls.of_file(Path(file))
        return cls(environment.get(KEY_VARIABLE, "").lower().replace(",", " ").split())

    @classmethod
    def of_file(cls, file: Path) -> AuditKeys:
        """Read the keys in a file. Raises: InvalidInput if it cannot be read or holds no key."""
        keys = cls(file=file.absolute())
        keys._current()
        return keys

    def __reduce__(self) -> tuple[Any, ...]:
        return _of_this_process, (self._file, self._scope)

    def __repr__(self) -> str:
        return f"AuditKeys({', '.join(self._secrets)})"

    def __bool__(self) -> bool:
        return self._file is not None or bool(self._secrets)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the keys, oldest first."""
        return tuple(self._current())

    @property
    def marks_file(self) -> Path | None:
        """File beside that of the keys in which this machine keeps how far it has seen journals; None without a file of keys."""
        return None if self._file is None else self._file.with_name(f"{self._file.name}.seen")

    def at(self, path: str) -> AuditKeys:
        """Return the same keys for a store at this path: one of a workspace has its place in what is authenticated.

        So what is copied from one workspace to another does not verify there.
        """
        found = _WORKSPACE.search(path.rstrip("/"))
        scope = found.group(1) if found else ""
        if scope == self._scope:
            return self
        keys = AuditKeys(file=self._file, scope=scope)
        keys._secrets = self._secrets
        return keys

    def where(self, path: str) -> str:
        """Path in the platform's store of what has `path` in this one."""
        return f"{self._scope}/{path}" if self._scope else path

    def mac(self, kind: str, path: str, *parts: str | int) -> str:
        """Authenticate `parts` as the `kind` at `path`, by the newest key: "id:hex". Raises: InvalidInput without keys."""
        secrets = self._current()
        if not secrets:
            raise InvalidInput(f"{path}: no audit key; set {FILE_VARIABLE} or {KEY_VARIABLE}")
        newest = next(reversed(secrets))
        return f"{newest}:{self._hex(secrets[newest], kind, path, parts)}"

    def problem(self, mac: str, kind: str, path: str, *parts: str | int) -> str:
        """Say what is wrong with a MAC; "" if one of the keys made it for these parts."""
        if not mac:
            return "has no MAC of an audit key"
        key, _, given = mac.partition(":")
        secret = self._current().get(key)
        if secret is None:
            return f"has the MAC of a key {key!r}, which is not among the audit keys"
        if not hmac.compare_digest(given.encode(), self._hex(secret, kind, path, parts).encode()):
            return "has a MAC that no audit key made: it was forged, or moved from elsewhere"
        return ""

    def _hex(self, secret: bytes, kind: str, path: str, parts: Sequence[str | int]) -> str:
        message = json.dumps([kind, self.where(path), *parts]).encode()
        return hmac.digest(secret, message, "sha256").hex()

    def _current(self) -> dict[str, bytes]:
        """Keys by id, read from the file again after it was replaced."""
        if self._file is None:
            return self._secrets
        try:
            status = self._file.stat()
            if (status.st_mtime_ns, status.st_ino) != self._stamp:
                self._secrets = _by_id(read_keys(self._file), str(self._file))
                self._stamp = (status.st_mtime_ns, status.st_ino)
        except OSError as error:
            raise InvalidInput(f"{FILE_VARIABLE}: {self._file} cannot be read: {error}") from error
        return self._secrets


def read_keys(file: Path) -> list[str]:
    """Read the keys in a file, oldest first; "#" begins a comment. Raises: InvalidInput if there are none; OSError."""
    lines = [line.partition("#")[0].strip().lower() for line in file.read_text().splitlines()]
    keys = [line for line in lines if line]
    if not keys:
        raise InvalidInput(f"{FILE_VARIABLE}: {file} holds no key; make one with `openssl rand -hex 32`")
    return keys


def key_id(key: str) -> str:
    """Id of a key, which shows nothing of it. Raises: InvalidInput."""
    return next(iter(_by_id([key], "an audit key")))


def _by_id(keys: Sequence[str], where: str) -> dict[str, bytes]:
    bad = sum(not _SECRET.match(key) or len(key) % 2 != 0 for key in keys)
    if bad:
        raise InvalidInput(
            f"{where}: {bad} of {len(keys)} keys are not 64 or more hex digits; use `openssl rand -hex 32`"
        )
    secrets = [bytes.fromhex(key) for key in keys]
    return {
        hashlib.sha256(b"toque store audit key id:" + secret).hexdigest()[:12]: secret for secret in secrets
    }


def _of_this_process(file: Path | None, scope: str) -> AuditKeys:
    """Find the keys of the process that unpickles a store: they never travel with it."""
    own = AuditKeys.of_environment(os.environ)
    if not own and file is not None and file.exists():
        own = AuditKeys.of_file(file)
    return own.at(scope)
