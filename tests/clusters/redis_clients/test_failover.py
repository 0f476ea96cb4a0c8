"""Writers and readers go on by themselves when the server that they use is gone, loads its data, or was demoted."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import pytest
from redis.exceptions import AuthenticationError, BusyLoadingError, ReadOnlyError, RedisError

from tests.clusters.redis_clients.servers import Cluster, SentinelService, Server, wait_for
from toque.clusters.redis_clients import open_redis, open_redis_async
from toque.featurestore.online.redis_store import ConnectionCache


class Writer:
    """Counts in keys of many slots, one command after the other, until it is stopped."""

    def __init__(self, url: str) -> None:
        self.client = open_redis(url, patience_s=25.0)
        self.done, self.errors, self._stop = 0, [], threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                pipe = self.client.pipeline(transaction=False)
                for each in range(3):
                    pipe.set(f"toque:w:{(self.done + each) % 40}", self.done)
                pipe.execute()
                self.client.set("toque:w:last", self.done)
                self.done += 1
            except RedisError as error:
                self.errors.append(error)

    @contextmanager
    def running(self) -> Iterator["Writer"]:
        self._thread.start()
        wait_for(lambda: self.done > 20, "the writer writes")
        yield self
        self._stop.set()
        self._thread.join()
        self.client.close()

    def goes_on(self) -> None:
        seen = self.done
        wait_for(lambda: self.done > seen + 20 or self.errors, "the writer writes again")
        assert [str(each) for each in self.errors] == []


def test_a_master_that_is_killed_is_replaced_by_sentinel_under_writes(sentinels: SentinelService) -> None:
    reader = open_redis(sentinels.url, patience_s=25.0)
    cache = ConnectionCache(reader)
    with Writer(sentinels.url).running() as writer:
        assert cache.call("GET", "toque:w:last") is not None
        sentinels.master.kill()
        writer.goes_on()
        last = writer.done
    assert int(cache.call("GET", "toque:w:last")) >= last - 1
    assert sentinels.replica.ask("ROLE", password="secret")[0] == b"master"
    reader.close()


def test_a_master_that_is_killed_is_replaced_in_a_cluster_under_writes(cluster: Cluster) -> None:
    with Writer(cluster.url).running() as writer:
        cluster.nodes[0].kill()
        writer.goes_on()
    with open_redis(cluster.url, patience_s=25.0) as reader:
        assert None not in reader.mget_nonatomic([f"toque:w:{each}" for each in range(40)])
    assert cluster.nodes[3].ask("ROLE", password="secret")[0] == b"master"


@contextmanager
def after(pause_s: float, action: Any) -> Iterator[None]:
    timer = threading.Timer(pause_s, action)
    timer.start()
    yield
    timer.join()


def test_a_write_waits_while_the_server_is_read_only(server: Server) -> None:
    url = f"redis://:secret@127.0.0.1:{server.port}/0"
    server.ask("REPLICAOF", "127.0.0.1", "1", password="secret")
    with open_redis(url, patience_s=0.2) as hasty, pytest.raises(ReadOnlyError):
        hasty.set("toque:x", 1)
    with (
        open_redis(url, patience_s=20.0) as client,
        after(0.3, lambda: server.ask("REPLICAOF", "NO", "ONE", password="secret")),
    ):
        assert client.set("toque:x", 1)


async def test_a_read_waits_while_the_server_loads_its_data(server: Server) -> None:
    """Of connections that were open and of new ones, in threads and on an event loop; without patience it is an error."""
    url = f"redis://:secret@127.0.0.1:{server.port}/0"
    with open_redis(url, patience_s=20.0) as client:
        chance = Random(
            0
        )  # the server looks up from its file every two million bytes, which must not be compressed
        values = {f"toque:{each}": chance.randbytes(40_000) for each in range(600)}
        client.mset(values)
        cache = ConnectionCache(client)
        cache.call("GET", "toque:1")
        client.bgrewriteaof()
        wait_for(lambda: not client.info("persistence")["aof_rewrite_in_progress"], "the file is rewritten")
        server.kill()
        with server.file.open("a") as file:
            file.write("key-load-delay 5000\n")
        server.start()
        wait_for(lambda: "LOADING" in _ping(server), "the server loads")
        with open_redis(url, patience_s=0.0) as hasty, pytest.raises(BusyLoadingError):
            hasty.get("toque:599")
        async with open_redis_async(url, patience_s=20.0) as other:
            assert await other.get("toque:599") == values["toque:599"]
        assert cache.call("GET", "toque:599") == values["toque:599"]


def _ping(server: Server) -> str:
    try:
        return str(server.ask("PING", password="secret"))
    except RedisError as error:
        return "LOADING" if "loading" in str(error) else str(error)


def test_what_waiting_does_not_mend_is_an_error_at_once(server: Server) -> None:
    begun = time.monotonic()
    with (
        open_redis(f"redis://:wrong@127.0.0.1:{server.port}", patience_s=60.0) as client,
        pytest.raises(AuthenticationError, match="invalid"),
    ):
        client.ping()
    assert time.monotonic() - begun < 20
