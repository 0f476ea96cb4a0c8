"""Decision whether a request may pass: who asks, in which workspace, in which role, and how much at once."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, NamedTuple, Protocol

from prometheus_client import Counter

from toque.ray_apps.admission.refusals import RefusalLog
from toque.ray_apps.admission.request_limits import NO_PERMIT, Permit, RequestLimits, TooManyRequests
from toque.ray_apps.oidc import OidcSettings, with_oidc
from toque.ray_apps.token_cache import TokenCache, bearer_token
from toque.registry import (
    DEFAULT_WORKSPACE,
    EVERY_WORKSPACE,
    Access,
    Limits,
    ObjectStore,
    Principal,
    Role,
    Unavailable,
    Workspace,
)

ANY_MODEL: Final = "*"
"""Model of a request that names it in its body: a grant for any model lets it in, and the route asks again."""
RETRY_AFTER_S = 1.0
_DECISIONS_KEPT = 4_096


REFUSALS = Counter("toque_access_refusals", "Requests that a door refused, by HTTP status.", ("status",))
for _status in ("401", "403", "429"):
    REFUSALS.labels(
        _status
    )  # from zero on: Prometheus sees no increase in a series that begins with its first refusal
EXPIRED = Counter(
    "toque_expired_token_refusals", "Requests that were refused as their token had expired.", ("name",)
)


class NotAdmitted(Exception):  # noqa: N818  # an answer to the caller, not a failure of ours
    """Refusal of a request at a door. status: 401, 403, 404, 429 or 503; retry_after_s: when to try again, None: never so."""

    def __init__(self, status: int, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response: how to authenticate, or when to try again."""
        if self.status == HTTPStatus.UNAUTHORIZED:
            return {"WWW-Authenticate": "Bearer"}
        if self.retry_after_s is None:
            return {}
        return {"Retry-After": str(max(1, round(self.retry_after_s)))}


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity, as each request looks one up
class Rule:
    """What a route requires: a grant of one of `roles`; without roles everybody may pass, without a token too.

    anywhere: a request that names no workspace is of one in which the caller has such a grant.
    """

    roles: tuple[Role, ...]
    anywhere: bool = False

    @property
    def is_open(self) -> bool:
        """Whether the route needs no token."""
        return not self.roles

    def allows(self, principal: Principal, workspace: str, model: str | None) -> bool:
        """Whether one of the principal's grants is enough for `model` in `workspace`."""
        if model == ANY_MODEL:
            return any(
                grant.allows(role, workspace, grant.model)
                for role in self.roles
                for grant in principal.grants
            )
        for role in self.roles:  # noqa: SIM110  # on every request's path: a generator costs twice as much
            if principal.may(role, workspace, model=model):
                return True
        return False

    def workspace_for(self, principal: Principal) -> str:
        """Workspace of a request that names none."""
        if self.anywhere:
            for grant in principal.grants:
                if not grant.role.includes.isdisjoint(self.roles):
                    return DEFAULT_WORKSPACE if grant.workspace == EVERY_WORKSPACE else grant.workspace
        return principal.workspace

    def __str__(self) -> str:
        return " or ".join(role.name for role in self.roles)


class Workspaces(Protocol):
    """List of the platform's workspaces and tokens, as `registry.Access` reads it."""

    def find_workspace(self, name: str, /) -> Workspace | None:
        """Find a workspace; may read the store. Raises: Unavailable."""
        ...

    def recall_workspace(self, name: str, /) -> Workspace | None:
        """Find a workspace in the list as it was read last."""
        ...

    def recall_expired(self, token: str, /) -> str | None:
        """Name of a token of the list that has expired; None of any other text."""
        ...


