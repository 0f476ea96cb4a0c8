"""Wait of a test for what happens in another thread, process or machine."""

from __future__ import annotations

import time
from collections.abc import Callable

SOONEST_S, LATEST_S = 0.01, 0.05
"""Between two looks, at first and after some seconds: what is looked at may cost as much as what is waited for."""


def until(
    condition: Callable[[], object], told: Callable[[], object] = str, *, within_s: float = 120
) -> float:
    """Wait until a condition holds; returns after how many seconds. told: what to say if it does not.

    Raises: AssertionError after `within_s`, which only ends a test that hangs.
    """
    begun = time.monotonic()
    while not condition():
        waited_s = time.monotonic() - begun
        assert waited_s < within_s, f"not so within {within_s:.0f} s: {told()}"
        time.sleep(min(LATEST_S, SOONEST_S + waited_s / 50))
    return time.monotonic() - begun
