"""Consumer of a stream source: events to the views' online rows at once, and to the source's table every few seconds.

A consumer keeps nothing that cannot be made again. Its place in each partition stands in the table beside the events,
and what it holds in memory follows from the table and the log. Killed at any line, or told that another consumer has
its partitions, it begins anew from there: what it wrote online before is written again, with the same bits.

Events are committed only once their rows are online, so a place in the table is one in both stores.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from toque.featurestore.definitions.dtypes import TIMESTAMP
from toque.featurestore.definitions.fields import EVENT_TIMESTAMP
from toque.featurestore.definitions.stream_source import CLOCK_TOLERANCE, Connection, Messages
from toque.featurestore.definitions.views import FeatureView
from toque.featurestore.errors import (
    ConsumerFenced,
    OnlineStoreUnavailable,
    StreamRewritten,
    UnreadableSource,
)
from toque.featurestore.online.redis_store import OnlineStore, newest_rows
from toque.featurestore.streams.commits import Commits
from toque.featurestore.streams.decode import Decoded, Place, decode
from toque.featurestore.streams.held_events import HeldEvents, Key, ViewFaults
from toque.featurestore.streams.refresh import events_of, own_rows
from toque.featurestore.streams.table import StreamTable, rewrites_of
from toque.registry import Unavailable
from toque.registry.times import Clock, epoch_us, from_epoch_us

POLL_ROWS = 20_000
BUFFERED_ROWS = 200_000
"""Events that wait for their commit; with more the consumer stops reading, and the log keeps the rest."""
POLL_S = 0.05
MEASURE_EVERY_S, LIST_EVERY_S = 2.0, 30.0
_logger = logging.getLogger(__name__)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Collect no cycles within the block, in any thread of the process; the thread that paused the collector resumes it.

    Otherwise it goes through what was just read again and again, which takes as long as reading it from Redis: tens of
    thousands of lists and tuples, of which none is in a cycle.
    """
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


@dataclass(slots=True)
class ConsumerCounts:
    """What a consumer has done, and how far behind it is.

    failures: steps that the log or the store failed; lag: messages by partition; watermark_delay_s: from the greatest event time to now, by partition.
    """

    rows: int = 0
    rejected: int = 0
    late: int = 0
    commits: int = 0
    commit_s: float = 0.0
    fenced: int = 0
    failures: int = 0
    held: int = 0
    lag: dict[int, int] = field(default_factory=dict)
    watermark_delay_s: dict[int, float] = field(default_factory=dict)


