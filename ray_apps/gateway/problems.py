"""Maps errors to problem details (RFC 9457): one table from exception to status, the message as the detail.

A request that does not fit the OpenAPI document is 400 or 422; one that fits, and is refused for what is there or
by the function it calls, is 409; what is our own fault is 5xx. Source: https://www.rfc-editor.org/rfc/rfc9457

Paths below `/workspaces/{name}` are the gateway's own ones, in that workspace, so a client that knows only a base URL, as those of
the inference protocol do, works in one workspace by the base `http://host/workspaces/payments`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from redis import RedisError
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from toque import registry
from toque.clusters.redis_clients import TRANSIENT
from toque.featurestore.errors import (
    FeatureStoreError,
    OnlineStoreUnavailable,
    UnknownDefinition,
)
from toque.functions.prediction_log import PredictionLogError
from toque.functions.runtime import catalog
from toque.functions.runtime import errors as runtime
from toque.ray_apps.admission.guarded_route import WORKSPACE_HEADERS
from toque.ray_apps.gateway.wire import dumps

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = "1"
_WORKSPACES_PATH: Final = "/workspaces/"
_WORKSPACE_HEADERS: Final = tuple(name.encode() for name in WORKSPACE_HEADERS)
_logger = logging.getLogger(__name__)


class Problem(Exception):  # noqa: N818  # the term of RFC 9457
    """An error response: its status and, optionally, errors of single fields and headers."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        kind: str = "about:blank",
        fields: list[dict[str, Any]] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.kind = kind
        self.fields = fields or []
        self.headers = headers or {}


# The first class that fits decides; subclasses stand above their bases.
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (registry.NotFound, 404),
    (registry.InvalidInput, 409),
    (registry.Stale, 409),
    (registry.Conflict, 409),
    (registry.AlreadyExists, 409),
    (registry.Refused, 409),
    (registry.Unavailable, 503),
    (runtime.UnknownFunction, 404),
    (runtime.UnknownInvocation, 404),
    (runtime.InvalidArguments, 422),
    (runtime.DeclarationError, 422),  # JSON cannot carry its types
    (runtime.KeyConflict, 409),
    (runtime.Cancelled, 409),
    (runtime.NotDead, 409),
    (runtime.MissingSecret, 409),  # until an operator gives it
    (runtime.WorkerLost, 503),
    (TimeoutError, 504),
    (OnlineStoreUnavailable, 503),
    (UnknownDefinition, 404),
    (FeatureStoreError, 409),  # the rows do not fit the view as it is defined now
    (PredictionLogError, 503),
)


# What a client of Redis raises once it has waited its patience out: a failover, or a server that loads its data again.
_REDIS_AWAY = tuple(kind for kind in TRANSIENT if issubclass(kind, RedisError))
_RULES = frozenset(
    {"value_error", "assertion_error"}
)  # raised by a validator's code, which no schema describes
# By these a function refuses its arguments; any other error is a failure of the function. What Python itself raises for an
# index or key that is not there is a bug, such as the first of no rows; a class derived from it was raised on purpose.
_REFUSALS: tuple[type[Exception], ...] = (ValueError, LookupError, OverflowError)
_BUGS = frozenset({IndexError, KeyError})


def problem_of(error: Exception) -> Problem | None:
    """Convert an error of the platform to a problem; None for any other error."""
    status = _status_of(type(error))
    if status is None:
        return None
    fields = error.problems if isinstance(error, runtime.InvalidArguments) else []
    # Without a field, it is the declaration that refuses, such as of a durable call.
    if isinstance(error, runtime.InvalidArguments) and (
        not fields or any(each["kind"] in _RULES for each in fields)
    ):
        status = HTTPStatus.CONFLICT
    headers = {"Retry-After": RETRY_AFTER_S} if status == HTTPStatus.SERVICE_UNAVAILABLE else {}
    if isinstance(error, _REDIS_AWAY):
        return Problem(status, f"Redis is away: {error}; try again", kind="redis-away", headers=headers)
    return Problem(status, str(error), kind=_kind(error), fields=fields, headers=headers)


