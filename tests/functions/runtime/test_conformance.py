"""Conformance of runs: the same tests in this process and on a Ray cluster."""

import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from toque.functions import Context, Retries, context, function
from toque.functions.runtime.errors import (
    Cancelled,
    InvalidArguments,
    InvalidResult,
    RemoteError,
    TimedOut,
)

pytestmark = pytest.mark.usefixtures("backend", "used")


class Point(BaseModel):
    x: int
    at: datetime


class UnpicklableError(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")
        self.lock = threading.Lock()


def leave(path: str, word: object = "x") -> int:
    with Path(path).open("a") as file:
        file.write(f"{word}\n")
    return len(Path(path).read_text().split())


@function
def add(a: int, b: int = 2) -> int:
    return a + b


@function
def move(point: Point, by: int) -> Point:
    return Point(x=point.x + by, at=point.at)


@function
async def later(a: int) -> int:
    return a + 1


@function
def count_to(n: int) -> Iterator[int]:
    yield from range(n)


@function
async def count_slowly(n: int) -> AsyncIterator[int]:
    for each in range(n):
        yield each


@function
def refuse(a: int) -> int:
    raise KeyError(a)


@function
def break_oddly() -> int:
    raise UnpicklableError(1, 2)


@function
def handle() -> Any:
    return threading.Lock()


@function(retries=Retries(3, backoff_s=0.01))
def third_time_lucky(path: str) -> int:
    if leave(path) < 3:
        raise ConnectionError("not yet")
    return 3


@function(retries=Retries(3, backoff_s=0.01, on=(ConnectionError,)))
def wrong(path: str) -> int:
    leave(path)
    raise ValueError("for good")


@function(timeout_s=0.5)
def sleep_long(path: str) -> None:
    time.sleep(600)  # the work that is killed at its time limit: nobody waits so long
    leave(path)


@function(timeout_s=3)  # long enough to have begun, however busy the machine
def stubborn(path: str) -> None:
    leave(path, "started")
    for _ in range(60):
        with suppress(BaseException):
            time.sleep(1)
    leave(path, "ended")


@function
def doze(path: str, naps: int = 1000) -> None:
    leave(path, "started")
    for _ in range(naps):
        time.sleep(0.02)
    leave(path, "ended")


@function(cache=True)
def dear(path: str, a: int) -> int:
    leave(path)
    return a * a


@function
def who() -> str:
    return f"{context().actor} {context().store_url}"


def test_a_call_is_the_function_itself() -> None:
    assert add(1) == 3
    assert add.__name__ == "add"


def test_remote_gives_the_same_as_a_call() -> None:
    assert add.remote(1, b=5).result(timeout_s=60) == 6


def test_models_keep_their_types_remotely() -> None:
    point = Point(x=1, at=datetime(2024, 1, 1, tzinfo=UTC))
    assert move.remote(point, 2).result(60) == Point(x=3, at=point.at)
    assert move.submit(point, 2).result(60) == Point(x=3, at=point.at)


def test_arguments_are_validated_before_anything_starts() -> None:
    with pytest.raises(InvalidArguments, match="a: Input should be a valid integer"):
        add.remote("one")  # type: ignore[arg-type]
    with pytest.raises(InvalidArguments, match="missing a required argument"):
        add.submit()


def test_coroutines_are_awaited_and_streams_collected() -> None:
    assert later.remote(1).result(60) == 2
    assert count_to.remote(3).result(60) == [0, 1, 2]
    assert count_slowly.remote(3).result(60) == [0, 1, 2]
    assert count_to.submit(3).result(60) == [0, 1, 2]


def test_map_keeps_the_order_with_few_in_flight() -> None:
    assert add.map(range(20), in_flight=3) == list(range(2, 22))
    assert add.map([(1, 1), {"a": 2, "b": 2}, 3]) == [2, 4, 5]


def test_map_returns_errors_as_values_on_request() -> None:
    found = refuse.map([1, 2], return_errors=True)
    assert [str(each) for each in found] == ["1", "2"]
    assert all(isinstance(each, KeyError) for each in found)
    with pytest.raises(KeyError):
        refuse.map([1, 2])


def test_an_error_that_cannot_be_pickled_is_raised_as_text() -> None:
    with pytest.raises(RemoteError, match="UnpicklableError: 1 and 2"):
        break_oddly.remote().result(60)


def test_a_result_without_a_json_form_raises_invalid_result() -> None:
    with pytest.raises(InvalidResult, match="lock"):
        handle.signature.dump_result(handle.remote().result(60))


def test_retries_until_it_succeeds(traces: Any) -> None:
    assert third_time_lucky.remote(traces.path).result(60) == 3
    assert len(traces.read()) == 3


def test_an_error_outside_the_filter_is_not_retried(traces: Any) -> None:
    with pytest.raises(ValueError, match="for good"):
        wrong.remote(traces.path).result(60)
    assert len(traces.read()) == 1


def test_a_timeout_kills_the_work(traces: Any) -> None:
    with pytest.raises(TimedOut):
        sleep_long.remote(traces.path).result(60)
    assert traces.read() == []


@pytest.mark.slow
def test_a_timeout_kills_code_that_ignores_the_alarm(traces: Any) -> None:
    with pytest.raises(TimedOut, match="timeout_s=3"):
        stubborn.remote(traces.path).result(60)
    assert traces.read() == ["started"]


def test_a_result_timeout_does_not_end_the_run(traces: Any) -> None:
    run = doze.remote(traces.path, naps=20)
    traces.wait_for(1)
    with pytest.raises(TimeoutError):
        run.result(timeout_s=0.01)
    run.result(60)
    assert traces.read() == ["started", "ended"]


def test_cancel_reaches_a_running_task(traces: Any) -> None:
    run = doze.remote(traces.path)
    traces.wait_for(1)
    run.cancel()
    with pytest.raises(Cancelled):
        run.result(60)
    assert traces.read() == ["started"]


def test_cache_returns_the_result_for_known_arguments(traces: Any) -> None:
    assert dear.remote(traces.path, 3).result(60) == dear.remote(traces.path, 3).result(60) == 9
    assert dear.call_json({"path": traces.path, "a": 3}) == 9
    assert dear.remote(traces.path, 4).result(60) == 16
    assert len(traces.read()) == 2


def test_the_context_is_sent_with_a_run(used: Context) -> None:
    assert who.remote().result(60) == f"ada {used.store_url}"
    assert who.submit().result(60) == f"ada {used.store_url}"


def test_what_only_waits_for_others_is_a_thread_of_its_caller(backend: str) -> None:
    def process() -> int:
        return os.getpid()

    process.__module__ = "toque.functions.sample"  # it is for the platform's own
    here = function(in_thread=True, timeout_s=60)(process)
    assert here.remote().result() == os.getpid()
