from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis import ConnectionError as RedisConnectionError

from tests.redis_server import RedisServer, running_redis
from toque.functions.runtime.changes import connection
from toque.ray_apps.leader_lease import Leadership, Lease, RedisLease
from toque.registry import ObjectStore, open_store
from toque.registry.lease import StoreLease
from toque.registry.store import Aged


@dataclass
class ManualClock:
    """A clock that a test moves, in seconds."""

    at: float = 1000.0

    def __call__(self) -> float:
        return self.at


class TimedStore:
    """A store whose clock a test moves."""

    def __init__(self, store: ObjectStore, clock: ManualClock) -> None:
        self._store, self._clock = store, clock
        self._written: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def create(self, key: str, data: bytes) -> None:
        self._store.create(key, data)
        self._written[key] = self._clock.at

    def put(self, key: str, data: bytes) -> None:
        self._store.put(key, data)
        self._written[key] = self._clock.at

    def find_aged(self, key: str) -> Aged | None:
        data = self._store.find(key)
        return None if data is None else Aged(data, self._clock.at - self._written[key])


@dataclass
class Contest:
    """Two holders of one lease, the clock of the store or Redis, and each holder's own."""

    leases: tuple[Lease, Lease]
    clocks: tuple[ManualClock, ManualClock]
    server: ManualClock

    def leads(self, which: int) -> bool:
        """Renew the lease of a holder; whether it leads by its own clock."""
        return self.leases[which].renew() > self.clocks[which].at

    def pass_s(self, seconds: float) -> None:
        for each in (*self.clocks, self.server):
            each.at += seconds


class FakeRedis:
    """The scripts of a lease on a clock that a test moves."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock, self._held, self._until = clock, "", 0.0

    def eval(self, script: str, _: int, __: str, holder: str, ttl_ms: int = 0) -> int:
        free = self._held == holder or self._clock.at >= self._until
        if "DEL" in script:
            self._until = 0.0 if self._held == holder else self._until
        elif free:
            self._held, self._until = holder, self._clock.at + ttl_ms / 1000
        return int(free)

    def get(self, _: str) -> bytes | None:
        return self._held.encode() if self._held and self._clock.at < self._until else None


@pytest.fixture(params=["store", "redis"])
def contest(request: pytest.FixtureRequest, tmp_path: Path) -> Contest:
    server, clocks = ManualClock(), (ManualClock(at=17.0), ManualClock(at=9e6))  # no two clocks agree
    if request.param == "store":
        store: Any = TimedStore(open_store(f"file://{tmp_path}"), server)
        one, other = (
            StoreLease(store, "ticker", name, term_s=5, clock=clock)
            for name, clock in zip(("one", "other"), clocks, strict=True)
        )
        return Contest((one, other), clocks, server)
    client = FakeRedis(server)
    first, second = (
        RedisLease(client, "ticker", name, term_s=5, clock=clock)
        for name, clock in zip(("one", "other"), clocks, strict=True)
    )
    return Contest((first, second), clocks, server)


def test_only_one_holder_leads(contest: Contest) -> None:
    assert (contest.leads(0), contest.leads(1), contest.leads(0)) == (True, False, True)


def test_the_leader_stays_leader(contest: Contest) -> None:
    for _ in range(200):
        assert contest.leads(0)
        assert not contest.leads(1)
        contest.pass_s(1.3)


def test_when_the_leader_dies_another_leads_in_seconds(contest: Contest) -> None:
    assert contest.leads(0)
    waited = 0.0
    while not contest.leads(1):
        contest.pass_s(0.5)
        waited += 0.5
    assert waited <= 8


def test_a_leader_that_stalls_has_stopped_leading_before_another_begins(contest: Contest) -> None:
    assert contest.leads(0)
    until = contest.leases[0].renew()
    while not contest.leads(1):
        contest.pass_s(0.25)
    assert contest.clocks[0].at >= until
    assert not contest.leads(0)  # it resumes, and finds that it lost
    assert contest.leads(1)


def test_what_is_given_back_is_free_at_once(contest: Contest) -> None:
    assert contest.leads(0)
    contest.leases[0].release()
    assert contest.leads(1)
    contest.leases[0].release()  # not its any more
    contest.pass_s(1)
    assert not contest.leads(0)


def test_who_asks_whether_the_lease_is_free_claims_nothing(contest: Contest) -> None:
    one, other = contest.leases
    assert other.is_free()
    assert contest.leads(0)
    assert (one.is_free(), other.is_free()) == (True, False)
    contest.pass_s(8)
    assert other.is_free()
    assert contest.leads(0)  # it was not taken meanwhile


def test_a_holder_that_stalled_before_it_took_a_free_number_finds_that_it_is_old(tmp_path: Path) -> None:
    server = ManualClock()
    store: Any = TimedStore(open_store(f"file://{tmp_path}"), server)
    stalled = StoreLease(store, "ticker", "stalled", clock=server)
    assert stalled.renew() > server.at
    server.at += 100
    assert stalled.is_free()  # here it stalls, while others take this number and more, and delete it
    for number in range(3):
        other = StoreLease(store, "ticker", f"other-{number}", clock=server)
        assert other.renew() > server.at
        server.at += 100
    assert store.find("leaders/ticker/00000001") is None
    assert not stalled._take()
    assert len(list(store.list("leaders/"))) <= 3


def test_a_holder_whose_term_ended_while_it_stalled_leads_again_at_once(tmp_path: Path) -> None:
    server = ManualClock()
    store = TimedStore(open_store(f"file://{tmp_path}/store"), server)
    one, other = (StoreLease(store, "ticker", name, clock=server) for name in ("one", "other"))
    assert one.renew() > server.at
    server.at += 5.5  # a term has passed, and the slack that others grant has not
    assert one.renew() > server.at
    assert other.renew() <= server.at


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path / "redis") as server:
        yield server


def test_leadership_moves_to_the_store_while_redis_is_away_and_back(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    clock, store = ManualClock(), open_store(f"file://{tmp_path}/store")

    def member(name: str) -> Leadership:
        client = connection(redis_server.url, timeout_s=1.0)
        leases: list[tuple[Lease, float]] = [
            (RedisLease(client, "ticker", name, clock=clock), 1.0),
            (StoreLease(store, "ticker", name, clock=clock), 1.5),
        ]
        return Leadership(leases, clock=clock)

    one, other = member("one"), member("other")
    assert (one.renew(), other.renew()) == (True, False)
    assert not list(store.list("leaders/"))
    redis_server.kill()
    clock.at += 2
    assert one.renew()  # to the end of its term, by its own clock
    clock.at += 5
    assert not one.is_leader
    assert (one.renew(), other.renew()) == (True, False)
    assert list(store.list("leaders/")) == ["leaders/ticker/00000000"]
    redis_server.start()
    clock.at += 6
    (leader,) = [each for each in (other, one) if each.renew()]
    leader.release()
    clock.at += 2
    assert (one if leader is other else other).renew()


def test_without_any_lease_to_be_reached_nobody_leads() -> None:
    class Away:
        def renew(self) -> float:
            raise RedisConnectionError("away")

        def release(self) -> None:
            raise RedisConnectionError("away")

    member = Leadership([(Away(), 1.0)])
    with pytest.raises(RedisConnectionError):
        member.renew()
    assert not member.is_leader
    member.release()
