"""Follows the stream sources of all workspaces: a thread for each consumer, and one for its leases."""

from __future__ import annotations

import json
import logging
import os
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from toque.featurestore import FeatureStoreError
from toque.featurestore.errors import StreamRewritten
from toque.featurestore.streams.consumer import StreamConsumer
from toque.featurestore.streams.opening import open_stream
from toque.ray_apps.leader_lease import REDIS_BEAT_S, Leadership, Lease, RedisLease
from toque.ray_apps.streams.ownership import PartitionLeases, RedisMembers
from toque.ray_apps.streams.series import FAILURES, ConsumerSeries
from toque.registry.lease import STORE_BEAT_S, StoreLease

if TYPE_CHECKING:
    from toque.featurestore import FeatureStore
    from toque.functions.runtime.context import Context

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
    views = [view.semantics() for view in features.list_feature_views() if view.reads_from(found)]
    return json.dumps([found.semantics(), views], sort_keys=True)


def leases_of(used: Context, source: str, partitions: Sequence[int]) -> PartitionLeases:
    """Make this consumer's leases on the partitions of a source: by Redis while it answers, else by the store."""
    from toque.functions.runtime.changes.announcer import connection  # late: only a replica needs it

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
