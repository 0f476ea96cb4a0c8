"""Functions that the gateway's tests call, in a module of their own so that child processes can import it."""

import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, Field
from redis.exceptions import BusyLoadingError

from toque.functions import Retries, context, function
from toque.functions.arguments import Time


class Sum(BaseModel):
    total: int
    who: str


@function(http=True)
def gateway_add(a: int, b: int = 1) -> Sum:
    """Add two numbers.

    And name the caller.
    """
    return Sum(total=a + b, who=context().actor)


@function(http=True, role="viewer")
def gateway_read(a: int) -> int:
    return a


@function(http=True, role="admin")
def gateway_govern(a: int) -> int:
    return a


@function(http=True, durable=False)
def gateway_private(who: str) -> int:
    return len(who)


@function(http=True, secrets=["GATEWAY_SECRET_THAT_NOBODY_SET"])
def gateway_secret() -> str:
    return context().secret("GATEWAY_SECRET_THAT_NOBODY_SET")


@function(http=True)
def gateway_since(at: Time | None = None) -> str | None:
    return at and at.isoformat()


class Whom(BaseModel):
    unit: str = Field(min_length=3)


@function(http=True)
def gateway_whom(unit: str) -> str:
    return Whom(unit=unit).unit


@function(http=True)
def gateway_refuse(a: int) -> int:
    raise ValueError(f"a={a} is refused")


@function(http=True, retries=Retries(max_attempts=1))
def gateway_break() -> int:
    raise RuntimeError("out of gas")


class NoSuchGearError(KeyError):
    pass


@function(http=True)
def gateway_raise(kind: str) -> int:
    """Fail as a body with a bug does, or refuse."""
    match kind:
        case "index":
            return len(kind[:0].splitlines()[0])
        case "key":
            return {"a": 1}[kind]
        case "attribute":
            return kind.nothing  # type: ignore[attr-defined]
        case "type":
            return kind + 1  # type: ignore[operator]
        case "zero":
            return 1 // len("")
        case "lookup":
            raise LookupError("no such gear")
        case "own":
            raise NoSuchGearError("no such gear")
        case "nested":
            try:
                return len(kind[:0].splitlines()[0])
            except IndexError as error:
                raise ValueError("no seventh gear") from error
    raise ValueError(f"kind={kind!r} is none")


@function(http=True, retries=Retries(max_attempts=1))
def gateway_load() -> int:
    raise BusyLoadingError("Redis is loading the dataset in memory")


@function(http=True)
def gateway_note(folder: str, text: str) -> int:
    """Append a line to a file, so that runs can be counted."""
    with (Path(folder) / "notes").open("a") as file:
        file.write(f"{text}\n")
    return len(text)


@function
def gateway_rows(table: pa.Table) -> int:
    """Count rows of a table, which JSON cannot carry."""
    return int(table.num_rows)


class LockedError(Exception):
    """An error that cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("this error holds a lock")
        self.lock = threading.Lock()


@function(http=True, timeout_s=30)
def gateway_lock() -> int:
    raise LockedError


@function(http=True, timeout_s=30)
def gateway_handle() -> Any:
    """Return an object that cannot be serialized."""
    return threading.Lock()
