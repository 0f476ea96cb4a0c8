"""JSON of requests and responses: parses bodies, renders responses, and declares the types of common fields."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Annotated, Any

import orjson
from fastapi import Request
from pydantic import AwareDatetime, BeforeValidator, StringConstraints
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ray_apps.admission.json_limits import check_json_values

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"  # the registry's rule for names

Name = Annotated[str, StringConstraints(pattern=NAME)]

_NUMBER = re.compile(
    r"[+-]?[0-9.]+(e[+-]?[0-9]+)?", re.IGNORECASE
)  # pydantic takes it for seconds since 1970


def _refuse_number(value: object) -> object:
    if isinstance(value, int | float) or (isinstance(value, str) and _NUMBER.fullmatch(value.strip())):
        raise PydanticCustomError("string_type", "write a time as ISO 8601 text with its offset")
    return value


Time = Annotated[AwareDatetime, BeforeValidator(_refuse_number)]


class Json(Response):
    """A JSON response, in which NaN and infinities become null as JSON lacks them."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode the response's content as JSON."""
        return dumps(content)


def dumps(content: Any) -> bytes:
    """Encode a value as compact JSON, integers of any size included."""
    try:
        options = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
        return orjson.dumps(content, default=_decimal_text, option=options)
    except TypeError:  # an integer of more than 64 bits, which orjson refuses and JSON has
        return json.dumps(content, default=str).encode()


def _decimal_text(value: object) -> str:
    """Write a decimal as text, since a JSON number would be read with fewer digits."""
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


async def json_of(request: Request) -> Any:
    """Parse the request's body as a JSON value.

    Raises: HTTPException 400 if it is not JSON, 413 if it has too many values.
    """
    body = await request.body()
    check_json_values(body)
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from error


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON value")
