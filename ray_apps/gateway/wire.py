"""JSON on the wire: a value from a body, compact text out."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

MAX_BODY_BYTES = 16 * 1024 * 1024


class Json(Response):
    """A JSON response. NaN and infinities, which JSON lacks, become null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return dumps(content)


def dumps(content: Any) -> bytes:
    """`content` as JSON."""
    return orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY)


async def json_of(request: Request) -> Any:
    """The request's body as a JSON value. Raises: HTTPException 400 if it is none."""
    try:
        return orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from error
