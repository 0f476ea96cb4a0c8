"""Follows the stream sources of all workspaces: a thread for each consumer, and one for its leases.

Leases deal the partitions of a stream evenly, and are free within seconds when their holder dies. They only save
doubled work: that every event is stored once is seen to by the table, which refuses the second of two.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from prometheus_client import Counter, Gauge
from redis import RedisError

from toque.featurestore import FeatureStoreError
from toque.featurestore.errors import StreamRewritten
from toque.featurestore.stream_views import open_stream
from toque.featurestore.streams.consumer import ConsumerCounts, StreamConsumer
from toque.ray_apps.leader_lease import REDIS_BEAT_S, Leadership, Lease, RedisLease
from toque.registry import Unavailable
from toque.registry.lease import STORE_BEAT_S, StoreLease

if TYPE_CHECKING:
    from toque.featurestore import FeatureStore
    from toque.functions.runtime.context import Context

BEAT_S = 1.0

MEMBER_TERM_S = 5.0

LOOK_EVERY_S = 5.0
_SHOW_EVERY_S = 1.0
_logger = logging.getLogger(__name__)


class Follower:
    """Consumer of one source in one workspace, with the leases on its partitions; ends when it is told to."""

    def __init__(self, used: Context, source: str) -> None:
        self._used, self._source = used, source
        self.definition = definition_of(used.features(), source)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"stream-{source}", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the consumer goes on; it ends by itself if its declaration cannot work."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Commit what was read, and end."""
        self._stop.set()
        self._thread.join(timeout=60)

    def _run(self) -> None:
        try:
            self._consume()
        except StreamRewritten as error:
            _logger.warning("%s", error)
        except Exception:  # the thread ends, `alive` says so, and `look` begins another
            FAILURES.labels(self._used.workspace, self._source).inc()
            _logger.exception("stream source %r is not followed; it is tried again", self._source)

    def _consume(self) -> None:
        opened = open_stream(self._used.features(), self._source, secrets=_secrets(self._used))
        leases = leases_of(self._used, self._source, opened.partitions)
        consumer = opened.consumer(leases.owned)
        beating = threading.Thread(target=leases.run, args=(self._stop,), name="stream-leases", daemon=True)
        showing = threading.Thread(target=self._show, args=(consumer,), name="stream-series", daemon=True)
        beating.start()
        showing.start()
        try:
            consumer.run(self._stop)
        finally:
            self._stop.set()
            beating.join()
            showing.join()
            leases.release()

    def _show(self, consumer: StreamConsumer) -> None:
        series = ConsumerSeries(self._used.workspace, self._source)
        while not self._stop.wait(_SHOW_EVERY_S):
            series.show(consumer.counts)
        series.withdraw()


class Followers:
    """Followers of every source that is in force; each is begun anew when its source or a view over it changes.

    workspaces: contexts of all workspaces.
    """

    def __init__(self, workspaces: Callable[[], list[Context]]) -> None:
        self._workspaces = workspaces
        self._running: dict[tuple[str, str], Follower] = {}

    def look(self) -> None:
        """Begin, end and replace followers as the definitions in force say."""
        wanted: dict[tuple[str, str], tuple[Context, str]] = {}
        for used in self._workspaces():
            features = used.features()
            for source in features.list_stream_sources():
                wanted[used.workspace, source] = used, definition_of(features, source)
        for key, running in list(self._running.items()):
            if key not in wanted or not running.alive or running.definition != wanted[key][1]:
                self._running.pop(key).stop()
        for key, (used, _) in wanted.items():
            if key not in self._running:
                try:
                    self._running[key] = Follower(used, key[1])
                except FeatureStoreError:
                    _logger.exception("stream source %r is not followed", key[1])

    def run(self, stop: threading.Event) -> None:
        """Look again and again until it is told to stop; then end all followers."""
        while not stop.is_set():
            try:
                self.look()
            except Exception:  # of a store that is away, say; the followers that run go on
                _logger.exception("the stream sources in force are not known; they are looked up again")
            stop.wait(LOOK_EVERY_S)
        for each in self._running.values():
            each.stop()


def definition_of(features: FeatureStore, source: str) -> str:
    """Describe a source and the views over it as text that changes when one of them does."""
    found = features.get_stream_source(source)
    views = [
        [view.generation, view.semantics()]
        for view in features.list_feature_views()
        if view.reads_from(found)
    ]
    return json.dumps([found.generation, found.semantics(), views], sort_keys=True)


