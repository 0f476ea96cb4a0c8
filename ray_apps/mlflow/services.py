"""Who asks, and the registry in that person's name."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ray_apps.mlflow.errors import Refusal
from ray_apps.token_cache import TokenCache
from registry import Access, Clock, ObjectStore, Principal, Registry, Role, RunLog, utc_now

_REGISTRIES_KEPT = 256
_LOGS_KEPT = 4096

bearer = HTTPBearer(auto_error=False, description="MLFLOW_TRACKING_TOKEN: a token from `toque token create`")


class Desk:
    """What the routes work with: one registry an actor, one log an open run. Safe for threads."""

    def __init__(self, store: ObjectStore, *, access: Access | None = None, clock: Clock = utc_now) -> None:
        door = access or Access(store, actor="mlflow")
        self._tokens = TokenCache(door)
        self._logs: OrderedDict[tuple[str, str], RunLog] = OrderedDict()
        self._lock = threading.Lock()
        self._registry: Callable[[str], Registry] = lru_cache(_REGISTRIES_KEPT)(
            lambda actor: Registry(store, actor=actor, clock=clock)
        )

    def acting(self, principal: Principal) -> Registry:
        """The registry, written in the name of `principal`."""
        return self._registry(principal.name)

    def log(self, registry: Registry, run_id: str) -> RunLog:
        """The log of a run, in the name of the registry's actor. Raises: NotFound."""
        key = (registry.actor, run_id)
        with self._lock:
            if key in self._logs:
                self._logs.move_to_end(key)
                return self._logs[key]
        opened = RunLog.of(registry, run_id)
        with self._lock:
            found = self._logs.setdefault(key, opened)
            while len(self._logs) > _LOGS_KEPT:
                self._logs.popitem(last=False)
            return found

    async def identify(self, token: str | None, role: Role) -> Principal:
        """Whose token it is. Raises: Refusal without a live token, or for too low a role."""
        if not token:
            raise Refusal(
                "UNAUTHENTICATED", "no token; set MLFLOW_TRACKING_TOKEN: `toque token create` makes one"
            )
        principal = await self._tokens.principal(token)
        if principal is None:
            raise Refusal("UNAUTHENTICATED", "the token is unknown, expired or revoked")
        if not principal.may(role):
            raise Refusal(
                "PERMISSION_DENIED",
                f"{principal.name} has the role {principal.role.name}; this needs {role.name}",
            )
        return principal


def desk_of(request: Request) -> Desk:
    """The desk of the application that a request came to."""
    desk: Desk = request.app.state.desk
    return desk


def _acting(role: Role) -> Any:
    """A dependency: the registry in the name of whoever asks, if their role is at least `role`."""

    async def registry(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)]
    ) -> Registry:
        desk = desk_of(request)
        return desk.acting(await desk.identify(credentials.credentials if credentials else None, role))

    return Depends(registry)


Reader = Annotated[Registry, _acting(Role.viewer)]
Writer = Annotated[Registry, _acting(Role.operator)]
AtDesk = Annotated[Desk, Depends(desk_of)]