class Refusals(Protocol):
    """Log that notes requests which were refused."""

    def record(
        self, *, who: str | None, status: int, what: str, workspace: str | None, client: str, why: str
    ) -> None:
        """Note a refusal without waiting for the store."""
        ...


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that passed: whose, in which workspace; `release` once it has been answered."""

    principal: Principal
    workspace: str
    permits: tuple[Permit, ...] = NO_PERMIT

    def release(self) -> None:
        """Give back what the request holds of its limits."""
        for permit in self.permits:
            permit.release()

    def may(self, role: Role, *, model: str | None = None) -> bool:
        """Whether the caller may do what `role` does in the request's workspace."""
        return self.principal.may(role, self.workspace, model=model)

    def require(self, role: Role, *, model: str | None = None) -> None:
        """Check a role that only the request's body tells. Raises: NotAdmitted 403."""
        if not self.may(role, model=model):
            raise NotAdmitted(
                HTTPStatus.FORBIDDEN, _too_little(self.principal, role.name, self.workspace, model)
            )


_Asked = tuple[bytes | None, Rule, str | None, str | None]


class _Decision(NamedTuple):
    """An admission without limits that holds as long as its token stands for the same principal in the same workspace."""

    token: str
    workspace: Workspace
    admitted: Admitted


class Admission:
    """Admits requests at one door, for one event loop.

    tokens: finds principals; workspaces: the platform's; refusals: where refused requests are noted.
    """

    def __init__(self, tokens: TokenCache, workspaces: Workspaces, refusals: Refusals) -> None:
        self.tokens = tokens
        self._workspaces = workspaces
        self._refusals = refusals
        self._limits = RequestLimits()
        self._decisions: dict[_Asked, _Decision] = {}

    async def admit(
        self,
        authorization: bytes | None,
        rule: Rule,
        *,
        what: str,
        workspace: str | None = None,
        model: str | None = None,
        client: str = "",
    ) -> Admitted:
        """Admit a request, or note and raise its refusal.

        authorization: its header. what: method and path, for the audit. workspace: the one that it names, None: the
        caller's own. model: the only one that it concerns, None: everything. client: address it comes from.
        Raises: NotAdmitted.
        """
        asked = (authorization, rule, workspace, model)
        decided = self._decisions.get(asked)
        if decided is not None and self._holds(decided):
            return decided.admitted
        who: str | None = None
        try:
            principal = await self.identify(authorization)
            who, workspace = principal.name, workspace or rule.workspace_for(principal)
            try:
                found = await self._authorize(principal, rule, workspace, model)
            except NotAdmitted:
                self._count_refused(principal)
                raise
            admitted = Admitted(principal, found.name, self._permits(principal, found))
        except NotAdmitted as refusal:
            self.note(refusal, who=who, what=what, workspace=workspace, client=client)
            raise
        self._remember(asked, found, admitted)
        return admitted

    def _holds(self, decided: _Decision) -> bool:
        """Whether nothing that a decision rests on has changed: principals and workspaces are replaced, not changed."""
        return (
            self.tokens.fresh(decided.token) is decided.admitted.principal
            and self._workspaces.recall_workspace(decided.workspace.name) is decided.workspace
        )

    def _remember(self, asked: _Asked, workspace: Workspace, admitted: Admitted) -> None:
        """Keep a decision for the same question, unless the caller has limits, which are counted each time."""
        token = bearer_token(asked[0])
        if token is None or admitted.permits:
            return
        if len(self._decisions) >= _DECISIONS_KEPT:
            self._decisions.clear()
        self._decisions[asked] = _Decision(token, workspace, admitted)

    def limits_of(self, admitted: Admitted) -> tuple[tuple[str, Limits], ...]:
        """List the bounds that a request is under, its token's and its workspace's, by the name of each."""
        found = self._workspaces.recall_workspace(admitted.workspace)
        own = (f"token {admitted.principal.name}", admitted.principal.limits)
        return (own,) if found is None else (own, (f"workspace {found.name}", found.limits))

    async def identify(self, authorization: bytes | None) -> Principal:
        """Find who sent an Authorization header. Raises: NotAdmitted 401, and 503 while that cannot be told."""
        token = bearer_token(authorization)
        if token is None:
            raise NotAdmitted(401, _why_no_token(authorization))
        try:
            principal = await self.tokens.principal(token)
        except Unavailable as error:
            raise NotAdmitted(503, f"authorization: {error}", retry_after_s=RETRY_AFTER_S) from error
        if principal is None:
            expired = self._workspaces.recall_expired(token)
            if expired is not None:  # whoever holds its secret may know; nobody else moves the series
                EXPIRED.labels(expired).inc()
            raise NotAdmitted(
                401, "authorization: the token is unknown, expired or revoked; ask an admin for one"
            )
        return principal

    def note(
        self, refusal: NotAdmitted, *, who: str | None, what: str, workspace: str | None, client: str
    ) -> None:
        """Note a refusal for the audit, unless it is only that the access list cannot be read."""
        REFUSALS.labels(str(int(refusal.status))).inc()
        if refusal.status != HTTPStatus.SERVICE_UNAVAILABLE:
            self._refusals.record(
                who=who,
                status=refusal.status,
                what=what,
                workspace=workspace,
                client=client,
                why=str(refusal),
            )

    async def _authorize(self, principal: Principal, rule: Rule, name: str, model: str | None) -> Workspace:
        """Find the request's workspace, if the principal may do there what the rule requires.

        A caller without a grant in a workspace does not learn whether it exists. Raises: NotAdmitted.
        """
        if not rule.allows(principal, name, model):
            raise NotAdmitted(403, _too_little(principal, str(rule), name, model))
        found = self._workspaces.recall_workspace(name)
        if found is None:
            loop = asyncio.get_running_loop()
            try:
                found = await loop.run_in_executor(None, self._workspaces.find_workspace, name)
            except Unavailable as error:
                raise NotAdmitted(503, f"workspace: {error}", retry_after_s=RETRY_AFTER_S) from error
        if found is None:
            raise NotAdmitted(
                404, f"workspace {name!r} does not exist; `toque access workspace create` makes it"
            )
        return found

    def _count_refused(self, principal: Principal) -> None:
        """Count a request that is refused against its token's limits, too. Raises: NotAdmitted 429."""
        try:
            permits = self._limits.take((f"token {principal.name}", principal.limits))
        except TooManyRequests as error:
            raise NotAdmitted(429, str(error), retry_after_s=error.retry_after_s) from error
        for permit in permits:
            permit.release()

    def _permits(self, principal: Principal, workspace: Workspace) -> tuple[Permit, ...]:
        if principal.limits.unbounded and workspace.limits.unbounded:
            return NO_PERMIT
        try:
            return self._limits.take(
                (f"token {principal.name}", principal.limits),
                (f"workspace {workspace.name}", workspace.limits),
            )
        except TooManyRequests as error:
            raise NotAdmitted(429, str(error), retry_after_s=error.retry_after_s) from error


