"""What the platform does with Redis works on a server, behind Sentinels and on a Cluster alike."""

import asyncio
from typing import Any

import pytest
from redis.exceptions import ResponseError

from clusters.redis_clients import is_cluster, open_redis_async, primaries
from tests.clusters.redis_clients.servers import wait_for


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


def test_a_loop_reads_writes_and_listens(any_url: str) -> None:
    async def use() -> list[Any]:
        client = open_redis_async(any_url, patience_s=20.0)
        heard = client.pubsub(ignore_subscribe_messages=True)
        await heard.subscribe("toque:wake")
        await client.set("toque:x", 1)
        values = [await client.get("toque:x"), await client.get("toque:none")]
        async with asyncio.timeout(20):
            while (message := await heard.get_message(timeout=0.2)) is None:
                await client.publish("toque:wake", "now")
        await heard.aclose()
        await client.aclose()
        return [*values, message["data"]]

    assert asyncio.run(use()) == [b"1", None, b"now"]
