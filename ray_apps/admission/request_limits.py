"""Bounds on what a token or workspace may ask: requests and tokens of language models in a time, and requests in flight."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final

from cachetools import LRUCache

from toque.registry import Limits

_KEPT: Final = 10_000  # buckets of callers; the one that was asked longest ago goes first
_MINUTE_S: Final = 60.0


class TooManyRequests(Exception):  # noqa: N818  # an answer to the caller, not a failure of ours
    """A bound of a caller is reached. retry_after_s: when the next request may come."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Bucket:
    """Token bucket: what is `left` in it at a moment. now_s: monotonic seconds."""

    __slots__ = ("_at_s", "left")

    def __init__(self, now_s: float, left: float) -> None:
        self._at_s, self.left = now_s, left

    def refill(self, now_s: float, *, per_s: float, most: float) -> None:
        """Add what the time since the last refill gives. most: what the bucket holds."""
        self.left = min(most, self.left + (now_s - self._at_s) * per_s)
        self._at_s = now_s


class Permit:
    """State of one bounded token or workspace: requests in flight, and the bucket that its rate refills."""

    __slots__ = ("_bucket", "in_flight")

    def __init__(self, now_s: float, limits: Limits) -> None:
        self.in_flight = 0
        self._bucket = Bucket(now_s, _burst(limits))

    def check(self, name: str, limits: Limits, now_s: float) -> None:
        """Refill the bucket, and check that one more request fits. Raises: TooManyRequests."""
        if limits.max_in_flight is not None and self.in_flight >= limits.max_in_flight:
            raise TooManyRequests(
                f"{name} has {self.in_flight} requests in flight here, its limit; send again after a moment",
                retry_after_s=1.0,
            )
        if limits.rate_per_s is None:
            self._bucket = Bucket(now_s, math.inf)  # full, should a rate be set later
            return
        self._bucket.refill(now_s, per_s=limits.rate_per_s, most=_burst(limits))
        if self._bucket.left < 1:
            raise TooManyRequests(
                f"{name} sends more than its {limits.rate_per_s:g} requests/s; slow down",
                retry_after_s=(1 - self._bucket.left) / limits.rate_per_s,
            )

    def take(self) -> None:
        """Count a request that was checked."""
        self.in_flight += 1
        self._bucket.left -= 1

    def release(self) -> None:
        """Count a request as answered."""
        self.in_flight -= 1


NO_PERMIT: Final[tuple[Permit, ...]] = ()


class RequestLimits:
    """Bounds of all callers of one door in this process; so a door of N replicas admits up to N times as much.

    clock: monotonic seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._permits: LRUCache[str, Permit] = LRUCache(_KEPT)

    def take(self, *bounds: tuple[str, Limits]) -> tuple[Permit, ...]:
        """Count a request against each (name, limits), or against none. Raises: TooManyRequests."""
        now_s = self._clock()
        taken = []
        for name, limits in bounds:
            if not limits.unbounded:
                permit = self._permit(name, limits, now_s)
                permit.check(name, limits, now_s)
                taken.append(permit)
        for permit in taken:
            permit.take()
        return tuple(taken)

    def _permit(self, name: str, limits: Limits, now_s: float) -> Permit:
        permit = self._permits.get(name)
        if permit is None:
            permit = self._permits[name] = Permit(now_s, limits)
        return permit


def network_of(address: str) -> str:
    """Name the network that one caller of an address has to itself: the address, of IPv6 the first 64 bits."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    return str(ip_network((parsed, 64), strict=False)) if isinstance(parsed, IPv6Address) else address


def _burst(limits: Limits) -> float:
    """Requests that may come at once: those of a second, at least one."""
    return max(1.0, limits.rate_per_s or 1.0)


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
