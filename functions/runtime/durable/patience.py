"""Patience of a worker with its store: what is done is not done again because the store is away for a moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from toque.registry.errors import Forbidden, Unavailable

T = TypeVar("T")
STORE_RETRY_S = 60.0
_FIRST_WAIT_S, _MAX_WAIT_S = 0.1, 5.0


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
