"""Which partitions of a stream are a consumer's own: dealt evenly by leases, and free within seconds when their holder dies.

Leases only save doubled work. That every event is stored once is seen to by the table, which refuses the second of two.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from redis import RedisError

from toque.ray_apps.leader_lease import Leadership
from toque.registry import Unavailable

BEAT_S = 1.0
MEMBER_TERM_S = 5.0
_SEEN = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))
if ARGV[3] == '1' then redis.call('ZADD', KEYS[1], now, ARGV[1]) else redis.call('ZREM', KEYS[1], ARGV[1]) end
redis.call('EXPIRE', KEYS[1], 60)
return redis.call('ZCARD', KEYS[1])
"""
_logger = logging.getLogger(__name__)


class Members(Protocol):
    """Counts the consumers of one stream that are alive."""

    def count(self) -> int:
        """Say that this consumer is alive; returns how many are. Raises: RedisError."""

    def leave(self) -> None:
        """Say that this consumer ends. Raises: RedisError."""


@dataclass(frozen=True, slots=True)
class RedisMembers:
    """Consumers that have said within the last seconds, by the clock of Redis, that they are alive."""

    client: Any
    name: str
    holder: str

    def count(self) -> int:
        """Say that this consumer is alive; returns how many are. Raises: RedisError."""
        return int(self._seen("1"))

    def leave(self) -> None:
        """Say that this consumer ends. Raises: RedisError."""
        self._seen("0")

    def _seen(self, here: str) -> Any:
        key = f"toque:members:{self.name}"
        return self.client.eval(_SEEN, 1, key, self.holder, int(MEMBER_TERM_S), here)


@dataclass
class PartitionLeases:
    """Leases of a consumer on partitions: its even share of them, given back when more consumers come.

    lease: makes the claim on one partition. members: None where there is one consumer at a time.
    """

    partitions: Sequence[int]
    lease: Callable[[int], Leadership]
    members: Members | None
    beat_s: float = BEAT_S
    _held: dict[int, Leadership] = field(default_factory=dict)
    _leaving: list[Leadership] = field(default_factory=list)
    _claims: dict[int, Leadership] = field(default_factory=dict)
    _count: int = 1
    _turn: int = 0

    def owned(self) -> frozenset[int]:
        """List the partitions that are this consumer's now, without a request."""
        held = dict(self._held)
        return frozenset(each for each, lease in held.items() if lease.is_leader)

    def beat(self) -> None:
        """Renew what is held, let go of what is more than the share, and claim what is less."""
        for lease in self._leaving:  # a beat after `owned` left it out, so that what was read is committed
            lease.release()
        self._leaving = []
        if self.members is not None:
            try:
                self._count = max(1, self.members.count())
            except RedisError as error:
                _logger.warning("consumers cannot be counted, %d as before: %s", self._count, error)
        share = -(-len(self.partitions) // self._count)
        for each, lease in list(self._held.items()):
            if not self._renewed(lease):
                del self._held[each]
        while len(self._held) > share:
            _, lease = self._held.popitem()
            self._leaving.append(lease)
        self._claim(share)

    def _claim(self, share: int) -> None:
        """Claim partitions up to the share, from another one on each time."""
        count = len(self.partitions)
        for step in range(count):
            if len(self._held) >= share:
                return
            each = self.partitions[(self._turn + step) % count]
            if each in self._held:
                continue
            lease = self._claims.setdefault(each, self.lease(each))
            if lease not in self._leaving and self._renewed(lease):
                self._held[each] = lease
        self._turn += 1

    def _renewed(self, lease: Leadership) -> bool:
        try:
            return lease.renew()
        except (RedisError, Unavailable) as error:
            _logger.warning("a partition's lease cannot be renewed: %s", error)
            return lease.is_leader

    def run(self, stop: threading.Event) -> None:
        """Beat until it is told to stop."""
        while not stop.is_set():
            begun = time.monotonic()
            self.beat()
            stop.wait(max(0.0, self.beat_s - (time.monotonic() - begun)))

    def release(self) -> None:
        """Give everything back, so that others need not wait."""
        for lease in [*self._leaving, *self._held.values()]:
            lease.release()
        self._held, self._leaving = {}, []
        if self.members is not None:
            try:
                self.members.leave()
            except RedisError as error:
                _logger.warning("the other consumers wait %d s: %s", MEMBER_TERM_S, error)