def problem_of_function(name: str, error: Exception) -> Problem:
    """Convert an error that a function raised to a problem: a refusal (409), or a failure of the function (500)."""
    status = _status_in_function(
        _named(error.kind) if isinstance(error, runtime.RemoteError) else type(error)
    )
    known = problem_of(error)
    if known is not None and known.status == status:
        return known
    kind = "function-refused" if status == HTTPStatus.CONFLICT else "function-failed"
    text = _text_of(error) if isinstance(error, ValidationError) else f"{type(error).__name__}: {error}"
    return Problem(status, f"{name}: {text}", kind=kind)


def _text_of(error: ValidationError) -> str:
    """Text of what a model of the function's refused, without the library's own advice."""
    details = error.errors(include_url=False)
    return "; ".join(": ".join([*map(str, each["loc"]), each["msg"]]) for each in details)


def problem_of_failure(name: str, error: str, message: str, *, headers: dict[str, str]) -> Problem:
    """Convert the failure of a dead invocation to a problem.

    error: name of the error's class as the record has it, so also of a class that an earlier release raised.
    """
    text = f"{name}: {error}: {message}"
    return Problem(_status_in_function(_named(error)), text, kind="invocation-dead", headers=headers)


def _named(error: str) -> type[Exception]:
    """Find the class of this name of which an error is a refusal; Exception if there is none."""
    roots = (*(kind for kind, _ in _STATUS), *_REFUSALS)
    found = (kind for root in roots for kind in _descendants(root) if kind.__qualname__ == error)
    return next(found, Exception)


def _status_of(error: type[Exception]) -> int | None:
    """Find the HTTP status of an error of the platform; None for any other error."""
    if issubclass(error, _REDIS_AWAY):
        return HTTPStatus.SERVICE_UNAVAILABLE
    return next((status for kind, status in _STATUS if issubclass(error, kind)), None)


def _status_in_function(error: type[Exception]) -> int:
    """Find the status of an error raised inside a function, whose arguments did fit its schema: never 422."""
    known = _status_of(error)
    if known == HTTPStatus.UNPROCESSABLE_ENTITY:
        return HTTPStatus.CONFLICT
    if known is not None:
        return known
    meant = issubclass(error, _REFUSALS) and error not in _BUGS
    refused = meant and not issubclass(error, runtime.FunctionError)
    return HTTPStatus.CONFLICT if refused else HTTPStatus.INTERNAL_SERVER_ERROR


def _descendants(kind: type[Exception]) -> Iterator[type[Exception]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _descendants(each)


def respond(problem: Problem, request: Request) -> Response:
    """Render a problem as a response; on routes of the inference protocol with the member `error` that clients read."""
    body: dict[str, Any] = {
        "type": problem.kind,
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "instance": request.url.path,
    }
    body |= {"errors": problem.fields} if problem.fields else {}
    body |= {"error": problem.detail} if route_path(request).startswith("/v2") else {}
    return Response(dumps(body), problem.status, headers=problem.headers, media_type=MEDIA_TYPE)


def install(app: FastAPI, *, identify: Callable[[Request], Awaitable[object]]) -> None:
    """Install exception handlers that answer every error with a problem.

    identify: raises a Problem for a caller without a valid token, who must not learn which paths exist.
    """

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101  # registered for it only
        try:
            if error.status_code in {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED}:
                await identify(request)
            if error.status_code == HTTPStatus.NOT_FOUND and _is_route_with_slash(request):
                path, query = request.url.path.rstrip("/"), request.url.query
                return RedirectResponse(f"{path}?{query}" if query else path)
            return _on_http(request, error)
        except Problem as unauthenticated:
            return respond(unauthenticated, request)

    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    for kind in dict.fromkeys([*(kind for kind, _ in _STATUS), *_REDIS_AWAY]):
        app.add_exception_handler(kind, _on_known)
    app.add_exception_handler(Exception, _on_unknown)


def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)  # noqa: S101  # registered for it only
    return respond(error, request)


