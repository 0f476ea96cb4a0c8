"""Nodes that vanish: what they may have taken along is written off by name and count, and taken back if they return."""

from __future__ import annotations

import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.functions.prediction_log.logbook import all_rows, record
from tests.functions.prediction_log.test_kills import Child
from tests.waiting import until
from toque.functions import Context
from toque.functions.prediction_log import LOSS_TOPIC, LogWriter, drain, losses_of
from toque.functions.prediction_log.frames import encode_frame
from toque.functions.prediction_log.writing.lost_writers import Loss, decide, report_losses
from toque.functions.prediction_log.writing.stream import Stream, WriterState
from toque.functions.prediction_log.writing.wal import WriteAheadLog, segments_of
from toque.functions.runtime.triggers.events import topic_of
from toque.registry import open_store

SILENT = timedelta(seconds=1)
DYING = """
import os, signal, sys, time
from pathlib import Path
from toque.functions.prediction_log import LogWriter
from tests.functions.prediction_log.logbook import record
log = LogWriter(Path(sys.argv[1]), "predictions", sys.argv[2], poll_s=0.01)
log.append(record("shipped"))
while log._stream.shipped(log.writer) < 1:
    time.sleep(0.01)
log._stream.append = log._stream.report_alive = lambda *_, **__: time.sleep(60)  # the network is cut
log.append(record("kept"))
print(log.writer, flush=True)
time.sleep(60)
"""


@pytest.fixture
def used(tmp_path: Path, redis_server: Any) -> Context:
    url = f"file://{tmp_path}/store"
    return Context(open_store(url), url, redis_url=redis_server.url, actor="ada")


def dead_writer(wal_root: Path, url: str, code: str = DYING) -> str:
    """A writer that was killed with one record in Redis and one that is only in its file."""
    child = Child(code, wal_root, url)
    until(lambda: child.lines, within_s=60)
    child.kill()
    return child.lines[0]


def written_off(used: Context, client: redis.Redis) -> list[Loss]:
    return report_losses(used, client, silent_for=SILENT)


def test_a_vanished_writer_is_written_off_once_by_name_and_count_and_taken_back_if_it_returns(
    used: Context, wal_root: Path, redis_server: Any
):
    client = redis.Redis.from_url(redis_server.url)
    writer = dead_writer(wal_root, redis_server.url)
    away = wal_root.with_name("unplugged")
    shutil.move(wal_root, away)
    drain(used.store, redis_server.url, wal_root=wal_root)
    found: list[Loss] = []
    until(lambda: found.extend(written_off(used, client)) or found)
    assert (found[0].writer, found[0].kind) == (writer, "predictions")
    assert found[0].node.startswith(os.uname().nodename)
    assert 1 <= found[0].requests_at_most <= 256
    assert f"{writer} on node {found[0].node} vanished" in found[0].text
    assert written_off(used, client) == []
    state = losses_of(used).refresh()
    assert (state.writers, state.requests_at_most) == (1, found[0].requests_at_most)
    assert [*state.standing] == [f"predictions/{writer}"]
    assert topic_of(used, LOSS_TOPIC).refresh().keys() == {
        f"predictions/{writer}/lost/{found[0].last_alive.timestamp():.3f}"
    }

    shutil.move(away, wal_root)  # it was only cut off
    for _ in range(2):
        drain(used.store, redis_server.url, wal_root=wal_root)
    assert sorted(all_rows(used.store)["prediction_id"].to_pylist()) == ["kept", "shipped"]


def test_a_writer_that_comes_back_before_its_files_are_gone_is_taken_back(
    used: Context, wal_root: Path, redis_server: Any
):
    client = redis.Redis.from_url(redis_server.url)
    writer = dead_writer(wal_root, redis_server.url)
    found: list[Loss] = []
    until(lambda: found.extend(written_off(used, client)) or found)
    drain(used.store, redis_server.url, wal_root=wal_root)  # adopts, and leaves the folder for the next
    (back,) = written_off(used, client)
    assert (back.back, back.writer) == (True, writer)
    state = losses_of(used).refresh()
    assert (state.writers, state.requests_at_most, state.standing) == (1, 0, {})
    assert written_off(used, client) == []
    assert sorted(all_rows(used.store)["prediction_id"].to_pylist()) == ["kept", "shipped"]


def test_a_writer_with_nothing_left_to_ship_is_taken_back_before_it_is_forgotten(
    used: Context, wal_root: Path, redis_server: Any
):
    client = redis.Redis.from_url(redis_server.url)
    writer = dead_writer(wal_root, redis_server.url, DYING.replace('log.append(record("kept"))', ""))
    away = wal_root.with_name("unplugged")
    shutil.move(wal_root, away)
    drain(used.store, redis_server.url, wal_root=wal_root)
    found: list[Loss] = []
    until(lambda: found.extend(written_off(used, client)) or found)
    shutil.move(away, wal_root)
    drain(used.store, redis_server.url, wal_root=wal_root)
    (back,) = written_off(used, client)
    assert (back.back, back.writer) == (True, writer)
    assert losses_of(used).refresh().standing == {}
    drain(used.store, redis_server.url, wal_root=wal_root)
    assert Stream(client, "predictions").states() == []
    assert written_off(used, client) == []


