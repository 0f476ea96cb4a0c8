"""Readiness: known from one read of the store a second, however many ask."""

import asyncio
import threading

import pytest

from tests.ray_apps.gateway.conftest import Gateway
from toque.ray_apps.gateway.services import CHECK_EVERY_S, STALE_AFTER_S, Readiness
from toque.registry import Unavailable


class Store:
    """A store that counts reads, can be away, and can hang."""

    def __init__(self) -> None:
        self.reads = 0
        self.away = False
        self.asked = threading.Semaphore(0)
        self.answers = threading.Event()
        self.answers.set()

    def find(self, _: str) -> None:
        self.reads += 1
        self.asked.release()
        self.answers.wait(60)
        if self.away:
            raise Unavailable("503 Slow Down")


class Seconds:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store() -> Store:
    return Store()


async def settled(readiness: Readiness) -> None:
    """Wait for the read that is under way."""
    if readiness._check is not None:
        await asyncio.wait([readiness._check], timeout=60)


async def test_probes_read_the_store_at_most_once_a_second(store: Store) -> None:
    seconds = Seconds()
    readiness = Readiness(store, monotonic=seconds)  # type: ignore[arg-type]  # all that it uses
    assert await readiness.is_ready()
    await settled(readiness)
    assert [await readiness.is_ready() for _ in range(100)] == [True] * 100
    assert store.reads == 1
    seconds.now += CHECK_EVERY_S
    store.away = True
    assert await readiness.is_ready()  # the last answer, while the store is asked again
    await settled(readiness)
    assert [await readiness.is_ready() for _ in range(100)] == [False] * 100
    assert store.reads == 2


async def test_a_probe_after_a_long_pause_waits_for_the_stores_answer(store: Store) -> None:
    seconds = Seconds()
    readiness = Readiness(store, monotonic=seconds)  # type: ignore[arg-type]  # all that it uses
    assert await readiness.is_ready()
    await settled(readiness)
    for away in (False, True, False):
        seconds.now += 60 * STALE_AFTER_S
        store.away = away
        assert await readiness.is_ready() is not away
        await settled(readiness)
    assert store.reads == 4


async def test_a_store_that_hangs_makes_the_gateway_unready_and_holds_no_probe(store: Store) -> None:
    seconds = Seconds()
    readiness = Readiness(store, monotonic=seconds)  # type: ignore[arg-type]  # all that it uses
    assert await readiness.is_ready()
    await settled(readiness)
    store.answers.clear()
    seconds.now += CHECK_EVERY_S
    assert await readiness.is_ready()
    assert await asyncio.to_thread(lambda: all(store.asked.acquire(timeout=60) for _ in range(2)))
    seconds.now += STALE_AFTER_S
    assert [await readiness.is_ready() for _ in range(100)] == [False] * 100
    assert store.reads == 2  # the one that hangs is the only one
    store.answers.set()
    await settled(readiness)
    assert await readiness.is_ready()


async def test_strangers_probes_cost_the_store_nothing(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    find = gateway.context.store.find
    monkeypatch.setattr(
        gateway.context.store,
        "find",
        lambda key: asked.append(key) or find(key),  # type: ignore[func-returns-value]
    )
    for _ in range(50):
        for path in ("/v2/health/ready", "/v2/health/live", "/healthz", "/workspaces/any/v2/health/ready"):
            assert (await gateway.client.get(path)).status_code == 200
    assert asked.count("health") <= 3  # a second or two may pass
    assert set(asked) <= {"health"}
