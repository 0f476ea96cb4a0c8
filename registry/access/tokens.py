"""Bearer tokens with grants, and the workspaces that grants name, in one journal; only hashes of secrets are stored."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from toque.registry.access.grants import (
    DEFAULT_WORKSPACE,
    EVERY_WORKSPACE,
    UNLIMITED,
    Grant,
    Limits,
    Principal,
    QueueShare,
    Role,
    Workspace,
    check_workspace,
    make_grant,
)
from toque.registry.errors import AlreadyExists, InvalidInput, NotFound, RegistryError, Unavailable
from toque.registry.journal import Entry, Fold, Journal
from toque.registry.names import check_name
from toque.registry.times import Clock, as_utc, from_text, to_text, utc_now

if TYPE_CHECKING:
    from toque.registry.store import ObjectStore

REFRESH_EVERY_S = 1.0
TOKEN_LIFETIME: Final = timedelta(days=90)
"""Lifetime of a token for which no other was asked."""
USE_NOTED_EVERY: Final = timedelta(minutes=10)
"""How exactly the last use of a token is known."""
_PREFIX = "tq"
_RESERVED: Final = frozenset({"ui"})
_WHOLE_QUEUE: Final = QueueShare()
_PARTS = 3  # tq_<id>_<secret>
_NEVER = datetime.max.replace(tzinfo=UTC)
_TOKEN = re.compile(rf"{_PREFIX}_[0-9a-z]{{1,32}}_[A-Za-z0-9_-]{{1,128}}\Z")


class TokenRecord(BaseModel):
    """Stored record of a token, without its secret.

    digest: SHA-256 (hex) of the secret. expires_at: None: never. last_used_at: to ten minutes; None: not yet, or
    before uses were noted.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    grants: tuple[Grant, ...]
    digest: str
    created_by: str
    created_at: datetime
    limits: Limits = UNLIMITED
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None

    def is_live(self, now: datetime) -> bool:
        """Whether the token is neither revoked nor expired at `now`."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


Tokens = Mapping[str, TokenRecord]


@dataclass(frozen=True, slots=True)
class AccessState:
    """Tokens by id and workspaces by name, as the journal's entries leave them."""

    tokens: Tokens = field(default_factory=dict)
    workspaces: Mapping[str, Workspace] = field(
        default_factory=lambda: {DEFAULT_WORKSPACE: Workspace(name=DEFAULT_WORKSPACE)}
    )


