"""Refusals in the shape that OpenAI's clients read: `{"error": {"message", "type", "param", "code"}}`."""

# ruff: noqa: N818  # these are answers, named as the predictor names its own

from __future__ import annotations

from typing import Any, Final

import orjson

from toque.ray_apps.predictor.protocol.errors import PredictorError

__all__ = ["ApiRefusal", "error_document", "refusal_by_engine"]

_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_FAULT: Final = 500
_CODES: Final = {401: "invalid_api_key", 429: "rate_limit_exceeded"}


class ApiRefusal(PredictorError):
    """A refusal of a request for a language model.

    param: field of the request that it is about. code: by which programs tell it. retry_after_s: when to send it again; None:
    never as it is.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after_s = status, param, code, retry_after_s


def error_document(refusal: PredictorError) -> bytes:
    """Write a refusal as the document that clients expect."""
    status = refusal.status
    given = refusal if isinstance(refusal, ApiRefusal) else None
    code = given.code if given is not None and given.code else _CODES.get(status)
    error: dict[str, Any] = {
        "message": str(refusal).encode(errors="replace").decode(),
        "type": _TYPES.get(status, "server_error" if status >= _FAULT else "invalid_request_error"),
        "param": given.param if given is not None else None,
        "code": code,
    }
    return orjson.dumps({"error": error})


def refusal_by_engine(status: int, content: bytes) -> ApiRefusal:
    """Turn what an engine said in place of an answer into a refusal: the caller's fault stays one, all else may be tried again."""
    try:
        said = orjson.loads(content).get("error")
    except (orjson.JSONDecodeError, AttributeError):
        said = None
    said = said if isinstance(said, dict) else {"message": said}
    message = said.get("message")
    if status >= _FAULT and status != 501:  # noqa: PLR2004  # what an engine has not is the caller's to leave out
        return ApiRefusal(f"engine: {message or status}", status=503, retry_after_s=1)
    code = "context_length_exceeded" if "context" in str(said.get("type", "")) else None
    return ApiRefusal(f"{message or f'the engine refuses it with status {status}'}", status=400, code=code)
