"""Clocks of the platform, all in UTC: the wall clock, a replayed time line, or a fixed moment."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from toque.clusters.redis_clients import open_redis

REPLAY_KEY = "toque:clock"


class Clock(Protocol):
    """Callable that returns the platform's time."""

    def __call__(self) -> datetime:
        """Return the present moment, in UTC."""
        ...


def system_clock() -> datetime:
    """Read the wall clock, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class FixedClock:
    """Clock that stands still, for tests and for a run as of a past moment."""

    at: datetime

    def __post_init__(self) -> None:
        aware(self.at)

    def __call__(self) -> datetime:
        """Return the moment that the clock is fixed at."""
        return self.at


@dataclass
class ReplayClock:
    """Clock of a replay: the driver sets the time in one Redis key, every other process reads it there.

    redis_url: where the key is; hold_s: how long a value is reused before Redis is read again.
    """

    redis_url: str
    hold_s: float = 0.02
    _client: Any = field(default=None, init=False, repr=False, compare=False)
    _read_at: float = field(default=-1e9, init=False, repr=False, compare=False)
    _value: datetime | None = field(default=None, init=False, repr=False, compare=False)

    def __call__(self) -> datetime:
        """Return the moment that the replay has reached.

        Raises: LookupError if no driver has set one.
        """
        if self._value is None or time.monotonic() - self._read_at > self.hold_s:
            raw = self._connect().get(REPLAY_KEY)
            if not isinstance(raw, bytes):
                raise LookupError(
                    f"the replay clock at Redis key {REPLAY_KEY!r} is not set; call ReplayClock.set first"
                )
            self._value, self._read_at = aware(datetime.fromisoformat(raw.decode())), time.monotonic()
        return self._value

    def set(self, at: datetime) -> None:
        """Move the time line to `at`. Raises: ValueError if it is naive."""
        self._connect().set(REPLAY_KEY, aware(at).isoformat())
        self._value, self._read_at = aware(at), time.monotonic()

    def _connect(self) -> Any:
        if self._client is None:
            self._client = open_redis(self.redis_url)
        return self._client

    def __reduce__(self) -> tuple[type[ReplayClock], tuple[str, float]]:
        return type(self), (self.redis_url, self.hold_s)


def clock_named(name: str, redis_url: str | None) -> Clock:
    """Make the clock that `TOQUE_CLOCK` names: "system" or "replay".

    Raises: ValueError for another name, or for "replay" without Redis.
    """
    if name == "system":
        return system_clock
    if name == "replay" and redis_url:
        return ReplayClock(redis_url)
    raise ValueError(f"TOQUE_CLOCK={name!r}: use 'system', or 'replay' together with TOQUE_REDIS_URL")


def aware(at: datetime) -> datetime:
    """Convert a time to UTC. Raises: ValueError if it is naive."""
    if at.tzinfo is None:
        raise ValueError(f"naive time {at.isoformat()}; give its offset, as in datetime(..., tzinfo=UTC)")
    return at.astimezone(UTC)
