"""Functions for the gateway's tests, in a module of their own so that child processes find them."""

import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from functions import Retries, context, function


class Sum(BaseModel):
    total: int
    who: str


@function()
def gateway_add(a: int, b: int = 1) -> Sum:
    """Add two numbers.

    And tell who asked.
    """
    return Sum(total=a + b, who=context().actor)


@function()
def gateway_refuse(a: int) -> int:
    raise ValueError(f"a={a} is not to my taste")


@function(retries=Retries(max_attempts=1))
def gateway_break() -> int:
    raise RuntimeError("out of gas")


@function()
def gateway_note(folder: str, text: str) -> int:
    """Leave a trace of having run."""
    with (Path(folder) / "notes").open("a") as file:
        file.write(f"{text}\n")
    return len(text)


@function()
def gateway_rows(table: pa.Table) -> int:
    """Count rows of something that JSON cannot carry."""
    return int(table.num_rows)


class LockedError(Exception):
    """An error that cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("the door is locked")
        self.lock = threading.Lock()


@function(timeout_s=30)
def gateway_lock() -> int:
    raise LockedError


@function(timeout_s=30)
def gateway_handle() -> Any:
    """Return what is no value."""
    return threading.Lock()