def _on_http(request: Request, error: HTTPException) -> Response:
    if error.status_code != HTTPStatus.METHOD_NOT_ALLOWED:
        return respond(
            Problem(error.status_code, str(error.detail), headers=dict(error.headers or {})), request
        )
    unknown = _unknown_function(route_path(request))
    if unknown is not None:
        return _on_known(request, unknown)
    # The router names only the first route's methods.
    headers = {"Allow": ", ".join(sorted(_methods(request)))}
    return respond(Problem(error.status_code, str(error.detail), headers=headers), request)


def _unknown_function(path: str) -> runtime.UnknownFunction | None:
    before, _, name = path.partition("/functions/")
    if not before and name and "/" not in name:
        try:
            found = catalog.find_declared(name, where=lambda each: each.http)
        except runtime.UnknownFunction as error:
            return error
        return None if found else runtime.UnknownFunction(f"no function {name!r} is callable by HTTP")
    return None


def _methods(request: Request) -> set[str]:
    """Collect the methods of all routes that match the request's path."""
    return {
        method
        for route in request.app.routes
        if isinstance(route, Route) and route.path_regex.match(route_path(request))
        for method in route.methods or ()
    }


def _is_route_with_slash(request: Request) -> bool:
    """Whether the path is that of a route but for slashes at its end."""
    path = route_path(request)
    short = path.rstrip("/")
    return short != path and any(
        isinstance(route, Route) and route.path_regex.match(short) for route in request.app.routes
    )


def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101  # registered for it only
    fields = [
        {"field": ".".join(map(str, each["loc"])), "message": each["msg"], "value": _short(each.get("input"))}
        for each in error.errors()
    ]
    detail = "; ".join(f"{each['field']}: {each['message']}" for each in fields)
    broken = any(each["type"] in _RULES for each in error.errors())
    return respond(Problem(409 if broken else 422, detail, kind="invalid-request", fields=fields), request)


def _on_known(request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    assert problem is not None  # noqa: S101  # registered for it only
    return respond(problem, request)


def _on_unknown(request: Request, error: Exception) -> Response:
    _logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return respond(Problem(500, "the gateway failed; its log says why", kind="internal"), request)


def _kind(error: Exception) -> str:
    name = type(error).__name__
    return "".join(f"-{c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(name))


def _short(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | None) else str(value)[:200]


class WorkspacePath:
    """ASGI middleware that takes the workspace from the path, which goes before the header.

    What comes after `/workspaces/{name}` is routed as if it stood alone; the path of the workspace itself stays.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with the workspace of its path in its header."""
        if scope["type"] == "http":
            scope = _in_workspace(scope)
        await self._app(scope, receive, send)


def route_path(request: Request) -> str:
    """Path of a request without the prefix that names its workspace."""
    path = request.url.path
    root = str(request.scope.get("root_path", ""))
    return path.removeprefix(root) if path.startswith(f"{root}/") else path


def _in_workspace(scope: Scope) -> Scope:
    root = scope.get("root_path", "")
    path = scope["path"].removeprefix(root)
    name, slash, rest = path.removeprefix(_WORKSPACES_PATH).partition("/")
    if not path.startswith(_WORKSPACES_PATH) or not name:
        return scope
    headers = [(key, value) for key, value in scope["headers"] if key not in _WORKSPACE_HEADERS]
    changed = {**scope, "headers": [*headers, (_WORKSPACE_HEADERS[0], name.encode("latin-1", "replace"))]}
    return changed | {"root_path": f"{root}{_WORKSPACES_PATH}{name}"} if slash and rest else changed
