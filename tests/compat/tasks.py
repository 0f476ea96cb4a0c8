"""The functions of the stored platform's project; a worker that runs one imports little.

The store names what is here as `tests.compat.tasks:…`, so this module must stay where it is.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from toque.functions import Cron, OnEvent, Retries, call, function, sleep, wait_for_event


class Basket(BaseModel):
    """What was bought."""

    fruit: str
    count: int


@function
def double(number: int) -> int:
    return 2 * number


@function(cache=True)
def square(number: int) -> int:
    return number * number


@function
def weigh(basket: Basket) -> dict[str, float]:
    print(f"weighing {basket.count} of {basket.fruit}")  # noqa: T201 - its log is part of the store
    return {basket.fruit: basket.count * 0.25}


@function
def refuse(reason: str) -> None:
    raise ValueError(reason)


@function(retries=Retries(max_attempts=2, backoff_s=60.0))
def refuse_twice(reason: str) -> None:
    raise ValueError(reason)


@function(max_concurrency=1)
def one_at_a_time(number: int) -> int:
    return number + 1


@function
def count_twice(number: int) -> list[int]:
    """A workflow that goes to sleep after its first step."""
    first = call(double, number)
    sleep(1.0)
    return [first, call(double, first)]


@function
def hold(while_there: str) -> str:
    while Path(while_there).exists():
        time.sleep(0.02)
    return "let go"


@function
def count_and_hold(number: int, while_there: str) -> list[Any]:
    """A workflow whose worker is killed in its second step."""
    return [call(double, number), call(hold, while_there)]


@function
def await_order(customer: str) -> dict[str, Any]:
    """A workflow that waits for an event."""
    return wait_for_event("orders", where={"customer": customer})


@function(on=OnEvent("harvest"), schedule=Cron("0 6 * * *", arguments={"fruit": "plum", "count": 1}))
def store_harvest(fruit: str, count: int) -> str:
    return f"{count} x {fruit}"
