"""Difference between a store's clock and this machine's."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toque.registry.store.object_store import ObjectStore


def clock_skew_s(store: ObjectStore, *, clock: Callable[[], float] = time.time) -> float:
    """Measure how many seconds this machine's clock is ahead of the store's; negative if it is behind; 1 request.

    Exact to half the duration of the request, and in S3 half a second more. clock: seconds since the epoch.
    Raises: Unavailable.
    """
    before = clock()
    at = store.now()
    cut_s = 0.0 if at.microsecond else 0.5  # S3 cuts times to whole seconds
    return (before + clock()) / 2 - at.timestamp() - cut_s
