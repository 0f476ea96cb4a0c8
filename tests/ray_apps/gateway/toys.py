"""Functions for the gateway's tests, in a module of their own so that child processes find them."""

from pathlib import Path

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
