"""What the platform does with Redis works on a server, behind Sentinels and on a Cluster alike."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ResponseError

from tests.clusters.redis_clients.servers import SentinelService, wait_for
from tests.functions.prediction_log.logbook import all_rows, record
from toque.clusters.redis_clients import is_cluster, open_redis_async, primaries
from toque.functions import Context
from toque.functions.prediction_log import LogWriter, drain
from toque.functions.prediction_log.writing.lost_writers import report_losses
from toque.functions.prediction_log.writing.stream import Stream
from toque.registry import open_store


def test_commands_scripts_and_pipelines(client: Any) -> None:
    script = client.register_script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    client.delete("toque:{a}:n")
    assert script(keys=["toque:{a}:n"], args=[2]) == 2
    pipe = client.pipeline(transaction=True)
    pipe.incr("toque:{a}:n")
    pipe.hset("toque:{a}:h", "f", "v")
    assert pipe.execute()[0] == 3
    spread = client.pipeline(transaction=False)
    for number in range(30):
        spread.set(f"toque:{number}", number)
    assert spread.execute() == [True] * 30
    assert set(client.scan_iter("toque:[0-9]*")) == {b"toque:%d" % n for n in range(30)}
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        client.get("toque:{a}:h")


def test_primaries_are_asked_one_by_one(client: Any) -> None:
    servers = primaries(client)
    assert len(servers) == (3 if is_cluster(client) else 1)
    assert all(server.info("replication")["role"] == "master" for server in servers)


def test_published_messages_reach_subscribers(client: Any) -> None:
    heard = client.pubsub(ignore_subscribe_messages=True)
    heard.subscribe("toque:wake")
    found: list[bytes] = []

    def hears() -> bool:
        client.publish("toque:wake", "now")
        message = heard.get_message(timeout=0.2)
        found.extend([message["data"]] if message else [])
        return bool(found)

    wait_for(hears, "the message arrives")
    assert found[0] == b"now"
    heard.close()


def test_the_prediction_log_is_confirmed_and_drained_once(client: Any, any_url: str, tmp_path: Path) -> None:
    store, root = open_store(f"file://{tmp_path}/store"), tmp_path / "wal"
    logs = [LogWriter(root, "predictions", any_url, tidy_every_s=0.1) for _ in range(3)]
    names = [f"{number}-{kind}" for number in range(5) for kind in range(3)]
    for name in names:
        logs[int(name[-1])].commit([record(name)])
    states = Stream(client, "predictions").states()
    assert {state.writer: state.shipped for state in states} == {log.writer: 5 for log in logs}
    for log in logs:
        log.close()
    used = Context(store, store.url, redis_url=any_url)
    assert report_losses(used, client, silent_for=timedelta()) == []
    for _ in range(2):
        drain(store, any_url, wal_root=root)
    assert sorted(all_rows(store)["prediction_id"].to_pylist()) == names
    assert Stream(client, "predictions").states() == []


def test_a_copy_on_a_replica_is_waited_for(sentinels: SentinelService, tmp_path: Path) -> None:
    log = LogWriter(tmp_path, "predictions", sentinels.url, two_nodes=True, confirm_s=20)
    assert log.commit([record("on both")]) == 1
    log.close()


def test_a_loop_reads_writes_and_listens(any_url: str) -> None:
    async def use() -> list[Any]:
        client = open_redis_async(any_url, patience_s=20.0)
        heard = client.pubsub(ignore_subscribe_messages=True)
        await heard.subscribe("toque:wake")
        await client.set("toque:x", 1)
        values = [await client.get("toque:x"), await client.get("toque:none")]
        async with asyncio.timeout(60):
            while (message := await heard.get_message(timeout=0.2)) is None:
                await client.publish("toque:wake", "now")
        await heard.aclose()
        await client.aclose()
        return [*values, message["data"]]

    assert asyncio.run(use()) == [b"1", None, b"now"]
