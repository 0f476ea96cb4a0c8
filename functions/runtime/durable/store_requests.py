"""Requests to the store: again while it is away, and several at once, as on S3 each takes tens of ms."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from toque.registry.errors import Forbidden, Unavailable

T = TypeVar("T")
STORE_RETRY_S = 60.0

_FIRST_WAIT_S, _MAX_WAIT_S = 0.1, 5.0
READERS = 32  # as many connections as the client of S3 keeps


def with_patience(request: Callable[[], T]) -> T:
    """Make a request, and again for a minute while the store is away or refuses credentials that may be renewed meanwhile.

    request: must recognise its own effect if it had one before its answer was lost. Raises: the last error after `STORE_RETRY_S`.
    """
    deadline = time.monotonic() + STORE_RETRY_S
    wait_s = _FIRST_WAIT_S
    while True:
        try:
            return request()
        except (Unavailable, Forbidden):
            if time.monotonic() > deadline:
                raise
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, _MAX_WAIT_S)


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