def test_a_report_that_was_cut_short_is_repeated_without_a_second_event(
    used: Context, wal_root: Path, redis_server: Any, monkeypatch: pytest.MonkeyPatch
):
    client = redis.Redis.from_url(redis_server.url)
    dead_writer(wal_root, redis_server.url)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    def killed() -> bool:
        try:
            written_off(used, client)
        except KeyboardInterrupt:
            return True
        return False

    with monkeypatch.context() as patch:
        patch.setattr(Stream, "mark_lost", die)
        until(killed)
    assert len(written_off(used, client)) == 1
    assert losses_of(used).refresh().writers == 1
    assert len(topic_of(used, LOSS_TOPIC).refresh()) == 1


def test_a_writer_that_stopped_in_order_or_lives_is_never_written_off(
    used: Context, wal_root: Path, redis_server: Any
):
    client = redis.Redis.from_url(redis_server.url)
    stream = Stream(client, "predictions")
    alive = LogWriter(wal_root, "predictions", redis_server.url, poll_s=0.01, tidy_every_s=0.1)
    stopped = LogWriter(wal_root, "predictions", redis_server.url, poll_s=30)
    stopped.append(record("last"))
    stopped.close()
    assert stream.state(stopped.writer)[2:5] == (1, 0, 1)
    begun = stream.watched_ms(patience_s=60)[0]
    until(lambda: stream.watched_ms(patience_s=60)[0] - begun > 2.5 * SILENT.total_seconds() * 1e3)
    assert written_off(used, client) == []
    alive.close()


STATE = WriterState("w", "n", shipped=7, drained=5, reserved=71, rotated=0, alive_ms=1_000, lost_ms=0)


@pytest.mark.parametrize(
    ("changes", "now_ms", "watched_ms", "verdict"),
    [
        ({}, 3_000, 9_000, 64),
        ({}, 1_900, 9_000, None),  # heard of
        ({}, 3_000, 900, None),  # Redis itself was away
        ({"reserved": 7}, 3_000, 9_000, None),  # everything is there
        ({"shipped": 0, "drained": 71}, 3_000, 9_000, None),
        ({"lost_ms": 2_500}, 3_000, 9_000, None),  # written off before
        ({"lost_ms": 2_500, "alive_ms": 2_600}, 3_000, 9_000, "back"),
        ({"lost_ms": 2_500, "shipped": 71}, 3_000, 9_000, "back"),
    ],
)
def test_what_is_decided_of_a_writer(
    changes: dict[str, int], now_ms: int, watched_ms: int, verdict: int | str | None
):
    found = decide(
        "labels", STATE._replace(**changes), now_ms=now_ms, watched_ms=watched_ms, silent_for=SILENT
    )
    if verdict is None:
        assert found is None
    else:
        assert found is not None
        assert (found.back, found.requests_at_most if not found.back else "back") == (
            verdict == "back",
            verdict,
        )


@pytest.mark.parametrize("struck", [0, 2, 4, 7])
def test_a_damaged_record_of_a_dead_writer_is_reported_once_and_those_behind_it_arrive(
    struck: int, used: Context, wal_root: Path, redis_server: Any
):
    client = redis.Redis.from_url(redis_server.url)
    names = [f"r{number}" for number in range(9)]
    size = len(encode_frame(1, record(names[0])))
    log = WriteAheadLog(
        wal_root / "predictions", segment_bytes=5 * size
    )  # record 4 is the last of a closed segment
    for name in names:
        log.append(record(name))
    log.close()
    path = segments_of(log.folder)[struck // 5][1]
    raw = bytearray(path.read_bytes())
    raw[struck % 5 * size + 50] ^= 4
    path.write_bytes(raw)
    drain(used.store, redis_server.url, wal_root=wal_root)
    drain(used.store, redis_server.url, wal_root=wal_root)  # its files wait until somebody was told
    assert log.folder.exists()
    arrived = sorted(all_rows(used.store)["prediction_id"].to_pylist())
    assert arrived == sorted(set(names) - {names[struck]})
    (loss,) = written_off(used, client)
    assert (loss.writer, loss.requests_at_most, loss.damaged) == (log.writer, 1, True)
    assert "left 1 damaged records in its files" in loss.text
    assert [*losses_of(used).refresh().standing] == [f"predictions/{log.writer}/damaged"]
    drain(used.store, redis_server.url, wal_root=wal_root)
    assert written_off(used, client) == []
    assert not log.folder.exists()
    assert Stream(client, "predictions").states() == []
    assert losses_of(used).refresh().requests_at_most == 1


def test_a_damaged_record_that_redis_has_is_no_loss(used: Context, wal_root: Path, redis_server: Any):
    client = redis.Redis.from_url(redis_server.url)
    dead_writer(wal_root, redis_server.url)
    ((_, path),) = [each for folder in (wal_root / "predictions").iterdir() for each in segments_of(folder)]
    raw = bytearray(path.read_bytes())
    raw[50] ^= 1  # of the record that was shipped
    path.write_bytes(raw)
    drain(used.store, redis_server.url, wal_root=wal_root)
    assert sorted(all_rows(used.store)["prediction_id"].to_pylist()) == ["kept", "shipped"]
    assert [state.damaged for state in Stream(client, "predictions").states()] in ([], [0])
