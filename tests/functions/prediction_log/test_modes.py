"""Records that must be in Redis, or on two nodes, before they are acknowledged: kill -9 at each step, Redis away."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.functions.prediction_log.logbook import all_rows, record
from tests.functions.prediction_log.test_kills import Child
from tests.redis_server import RedisServer
from tests.waiting import until
from toque.functions.prediction_log import LogUnconfirmedError, LogWriter, drain
from toque.functions.prediction_log.writing.stream import Stream
from toque.registry.store import ObjectStore

VICTIMS = """
import os, signal, sys
from pathlib import Path
from toque.functions.prediction_log import LogWriter
from toque.functions.prediction_log.writing.shipper import Confirmations
from toque.functions.prediction_log.writing.stream import Stream
from tests.functions.prediction_log.logbook import record

def victim(root, url, mode, step):
    count = 0

    def die(at):
        if at == step and count >= 5:
            os.kill(os.getpid(), signal.SIGKILL)

    def dying(kind, name, before, after):
        method = getattr(kind, name)
        def replaced(*args, **kwargs):
            die(before)
            found = method(*args, **kwargs)
            die(after)
            return found
        setattr(kind, name, replaced)

    dying(Stream, "append", "unsent", "sent")
    dying(Confirmations, "advance", "reached", "confirmed")
    log = LogWriter(Path(root), "predictions", url, poll_s=0.01, two_nodes=mode == "two_nodes")
    for count in range(8):
        name = f"{step}-{count}"
        if mode == "file":
            log.append(record(name))
        else:
            log.commit([record(name)])
        die("written")
        print(name, flush=True)
        die("acknowledged")
    log.close()

root, url, mode, *steps = sys.argv[1:]
for step in steps:
    child = os.fork()
    if child == 0:
        victim(root, url, mode, step)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL, step
