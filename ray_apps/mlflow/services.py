"""Authenticates callers of MLflow's protocol, and gives routes the registry in the caller's name."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ray_apps.mlflow.errors import Refusal
from ray_apps.oidc import OidcSettings, with_oidc
from ray_apps.token_cache import TokenCache
from registry import Access, Clock, ObjectStore, Principal, Registry, Role, RunLog, utc_now

_REGISTRIES_KEPT = 256
_LOGS_KEPT = 4096

bearer = HTTPBearer(auto_error=False, description="MLFLOW_TRACKING_TOKEN: a token from `toque token create`")


class MlflowServices:
    """Registries by actor and logs by open run, shared by all routes; thread-safe."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        access: Access | None = None,
        clock: Clock = utc_now,
        oidc: OidcSettings | None = None,
    ) -> None:
        self._tokens = TokenCache(with_oidc(access or Access(store, actor="mlflow"), oidc))
        self._logs: OrderedDict[tuple[str, str], RunLog] = OrderedDict()
        self._lock = threading.Lock()
        self._registry: Callable[[str], Registry] = lru_cache(_REGISTRIES_KEPT)(
            lambda actor: Registry(store, actor=actor, clock=clock)
        )

    def registry_for(self, principal: Principal) -> Registry:
        """Get the registry, with `principal` as the actor of everything written."""
        return self._registry(principal.name)

    def log(self, registry: Registry, run_id: str) -> RunLog:
        """Open the log of a run in the name of the registry's actor; kept open for later calls. Raises: NotFound."""
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

    async def authorize(self, token: str | None, role: Role) -> Principal:
        """Find the principal of a token. Raises: Refusal without a live token, or if its role is below `role`."""
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
                f"{principal.name} has {principal.roles}; this needs {role.name}",
            )
        return principal


def services_of(request: Request) -> MlflowServices:
    """Get the services of the application that received a request."""
    services: MlflowServices = request.app.state.services
    return services


def _registry_as(role: Role) -> Any:
    """Make a FastAPI dependency that yields the registry in the caller's name, if their role is at least `role`."""

    async def registry(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)]
    ) -> Registry:
        services = services_of(request)
        principal = await services.authorize(credentials.credentials if credentials else None, role)
        return services.registry_for(principal)

    return Depends(registry)


ViewerRegistry = Annotated[Registry, _registry_as(Role.viewer)]
OperatorRegistry = Annotated[Registry, _registry_as(Role.operator)]
Services = Annotated[MlflowServices, Depends(services_of)]
