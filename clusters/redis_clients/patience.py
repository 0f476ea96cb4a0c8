"""Waiting for Redis within a bound: through a failover, a restart that loads its data, and lost connections.

A command that got no answer is sent again, so it may run twice; what is sent through these clients bears that.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from random import SystemRandom
from typing import Any, Final

import redis.asyncio.retry
from prometheus_client import Counter, Histogram
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    ClusterError,
    MaxConnectionsError,
    ReadOnlyError,
    SlotNotCoveredError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

_CHANCE = SystemRandom()  # a seeded `random` is the user's: a thread of ours must not draw from it

TRANSIENT: Final[tuple[type[Any], ...]] = (
    RedisConnectionError,  # also LOADING, and a master that Sentinel does not know yet
    RedisTimeoutError,
    ReadOnlyError,  # a master that became a replica
    ClusterDownError,  # also MASTERDOWN
    ClusterError,
    TryAgainError,
    SlotNotCoveredError,
    OSError,
)
"""Errors that end by themselves when a failover, a restart or a resharding is over."""
LASTING: Final = (AuthenticationError, AuthorizationError, MaxConnectionsError)
"""Errors among them that waiting does not mend."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.5
SECONDS = Histogram(
    "toque_redis_command_seconds",
    "Seconds of a command or pipeline to Redis that was answered, its retries not included.",
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0),
)
FAILURES = Counter(
    "toque_redis_failures",
    "Commands to Redis that failed, by error and by whether they were sent again.",
    ("error", "retried"),
)


def _pause_s(failures: int) -> float:
    return _CHANCE.uniform(0.5, 1.0) * min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(failures, 16))


class BoundedRetry(Retry):
    """Retry of a command for `patience_s` seconds, with pauses of up to half a second.

    attempts: what the Cluster's client counts where it retries by number instead.
    """

    def __init__(self, patience_s: float, *, attempts: int = 0) -> None:
        super().__init__(NoBackoff(), attempts, TRANSIENT)
        self.patience_s = patience_s

    def call_with_retry(
        self,
        do: Callable[[], Any],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,  # noqa: FBT001, FBT002  # the library's signature
    ) -> Any:
        """Run `do` until it succeeds. Raises: its last error after `patience_s`, and at once what waiting does not mend."""
        deadline, failures = time.monotonic() + self.patience_s, 0
        while True:
            begun = time.perf_counter()
            try:
                answer = do()
            except self._supported_errors as error:
                failures += 1
                _call(fail, error, failures if with_failure_count else None)
                ends = _ends(error, is_retryable, deadline)
                FAILURES.labels(type(error).__name__, str(not ends).lower()).inc()
                if ends:
                    raise
                time.sleep(min(_pause_s(failures), max(0.0, deadline - time.monotonic())))
            else:
                if is_timed(do):
                    SECONDS.observe(time.perf_counter() - begun)
                return answer


class AsyncBoundedRetry(redis.asyncio.retry.Retry):
    """Retry of a command for `patience_s` seconds on an event loop, as `BoundedRetry` does."""

    def __init__(self, patience_s: float, *, attempts: int = 0) -> None:
        super().__init__(NoBackoff(), attempts, TRANSIENT)
        self.patience_s = patience_s

    async def call_with_retry(
        self,
        do: Callable[[], Awaitable[Any]],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,  # noqa: FBT001, FBT002  # the library's signature
    ) -> Any:
        """Run `do` until it succeeds. Raises: its last error after `patience_s`, and at once what waiting does not mend."""
        deadline, failures = time.monotonic() + self.patience_s, 0
        while True:
            begun = time.perf_counter()
            try:
                answer = await do()
            except self._supported_errors as error:
                failures += 1
                await _call(fail, error, failures if with_failure_count else None)
                ends = _ends(error, is_retryable, deadline)
                FAILURES.labels(type(error).__name__, str(not ends).lower()).inc()
                if ends:
                    raise
                await asyncio.sleep(min(_pause_s(failures), max(0.0, deadline - time.monotonic())))
            else:
                if is_timed(do):
                    SECONDS.observe(time.perf_counter() - begun)
                return answer


def _call(fail: Callable[..., Any], error: Exception, failures: int | None) -> Any:
    return fail(error) if failures is None else fail(error, failures)


def _ends(error: Exception, is_retryable: Callable[[Exception], bool] | None, deadline: float) -> bool:
    return (
        isinstance(error, LASTING)
        or isinstance(error.__context__ or error, ssl.SSLCertVerificationError)
        or (is_retryable is not None and not is_retryable(error))
        or time.monotonic() >= deadline
    )


def is_timed(do: Any) -> bool:
    """Whether a command's time tells how fast Redis is: that of a subscriber tells how long nothing came."""
    return not str(getattr(do, "__qualname__", "")).startswith("PubSub")
