"""The table of a stream: events and places in one commit, which one of two consumers makes."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.featurestore.streams.events import MINUTE, START, clicks, event, messages
from toque.featurestore.errors import ConsumerFenced
from toque.featurestore.streams import table as stream_table
from toque.featurestore.streams.decode import Place, decode
from toque.featurestore.streams.table import Move, StreamTable
from toque.registry import Table, open_store

NOW = START + 120 * MINUTE


def table(folder: Path) -> StreamTable:
    return StreamTable(clicks(), open_store(f"file://{folder}/store"), "default")


def send(to: StreamTable, partition: int, first: int, count: int, before: Place | None) -> Place:
    """Commit events of a partition, the last of each ten poison."""
    given = [event(f"u{n}", "x" if n % 10 == 9 else n) for n in range(first, first + count)]
    found = decode(to.source, messages(partition, first, given), {partition: before})
    after = found.places[partition]
    to.commit(found.events, found.rejected, {partition: Move(before, after)})
    return after


def positions(rows: pa.Table) -> list[tuple[int, int]]:
    return sorted(zip(rows["stream_partition"].to_pylist(), rows["stream_position"].to_pylist(), strict=True))


def test_a_commit_carries_events_and_places(tmp_path: Path) -> None:
    stream = table(tmp_path)
    assert stream.places([0, 2]) == {0: None, 2: None}
    assert stream.known_partitions() == []
    first = send(stream, 2, 0, 25, None)
    assert first.position == 25
    assert stream.places([0, 2]) == {0: None, 2: first}
    assert stream.known_partitions() == [2]
    second = send(stream, 2, 25, 5, first)
    assert table(tmp_path).places([2]) == {2: second}
    assert positions(stream.events()) == [(2, n) for n in range(30) if n % 10 != 9]
    assert positions(stream.rejected.read()) == [(2, 9), (2, 19), (2, 29)]
    assert positions(stream.events(partitions={2: (8, 12), 0: (0, 9)})) == [(2, 8), (2, 10), (2, 11)]


def test_places_move_past_messages_that_are_all_kept_aside(tmp_path: Path) -> None:
    stream = table(tmp_path)
    found = decode(stream.source, messages(0, 0, [b"x", b"y"]), {0: None})
    stream.commit(found.events, found.rejected, {0: Move(None, found.places[0])})
    assert stream.places([0]) == {0: found.places[0]}
    assert stream.rejected.read().num_rows == 2


def test_the_second_of_two_consumers_is_fenced(tmp_path: Path) -> None:
    one, two = table(tmp_path), table(tmp_path)
    first = send(one, 0, 0, 10, None)
    with pytest.raises(ConsumerFenced, match="partition 0 is at"):
        send(two, 0, 0, 20, None)
    send(two, 0, 10, 10, first)
    with pytest.raises(ConsumerFenced):
        send(one, 0, 10, 5, first)
    assert positions(one.events()) == [(0, n) for n in range(20) if n % 10 != 9]
    assert positions(one.rejected.read()) == [(0, 9), (0, 19)]


def kept_aside_by_0_1(folder: Path, given: list[tuple[int, int]]) -> None:
    """Store messages kept aside in a table of their own, as version 0.1 did."""
    found = pa.concat_tables(
        [decode(clicks(), messages(each, at, [b"of 0.1"]), {}).rejected for each, at in given]
    )
    Table(open_store(f"file://{folder}/store"), "features/default/rejected/clicks").append(found)


def test_messages_that_an_older_version_kept_aside_are_read_once_with_the_others(tmp_path: Path) -> None:
    kept_aside_by_0_1(tmp_path, [(0, 3), (0, 9), (7, 1)])
    stream = table(tmp_path)
    assert positions(stream.rejected.read()) == [(0, 3), (0, 9), (7, 1)]
    assert stream.place_at(0, 9).known_us == int((START + 60 * MINUTE).timestamp() * 1e6) + 3_000_000
    send(stream, 0, 0, 20, None)  # among them 3, which is an event now, and 9
    aside = stream.rejected.read()
    assert positions(aside) == [(0, 9), (0, 19), (7, 1)]
    assert [text.startswith("of 0.1") for text in aside["row"].to_pylist()] == [False, False, True]


def test_a_table_of_an_older_version_takes_events_and_messages_kept_aside(tmp_path: Path) -> None:
    stream = table(tmp_path)
    first = decode(stream.source, messages(0, 0, [event("a"), event("b")]), {})
    opened = Table(open_store(f"file://{tmp_path}/store"), stream.table.name)
    ids = {"stream:0": 2, "stream-known:0": first.places[0].known_us, "stream-partitions": 1}
    opened.append(
        first.events, transactions=ids | {"stream-watermark:0": int(START.timestamp() * 1e6)}
    )  # without columns for what is kept aside
    assert positions(stream.events()) == [(0, 0), (0, 1)]
    send(stream, 0, 2, 9, stream.places([0])[0])
    assert positions(stream.events()) == [(0, n) for n in range(11) if n != 9]
    assert positions(stream.rejected.read()) == [(0, 9)]
    assert sum(each.num_rows for each in stream.batches({0: 11})) == 10


@pytest.mark.parametrize("committed", [0, 5], ids=["never committed", "committed before"])
def test_a_commit_that_passed_its_checks_before_a_fence_is_refused(
    tmp_path: Path, committed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an object store, where a request lies between the checks and the commit."""
    stream, fences = table(tmp_path), 0
    place = send(stream, 3, 0, 1, None)
    place = send(stream, 0, 0, committed, None) if committed else None
    add_parts = stream_table.add_parts

    def after_a_fence(*given: Any, **more: Any) -> None:
        nonlocal fences
        fences += 1
        if fences == 1:
            table(tmp_path).fence()
        add_parts(*given, **more)

    monkeypatch.setattr(stream_table, "add_parts", after_a_fence)
    with pytest.raises(ConsumerFenced, match="its stored events were rewritten"):
        send(stream, 0, committed, 5, place)
    assert fences == 2  # of the commit, and of the fence within it
    assert positions(stream.events(partitions={0: (0, 99)})) == [(0, n) for n in range(committed)]


