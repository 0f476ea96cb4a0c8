"""Bearer tokens with roles, kept in a journal; only hashes of their secrets are stored."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict

from registry.errors import AlreadyExists, InvalidInput, NotFound, Unavailable
from registry.journal import Entry, Fold, Journal
from registry.names import check_name
from registry.times import Clock, as_utc, to_text, utc_now

if TYPE_CHECKING:
    from registry.store import ObjectStore

REFRESH_EVERY_S = 1.0
_PREFIX = "tq"
_PARTS = 3  # tq_<id>_<secret>


class Role(IntEnum):
    """Permissions of a token; each role includes all roles before it."""

    viewer = 1
    predictor = 2
    operator = 3
    approver = 4
    admin = 5

    @classmethod
    def parse(cls, text: str | Role) -> Self:
        """Parse the name of a role. Raises: InvalidInput, with the names there are."""
        if isinstance(text, Role):
            return cls(text)
        try:
            return cls[text]
        except KeyError as error:
            raise InvalidInput(f"role={text!r}: there are {', '.join(role.name for role in cls)}") from error


class Principal(BaseModel):
    """Identity and role behind a request."""

    model_config = ConfigDict(frozen=True)

    name: str
    role: Role

    def may(self, role: Role | str) -> bool:
        """Whether this principal's role is at least `role`."""
        return self.role >= Role.parse(role)


class TokenRecord(BaseModel):
    """Stored record of a token, without its secret. digest: SHA-256 (hex) of the secret."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    role: Role
    digest: str
    created_by: str
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    def is_live(self, now: datetime) -> bool:
        """Whether the token is neither revoked nor expired at `now`."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


Tokens = Mapping[str, TokenRecord]


class Access:
    """Access tokens of a platform, kept in its store. Safe for threads.

    actor: recorded with tokens created and revoked; clock: decides when a token has expired.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        actor: str,
        clock: Clock = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        journal = Journal(store, "access/journal", actor=actor, clock=clock)
        self._fold: Fold[Tokens] = Fold(journal, {}, _step, encode=_encode, decode=_decode, carry=True)
        self._clock = clock
        self._monotonic = monotonic
        self._read_at: float | None = None
        self._lock = threading.Lock()

    def create_token(self, name: str, role: Role | str, *, expires_at: datetime | None = None) -> str:
        """Create a token and return its text, which is not shown again.

        name: recorded as the actor of requests with the token.
        Raises: AlreadyExists if a live token has this name; InvalidInput.
        """
        check_name(name, what="token name")
        wanted = Role.parse(role)
        expires = None if expires_at is None else to_text(as_utc(expires_at, name="expires_at"))
        token_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        token = {
            "id": token_id,
            "name": name,
            "role": wanted.name,
            "digest": _digest(secret),
            "expires_at": expires,
        }

        def decide(tokens: Tokens) -> dict[str, Any]:
            now = self._clock()
            if any(other.name == name and other.is_live(now) for other in tokens.values()):
                raise AlreadyExists(f"a live token is named {name!r}; revoke it or choose another name")
            return {"kind": "created", "token": token}

        self._fold.transact(decide)
        return f"{_PREFIX}_{token_id}_{secret}"

    def verify(self, token: str) -> Principal | None:
        """Return the principal of a live token, or None for any other text.

        Reads the store at most once a second, so a revocation takes effect within a second. While the store does
        not answer, the tokens last read stay valid. Raises: Unavailable if tokens were never read.
        """
        return self._principal(token, self._tokens) if _is_token(token) else None

    def recall(self, token: str) -> Principal | None:
        """Verify a token by the tokens last read, without the store; None also if tokens were never read."""
        return self._principal(token, lambda: self._fold.state) if _is_token(token) else None

    def read(self) -> None:
        """Read the tokens from the store now, for `recall`. Raises: Unavailable."""
        self._tokens()

    def _principal(self, token: str, tokens: Callable[[], Tokens]) -> Principal | None:
        _, token_id, secret = token.split("_", _PARTS - 1)
        record = tokens().get(token_id)
        if record is None or not hmac.compare_digest(record.digest, _digest(secret)):
            return None
        return Principal(name=record.name, role=record.role) if record.is_live(self._clock()) else None

    def revoke(self, name: str) -> None:
        """End the live token of that name. Raises: NotFound if there is none."""

        def decide(tokens: Tokens) -> dict[str, Any]:
            live = [
                token.id for token in tokens.values() if token.name == name and token.is_live(self._clock())
            ]
            if not live:
                raise NotFound(f"no live token is named {name!r}")
            return {"kind": "revoked", "id": live[0]}

        self._fold.transact(decide)

    def list_tokens(self) -> list[TokenRecord]:
        """List all tokens ever created, oldest first."""
        return list(self._fold.refresh().values())

    def _tokens(self) -> Tokens:
        """Current tokens, read again if the last read is a second old."""
        with self._lock:
            now = self._monotonic()
            if self._read_at is not None and now - self._read_at < REFRESH_EVERY_S:
                return self._fold.state
            try:
                self._fold.refresh()
            except Unavailable:
                if self._read_at is None:
                    raise
            self._read_at = now
            return self._fold.state


def _is_token(token: str) -> bool:
    parts = token.split("_", _PARTS - 1)
    return len(parts) == _PARTS and parts[0] == _PREFIX


def _digest(secret: str) -> str:
    """Hash a secret; a plain hash is enough for 256 random bits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _step(tokens: Tokens, entry: Entry) -> Tokens:
    if entry.body["kind"] == "revoked":
        token = tokens[entry.body["id"]].model_copy(update={"revoked_at": entry.at})
    else:
        fields = {**entry.body["token"], "role": Role.parse(entry.body["token"]["role"])}
        token = TokenRecord.model_validate({**fields, "created_by": entry.actor, "created_at": entry.at})
    return {**tokens, token.id: token}


def _encode(tokens: Tokens) -> list[dict[str, Any]]:
    return [token.model_dump(mode="json") for token in tokens.values()]


def _decode(data: list[dict[str, Any]]) -> Tokens:
    return {item["id"]: TokenRecord.model_validate(item) for item in data}
