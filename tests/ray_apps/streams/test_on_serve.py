"""The consumers as a Serve application: replicas share the partitions, and take over from one that is killed."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray import serve

from tests.ray_apps.streams.clicking import EVENTS_URL, PARTITIONS, Clicks, spent
from tests.ray_apps.streams.following import Following, owners, wait_for
from tests.redis_server import RedisServer
from toque.ray_apps.streams import application

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(280)]

TAKEN_OVER_S = 15.0
"""About five seconds on a machine that has them to give."""


@pytest.fixture
def followed(tmp_path: Path, spare_redis: RedisServer, shared_ray: Callable[[int], None]) -> Iterator[Clicks]:
    """Clicks that two replicas follow."""
    following = Following(tmp_path, spare_redis.url, {EVENTS_URL: spare_redis.url}, count=0)
    features = following.context().features()
    features.apply([spent])
    shared_ray(2)
    serve.start(proxy_location="Disabled")
    placed = {"num_cpus": 0, "runtime_env": {"env_vars": following.settings}}
    serve.run(
        application({"num_replicas": 2, "ray_actor_options": placed}), name="streams", route_prefix=None
    )
    yield Clicks(features, spare_redis.url)
    serve.shutdown()
    features.online.close()


def owners_of(clicks: Clicks) -> dict[int, int]:
    return owners(clicks.url, "clicks", PARTITIONS)


def dealt(clicks: Clicks) -> bool:
    """Whether two replicas have two partitions each."""
    return sorted(Counter(owners_of(clicks).values()).values()) == [PARTITIONS // 2] * 2


def test_a_replica_that_is_killed_is_taken_over_within_seconds_and_replaced(followed: Clicks) -> None:
    wait_for(lambda: dealt(followed), lambda: str(owners_of(followed)))
    followed.send(80)
    wait_for(followed.are_stored)
    victim = owners_of(followed)[0]
    followed.send(80)
    os.kill(victim, signal.SIGKILL)
    followed.send(80)
    took_s = wait_for(lambda: followed.online() == followed.sent)
    wait_for(lambda: dealt(followed) and victim not in owners_of(followed).values())
    followed.send(80)
    wait_for(lambda: followed.online() == followed.sent)
    serve.delete("streams")  # the replicas commit what they read, and give their leases back
    assert owners_of(followed) == {}
    followed.check_stored_once()
    assert took_s < TAKEN_OVER_S
