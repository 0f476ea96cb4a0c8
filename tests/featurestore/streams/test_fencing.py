"""Consumers that lose their places: what they forgot is read again, by whoever owns the partition then."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.featurestore.streams.events import MINUTE, START, clicks, event, messages
from tests.featurestore.streams.history import MemoryConnection, MemoryLog
from tests.waiting import until
from toque.featurestore import UnreadableSource
from toque.featurestore.definitions.stream_source import Messages
from toque.featurestore.errors import ConsumerFenced
from toque.featurestore.streams.commits import Commits
from toque.featurestore.streams.consumer import StreamConsumer
from toque.featurestore.streams.decode import Place, decode
from toque.featurestore.streams.table import StreamTable
from toque.registry import open_store

NOW = START + 120 * MINUTE


def table(folder: Path, every: timedelta = timedelta(milliseconds=1)) -> StreamTable:
    source = clicks(commit_every=every)
    return StreamTable(source, open_store(f"file://{folder}/store"), "default")


def consumer(
    folder: Path, log: MemoryLog, owned: Callable[[], Collection[int]], connection: Any = None, **more: Any
) -> StreamConsumer:
    """Make a consumer that stores events only. more: of its table."""
    reads = connection or log.connect()
    return StreamConsumer(table(folder, **more), [], reads, online=None, owned=owned, clock=lambda: NOW)


def send(log: MemoryLog, partition: int, count: int) -> None:
    for number in range(count):
        log.send(partition, json.dumps(event(number=number)).encode(), at=START + number * MINUTE)


def stored(folder: Path) -> list[tuple[int, int]]:
    rows = table(folder).events()
    return list(zip(rows["stream_partition"].to_pylist(), rows["stream_position"].to_pylist(), strict=True))


def test_a_fenced_consumer_that_owns_nothing_any_more_stores_nothing_of_what_follows(tmp_path: Path) -> None:
    log, owned = MemoryLog(2), {0, 1}
    first = consumer(tmp_path, log, lambda: owned)
    first.step(timeout_s=0)
    send(log, 0, 1)
    send(log, 1, 3)
    other = consumer(tmp_path, log, lambda: {0})
    other.step(timeout_s=0)
    other.close()

    def fenced() -> bool:
        first.step(timeout_s=0)
        return first.counts.fenced > 0

    until(fenced)
    owned = set()
    send(log, 1, 2)
    for _ in range(2):
        first.step(timeout_s=0)
    first.close()
    assert stored(tmp_path) == [(0, 0)]
    last = consumer(tmp_path, log, lambda: {0, 1})
    last.step(timeout_s=0)
    last.close()
    assert stored(tmp_path) == [(0, 0), *((1, n) for n in range(5))]


def test_a_consumer_that_loses_its_partitions_while_the_log_fails_stores_nothing_of_what_follows(
    tmp_path: Path,
) -> None:
    log, owned, polls = MemoryLog(1), {0}, list[int]()

    class FailsOnce(MemoryConnection):
        def poll(self, *, timeout_s: float, limit: int) -> Messages:
            polls.append(len(polls))
            if len(polls) == 2:  # after the first messages, which are not committed yet
                owned.clear()
                send(log, 0, 2)
                raise UnreadableSource("the log is away")
            return super().poll(timeout_s=timeout_s, limit=limit)

    send(log, 0, 3)
    one = consumer(tmp_path, log, lambda: owned, FailsOnce(log), every=timedelta(hours=1))
    stop = threading.Event()
    running = threading.Thread(target=one.run, args=(stop,))
    running.start()
    until(lambda: len(polls) > 5)
    stop.set()
    running.join()
    assert stored(tmp_path) == []


class Stale(MemoryConnection):
    """Connection that once more gives a message of a partition that was taken from it."""

    def poll(self, *, timeout_s: float, limit: int) -> Messages:
        found = super().poll(timeout_s=timeout_s, limit=limit)
        found.add(1, 2, *self.log.messages[1][2])
        return found


def test_messages_of_a_partition_that_was_not_asked_for_are_refused(tmp_path: Path) -> None:
    log = MemoryLog(2)
    send(log, 1, 3)
    stale = consumer(tmp_path, log, lambda: {0}, Stale(log))
    with pytest.raises(UnreadableSource, match="messages of partition 1, which was not asked for"):
        stale.step(timeout_s=0)
    stale.close()
    assert stored(tmp_path) == []


def test_messages_that_were_read_before_are_refused() -> None:
    with pytest.raises(UnreadableSource, match=r"partition 0 was read up to position 3, .* gave 2 again"):
        decode(clicks(), messages(0, 2, [event()]), {0: Place(3)})


def test_a_commit_of_what_was_read_before_a_rewrite_is_refused_however_late_it_comes(tmp_path: Path) -> None:
    stream = table(tmp_path)
    stream.fence()
    places = stream.places([0])
    late, commit = threading.Event(), stream.commit

    def held_up(*given: Any, **more: Any) -> None:
        late.wait()
        commit(*given, **more)

    stream.commit = held_up  # type: ignore[method-assign]
    commits = Commits(stream, buffered_rows=10)
    commits.add(decode(stream.source, messages(0, 0, [event()]), places), places)
    commits.begin()
    table(tmp_path).fence()
    stream.places([0])  # the consumer begins anew meanwhile
    late.set()
    with pytest.raises(ConsumerFenced, match="its stored events were rewritten"):
        commits.finish()
    commits.close()
    assert stored(tmp_path) == []


def test_a_consumer_whose_commits_hang_reads_no_more_than_it_may_hold_and_all_of_it_later(
    tmp_path: Path,
) -> None:
    log, store = MemoryLog(1), threading.Event()
    stream = table(tmp_path)
    commit = stream.commit

    def held_up(*given: Any, **more: Any) -> None:
        store.wait()
        commit(*given, **more)

    stream.commit = held_up  # type: ignore[method-assign]
    send(log, 0, 100)
    one = StreamConsumer(
        stream,
        [],
        log.connect(),
        online=None,
        owned=lambda: {0},
        clock=lambda: NOW,
        poll_rows=10,
        buffered_rows=40,
    )
    steps = [one.step(timeout_s=0) for _ in range(12)]
    assert (sum(steps), steps[-1]) == (40, 0)
    store.set()

    def all_read() -> bool:
        one.step(timeout_s=0)
        return one.counts.rows == 100

    until(all_read)
    one.close()
    assert stored(tmp_path) == [(0, n) for n in range(100)]
