"""Consumers as processes on real logs: killed again and again, others take over, every event once in both stores."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.featurestore.conftest import SettableClock
from tests.featurestore.streams.checks import check_offline, check_online, check_stored_once, views
from tests.featurestore.streams.history import send_some
from tests.featurestore.streams.kafka import BROKERS, Broker, KafkaLog
from tests.ray_apps.streams.clicking import EVENTS_URL, Clicks, spent
from tests.ray_apps.streams.following import Following, wait_for
from tests.redis_server import RedisServer
from toque.featurestore import FeatureStore

pytestmark = pytest.mark.proof

LATENESS = timedelta(minutes=20)


@pytest.mark.timeout(900)
def test_consumers_of_redis_killed_again_and_again_store_every_event_once(
    tmp_path: Path, spare_redis: RedisServer
) -> None:
    url = spare_redis.url
    with Following(tmp_path, url, {EVENTS_URL: url}, count=2) as following:
        features = following.context().features()
        features.apply([spent])
        clicks = Clicks(features, url)
        for kill in range(5):
            clicks.send(400)
            following.kill(kill % 2)
        clicks.send(400)
        wait_for(clicks.are_stored, following.told)
    clicks.check_stored_once()
    features.online.close()


def move_partitions(chance: random.Random, log: KafkaLog, down: int | None) -> int | None:
    """Give the partitions to some brokers, and perhaps take one down that has none; returns which is down."""
    if down is not None:
        log.broker.set_up(down, up=True)
    down = chance.choice([None, *range(1, BROKERS + 1)])
    up = [each for each in range(1, BROKERS + 1) if each != down]
    for partition in range(log.partitions):
        log.broker.lead(log.topic, partition, chance.choice(up))
    if down is not None:
        log.broker.set_up(down, up=False)
    return down


@pytest.mark.timeout(3600)
def test_50_kills_of_consumers_of_kafka_while_partitions_move(
    tmp_path: Path, spare_redis: RedisServer
) -> None:
    chance, log, down = random.Random(50), KafkaLog(Broker(), "clicks"), None
    with Following(tmp_path, spare_redis.url, {}, count=3) as following:
        features = following.context().features()
        features.apply(views(None, LATENESS, reads=log.reads, commit_every=timedelta(seconds=1)))
        sent: list[dict[str, object]] = []
        for _ in range(50):
            down = move_partitions(chance, log, down)
            for _ in range(50):
                send_some(chance, log, sent, datetime.now(UTC))
            time.sleep(1.5 * chance.random())  # of the second between two commits, and of the time to take up
            following.kill_owner("clicks", chance.randrange(log.partitions))
        wait_for(lambda: stored(features, log), following.told)
        last = max(datetime.fromisoformat(str(each["at"])) for each in sent)
        wait_for(lambda: datetime.now(UTC) > last)  # of clocks that are ahead
        clock = SettableClock(datetime.now(UTC))
        own = FeatureStore(features._store, spare_redis.url, clock=clock)
        wait_for(lambda: is_online(own, log, clock), following.told)
    check_stored_once(own, log)
    check_online(own, log, clock, None, LATENESS)
    check_offline(
        own, log, clock, None, LATENESS, [clock.now - timedelta(seconds=each) for each in (5, 30, 120)]
    )
    for each in (features, own):
        each.online.close()


def is_online(features: FeatureStore, log: KafkaLog, clock: SettableClock) -> bool:
    """Whether the rows of all that has happened by now are online."""
    try:
        check_online(features, log, clock, None, LATENESS)
    except AssertionError:
        return False
    return True


def stored(features: FeatureStore, log: KafkaLog) -> bool:
    """Whether all that was sent is in the table."""
    places = features.stream_table("clicks").places(range(log.partitions))
    return {each: place.position if place else 0 for each, place in places.items()} == {
        each: len(messages) for each, messages in enumerate(log.messages)
    }