class Access:
    """Access tokens and workspaces of a platform, kept in its store. Safe for threads.

    actor: recorded with what is created and revoked; clock: decides when a token has expired; changed: whether what is
    stored may have changed since it was last asked, by default once a second.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        actor: str,
        clock: Clock = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
        changed: Callable[[], bool] | None = None,
    ) -> None:
        journal = Journal(store, "access/journal", actor=actor, clock=clock)
        self._fold: Fold[AccessState] = Fold(
            journal,
            AccessState(),
            _step,
            encode=_encode,
            decode=_decode,
            schema="2",
            carry=True,
            guarded=True,
        )
        self._store = store
        self._clock = clock
        self._monotonic = monotonic
        self._changed = changed or self._second_passed
        self._read_at: float | None = None
        self._noted: dict[str, datetime] = {}
        self._lock = threading.Lock()

    def follow(self) -> Fold[AccessState]:
        """Follow the tokens and workspaces: `.refresh()` is one read and gives all of them."""
        return self._fold

    def create_token(
        self,
        name: str,
        role: Role | str | None = None,
        *,
        workspace: str = DEFAULT_WORKSPACE,
        model: str | None = None,
        grants: Sequence[Grant] = (),
        limits: Limits = UNLIMITED,
        expires_at: datetime | Literal["never"] | None = None,
    ) -> str:
        """Create a token and return its text, which is not shown again.

        name: recorded as the actor of requests with the token. role, workspace, model: a grant; grants: further
        ones. expires_at: None: in 90 days.
        Raises: AlreadyExists if a live token has this name; NotFound for an unknown workspace; InvalidInput.
        """
        check_name(name, what="token name")
        given = (*([make_grant(role, workspace, model)] if role is not None else []), *grants)
        if not given:
            raise InvalidInput("grants: a token without a grant permits nothing; give a role")
        expires = None if expires_at == "never" else expires_at or self._clock() + TOKEN_LIFETIME
        token_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        token = {
            "id": token_id,
            "name": name,
            "grants": [grant.model_dump(mode="json") for grant in dict.fromkeys(given)],
            "limits": limits.model_dump(mode="json"),
            "digest": _digest(secret),
            "expires_at": None if expires is None else to_text(as_utc(expires, name="expires_at")),
        }

        def decide(state: AccessState) -> dict[str, Any]:
            now = self._clock()
            if any(other.name == name and other.is_live(now) for other in state.tokens.values()):
                raise AlreadyExists(f"a live token is named {name!r}; revoke it or choose another name")
            for grant in given:
                _require_workspace(state, grant.workspace)
            return {"kind": "created", "token": token}

        self._fold.transact(decide)
        return f"{_PREFIX}_{token_id}_{secret}"

    def create_workspace(
        self,
        name: str,
        *,
        description: str = "",
        limits: Limits = UNLIMITED,
        queue: QueueShare = _WHOLE_QUEUE,
    ) -> Workspace:
        """Create a workspace with nothing in it. Raises: AlreadyExists; InvalidInput for a malformed or reserved name."""
        if check_workspace(name) in _RESERVED:
            raise InvalidInput(
                f"workspace={name!r} is part of addresses, as in /workspaces/{name}/ui; choose another name"
            )

        def decide(state: AccessState) -> dict[str, Any]:
            if name in state.workspaces:
                raise AlreadyExists(f"workspace {name!r} exists; choose another name")
            return _workspace_body("workspace-created", name, description, limits, queue)

        self._fold.transact(decide)
        return self._fold.state.workspaces[name]

    def change_workspace(
        self,
        name: str,
        *,
        description: str | None = None,
        limits: Limits | None = None,
        queue: QueueShare | None = None,
    ) -> Workspace:
        """Change the description, limits or queue of a workspace; None leaves them. Raises: NotFound."""

        def decide(state: AccessState) -> dict[str, Any] | None:
            old = _require_workspace(state, name)
            new = (
                old.description if description is None else description,
                old.limits if limits is None else limits,
                old.queue if queue is None else queue,
            )
            same = new == (old.description, old.limits, old.queue)
            return None if same else _workspace_body("workspace-changed", name, *new)

        self._fold.transact(decide)
        return self._fold.state.workspaces[name]

    def list_workspaces(self) -> list[Workspace]:
        """List all workspaces, the default one first."""
        return list(self._fold.refresh().workspaces.values())

    def known_workspaces(self) -> list[Workspace]:
        """List all workspaces as `verify` knows them: read at most once a second, and kept during an outage.

        Raises: Unavailable if the access list was never read.
        """
        return list(self._state().workspaces.values())

    def find_workspace(self, name: str) -> Workspace | None:
        """Find a workspace, or None, as `known_workspaces` lists them. Raises: Unavailable."""
        return self._state().workspaces.get(name)

    def recall_workspace(self, name: str) -> Workspace | None:
        """Find a workspace in the access list as it was read last, without the store."""
        return self._fold.state.workspaces.get(name)

    def recognises(self, token: str) -> bool:
        """Whether the text has the form of a token, so that it is worth looking up."""
        return _is_token(token)

    def verify(self, token: str) -> Principal | None:
        """Return the principal of a live token, or None for any other text.

        Reads the store at most once a second, so a revocation takes effect within a second. While the store does
        not answer, the tokens last read stay valid. Raises: Unavailable if tokens were never read.
        """
        found = self._principal(token, self._state) if _is_token(token) else None
        if found is not None and found.token is not None:
            self._note_use(found.token)
        return found

    def recall(self, token: str) -> Principal | None:
        """Verify a token by the tokens last read, without the store; None also if tokens were never read."""
        return self._principal(token, lambda: self._fold.state) if _is_token(token) else None

    def recall_expired(self, token: str) -> str | None:
        """Name of a token that would be valid, had it not expired, by the tokens last read; None of any other text."""
        record = self._record(token, self._fold.state) if _is_token(token) else None
        expired = record is not None and record.revoked_at is None and not record.is_live(self._clock())
        return record.name if record is not None and expired else None

    def read(self) -> None:
        """Read the tokens from the store now, for `recall`. Raises: Unavailable."""
        self._state()

    def _principal(self, token: str, state: Callable[[], AccessState]) -> Principal | None:
        record = self._record(token, state())
        if record is None or not record.is_live(self._clock()):
            return None
        return Principal(name=record.name, grants=record.grants, token=record.id, limits=record.limits)

    @staticmethod
    def _record(token: str, state: AccessState) -> TokenRecord | None:
        """Find the record of a token whose secret is right, live or not."""
        _, token_id, secret = token.split("_", _PARTS - 1)
        record = state.tokens.get(token_id)
        if record is None or not hmac.compare_digest(record.digest, _digest(secret)):
            return None
        return record

    def revoke(self, name: str) -> None:
        """End the token of that name for good: the live one, else the one that ended last. Raises: NotFound if there is none."""

        def decide(state: AccessState) -> dict[str, Any]:
            found = _revocable(state.tokens, name)
            if found is None:
                raise NotFound(f"no token is named {name!r} that was not revoked")
            return {"kind": "revoked", "id": found.id}

        self._fold.transact(decide)

    def find_revocable(self, name: str) -> TokenRecord | None:
        """Find the token that `revoke` would end, or None."""
        return _revocable(self._fold.refresh().tokens, name)

    def list_tokens(self) -> list[TokenRecord]:
        """List all tokens ever created with their last use, oldest first."""
        return [
            token.model_copy(update={"last_used_at": self._last_use(token.id)})
            for token in self._fold.refresh().tokens.values()
        ]

    def _state(self) -> AccessState:
        """Current state, read again if it may have changed."""
        with self._lock:
            if not self._changed() and self._read_at is not None:
                return self._fold.state
            now = self._monotonic()
            try:
                self._fold.refresh()
            except Unavailable:
                if self._read_at is None:
                    raise
            self._read_at = now
            return self._fold.state

    def _second_passed(self) -> bool:
        return self._read_at is None or self._monotonic() - self._read_at >= REFRESH_EVERY_S

    def _note_use(self, token_id: str) -> None:
        """Record that a token was used now; a store that does not answer loses only this record."""
        now = self._clock()
        noted = self._noted.get(token_id)
        if noted is not None and now - noted < USE_NOTED_EVERY:
            return
        self._noted[token_id] = now
        with suppress(RegistryError):
            self._store.put(_use_key(token_id), to_text(now).encode())

    def _last_use(self, token_id: str) -> datetime | None:
        data = self._store.find(_use_key(token_id))
        return None if data is None else from_text(data.decode())


def _is_token(token: str) -> bool:
    return _TOKEN.match(token) is not None


def _digest(secret: str) -> str:
    """Hash a secret; a plain hash is enough for 256 random bits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _use_key(token_id: str) -> str:
    return f"access/last-used/{token_id}"


