import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from toque.functions.runtime import FixedClock, ReplayClock, clock, system_clock
from toque.functions.runtime.context import context_of, unpacked

NOON = datetime(2013, 5, 1, 12, tzinfo=UTC)


class FakeRedis:
    values: dict[str, bytes] = {}  # noqa: RUF012  # shared on purpose: it is the server

    def get(self, key: str) -> bytes | None:
        return self.values.get(key)

    def set(self, key: str, value: str) -> None:
        self.values[key] = value.encode()


@pytest.fixture
def redis(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(FakeRedis, "values", {})
    monkeypatch.setattr(clock, "open_redis", lambda _: FakeRedis())
    return FakeRedis


def test_clocks_return_utc() -> None:
    assert system_clock().tzinfo is UTC
    two_hours_east = timezone(timedelta(hours=2))
    assert clock.aware(datetime(2013, 5, 1, 14, tzinfo=two_hours_east)) == NOON


def test_naive_times_are_refused() -> None:
    with pytest.raises(ValueError, match="naive"):
        FixedClock(datetime(2013, 5, 1))  # noqa: DTZ001


def test_a_replay_clock_returns_the_driver_s_time(redis: Any) -> None:
    driver, reader = ReplayClock("redis://x"), ReplayClock("redis://x", hold_s=0)
    with pytest.raises(LookupError, match="not set"):
        reader()
    driver.set(NOON)
    assert reader() == driver() == NOON
    driver.set(NOON + timedelta(hours=1))
    assert reader() == NOON + timedelta(hours=1)
    assert pickle.loads(pickle.dumps(reader))() == NOON + timedelta(hours=1)  # noqa: S301


def test_the_context_is_read_from_the_environment(tmp_path: Any) -> None:
    environment = {
        "TOQUE_STORE": f"file://{tmp_path}",
        "TOQUE_ACTOR": "ada",
        "TOQUE_PROJECT": "examples.flights",
    }
    found = context_of(environment)
    assert (found.store_url, found.actor, found.project) == (f"file://{tmp_path}", "ada", "examples.flights")
    assert found.clock is system_clock
    replayed = context_of(environment | {"TOQUE_CLOCK": "replay", "TOQUE_REDIS_URL": "redis://x"})
    assert replayed.clock == ReplayClock("redis://x")
    travelled = unpacked(replayed.packed())
    assert (travelled.store.url, travelled.clock) == (replayed.store.url, replayed.clock)
    with pytest.raises(ValueError, match="TOQUE_CLOCK='replay'"):
        context_of(environment | {"TOQUE_CLOCK": "replay"})
