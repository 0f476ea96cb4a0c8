"""The connection cache: closed connections are replaced, and readers, processes and answers are never mixed up."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from redis.connection import AbstractConnection

from toque.featurestore.online.redis_store import ConnectionCache


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(redis_url)
    client.mset({f"k{n}": f"v{n}" for n in range(8)})
    yield client
    client.close()


def test_sequential_calls_share_one_connection(client: redis.Redis) -> None:
    connections = ConnectionCache(client)
    assert len({connections.call("CLIENT", "ID") for _ in range(3)}) == 1
    assert connections.call("MGET", b"k1", b"none") == [b"v1", None]


def test_a_connection_that_the_server_has_closed_is_replaced(client: redis.Redis) -> None:
    connections = ConnectionCache(client)
    first = connections.call("CLIENT", "ID")
    client.client_kill_filter(_id=str(first))
    assert connections.call("MGET", b"k1") == [b"v1"]
    assert connections.call("CLIENT", "ID") != first


def test_readers_at_one_time_have_a_connection_each(client: redis.Redis) -> None:
    connections = ConnectionCache(client)

    def read(n: int) -> None:
        for _ in range(200):
            assert connections.call("MGET", b"k%d" % n) == [b"v%d" % n]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))


def test_a_fork_does_not_use_its_parents_connection(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = ConnectionCache(client)
    first = connections.call("CLIENT", "ID")
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert connections.call("CLIENT", "ID") != first


def test_an_answer_half_read_is_never_given_to_the_next_call(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = ConnectionCache(client)
    connections.call("MGET", b"k1")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(AbstractConnection, "read_response", interrupted)
        with pytest.raises(KeyboardInterrupt):
            connections.call("MGET", b"k1")
    assert connections.call("MGET", b"k2") == [b"v2"]


def test_an_error_of_the_server_is_raised_and_the_next_call_works(client: redis.Redis) -> None:
    connections = ConnectionCache(client)
    with pytest.raises(redis.ResponseError, match="wrong number of arguments"):
        connections.call("MGET")
    assert connections.call("MGET", b"k3") == [b"v3"]


def test_closing_the_client_closes_them_and_the_next_call_opens_one(client: redis.Redis) -> None:
    connections = ConnectionCache(client)
    first = connections.call("CLIENT", "ID")
    client.close()
    second = connections.call("CLIENT", "ID")
    assert first not in {int(each["id"]) for each in client.client_list()}
    assert connections.call("CLIENT", "ID") == second