def open_admission(
    store: ObjectStore, door: str, *, access: Access | None = None, oidc: OidcSettings | None = None
) -> Admission:
    """Open the admission of a door on the platform's store; reads the access list now, if the store answers.

    access: the platform's access list, None: that of the store. oidc: issuer whose tokens are accepted, too.
    """
    listed = access or Access(store, actor=door)
    with contextlib.suppress(Unavailable):  # the cache reads it later
        listed.read()
    return Admission(TokenCache(with_oidc(listed, oidc)), listed, RefusalLog(store, door))


def _too_little(principal: Principal, needed: str, workspace: str, model: str | None) -> str:
    where = f"workspace {workspace!r}" + (f" for model {model!r}" if model and model != ANY_MODEL else "")
    return f"{principal.name} has {principal.roles}; this needs {needed} in {where}"


def _why_no_token(authorization: bytes | None) -> str:
    """Say what is wrong with a header that has no token."""
    instead = "send 'Authorization: Bearer <token>', `toque access token create` makes one"
    scheme = (authorization or b"").partition(b" ")[0].decode("latin-1")
    if not scheme:
        return f"authorization: missing; {instead}"
    if scheme.lower() == "basic":
        return f"authorization: Basic, of a user and a password, is not accepted; {instead} (of MLflow's client: MLFLOW_TRACKING_TOKEN)"
    return f"authorization: expected 'Bearer <token>', got scheme {scheme!r:.40}; {instead}"
