"""JSON of requests and responses: parses bodies, renders responses, and declares the types of common fields."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Annotated, Any, Literal

import orjson
from fastapi import Request
from pydantic import (
    AwareDatetime,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from toque.ray_apps.admission.json_limits import check_json_values
from toque.registry import InvalidInput
from toque.registry.times import as_utc

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"  # the registry's rule for names

Name = Annotated[str, StringConstraints(pattern=NAME)]

_NUMBER = re.compile(
    r"[+-]?[0-9.]+(e[+-]?[0-9]+)?", re.IGNORECASE
)  # pydantic takes it for seconds since 1970
_TIME_FORM = "write ISO 8601 with its offset, as in 2030-01-31T18:00:00+00:00"


def _time(value: object, parse: ValidatorFunctionWrapHandler) -> object:
    """Parse a time to UTC; where the value is not one, say how one is written, and not which type of ours refused it."""
    if isinstance(value, int | float) or (isinstance(value, str) and _NUMBER.fullmatch(value.strip())):
        raise _not_a_time(value, "is not a time")
    try:
        return as_utc(parse(value))
    except InvalidInput as error:
        raise _not_a_time(value, "is before the year 1 or after 9999 in UTC") from error
    except ValidationError as error:
        naive = any(each["type"] == "timezone_aware" for each in error.errors())
        raise _not_a_time(value, "has no timezone" if naive else "is not a time") from error


def _time_or_never(value: object, parse: ValidatorFunctionWrapHandler) -> object:
    return value if value == "never" else _time(value, parse)


def _not_a_time(value: object, why: str) -> PydanticCustomError:
    return PydanticCustomError(
        "time", "{value} {why}; " + _TIME_FORM, {"value": repr(value)[:100], "why": why}
    )


Time = Annotated[AwareDatetime, WrapValidator(_time)]
Expiry = Annotated[AwareDatetime | Literal["never"], WrapValidator(_time_or_never)]


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
