"""Fixtures of the feature store: Redis, stores and a Ray cluster."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import boto3
import pytest
import ray.data
import redis

from tests.redis_server import RedisServer, running_redis
from toque.featurestore import FeatureStore
from toque.registry import open_store

NOW = datetime(2013, 7, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def spare_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own, to be killed."""
    with running_redis(tmp_path) as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A cluster of one node, which refuses keys of several slots as a larger one does."""
    with running_redis(tmp_path_factory.mktemp("cluster"), cluster=True) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> Iterator[str]:
    client = redis.Redis.from_url(redis_server.url)
    client.flushall()
    yield redis_server.url
    client.close()


class SettableClock:
    """A clock that stands still until it is set."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock(NOW)


@pytest.fixture
def make_store(tmp_path: Path, clock: SettableClock) -> Iterator[Callable[..., FeatureStore]]:
    made: list[FeatureStore] = []

    def make(redis_url: str | None = None) -> FeatureStore:
        made.append(FeatureStore(open_store(f"file://{tmp_path}/store"), redis_url, clock=clock, actor="ada"))
        return made[-1]

    yield make
    for store in made:
        if store._online is not None:
            store.online.close()


@pytest.fixture
def fs(make_store: Callable[..., FeatureStore], redis_url: str) -> FeatureStore:
    return make_store(redis_url)


@pytest.fixture
def offline_fs(make_store: Callable[..., FeatureStore]) -> FeatureStore:
    return make_store()


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A local Ray cluster, unless one is running already."""
    started = not ray.is_initialized()
    if started:
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    if started:
        ray.shutdown()


@pytest.fixture(scope="session")
def s3_store_url() -> Iterator[str]:
    """A bucket on a test S3 server, with its credentials in the environment."""
    patch = pytest.MonkeyPatch()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.setenv(name, "test")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    script = Path(__file__).parents[1] / "registry" / "moto_server.py"
    server = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert server.stdout is not None
    endpoint = f"http://127.0.0.1:{server.stdout.readline().strip()}"
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket="toque")
    yield f"s3://toque/store?endpoint={endpoint}"
    server.kill()
    server.wait()
    patch.undo()
