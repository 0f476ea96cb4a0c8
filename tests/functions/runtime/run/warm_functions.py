"""Functions with warm workers; a module of its own, so that other tests start no such workers."""

import os
import time

from toque.functions import Retries, function

IMPORTED_AT = time.time()


@function(warm=2, retries=Retries(max_lost=0))
def warm_two(naps: int = 0) -> tuple[int, float]:
    """Return the process id, and when it imported this module."""
    for _ in range(naps):
        time.sleep(0.01)
    return os.getpid(), IMPORTED_AT


@function(warm=1, timeout_s=0.2)
def warm_slow() -> None:
    """Run past the timeout."""
    time.sleep(60)


@function
def cold() -> float:
    """Return when this process imported the module."""
    return IMPORTED_AT
