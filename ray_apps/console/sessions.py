"""Sessions of people who signed in, and single-use codes to sign in by.

The browser holds a random identifier. The store, for all gateways, holds under the identifier's hash the person's token encrypted
with a key made of the identifier, so neither who reads the store nor who reads a cookie's hash has the token. Each request
presents that token to the door again: a token that is revoked ends its sessions.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Lock
from typing import Final

from cachetools import LRUCache
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from toque.registry import AlreadyExists, Clock, ObjectStore, utc_now
from toque.registry.times import from_text, to_text

SESSION_LIFETIME: Final = timedelta(hours=12)
CODE_LIFETIME: Final = timedelta(minutes=2)
REREAD_AFTER: Final = timedelta(seconds=5)
"""How long a session that another gateway ended may go on here."""
_SESSIONS, _CODES, _USED = "console/sessions/", "console/codes/", "console/used-codes/"
_BYTES, _NONCE_BYTES = 32, 12
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")
"""Form of every session's identifier and every code; what has another is not looked for in the store."""
_SESSIONS_KEPT = 4_096


@dataclass(frozen=True, slots=True)
class Session:
    """Session of a person who signed in. id: what the cookie holds; token: presented to the doors; expires_at: end at the latest."""

    id: str
    token: str
    expires_at: datetime

    @property
    def csrf(self) -> str:
        """Text that every form of the session must send back."""
        return _derived(self.id, "csrf").hex()


class Sessions:
    """Sessions and sign-in codes in the platform's store; its methods block, but for `recall`, so they are for threads."""

    def __init__(self, store: ObjectStore, *, clock: Clock = utc_now) -> None:
        self._store, self._clock = store, clock
        self._read: LRUCache[str, tuple[datetime, Session]] = LRUCache(_SESSIONS_KEPT)
        self._lock = Lock()

    def start(self, token: str) -> Session:
        """Start a session under a new identifier, and remove the records of those that have expired."""
        self._sweep(_SESSIONS, SESSION_LIFETIME)
        session_id, expires_at = self._keep(_SESSIONS, token, SESSION_LIFETIME)
        return self._remember(Session(session_id, token, expires_at))

    def recall(self, session_id: str) -> Session | None:
        """Find a session that was read within seconds and has not expired; does not block."""
        now = self._clock()
        with self._lock:
            known = self._read.get(session_id)
        fresh = known is not None and now - known[0] < REREAD_AFTER and now < known[1].expires_at
        return known[1] if known is not None and fresh else None

    def find(self, session_id: str) -> Session | None:
        """Find a session that has neither ended nor expired."""
        known = self.recall(session_id)
        if known is not None:
            return known
        found = self._open(_SESSIONS, session_id)
        if found is None:
            self._forget(session_id)
            return None
        return self._remember(Session(session_id, *found))

    def has_met(self, session_id: str) -> bool:
        """Whether a session was found here before, so that looking for it again is no guess; does not block."""
        return session_id in self._read

    def end(self, session_id: str) -> None:
        """End a session; other gateways follow within seconds."""
        self._forget(session_id)
        self._store.delete(_key(_SESSIONS, session_id))

    def make_code(self, token: str) -> tuple[str, datetime]:
        """Make a code that signs the token's owner in once; returns it with the time until which it counts."""
        for prefix in (_CODES, _USED):
            self._sweep(prefix, 2 * CODE_LIFETIME)
        return self._keep(_CODES, token, CODE_LIFETIME)

    def redeem(self, code: str) -> str | None:
        """Use a code up; returns its token, or None if it is unknown, expired or was used before."""
        found = self._open(_CODES, code)
        if found is None:
            return None
        try:
            self._store.create(_key(_USED, code), b"{}")  # of two who hold the code, one wins
        except AlreadyExists:
            return None
        self._store.delete(_key(_CODES, code))
        return found[0]

    def _remember(self, session: Session) -> Session:
        with self._lock:
            self._read[session.id] = (self._clock(), session)
        return session

    def _forget(self, session_id: str) -> None:
        with self._lock:
            self._read.pop(session_id, None)

    def _keep(self, prefix: str, token: str, lifetime: timedelta) -> tuple[str, datetime]:
        secret, nonce = secrets.token_urlsafe(_BYTES), secrets.token_bytes(_NONCE_BYTES)
        expires_at = self._clock() + lifetime
        sealed = nonce + AESGCM(_derived(secret, prefix)).encrypt(nonce, token.encode(), None)
        record = {"expires_at": to_text(expires_at), "sealed": sealed.hex()}
        self._store.create(_key(prefix, secret), json.dumps(record).encode())
        return secret, expires_at

    def _open(self, prefix: str, secret: str) -> tuple[str, datetime] | None:
        if not _SECRET.fullmatch(secret):
            return None
        data = self._store.find(_key(prefix, secret))
        if data is None:
            return None
        record = json.loads(data)
        sealed, expires_at = bytes.fromhex(record["sealed"]), from_text(record["expires_at"])
        if self._clock() >= expires_at:
            return None
        try:
            token = AESGCM(_derived(secret, prefix)).decrypt(
                sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None
            )
        except InvalidTag:
            return None
        return token.decode(), expires_at

    def _sweep(self, prefix: str, lifetime: timedelta) -> None:
        """Delete the records that are older than any that counts, by the store's clock."""
        before = self._store.now() - lifetime
        for each in list(self._store.scan(prefix)):
            if each.modified_at < before:
                self._store.delete(each.key)


def _key(prefix: str, secret: str) -> str:
    return f"{prefix}{hashlib.sha256(secret.encode()).hexdigest()}.json"


def _derived(secret: str, purpose: str) -> bytes:
    """Key for one purpose of a random secret, which needs no slow derivation."""
    return hmac.digest(secret.encode(), f"toque console: {purpose}".encode(), "sha256")
