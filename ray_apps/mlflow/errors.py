"""Maps errors to MLflow's own shape, `{"error_code": …, "message": …}`.

Source: https://mlflow.org/docs/latest/rest-api.html and mlflow/exceptions.py.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from toque.ray_apps.admission import NotAdmitted
from toque.registry import Conflict, errors

_logger = logging.getLogger(__name__)

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
