"""JSON of requests and responses: parses bodies, renders responses, and declares the types of common fields.

Bodies of many rows are parsed row by row in a thread. A parser of whole bodies holds the interpreter until it has
finished, 0.2 s for 100,000 rows, in which an event loop answers nobody, whichever thread parses. Between rows the
interpreter is free. Rows are handed on by the thousand and dropped, because a collection of garbage looks at all that
are alive, and holds the interpreter too.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

import orjson
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ValidationError,
)
from starlette.exceptions import HTTPException
from starlette.responses import Response

from toque.functions.arguments import parse_time
from toque.ray_apps.admission.guarded_route import MAX_BODY_BYTES, check_json_values

MAX_ROWS: Final = 100_000
MAX_ROW_CHARACTERS: Final = 64 << 10
_FIRST_CHARACTERS = 2 << 10  # most rows are shorter, and copying is the cost of a longer look
_CONTAINERS_PER_ROW = 3
_VALUES_PER_ROW = 64
_MAX_ERRORS = 100
_ROWS_AT_ONCE = 1_000
_SPACE = re.compile(r"[ \t\n\r]*")
Row = TypeVar("Row", bound=BaseModel)
Members = Mapping[str, Any]


def _time_or_never(value: object) -> object:
    return value if value == "never" else parse_time(value)


Expiry = Annotated[AwareDatetime | Literal["never"], BeforeValidator(_time_or_never)]


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


class Taken(NamedTuple):
    """Number of rows in a body, and its other members."""

    rows: int
    others: dict[str, Any]


def take_rows(
    body: bytes, kind: type[Row], take: Callable[[int, list[Row]], None], *, member: str | None = None
) -> Taken:
    """Parse a JSON array of rows, or an object with them as `member`, and pass them to `take`; blocks, so not on a loop.

    take: gets the number of the first row and up to 1,000 rows at a time, before it is known whether all are valid.
    Raises: RequestValidationError naming row and field; HTTPException 413 for rows with too many values.
    """
    check_json_values(
        body,
        max_bytes=MAX_BODY_BYTES,
        max_containers=_CONTAINERS_PER_ROW * MAX_ROWS,
        max_values=_VALUES_PER_ROW * MAX_ROWS,
    )
    parser = _Parser(_text(body), kind, member, take)
    try:
        parser.parse()
    except json.JSONDecodeError as error:
        raise _invalid("json_invalid", (error.pos,), f"JSON decode error: {error.msg}") from error
    if parser.errors:
        raise RequestValidationError(parser.errors)
    return Taken(parser.count, parser.others)


def rows_schema(kind: type[BaseModel], *, member: str | None = None, others: Members | None = None) -> Any:
    """Describe such a body for OpenAPI. others: schemas of the other members, all of them optional."""
    row = kind.model_json_schema()
    rows = {"type": "array", "items": _inlined(row, row.pop("$defs", {})), "maxItems": MAX_ROWS}
    schema: dict[str, Any] = rows
    if member is not None:
        schema = {
            "type": "object",
            "properties": {member: rows | {"minItems": 1}, **(others or {})},
            "required": [member],
            "additionalProperties": False,
        }
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _inlined(schema: Any, defined: dict[str, Any]) -> Any:
    """Put the definitions of a schema where it refers to them: within a document its references lead nowhere."""
    if isinstance(schema, list):
        return [_inlined(each, defined) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(defined[schema["$ref"].removeprefix("#/$defs/")], defined)
    return {name: _inlined(each, defined) for name, each in schema.items()}


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise _invalid("json_invalid", (error.start,), "JSON decode error: the body is not UTF-8") from error


class _Parser:
    """Parser of one body: counts its rows, keeps its other members and what is wrong with rows."""

    def __init__(
        self, text: str, kind: type[Row], member: str | None, take: Callable[[int, list[Row]], None]
    ) -> None:
        self.count = 0
        self.others: dict[str, Any] = {}
        self.errors: list[dict[str, Any]] = []
        self._text, self._kind, self._member, self._take_rows = text, kind, member, take
        self._at = 0
        self._overflow = ""  # a number of the last value, as it was sent, that float64 does not hold
        self._decoder = json.JSONDecoder(parse_constant=_refuse_row_constant, parse_float=self._parse_float)

    def parse(self) -> None:
        """Parse the whole body, row by row. Raises: JSONDecodeError, RequestValidationError."""
        if self._member is None:
            self._expect_kind("[", "list_type", "array")
            self._read_rows(("body",))
        else:
            self._expect_kind("{", "model_type", "object")
            self._read_members(self._member)
        if self._peek():
            raise json.JSONDecodeError("Extra data", self._text, self._at)

    def _expect_kind(self, opening: str, error: str, named: str) -> None:
        if self._peek() != opening:
            if not self._text.strip():
                raise _invalid("missing", (), "Field required")
            self._value(MAX_ROW_CHARACTERS)  # broken JSON says so
            raise _invalid(error, (), f"Input should be a valid {named}")

    def _read_members(self, member: str) -> None:
        for _ in self._items("{", "}"):
            name = self._value(MAX_ROW_CHARACTERS)
            if not isinstance(name, str) or self._take() != ":":
                raise json.JSONDecodeError("Expecting a member's name and ':'", self._text, self._at)
            if name != member:
                self.others[name] = self._value(MAX_ROW_CHARACTERS)
            elif self._peek() == "[":
                self._read_rows(("body", member))
            else:
                raise _invalid("list_type", (member,), "Input should be a valid array")
        if not self.count:
            raise _invalid("too_short", (member,), "give at least one row")

    def _read_rows(self, where: tuple[str, ...]) -> None:
        rows: list[Any] = []
        for number in self._items("[", "]"):
            if number >= MAX_ROWS:
                raise _invalid("too_long", where[1:], f"at most {MAX_ROWS} rows are taken at a time")
            self.count = number + 1
            row = self._value(_FIRST_CHARACTERS)
            try:
                rows.append(self._kind.model_validate(row))
            except ValidationError as error:
                self._note(error.errors(include_url=False), (*where, number))
            else:
                if self._overflow:
                    self._note([self._overflow_error(row)], (*where, number))
            if len(rows) == _ROWS_AT_ONCE:
                self._hand_on(rows)
        self._hand_on(rows)

    def _hand_on(self, rows: list[Any]) -> None:
        if rows and not self.errors:
            self._take_rows(self.count - len(rows), rows)
        rows.clear()

    def _note(self, errors: Sequence[Any], where: tuple[Any, ...]) -> None:
        if len(self.errors) < _MAX_ERRORS:
            self.errors += [dict(each, loc=(*where, *each["loc"])) for each in errors]

    def _parse_float(self, text: str) -> float:
        value = float(text)
        if math.isinf(value):
            self._overflow = text
        return value

    def _overflow_error(self, row: Mapping[str, Any]) -> dict[str, Any]:
        field = next((name for name, value in row.items() if _has_infinity(value)), "")
        text = "the number is beyond what a float64 holds (1.8e308); correct it, or send null"
        return {"type": "finite_number", "loc": (field,), "msg": text, "input": self._overflow}

    def _items(self, opening: str, closing: str) -> Iterator[int]:
        """Iterate over the items of an array or object; the caller reads each."""
        if self._take() != opening:
            raise json.JSONDecodeError(f"Expecting {opening!r}", self._text, self._at)
        if self._peek() == closing:
            self._take()
            return
        number = 0
        while True:
            yield number
            number += 1
            after = self._take()
            if after == closing:
                return
            if after != ",":
                raise json.JSONDecodeError(f"Expecting ',' or {closing!r}", self._text, max(0, self._at - 1))

    def _value(self, characters: int) -> Any:
        """Decode the value that begins here, looking at so many characters first, and at no more than a row's."""
        self._peek()
        self._overflow = ""
        piece = self._text[self._at : self._at + characters]
        try:
            value, length = self._decoder.raw_decode(piece)
        except json.JSONDecodeError as error:
            if self._at + characters >= len(self._text):
                raise json.JSONDecodeError(error.msg, self._text, self._at + error.pos) from None
            if characters >= MAX_ROW_CHARACTERS:
                raise _invalid(
                    "too_long",
                    (self._at,),
                    f"a row takes at most {MAX_ROW_CHARACTERS} characters, or is not JSON: {error.msg}",
                ) from None
            return self._value(MAX_ROW_CHARACTERS)
        except ValueError as error:  # more digits than Python reads
            raise _invalid("json_invalid", (self._at,), f"JSON decode error: {error}") from error
        except RecursionError as error:
            raise _invalid("json_invalid", (self._at,), "JSON decode error: too deep") from error
        self._at += length
        return value

    def _peek(self) -> str:
        """The next character that is not space; "" at the end."""
        found = _SPACE.match(self._text, self._at)
        self._at = found.end() if found else self._at
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        taken = self._peek()
        self._at += len(taken)
        return taken


def _has_infinity(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_has_infinity, value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) and math.isinf(value)


def _refuse_row_constant(constant: str) -> None:
    raise json.JSONDecodeError(f"{constant} is not a JSON value", constant, 0)


def _invalid(kind: str, where: tuple[Any, ...], message: str) -> RequestValidationError:
    return RequestValidationError([{"type": kind, "loc": ("body", *where), "msg": message, "input": None}])
