"""Leases on partitions: dealt evenly, given back when consumers come, and free when their holder is gone."""

from __future__ import annotations

from dataclasses import dataclass, field

from redis import RedisError

from toque.ray_apps.leader_lease import Leadership
from toque.ray_apps.streams.follower import PartitionLeases


@dataclass
class World:
    """Time, the holders of leases and the consumers that are alive."""

    now: float = 0.0
    held: dict[int, tuple[str, float]] = field(default_factory=dict)
    alive: set[str] = field(default_factory=set)
    away: bool = False


@dataclass
class FakeLease:
    world: World
    partition: int
    holder: str

    def renew(self) -> float:
        if self.world.away:
            raise RedisError("away")
        holder, until = self.world.held.get(self.partition, (self.holder, 0.0))
        if holder != self.holder and until > self.world.now:
            return self.world.now - 1
        self.world.held[self.partition] = self.holder, self.world.now + 5
        return self.world.now + 5

    def release(self) -> None:
        if self.world.held.get(self.partition, ("", 0))[0] == self.holder:
            del self.world.held[self.partition]


@dataclass
class FakeMembers:
    world: World
    holder: str

    def count(self) -> int:
        if self.world.away:
            raise RedisError("away")
        self.world.alive.add(self.holder)
        return len(self.world.alive)

    def leave(self) -> None:
        self.world.alive.discard(self.holder)


def consumer(world: World, name: str, partitions: int = 6) -> PartitionLeases:
    def lease(partition: int) -> Leadership:
        return Leadership([(FakeLease(world, partition, name), 1.0)], clock=lambda: world.now)

    return PartitionLeases(range(partitions), lease, FakeMembers(world, name))


def beats(world: World, consumers: list[PartitionLeases], count: int = 8) -> list[int]:
    """Let time pass; returns how many partitions each owns, none of which two own."""
    for _ in range(count):
        world.now += 1
        for each in consumers:
            each.beat()
        owned = [partition for each in consumers for partition in each.owned()]
        assert len(owned) == len(set(owned))
    return [len(each.owned()) for each in consumers]


def test_partitions_are_dealt_evenly_and_anew_when_consumers_come_and_go() -> None:
    world = World()
    one, two, three = (consumer(world, name) for name in ("a", "b", "c"))
    assert beats(world, [one]) == [6]
    assert beats(world, [one, two]) == [3, 3]
    assert beats(world, [one, two, three]) == [2, 2, 2]
    two.release()
    assert beats(world, [one, three]) == [3, 3]


def test_partitions_of_a_consumer_that_died_are_taken_over_within_seconds() -> None:
    world = World()
    one, two = consumer(world, "a"), consumer(world, "b")
    assert beats(world, [one, two]) == [3, 3]
    world.alive.discard("b")  # as Redis forgets one that is silent
    assert beats(world, [one], 7) == [6]


def test_what_is_held_stays_while_redis_is_away_and_no_longer_than_its_term() -> None:
    world = World()
    one = consumer(world, "a")
    beats(world, [one])
    world.away = True
    assert beats(world, [one], 3) == [6]
    assert beats(world, [one], 4) == [0]
    world.away = False
    assert beats(world, [one]) == [6]


def test_more_consumers_than_partitions_leave_some_idle() -> None:
    world = World()
    consumers = [consumer(world, name, partitions=2) for name in ("a", "b", "c")]
    assert sorted(beats(world, consumers)) == [0, 1, 1]
