"""JSON on the wire: a value from a body, compact text out."""

from __future__ import annotations

import json
from typing import Annotated, Any

import orjson
from fastapi import Request
from pydantic import AwareDatetime, BeforeValidator, StringConstraints
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException
from starlette.responses import Response

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"  # as the registry's names

Name = Annotated[str, StringConstraints(pattern=NAME)]


def _text(value: object) -> object:
    if isinstance(value, int | float):
        raise PydanticCustomError("string_type", "write a time as ISO 8601 text with its offset")
    return value


Time = Annotated[AwareDatetime, BeforeValidator(_text)]

MAX_BODY_BYTES = 16 * 1024 * 1024


class Json(Response):
    """A JSON response. NaN and infinities, which JSON lacks, become null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return dumps(content)


def dumps(content: Any) -> bytes:
    """`content` as JSON."""
    try:
        return orjson.dumps(content, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:  # an integer of more than 64 bits: rare, and JSON has it
        return json.dumps(content, default=str).encode()


async def json_of(request: Request) -> Any:
    """The request's body as a JSON value. Raises: HTTPException 400 if it is none."""
    try:
        return json.loads(await request.body(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON value")
