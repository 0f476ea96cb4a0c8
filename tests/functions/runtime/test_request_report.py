from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
from redis import RedisError

from tests.redis_server import RedisServer, running_redis
from toque.functions.runtime.changes import connection
from toque.functions.runtime.process import RequestReport, platform_totals, read_reports
from toque.registry.store.requests import RequestCounts

DAY = date(2026, 3, 1)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path) as server:
        yield server


def test_each_request_is_reported_once_and_summed_by_process_and_day(redis_server: RedisServer) -> None:
    counts = RequestCounts()
    report = RequestReport(connection(redis_server.url, timeout_s=2), "ticker", counts=counts)
    counts.add("get", "queues/index/1", 7)
    counts.add("list", "models/", 2)
    report.send(DAY)
    report.send(DAY)
    redis_server.kill()
    counts.add("put", "queues/index/1")
    counts.add("delete", "queues/index/1")
    with pytest.raises(RedisError):
        report.send(DAY)
    redis_server.start()
    report.send(DAY)
    other = RequestCounts()
    other.add("head", "clock")
    RequestReport(connection(redis_server.url, timeout_s=2), "ticker", counts=other).send(DAY)
    found = {(each.operation, each.part): each.requests for each in read_reports(redis_server.url)}
    assert found == {
        ("get", "queues"): 7, ("list", "models"): 2, ("put", "queues"): 1, ("delete", "queues"): 1, ("head", "clock"): 1,
    }  # fmt: skip
    (total,) = platform_totals(redis_server.url)
    assert (total.function, total.day, total.store_reads, total.store_writes) == (
        "(ticker)",
        "2026-03-01",
        8,
        3,
    )


def test_a_day_whose_counts_have_expired_is_forgotten(redis_server: RedisServer) -> None:
    counts = RequestCounts()
    counts.add("get", "a")
    client = connection(redis_server.url, timeout_s=2)
    RequestReport(client, "mlflow", counts=counts).send(DAY)
    client.delete("toque:{store-requests}:2026-03-01")
    assert platform_totals(redis_server.url) == []
    assert client.smembers("toque:{store-requests}:days") == set()