def leases_of(used: Context, source: str, partitions: Sequence[int]) -> PartitionLeases:
    """Make this consumer's leases on the partitions of a source: by Redis while it answers, else by the store."""
    from toque.functions.runtime.changes import connection  # late: only a replica needs it

    holder = f"{os.uname().nodename}/{os.getpid()}/{uuid.uuid4().hex}"
    name = f"stream-{used.workspace}-{source}"
    client = None if used.redis_url is None else connection(used.redis_url, timeout_s=0.5)

    def lease(partition: int) -> Leadership:
        each = f"{name}-{partition}"
        found: list[tuple[Lease, float]] = [(StoreLease(used.store, each, holder), STORE_BEAT_S)]
        if client is not None:
            found.insert(0, (RedisLease(client, each, holder), REDIS_BEAT_S))
        return Leadership(found)

    members = None if client is None else RedisMembers(client, name, holder)
    return PartitionLeases(partitions, lease, members)


def _secrets(used: Context) -> Callable[[str], str]:
    def find(name: str) -> str:
        value = used.find_secret(name)
        if value is None:
            raise FeatureStoreError(
                f"secret {name!r} is missing: put a file of that name into the folder of secrets, or set the variable"
            )
        return value

    return find


class Members(Protocol):
    """Counts the consumers of one stream that are alive."""

    def count(self) -> int:
        """Say that this consumer is alive; returns how many are. Raises: RedisError."""

    def leave(self) -> None:
        """Say that this consumer ends. Raises: RedisError."""


_SEEN = """
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))
if ARGV[3] == '1' then redis.call('ZADD', KEYS[1], now, ARGV[1]) else redis.call('ZREM', KEYS[1], ARGV[1]) end
redis.call('EXPIRE', KEYS[1], 60)
return redis.call('ZCARD', KEYS[1])
"""


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


_LABELS = ("workspace", "source")

LAG = Gauge(
    "toque_stream_lag",
    "Messages of a partition that its consumer has not read yet.",
    (*_LABELS, "partition"),
    multiprocess_mode="livemax",
)

DELAY = Gauge(
    "toque_stream_watermark_delay_seconds",
    "Age of the greatest event time of a partition.",
    (*_LABELS, "partition"),
    multiprocess_mode="livemax",
)

HELD = Gauge(
    "toque_stream_held_events",
    "Events that a consumer holds for its windows.",
    _LABELS,
    multiprocess_mode="livesum",
)

ROWS = Counter("toque_stream_rows", "Events that came in and fit.", _LABELS)

REJECTED = Counter("toque_stream_rejected", "Messages that were kept aside, late ones among them.", _LABELS)

LATE = Counter("toque_stream_late", "Events that were kept aside because they came too late.", _LABELS)

FAILURES = Counter(
    "toque_stream_failures", "Times that a consumer could not begin or go on, and tried again.", _LABELS
)

COMMITS = Counter("toque_stream_commits", "Commits of events to the offline store.", _LABELS)

COMMIT_SECONDS = Counter("toque_stream_commit_seconds", "Seconds that commits took in all.", _LABELS)

FENCED = Counter(
    "toque_stream_fenced", "Commits that were refused because another consumer was first.", _LABELS
)


class ConsumerSeries:
    """Publishes what one consumer counts. Names of its partitions go when they are no longer its own."""

    def __init__(self, workspace: str, source: str) -> None:
        self._labels = (workspace, source)
        self._shown = ConsumerCounts()

    def show(self, counts: ConsumerCounts) -> None:
        """Show a consumer's counts as they are now."""
        before, labels = self._shown, self._labels
        for each in before.lag.keys() - counts.lag.keys():
            self._remove(each)
        for partition, lag in counts.lag.items():
            LAG.labels(*labels, str(partition)).set(lag)
        for partition, delay in counts.watermark_delay_s.items():
            DELAY.labels(*labels, str(partition)).set(delay)
        HELD.labels(*labels).set(counts.held)
        for series, now, then in (
            (ROWS, counts.rows, before.rows),
            (REJECTED, counts.rejected, before.rejected),
            (LATE, counts.late, before.late),
            (COMMITS, counts.commits, before.commits),
            (COMMIT_SECONDS, counts.commit_s, before.commit_s),
            (FENCED, counts.fenced, before.fenced),
            (FAILURES, counts.failures, before.failures),
        ):
            series.labels(*labels).inc(max(0, now - then))
        self._shown = replace(counts)  # the consumer goes on counting in the same object

    def withdraw(self) -> None:
        """Take back what is measured now, when the consumer ends."""
        for each in self._shown.lag:
            self._remove(each)
        HELD.labels(*self._labels).set(0)

    def _remove(self, partition: int) -> None:
        LAG.labels(*self._labels, str(partition)).set(0)
        DELAY.labels(*self._labels, str(partition)).set(0)
