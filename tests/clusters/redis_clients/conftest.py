from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clusters.redis_clients.servers import Cluster, SentinelService, Server, wait_for
from toque.clusters.redis_clients import open_redis


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    one = Server(tmp_path, ["requirepass secret", "appendonly yes", "appendfsync always"]).start()
    wait_for(lambda: one.answers(password="secret"), "the server answers")
    yield one
    one.kill()


@pytest.fixture(scope="session")
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelService]:
    """A master, a replica and three Sentinels; one test of a session kills the master."""
    service = SentinelService(tmp_path_factory.mktemp("sentinel"))
    yield service
    service.kill()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three masters and a replica of the first; one test of a session kills the first."""
    nodes = Cluster(tmp_path_factory.mktemp("cluster"), replica=True)
    yield nodes
    nodes.kill()


@pytest.fixture(params=["server", "sentinels", "cluster"])
def any_url(request: pytest.FixtureRequest) -> str:
    """Url of each kind of Redis in turn."""
    found: Any = request.getfixturevalue(request.param)
    return f"redis://:secret@127.0.0.1:{found.port}/0" if request.param == "server" else found.url


@pytest.fixture
def client(any_url: str) -> Iterator[Any]:
    opened = open_redis(any_url, patience_s=20.0)
    yield opened
    opened.close()