"""


@pytest.fixture
def replica(tmp_path: Path, redis_server: Any) -> Iterator[RedisServer]:
    folder = tmp_path / "replica"
    folder.mkdir()
    server = RedisServer(folder)
    server.start()
    client = redis.Redis.from_url(server.url)
    client.config_set("masterauth", "secret")
    client.replicaof("127.0.0.1", redis_server.port)
    until(lambda: client.info("replication")["master_link_status"] == "up")
    yield server
    server.kill()


def test_kill_9_at_each_step_with_the_disk_lost_takes_nothing_that_redis_confirmed(
    store: ObjectStore, wal_root: Path, redis_server: Any
):
    steps = ["unsent", "sent", "reached", "confirmed", "written", "acknowledged"]
    acknowledged = killed_at(steps, "redis", wal_root, redis_server.url)
    assert len(acknowledged) == 5 * len(steps) + 1  # one of them died behind its sixth
    shutil.rmtree(wal_root)  # the node never comes back
    drain(store, redis_server.url, wal_root=wal_root)
    assert_once(store, acknowledged, more=len(steps))


def test_kill_9_at_each_step_takes_nothing_that_is_in_the_file(
    store: ObjectStore, wal_root: Path, redis_server: Any
):
    steps = ["unsent", "sent", "written", "acknowledged"]
    acknowledged = killed_at(steps, "file", wal_root, redis_server.url)
    for _ in range(2):
        drain(store, redis_server.url, wal_root=wal_root)
    assert_once(store, acknowledged, more=len(steps))


def test_kill_9_of_writer_and_redis_takes_nothing_that_is_on_two_nodes(
    store: ObjectStore, wal_root: Path, redis_server: Any, replica: RedisServer
):
    acknowledged = killed_at(["sent", "acknowledged"], "two_nodes", wal_root, redis_server.url)
    assert len(acknowledged) == 11
    redis_server.kill()
    shutil.rmtree(wal_root)  # Redis ran on this node, and nothing of it comes back
    redis.Redis.from_url(replica.url).replicaof("NO", "ONE")
    drain(store, replica.url, wal_root=wal_root)
    assert_once(store, acknowledged, more=1)


def killed_at(steps: list[str], mode: str, wal_root: Path, url: str) -> list[str]:
    """Ids that writers acknowledged, each of which was killed at another step of its sixth record."""
    child = Child(VICTIMS, wal_root, url, mode, *steps)
    child.wait()
    assert child.process.returncode == 0
    assert len(child.lines) >= 5 * len(steps)
    return child.lines


def assert_once(store: ObjectStore, acknowledged: list[str], *, more: int) -> None:
    """Check that each row is there once, and none that was not acknowledged but the last `more` written."""
    counts = Counter(all_rows(store)["prediction_id"].to_pylist())
    assert set(counts.values()) == {1}
    assert counts.keys() >= set(acknowledged)
    assert len(counts) <= len(acknowledged) + more


def test_nothing_is_acknowledged_while_redis_is_away(store: ObjectStore, wal_root: Path, redis_server: Any):
    log = LogWriter(wal_root, "predictions", redis_server.url, poll_s=0.01, confirm_s=0.3)
    log.commit([record("before")])
    redis_server.kill()
    with pytest.raises(LogUnconfirmedError, match=r"predictions: Redis did not confirm .* send them again"):
        log.commit([record("while it dies")])
    assert not log.confirms
    size = log.waiting_bytes
    with pytest.raises(LogUnconfirmedError):
        log.commit([record("refused at once")])
    assert log.waiting_bytes == size
    redis_server.start()
    until(lambda: log.confirms)
    log.commit([record("after")])
    log.close()
    drain(store, redis_server.url)
    rows = sorted(all_rows(store)["prediction_id"].to_pylist())
    assert rows in (["after", "before"], ["after", "before", "while it dies"])


def test_redis_that_hangs_costs_one_wait_and_gets_what_was_written(
    store: ObjectStore, wal_root: Path, redis_server: Any
):
    log = LogWriter(wal_root, "predictions", redis_server.url, poll_s=0.01, confirm_s=0.2)
    log.commit([record("before")])
    assert redis_server.process is not None
    redis_server.process.send_signal(19)  # stopped: it accepts connections and answers nothing
    with pytest.raises(LogUnconfirmedError):
        log.commit([record("waits")])
    assert not log.confirms
    redis_server.process.send_signal(18)
    until(lambda: log.confirms)
    log.commit([record("after")])
    log.close()
    drain(store, redis_server.url)
    assert sorted(all_rows(store)["prediction_id"].to_pylist()) == ["after", "before", "waits"]


def test_what_redis_lost_after_it_confirmed_is_sent_again_without_a_new_record(
    store: ObjectStore, wal_root: Path, redis_server: Any
):
    log = LogWriter(wal_root, "predictions", redis_server.url, poll_s=0.01, tidy_every_s=0.05)
    log.commit([record("confirmed")])
    redis_server.lose_everything()
    stream = Stream(redis.Redis.from_url(redis_server.url), "predictions")
    until(lambda: stream.shipped(log.writer) == 1)
    drain(store, redis_server.url)
    assert all_rows(store)["prediction_id"].to_pylist() == ["confirmed"]
    log.close()


def test_two_nodes_needs_a_replica_where_redis_is_on_this_node(
    tmp_path: Path, wal_root: Path, redis_server: Any
):
    log = LogWriter(wal_root, "predictions", redis_server.url, poll_s=0.01, two_nodes=True)
    until(lambda: not log.confirms)
    with pytest.raises(LogUnconfirmedError, match="runs on this node and no replica"):
        log.commit([record("alone")])
    assert log.waiting_bytes == 0
    folder = tmp_path / "replica"
    folder.mkdir()
    other = RedisServer(folder)
    other.start()
    client = redis.Redis.from_url(other.url)
    client.config_set("masterauth", "secret")
    client.replicaof("127.0.0.1", redis_server.port)
    until(lambda: log.confirms)
    log.commit([record("on both")])
    assert Stream(client, "predictions").shipped(log.writer) == 1
    other.kill()
    with pytest.raises(LogUnconfirmedError):
        log.commit([record("alone again")])
    log.close()
