"""Bounds on the tokens of language models, by token and workspace: a bucket for each, which a minute refills."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from cachetools import LRUCache

from toque.ray_apps.admission.request_limits import Bucket, TooManyRequests
from toque.registry import Limits

__all__ = ["Reservation", "TokenBudgets"]

_KEPT: Final = 10_000
_MINUTE_S: Final = 60.0


class Reservation:
    """Tokens that a request may come to, taken before it costs any; `settle` gives back what it did not use."""

    __slots__ = ("_buckets", "_tokens")

    def __init__(self, buckets: Sequence[Bucket], tokens: int) -> None:
        self._buckets, self._tokens = buckets, tokens

    def settle(self, used: int) -> None:
        """Count what was used in place of what was reserved; the first call counts."""
        for bucket in self._buckets:
            bucket.left += self._tokens - used
        self._buckets = ()


class TokenBudgets:
    """Budgets of all callers of one door in this process; so a door of N replicas admits up to N times as much.

    clock: monotonic seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: LRUCache[str, Bucket] = LRUCache(_KEPT)

    def reserve(self, bounds: Sequence[tuple[str, Limits]], tokens: int) -> Reservation:
        """Take tokens from the budget of each (name, limits), or from none.

        A request for more than a minute's worth passes when the bucket is full, and is paid off by those after it.
        Raises: TooManyRequests, with the time when there will be enough.
        """
        now_s, taken = self._clock(), []
        for name, limits in bounds:
            most = limits.tokens_per_minute
            if most is None:
                continue
            bucket = self._bucket(name, most, now_s)
            missing = min(tokens, most) - bucket.left
            if missing > 0:
                raise TooManyRequests(
                    f"{name} has {max(0, int(bucket.left))} of its {most} tokens a minute left, and this request may "
                    f"come to {tokens}; send it later, or lower max_tokens",
                    retry_after_s=missing * _MINUTE_S / most,
                )
            taken.append(bucket)
        for bucket in taken:
            bucket.left -= tokens
        return Reservation(taken, tokens)

    def _bucket(self, name: str, most: int, now_s: float) -> Bucket:
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = Bucket(now_s, most)
        bucket.refill(now_s, per_s=most / _MINUTE_S, most=most)
        return bucket
