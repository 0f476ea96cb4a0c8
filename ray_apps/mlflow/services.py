"""Gives routes the registry of a request's workspace in the caller's name, once the request is admitted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

from cachetools import LRUCache
from fastapi import Depends, Request

from toque.ray_apps.admission import ANY_MODEL, Admitted, admitted_of, allowed
from toque.registry import (
    Access,
    Clock,
    ObjectStore,
    Principal,
    Registry,
    Role,
    RunLog,
    utc_now,
    workspace_store,
)

_REGISTRIES_KEPT = 256
_LOGS_KEPT = 4096


class MlflowServices:
    """Registries by workspace and actor, and logs by open run, shared by all routes; thread-safe.

    store: the platform's; access: its list of tokens and workspaces.
    """

    def __init__(self, store: ObjectStore, access: Access, *, clock: Clock = utc_now) -> None:
        self.store, self.access = store, access
        self._logs: LRUCache[tuple[str, str, str], RunLog] = LRUCache(_LOGS_KEPT)
        self._lock = threading.Lock()
        self._registry: Callable[[str, str], Registry] = lru_cache(_REGISTRIES_KEPT)(
            lambda workspace, actor: Registry(workspace_store(store, workspace), actor=actor, clock=clock)
        )

    def registry_for(self, admitted: Admitted) -> Registry:
        """Get the registry of a request's workspace, with its caller as the actor of everything written."""
        return self._registry(admitted.workspace, admitted.principal.name)

    def log(self, workspace: str, registry: Registry, run_id: str) -> RunLog:
        """Open the log of a run in the name of the registry's actor; kept open for later calls. Raises: NotFound."""
        key = (workspace, registry.actor, run_id)
        with self._lock:
            if key in self._logs:
                return self._logs[key]
        opened = RunLog.of(registry, run_id)
        with self._lock:
            return self._logs.setdefault(key, opened)


@dataclass(frozen=True, slots=True)
class RunLogs:
    """Logs of the runs in the workspace of one request."""

    services: MlflowServices
    workspace: str

    def of(self, registry: Registry, run_id: str) -> RunLog:
        """Open the log of a run in the name of the registry's actor. Raises: NotFound."""
        return self.services.log(self.workspace, registry, run_id)


@dataclass(frozen=True, slots=True)
class ModelAccess:
    """Registry of a request's workspace for a caller whose grant may be for one model: the route names which it is for.

    role: what the route takes.
    """

    admitted: Admitted
    role: Role
    _registry: Registry

    def to(self, model: str | None) -> Registry:
        """Get the registry, for this model, or with None for everything in the workspace. Raises: NotAdmitted."""
        self.admitted.require(self.role, model=model)
        return self._registry

    def models(self) -> list[str]:
        """List the names of the models that the caller's grants reach."""
        return [name for name in self._registry.list_models() if self.admitted.may(self.role, model=name)]


def services_of(request: Request) -> MlflowServices:
    """Get the services of the application that received a request."""
    services: MlflowServices = request.app.state.services
    return services


def _registry_as(role: Role) -> Any:
    """Make a FastAPI dependency that requires `role` in the workspace, and yields its registry in the caller's name."""
    required = allowed(role)

    async def registry(request: Request, _: Principal = required) -> Registry:
        return services_of(request).registry_for(admitted_of(request))

    return Depends(registry)


def _model_access_as(role: Role) -> Any:
    """Make a FastAPI dependency that requires `role`, for some model at least, and yields access to models."""
    required = allowed(role, model=ANY_MODEL)

    async def access(request: Request, _: Principal = required) -> ModelAccess:
        admitted = admitted_of(request)
        return ModelAccess(admitted, role, services_of(request).registry_for(admitted))

    return Depends(access)


async def _logs_of(request: Request) -> RunLogs:
    """Get the logs of the workspace of a request that another dependency has admitted."""
    return RunLogs(services_of(request), admitted_of(request).workspace)


ViewerRegistry = Annotated[Registry, _registry_as(Role.viewer)]
OperatorRegistry = Annotated[Registry, _registry_as(Role.operator)]
ModelViewer = Annotated[ModelAccess, _model_access_as(Role.viewer)]
ModelOperator = Annotated[ModelAccess, _model_access_as(Role.operator)]
Logs = Annotated[RunLogs, Depends(_logs_of)]