def _require_workspace(state: AccessState, name: str) -> Workspace:
    found = state.workspaces.get(DEFAULT_WORKSPACE if name == EVERY_WORKSPACE else name)
    if found is None:
        raise NotFound(f"workspace {name!r} does not exist; there are {sorted(state.workspaces)}")
    return found


def _workspace_body(
    kind: str, name: str, description: str, limits: Limits, queue: QueueShare
) -> dict[str, Any]:
    return {
        "kind": kind,
        "workspace": name,
        "description": description,
        "limits": limits.model_dump(mode="json"),
        "queue": queue.model_dump(mode="json"),
    }


def _step(state: AccessState, entry: Entry) -> AccessState:
    kind = entry.body["kind"]
    if kind.startswith("workspace-"):
        return _with_workspace(state, entry)
    if kind == "revoked":
        token = state.tokens[entry.body["id"]].model_copy(update={"revoked_at": entry.at})
    else:
        fields = dict(entry.body["token"])
        if "role" in fields:  # of a release without workspaces
            fields["grants"] = [_grant_of_role(fields.pop("role"))]
        token = TokenRecord.model_validate({**fields, "created_by": entry.actor, "created_at": entry.at})
    return replace(state, tokens={**state.tokens, token.id: token})


def _with_workspace(state: AccessState, entry: Entry) -> AccessState:
    name = entry.body["workspace"]
    old = state.workspaces.get(name) or Workspace(name=name, created_by=entry.actor, created_at=entry.at)
    new = old.model_copy(
        update={
            "description": entry.body["description"],
            "limits": Limits.model_validate(entry.body["limits"]),
            # Releases before 0.2 change a workspace without it.
            "queue": QueueShare.model_validate(entry.body["queue"]) if "queue" in entry.body else old.queue,
        }
    )
    return replace(state, workspaces={**state.workspaces, name: new})


def _grant_of_role(role: str) -> Grant:
    """Grant of a token made before there were workspaces: an admin's reaches all, any other the default one."""
    return make_grant(role, EVERY_WORKSPACE if role == Role.admin.name else DEFAULT_WORKSPACE)


def _encode(state: AccessState) -> dict[str, Any]:
    return {
        "tokens": [token.model_dump(mode="json") for token in state.tokens.values()],
        "workspaces": [workspace.model_dump(mode="json") for workspace in state.workspaces.values()],
    }


def _decode(data: dict[str, Any]) -> AccessState:
    return AccessState(
        {item["id"]: TokenRecord.model_validate(item) for item in data["tokens"]},
        {item["name"]: Workspace.model_validate(item) for item in data["workspaces"]},
    )


def _revocable(tokens: Tokens, name: str) -> TokenRecord | None:
    """The token of a name that was not revoked and lasts longest: of those at most one lives."""
    named = [token for token in tokens.values() if token.name == name and token.revoked_at is None]
    return max(named, key=lambda each: each.expires_at or _NEVER, default=None)