def test_commits_of_different_partitions_do_not_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, tries = table(tmp_path), list[int]()
    places = [send(stream, each, 0, 1, None) for each in (0, 1)]
    add_parts = stream_table.add_parts

    def after_another(*given: Any, **more: Any) -> None:
        tries.append(len(tries))
        if len(tries) == 1:
            send(table(tmp_path), 1, 1, 3, places[1])
        add_parts(*given, **more)

    monkeypatch.setattr(stream_table, "add_parts", after_another)
    send(stream, 0, 1, 3, places[0])
    assert len(tries) == 2
    assert positions(stream.events()) == [(each, n) for each in (0, 1) for n in range(4)]


def test_consumers_at_one_time_take_turns_or_are_fenced(tmp_path: Path) -> None:
    shared = range(3)

    def consume(_: int) -> int:
        mine, fenced = table(tmp_path), 0
        while True:
            for partition in shared:
                place = mine.places([partition])[partition]
                at = place.position if place else 0
                if at < 30:
                    try:
                        send(mine, partition, at, 5, place)
                    except ConsumerFenced:
                        fenced += 1
            if all(each is not None and each.position >= 30 for each in mine.places(shared).values()):
                return fenced

    with ThreadPoolExecutor(3) as pool:
        fenced = list(pool.map(consume, range(3)))
    assert positions(table(tmp_path).events()) == [
        (each, n) for each in shared for n in range(30) if n % 10 != 9
    ]
    assert positions(table(tmp_path).rejected.read()) == [(each, n) for each in shared for n in (9, 19, 29)]
    assert sum(fenced) > 0


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.featurestore.streams.test_table import send, table
lines = int(sys.argv[2])
stream = table(Path(sys.argv[1]))
place = stream.places([0])[0]
def trace(frame, what, arg):
    global lines
    if "featurestore/streams" not in frame.f_code.co_filename and "registry/store" not in frame.f_code.co_filename:
        return None
    if what == "line":
        lines -= 1
        if lines == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return trace
sys.settrace(trace)
send(stream, 0, place.position if place else 0, 12, place)
sys.settrace(None)
"""


def killed(folder: Path, line: int) -> bool:
    root = str(Path(__file__).parents[3])
    ended = subprocess.run(
        [sys.executable, "-c", KILLED.format(root=root), str(folder), str(line)],
        check=False,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert ended.returncode in {0, -signal.SIGKILL}, ended.stderr.decode()
    return ended.returncode != 0


def _check_killed(folder: Path, lines: list[int]) -> None:
    for line in lines:
        killed(folder, line)
    stream = table(folder)
    place = stream.places([0])[0]
    at = place.position if place else 0
    place = send(stream, 0, at, 40 - at % 10, place)
    assert positions(stream.events()) == [(0, n) for n in range(place.position) if n % 10 != 9]
    assert positions(stream.rejected.read()) == [(0, n) for n in range(9, place.position, 10)]


def test_a_consumer_killed_while_it_commits_loses_and_doubles_nothing(tmp_path: Path) -> None:
    _check_killed(tmp_path, [150, 400])


@pytest.mark.proof
def test_a_consumer_killed_at_any_line_loses_and_doubles_nothing(tmp_path: Path) -> None:
    for number in itertools.count():
        folder = tmp_path / str(number)
        line = 1 + 9 * number
        if not killed(folder, line):
            return
        _check_killed(folder, [line])
