"""What the documentation says of servers is what the tests run on."""

from __future__ import annotations

from pathlib import Path

import redis

from tests.clusters.redis_clients.servers import Server
from tests.conditions import servers
from tests.redis_server import running_redis

STORE = Path(__file__).parents[2] / "docs" / "store.md"


def test_the_oldest_redis_of_the_documentation_is_the_one_that_tests_run_on(tmp_path: Path) -> None:
    named = servers.oldest_redis_named()
    with running_redis(tmp_path / "redis") as server, redis.Redis.from_url(server.url) as client:
        answers = tuple(map(int, client.info("server")["redis_version"].split(".")))
    assert answers[: len(named)] == named
    assert servers.version_of(Server(tmp_path).program)[: len(named)] == named


def test_the_s3_servers_of_the_documentation_are_those_that_tests_can_run_on() -> None:
    text = STORE.read_text().lower()
    assert all(name in text for name in servers.S3_SERVERS)
