"""Leases that elect one leader among processes: one in Redis, which is fast and cheap, and that of
`toque.registry.lease` in the store, which is always there.

Neither compares clocks of machines: Redis and the store time a lease by their own clock, and a holder counts its own seconds
from before its last renewal. So one that was cut off or stalled stops leading before another begins, unless clocks run at
different speeds. A leader's work must be safe all the same while two lead: every decision is an entry of a journal, whose
number one writer wins. The lease only saves doubled work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from redis import RedisError

from toque.registry import Unavailable
from toque.registry.lease import passing_s

REDIS_TERM_S = 5.0
REDIS_BEAT_S = 1.0
_AWAY_S = 5.0

_RENEW = """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end return 1"


class Lease(Protocol):
    """Claim of one holder to lead."""

    def renew(self) -> float:
        """Claim or renew the lease; returns until when this holder leads, a past moment if it does not.

        Raises: RedisError, Unavailable where it is not known.
        """
        ...

    def is_free(self) -> bool:
        """Whether no other holder leads now; claims nothing. Raises: as `renew`."""
        ...

    def release(self) -> None:
        """Give the lease back, so that another need not wait for its end. Raises: as `renew`."""
        ...


@dataclass
class RedisLease:
    """Lease by a key of Redis that expires; the key's value is its holder.

    holder: unique, also among restarts of one process.
    """

    client: Any
    name: str
    holder: str
    term_s: float = REDIS_TERM_S
    clock: Callable[[], float] = passing_s

    def renew(self) -> float:
        """Claim or renew the lease; see `Lease`."""
        begun = self.clock()
        held = self.client.eval(_RENEW, 1, self._key, self.holder, int(self.term_s * 1000))
        return begun + self.term_s if held else begun

    def is_free(self) -> bool:
        """Whether no other holder leads; see `Lease`."""
        return self.leader() in {None, self.holder}

    def leader(self) -> str | None:
        """The holder that leads now, or None. Raises: RedisError."""
        found = self.client.get(self._key)
        return found.decode() if isinstance(found, bytes) else found

    def release(self) -> None:
        """Give the lease back; see `Lease`."""
        self.client.eval(_RELEASE, 1, self._key, self.holder)

    @property
    def _key(self) -> str:
        return f"toque:leader:{self.name}"


@dataclass
class _Backend:
    lease: Lease
    beat_s: float
    away_until: float = float("-inf")


@dataclass
class Leadership:
    """Leadership by the first of several leases that can be reached.

    While Redis comes or goes, two may lead for some seconds by different leases; see above why that is safe.
    leases: each with the seconds between its renewals.
    """

    leases: list[tuple[Lease, float]]
    clock: Callable[[], float] = passing_s
    _until: float = float("-inf")
    _next: float = float("-inf")
    _backends: list[_Backend] = field(init=False)

    def __post_init__(self) -> None:
        self._backends = [_Backend(lease, beat_s) for lease, beat_s in self.leases]

    @property
    def is_leader(self) -> bool:
        """Whether this holder leads now, without a request."""
        return self.clock() < self._until

    def renew(self) -> bool:
        """Renew the lease when its beat is due; returns whether this holder leads now.

        Raises: RedisError, Unavailable if no lease can be reached and the last one has ended.
        """
        if self.clock() >= self._next:
            self._renew()
        return self.is_leader

    def is_free(self) -> bool:
        """Whether nobody else leads, as far as a lease can be reached; claims nothing."""
        for each in self._backends:
            try:
                return each.lease.is_free()
            except (RedisError, Unavailable):
                continue
        return True

    def release(self) -> None:
        """Give the leadership back, where it can be reached."""
        for each in self._backends:
            try:
                each.lease.release()
            except (RedisError, Unavailable):
                continue
        self._until = float("-inf")

    def _renew(self) -> None:
        failure: Exception | None = None
        for each in self._backends:
            now = self.clock()
            if now < each.away_until:
                continue
            try:
                self._until = each.lease.renew()
            except (RedisError, Unavailable) as error:
                failure = error
                if self.is_leader:  # it leads to the end of its term, and tries again meanwhile
                    self._next = now + each.beat_s
                    return
                each.away_until = now + _AWAY_S
            else:
                self._next = now + each.beat_s
                return
        self._next = self.clock() + min(each.beat_s for each in self._backends)
        if failure is not None:
            raise failure