class StreamConsumer:
    """Follows the partitions of one source that are its own, for some of the views over it.

    owned: partitions that are this consumer's now; it may be wrong for a while, which costs doubled work and nothing else.
    online: None to store events only. rewrites: of the stream's events, as they were before the views were read.
    partitions: that the log had; None: it is not looked at whether it has others.
    The consumer belongs to one thread.
    """

    def __init__(
        self,
        table: StreamTable,
        views: Collection[FeatureView],
        connection: Connection,
        *,
        online: OnlineStore | None,
        owned: Callable[[], Collection[int]],
        clock: Clock,
        poll_rows: int = POLL_ROWS,
        buffered_rows: int = BUFFERED_ROWS,
        rewrites: int = 0,
        partitions: Collection[int] | None = None,
    ) -> None:
        self._table, self._connection, self._online = table, connection, online
        self._views, self._owned, self._clock = list(views), owned, clock
        self._poll_rows, self._rewrites = poll_rows, rewrites
        self._commits = Commits(table, buffered_rows=buffered_rows)
        self._begun: set[int] | None = (
            None  # partitions that were taken up as the table says; None: they are to be
        )
        self._places: dict[int, Place | None] = {}
        self._partitions = None if partitions is None else set(partitions)
        self._measured_at = self._listed_at = time.monotonic()
        self._held: list[HeldEvents] = []
        self._faults, self._waits = ViewFaults(table.source.name), False
        self._unsent: dict[str, list[pa.Table]] = {}
        self._coming: dict[str, list[pa.Table]] = {}
        self.counts = ConsumerCounts()

    def run(self, stop: threading.Event) -> None:
        """Consume until it is told to stop, and commit what was read; errors of the log and the stores are outlived.

        Raises: StreamRewritten; a new consumer is to begin, by the definitions and partitions that are there then.
        """
        pause_s = 0.1
        while not stop.is_set():
            try:
                self.step()
            except (UnreadableSource, Unavailable, OSError) as error:
                self.counts.failures += 1
                _logger.warning(
                    "stream source %r: %s; it is tried again in %.1f s",
                    self._table.source.name,
                    error,
                    pause_s,
                )
                stop.wait(pause_s)
                pause_s = min(5.0, 2 * pause_s)
                self._begin_anew()
            except StreamRewritten:
                self._begin_anew()
                self.close()
                raise
            else:
                pause_s = 0.1
        self.close()

    def close(self) -> None:
        """Commit what was read, if the stores answer, and end the connection."""
        try:
            self.flush()
        except (ConsumerFenced, StreamRewritten, Unavailable, OSError) as error:
            _logger.warning(
                "stream source %r: the next consumer reads again: %s", self._table.source.name, error
            )
        self._commits.close()
        self._connection.close()

    @collector_paused()
    def step(self, *, timeout_s: float = POLL_S) -> int:
        """Read once, bring online what follows, and commit if it is time; returns the number of messages.

        Raises: UnreadableSource, Unavailable.
        """
        if self._faults.retry_due:
            self._begun = None  # what was read is committed, and all views are begun from the table
        self._follow_owned()
        read = 0
        if self._commits.has_room and not self._unsent and not self._awaits_its_clock():
            messages = self._connection.poll(timeout_s=timeout_s, limit=self._poll_rows)
            read = len(messages)
            decoded = self._decode(messages) if read else None
        else:
            decoded = None
            time.sleep(timeout_s)
        self._bring_online(decoded)
        self.counts.failures += self._faults.take_count()
        self._commit_if_due()
        self._measure()
        return read

    def _decode(self, messages: Messages) -> Decoded:
        strange = set(messages.partitions) - self._places.keys()
        if strange:
            raise UnreadableSource(
                f"stream source {self._table.source.name!r}: its reader gave messages of partition {min(strange)}, which was not "
                "asked for; its place is not known, so they are read again by who owns it"
            )
        return decode(self._table.source, messages, self._places)

    def _awaits_its_clock(self) -> bool:
        """Whether rows of what was read have their moment further ahead of this machine's clock than clocks may disagree.

        It is not committed before, as a place counts for both stores; so nothing more is read meanwhile.
        """
        known = [place.known_us for place in self._places.values() if place is not None]
        ahead = timedelta(microseconds=max(known, default=0) - epoch_us(self._clock()))
        waits = self._online is not None and ahead > CLOCK_TOLERANCE
        if waits and not self._waits:
            self.counts.failures += 1
            _logger.warning(
                "stream source %r: the log took a message %s after the time of this machine's clock; it is read on when that time "
                "has come here: set the clock that is wrong",
                self._table.source.name,
                ahead,
            )
        self._waits = waits
        return waits

    def flush(self) -> None:
        """Commit what was read and is online. Raises: ConsumerFenced, Unavailable."""
        self._send()
        self._finish_commit()
        if self._commits.any_wait and not self._unsent and not self._awaits_its_clock():
            self._commits.begin()
            self._finish_commit()

    def _follow_owned(self) -> None:
        owned = set(self._owned())
        if owned == self._begun:
            return
        try:
            self.flush()
        except ConsumerFenced:
            self.counts.fenced += 1
        self._begin(owned)

    def _begin_anew(self) -> None:
        """Forget everything, so that the next step begins from the table.

        It does so even if nothing is owned any more: the log would go on giving messages of the partitions that were read, after
        those that are forgotten here.
        """
        self._begun, self._places = None, {}
        self._held, self._unsent, self._coming = [], {}, {}
        self._commits.forget()

    def _begin(self, owned: set[int]) -> None:
        """Take up partitions where the table says, with the events that windows still need."""
        self._begin_anew()
        self._faults.begin()
        places = self._table.places(owned)
        known = self._known_by_now(places)
        ends = {each: (0, place.position) for each, place in places.items() if place is not None}
        for view in self._views if self._online is not None else ():
            if view.source is not None:
                self._hold(view, places, known, ends)
        if known:
            self._await_coming(ends, from_epoch_us(min(known.values())))
        self._connection.assign({each: place.position if place else None for each, place in places.items()})
        self._begun, self._places = owned, places
        self._emit({held.view.name: held.all_keys() for held in self._held})
        self._send()

    def _hold(
        self,
        view: FeatureView,
        partitions: Iterable[int],
        known: Mapping[int, int],
        ends: Mapping[int, tuple[int, int]],
    ) -> None:
        """Hold the stored events of partitions that a view's windows still need."""
        with self._faults.of(view):
            held = HeldEvents(view, self._table.source.event_name)
            for each in partitions:
                held.begin(each, known.get(each, 0))
            self._held.append(held)
        if not known or self._faults.left_out(view):
            return
        least = min(known.values())
        events = self._table.events(
            partitions=ends,
            since=from_epoch_us(held.horizon_us(least)),
            known_since=from_epoch_us(held.written_us(least)),
        )
        with self._faults.of(view):
            held.add(events.sort_by("known_at"))

    def _known_by_now(self, places: Mapping[int, Place | None]) -> dict[int, int]:
        """Time up to which the events of each partition are known and have come by this machine's clock."""
        now = epoch_us(self._clock())
        return {each: min(place.known_us, now) for each, place in places.items() if place is not None}

    def _await_coming(self, ends: Mapping[int, tuple[int, int]], known: datetime) -> None:
        """Take up events whose own time had not come when they became known."""
        events = self._table.events(partitions=ends, since=known - CLOCK_TOLERANCE)
        for view in self._plain_views():
            with self._faults.of(view):
                self._coming[view.name] = [own_rows(view, events_of(view, events))]

    def _plain_views(self) -> list[FeatureView]:
        return [
            view
            for view in self._views
            if view.source is None and self._online is not None and not self._faults.left_out(view)
        ]

    def _bring_online(self, decoded: Decoded | None) -> None:
        """Hold new events, and write the rows that follow from them and from the time that has passed."""
        if decoded is not None:
            before = dict(self._places)
            self._places |= decoded.places
            self._commits.add(decoded, before)
            self.counts.rows += decoded.events.num_rows
            self.counts.rejected += decoded.rejected.num_rows
            self.counts.late += decoded.late
        events = None if decoded is None or not decoded.events.num_rows else decoded.events
        now, touched = self._clock(), dict[str, set[Key]]()
        for held in self._held:
            with self._faults.of(held.view):
                added = held.add(events) if events is not None else set()
                touched[held.view.name] = added | held.due(now)
        self._emit(touched)
        for view in self._plain_views() if events is not None else ():
            with self._faults.of(view):
                self._coming.setdefault(view.name, []).append(own_rows(view, events_of(view, events)))
        known = self._known_by_now(self._places)
        for held in self._held:
            held.forget(known)
        self._send()

    def _emit(self, touched: Mapping[str, set[Key]]) -> None:
        """Compute the newest rows of the keys to which something happened, by view; views that fail are held no longer."""
        now = self._clock()
        known = {each: place.known_us for each, place in self._places.items() if place is not None}
        for held in self._held:
            keys = touched.get(held.view.name)
            if not keys or self._faults.left_out(held.view):
                continue
            with self._faults.of(held.view):
                newest = partial(held.newest, by=now, known_us=known)
                parts = [each for each in self._faults.rows_of(held.view, keys, newest) if each.num_rows]
                if parts:
                    self._unsent.setdefault(held.view.name, []).extend(parts)
        self._held = [held for held in self._held if not self._faults.left_out(held.view)]

    def _send(self) -> None:
        """Write rows online whose moment has come. If Redis is away, they wait, and nothing more is read meanwhile.

        Raises: StreamRewritten.
        """
        if self._online is None:
            return
        self._take_what_came()
        if not self._unsent:
            return
        try:
            self._check_not_rewritten(self._online)
            for view in self._views:
                if view.name in self._unsent:
                    with self._faults.of(view):
                        rows = _newest_of(view, self._unsent[view.name])
                        self._unsent[view.name] = [rows]
                        self._online.write_newest(view, rows)
                    del self._unsent[view.name]
        except OnlineStoreUnavailable as error:
            _logger.warning("stream source %r waits: %s", self._table.source.name, error)

    def _take_what_came(self) -> None:
        """Take the events whose own time has come by now, to be written as rows."""
        now = pa.scalar(self._clock(), TIMESTAMP)
        coming, self._coming = self._coming, {}
        for name, waiting in coming.items():
            for rows in waiting:
                come = pc.less_equal(rows.column(EVENT_TIMESTAMP), now)
                for to, part in (
                    (self._unsent, rows.filter(come)),
                    (self._coming, rows.filter(pc.invert(come))),
                ):
                    if part.num_rows:
                        to.setdefault(name, []).append(part)

    def _check_not_rewritten(self, online: OnlineStore) -> None:
        """Check that the rows to write follow from the events that are stored now. Raises: StreamRewritten, OnlineStoreUnavailable."""
        name = self._table.source.name
        if rewrites_of(online, name) != self._rewrites:
            raise StreamRewritten(
                f"stream source {name!r}: its stored events were rewritten; its consumers begin anew from them"
            )

    def _commit_if_due(self) -> None:
        if self._commits.is_under_way:
            return
        try:
            self._finish_commit()
        except ConsumerFenced as error:
            _logger.info("%s", error)
            self.counts.fenced += 1
            self._begin_anew()
            return
        if self._commits.is_due and not self._unsent and not self._awaits_its_clock():
            self._commits.begin()

    def _finish_commit(self) -> None:
        """Wait for the commit under way, if there is one. Raises: ConsumerFenced, Unavailable."""
        took_s = self._commits.finish()
        if took_s is not None:
            self.counts.commit_s += took_s
            self.counts.commits += 1

    def _check_partitions(self, now: float) -> None:
        """Check now and then that the log has no other partitions than at the beginning. Raises: StreamRewritten, UnreadableSource."""
        if self._partitions is None or now - self._listed_at < LIST_EVERY_S:
            return
        self._listed_at = now
        there = set(self._connection.partitions())
        if there != self._partitions:
            raise StreamRewritten(
                f"stream source {self._table.source.name!r}: its log has {len(there)} partitions and had {len(self._partitions)}; "
                "consumers begin anew with those it has. Keys that the producers send to another one now lack in their windows "
                "what came before, until the longest window has passed"
            )

    def _measure(self) -> None:
        now = time.monotonic()
        if now - self._measured_at < MEASURE_EVERY_S:
            return
        self._measured_at = now
        self._check_partitions(now)
        places = dict(self._places)
        lag = self._connection.lag(
            {each: place.position if place else None for each, place in places.items()}
        )
        marks = {each: place.watermark_us for each, place in places.items() if place and place.watermark_us}
        at = self._clock()
        delays = {each: (at - from_epoch_us(mark)) / timedelta(seconds=1) for each, mark in marks.items()}
        held = sum(len(each) for each in self._held)
        self.counts = replace(self.counts, lag=lag, watermark_delay_s=delays, held=held)


def _newest_of(view: FeatureView, parts: list[pa.Table]) -> pa.Table:
    """Put rows of a view together, of each key the newest; computed rows have each key once."""
    whole = view.source is not None and len(parts) == 1
    return parts[0] if whole else newest_rows(view, pa.concat_tables(parts))
