"""Requests to the store that do not need each other's answers, made at once: on S3 each takes tens of milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
READERS = 32  # as many connections as the client of S3 keeps


def at_once(calls: Sequence[Callable[[], T]]) -> list[T | Exception]:
    """Make calls in up to `READERS` threads; returns what each gave or raised, in their order."""
    if len(calls) <= 1:
        return [_outcome(call) for call in calls]
    with ThreadPoolExecutor(min(len(calls), READERS), thread_name_prefix="toque-at-once") as pool:
        return list(pool.map(_outcome, calls))


def all_at_once(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Make calls as `at_once`; returns what each gave. Raises: what the first of them raised that did."""
    answers: list[T] = []
    for answer in at_once(calls):
        if isinstance(answer, Exception):
            raise answer
        answers.append(answer)
    return answers


def in_batches(items: Iterable[T]) -> Iterator[list[T]]:
    """Iterate over lists of as many items as are asked for at once, but the last."""
    rest = iter(items)
    while batch := list(islice(rest, READERS)):
        yield batch


def _outcome(call: Callable[[], T]) -> T | Exception:
    try:
        return call()
    except Exception as error:  # noqa: BLE001  # the caller decides, once it has the answers of the others
        return error
