"""Gives MLflow's routes the registry of an admitted request's workspace in the caller's name, and errors their shape.

Errors have MLflow's own shape, `{"error_code": …, "message": …}`.
Source: https://mlflow.org/docs/latest/rest-api.html and mlflow/exceptions.py.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Annotated, Any

from cachetools import LRUCache
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from toque.ray_apps.admission import ANY_MODEL, Admitted, NotAdmitted, admitted_of, allowed
from toque.registry import (
    Access,
    Clock,
    Conflict,
    ObjectStore,
    Principal,
    Registry,
    Role,
    RunLog,
    errors,
    utc_now,
    workspace_store,
)

_REGISTRIES_KEPT = 256
_LOGS_KEPT = 4096
# DATA_LOSS is not 5xx: MLflow's client would retry for minutes what cannot get better.
_STATUS = {
    "INVALID_PARAMETER_VALUE": 400,
    "RESOURCE_ALREADY_EXISTS": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "RESOURCE_DOES_NOT_EXIST": 404,
    "ENDPOINT_NOT_FOUND": 404,
    "RESOURCE_CONFLICT": 409,
    "DATA_LOSS": 409,
    "REQUEST_LIMIT_EXCEEDED": 429,
    "INTERNAL_ERROR": 500,
    "NOT_IMPLEMENTED": 501,
    "TEMPORARILY_UNAVAILABLE": 503,
}
# The first class that fits decides.
_CODES: tuple[tuple[type[Exception], str], ...] = (
    (errors.NotFound, "RESOURCE_DOES_NOT_EXIST"),
    (errors.InvalidInput, "INVALID_PARAMETER_VALUE"),
    (errors.AlreadyExists, "RESOURCE_ALREADY_EXISTS"),
    (errors.Stale, "RESOURCE_CONFLICT"),
    (Conflict, "RESOURCE_CONFLICT"),
    (errors.Refused, "PERMISSION_DENIED"),
    (errors.Forbidden, "PERMISSION_DENIED"),
    (errors.Damaged, "DATA_LOSS"),
    (errors.Unavailable, "TEMPORARILY_UNAVAILABLE"),
)
# Statuses of requests that are not admitted, in MLflow's words.
_NOT_ADMITTED = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST",
    429: "REQUEST_LIMIT_EXCEEDED",
    503: "TEMPORARILY_UNAVAILABLE",
}
_logger = logging.getLogger(__name__)


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


class Refusal(Exception):  # noqa: N818 - an answer to the client, not a failure of ours
    """An error response to the client. code: one of MLflow's error codes."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def unsupported(what: str, instead: str) -> Refusal:
    """Make the refusal of a call that MLflow has and this platform does not support."""
    return Refusal("NOT_IMPLEMENTED", f"{what} is not supported by Toque's registry; {instead}")


def install(app: FastAPI) -> None:
    """Install exception handlers that answer every error in MLflow's shape."""
    app.add_exception_handler(Refusal, _on_refusal)
    app.add_exception_handler(NotAdmitted, _on_not_admitted)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    for kind, _ in _CODES:
        app.add_exception_handler(kind, _on_known)
    app.add_exception_handler(Exception, _on_unknown)


def _answer(code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error_code": code, "message": message}, _STATUS[code], headers)


def _on_refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)  # noqa: S101 - what it is registered for
    return _answer(error.code, str(error))


def _on_not_admitted(_: Request, error: Exception) -> Response:
    assert isinstance(error, NotAdmitted)  # noqa: S101 - what it is registered for
    return _answer(_NOT_ADMITTED[error.status], str(error), error.headers)


def _on_known(_: Request, error: Exception) -> Response:
    return _answer(next(code for kind, code in _CODES if isinstance(error, kind)), str(error))


def _on_http(request: Request, error: Exception) -> Response:
    """Answer for a route or method that does not exist, or a body that cannot be read."""
    assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
    if error.status_code in {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED}:
        message = f"{request.method} {request.url.path} is not an endpoint of Toque's registry"
        return _answer("ENDPOINT_NOT_FOUND", message)
    return _answer("INVALID_PARAMETER_VALUE", str(error.detail))


def _on_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - what it is registered for
    problems: list[dict[str, Any]] = list(error.errors())
    messages = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in problems]
    return _answer("INVALID_PARAMETER_VALUE", "; ".join(messages))


def _on_unknown(request: Request, error: Exception) -> Response:
    _logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _answer("INTERNAL_ERROR", f"{type(error).__name__}: {error}")
