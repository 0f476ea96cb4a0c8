"""Reflexes on real journals: what they decide is done once and told once, wherever the ticker is killed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toque.functions.live_counts import BINS, ArmTally, Failures, SplitArm, WindowCounts, window_at
from toque.functions.monitoring import TOPIC, Alarm, Alarms
from toque.functions.reflexes.champion import ServiceFinding
from toque.functions.reflexes.reflexes import Reflexes, recovery_of, service_alarm
from toque.functions.rollout import RolloutPolicy
from toque.functions.rollout.jobs import rollouts
from toque.functions.runtime.changes import Watch
from toque.functions.runtime.context import Context, use_context
from toque.functions.runtime.triggers.events import topic_of
from toque.registry import ObjectStore, Signature, TensorSpec, open_store

MODEL = "late"
SIGNATURE = Signature(
    inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 1])],
    outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 1])],
)


class KilledError(BaseException):
    """A kill -9 at this line."""


class FusedStore:
    """A store at whose `fuse`-th request the process is killed: before it is made, or right after."""

    def __init__(self, store: ObjectStore, fuse: int, *, after: bool) -> None:
        self._store, self.left, self._after = store, fuse, after

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name not in {"find", "get", "put", "create"}:
            return found

        def request(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left == 0 and not self._after:
                raise KilledError
            answer = found(*args, **kwargs)
            if self.left == 0:
                raise KilledError
            return answer

        return request


class World:
    """A platform with version 1 as champion, 2 and 3 in reserve, and live counts that the test sets."""

    def __init__(self, folder: Path) -> None:
        self.store = open_store(f"file://{folder}/store")
        self.now = datetime(2027, 1, 4, 9, 0, tzinfo=UTC)
        self.counts: dict[int, WindowCounts] = {}
        (folder / "model").write_text("{}")
        self.registry = self.used().registry()
        self.registry.create_model(MODEL)
        for _ in range(3):
            self.registry.create_version(MODEL, path=folder / "model", signature=SIGNATURE)
        self.registry.promote(MODEL, 1)
        self.rng = np.random.default_rng(1)

    def used(self, store: Any = None) -> Context:
        return Context(store=store or self.store, store_url="", clock=lambda: self.now, actor="ticker")

    def seconds(self) -> float:
        return self.now.timestamp()

    def models(self, _now: float) -> list[str]:
        return [MODEL]

    def windows(self, _model: str, windows: Iterable[int], _now: float) -> Mapping[int, WindowCounts]:
        return {window: self.counts.get(window, WindowCounts()) for window in windows}

    def reflexes(self, store: Any = None) -> Reflexes:
        """Those of a process that has just started."""
        reader: Any = self
        watch = Watch(every_s=0.0)
        return Reflexes(self.used(store), reader, watch, clock=self.seconds)

    def serve(
        self, minutes: int, *, fails: Mapping[int, float] | None = None, per_minute: int = 2_000
    ) -> None:
        """Minutes of traffic by the split in force."""
        traffic = self.registry.traffic(MODEL)
        for _ in range(minutes):
            window = window_at(self.now.timestamp())
            arms = {
                SplitArm(traffic.entry, arm.version, arm.name, arm.share): self._tally(
                    round(per_minute * arm.share), (fails or {}).get(arm.version, 0.0)
                )
                for arm in traffic.arms
            }
            self.counts[window] = self.counts.get(window, WindowCounts()) + WindowCounts(arms)
            self.now += timedelta(minutes=1)

    def _tally(self, requests: int, fails: float) -> ArmTally:
        errors = round(requests * fails)
        units = Failures.of(self.rng.integers(0, 2**62, errors).tolist())
        latency = np.bincount(self.rng.integers(70, 90, requests - errors), minlength=BINS)
        return ArmTally(requests, units, latency=latency.astype(np.int64))

    def canary(self, policy: RolloutPolicy | None = None) -> None:
        """A rollout of version 2, taken to its canary by hand."""
        policy = policy or RolloutPolicy(promote_by="service", ramp_hold=timedelta(0))
        with use_context(self.used()):
            one = rollouts(MODEL)
            one.start(2, policy, reason="a try")
        traffic = self.registry.traffic(MODEL)
        window = window_at(self.now.timestamp())
        self.counts[window] = WindowCounts(
            {
                SplitArm(traffic.entry, 1, "champion", 1.0): self._tally(2_000, 0.0),
                SplitArm(traffic.entry, 2, "shadow", 0.0): self._tally(2_000, 0.0),
            }
        )
        self.reflexes().tick()
        assert self.registry.traffic(MODEL).versions == (1, 2)

    def alarms(self) -> list[Alarm]:
        used = self.used()
        return Alarms(
            MODEL, store=used.store, clock=used.clock, actor="reader", publish=lambda *_: None
        ).all()

    def told(self) -> list[str]:
        """Keys of what was published for people."""
        topic = topic_of(self.used(), TOPIC)
        return [str(entry.body["key"]) for entry in topic.journal.entries() if entry.body.get("key")]

    def decisions(self) -> list[str]:
        with use_context(self.used()):
            bodies = [entry.body for entry in rollouts(MODEL).entries()]
        return [body["decision"]["rule"] for body in bodies if body["event"] == "decided"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_failing_canary_is_rolled_back_and_people_are_told_by_one_tick(world: World) -> None:
    world.canary()
    world.serve(1, fails={2: 0.1})
    world.reflexes().tick()
    assert world.registry.traffic(MODEL).versions == (1,)
    (alarm,) = world.alarms()
    assert (alarm.monitor, alarm.version, alarm.recovered) == ("rollout", 2, False)
    assert "live_errors" in alarm.text
    assert world.told() == [alarm.key]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_ticker_killed_at_any_request_acts_once_and_tells_once(tmp_path: Path, *, after: bool) -> None:
    for fuse in range(1, 60):
        folder = tmp_path / str(fuse)
        folder.mkdir()
        world = World(folder)
        world.canary()
        world.serve(1, fails={2: 0.1})
        store = FusedStore(world.store, fuse, after=after)
        with contextlib.suppress(KilledError):
            world.reflexes(store).tick()
        for _ in range(3):  # by another process, in the next seconds
            world.now += timedelta(seconds=10)
            world.reflexes().tick()
        assert world.registry.traffic(MODEL).versions == (1,)
        assert world.decisions().count("live_errors") == 1
        assert [alarm.monitor for alarm in world.alarms()] == ["rollout"]
        assert len(world.told()) == 1
        if store.left > 0:
            return  # the tick was over before
    raise AssertionError("a tick makes more requests than were tried")


def test_a_roll_back_by_hand_tells_nobody(world: World) -> None:
    world.canary()
    with use_context(world.used()):
        rollouts(MODEL).end("roll_back", reason="by hand")
    world.reflexes().tick()
    assert world.alarms() == []


def test_the_alarm_of_a_roll_back_is_over_when_the_next_rollout_begins(world: World) -> None:
    world.canary()
    world.serve(1, fails={2: 0.1})
    running = world.reflexes()
    for _ in range(3):
        running.tick()
    with use_context(world.used()):
        rollouts(MODEL).start(3, RolloutPolicy(), reason="mended")
    running.tick()
    running.tick()
    assert [alarm.recovered for alarm in world.alarms()] == [False, True]


def test_a_champion_of_few_requests_is_told_and_again_when_it_is_well(world: World) -> None:
    running = world.reflexes()

    def serve(minutes: int, *, fails: float) -> None:
        for minute in range(minutes):
            world.serve(1, fails={1: fails}, per_minute=1 - minute % 2)
            running.tick()

    serve(180, fails=0.0)
    serve(60, fails=1.0)
    assert [(alarm.subject, alarm.recovered) for alarm in world.alarms()] == [("errors", False)]
    assert "of the last 30 minutes met an error" in world.alarms()[0].text
    serve(20, fails=0.0)
    assert [alarm.recovered for alarm in world.alarms()] == [False, True]


def test_a_champion_that_breaks_is_told_once_and_again_when_it_is_well(world: World) -> None:
    world.serve(72)
    running = world.reflexes()
    running.tick()
    assert world.alarms() == []
    world.serve(1, fails={1: 0.05})
    for _ in range(3):
        running.tick()
        world.reflexes().tick()  # after a restart, too
    assert [(alarm.monitor, alarm.subject) for alarm in world.alarms()] == [("service", "errors")]
    world.serve(3, fails={1: 0.05})
    running.tick()
    assert len(world.told()) == 1
    world.serve(12)
    running.tick()
    assert [alarm.recovered for alarm in world.alarms()] == [False, True]
    assert world.registry.traffic(MODEL).versions == (1,)


@pytest.mark.parametrize("every_s", [0.0, 600.0], ids=["journals followed", "no word of journals"])
def test_two_tickers_that_take_turns_tell_of_a_fault_each_time_it_comes(world: World, every_s: float) -> None:
    reader: Any = world
    first, second = (
        Reflexes(world.used(), reader, Watch(every_s=every_s), clock=world.seconds) for _ in range(2)
    )
    world.serve(72)

    def lead(ticker: Reflexes, minutes: int, fails: float) -> None:
        for _ in range(minutes):
            world.serve(1, fails={1: fails})
            ticker.tick()

    lead(first, 2, 0.05)
    lead(second, 15, 0.0)
    lead(first, 2, 0.05)
    lead(second, 1, 0.05)
    lead(first, 15, 0.0)
    lead(second, 1, 0.0)
    assert [alarm.recovered for alarm in world.alarms()] == [False, True, False, True]


def test_a_champion_that_breaks_beside_a_canary_is_told_with_the_way_out(world: World) -> None:
    world.serve(72)
    world.canary(RolloutPolicy(promote_by="service", canary_min=timedelta(days=2), ramp_hold=timedelta(0)))
    world.serve(10)
    world.serve(3, fails={1: 1.0})
    running = world.reflexes()
    for _ in range(3):
        running.tick()
    assert world.registry.traffic(MODEL).versions == (1, 2)
    (alarm,) = world.alarms()
    assert (alarm.monitor, alarm.subject, alarm.version) == ("service", "errors", 1)
    assert "its canary 2" in alarm.text
    assert f"toque rollout promote {MODEL}" in alarm.text


def test_a_fault_that_lasts_does_not_become_the_usual(world: World) -> None:
    world.serve(72)
    running = world.reflexes()
    for _ in range(9):
        world.serve(10, fails={1: 0.05})
        running.tick()
    assert [alarm.recovered for alarm in world.alarms()] == [False]


@pytest.fixture
def going_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "toque.functions.reflexes.reflexes.declared_policy", lambda _model: RolloutPolicy(go_back=True)
    )


@pytest.mark.usefixtures("going_back")
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_release_that_breaks_goes_back_once_wherever_the_ticker_is_killed(
    tmp_path: Path, *, after: bool
) -> None:
    for fuse in range(1, 60, 2):
        folder = tmp_path / str(fuse)
        folder.mkdir()
        world = World(folder)
        world.now += timedelta(days=2)
        world.serve(72)
        world.registry.promote(MODEL, 2, reason="a release")
        world.serve(1, fails={2: 0.05})
        store = FusedStore(world.store, fuse, after=after)
        with contextlib.suppress(KilledError):
            world.reflexes(store).tick()
        for _ in range(2):
            world.reflexes().tick()
        assert world.registry.traffic(MODEL).versions == (1,)
        kinds = [entry.body["kind"] for entry in world.registry.history(MODEL)]
        assert kinds.count("rollback") == 1
        assert [alarm.version for alarm in world.alarms()] == [2]
        if store.left > 0:
            return
    raise AssertionError("a tick makes more requests than were tried")


@pytest.mark.usefixtures("going_back")
def test_a_release_that_breaks_goes_back_beside_an_open_rollout_which_is_not_blamed(world: World) -> None:
    world.now += timedelta(days=2)
    world.registry.promote(MODEL, 2, reason="a release")
    with use_context(world.used()):
        rollouts(MODEL).start(3, RolloutPolicy(), reason="a renewal")
    world.serve(72)
    world.serve(1, fails={2: 1.0})
    running = world.reflexes()
    for _ in range(3):
        running.tick()
    assert world.registry.traffic(MODEL).versions == (1,)
    assert world.decisions() == ["champion_changed"]
    assert {alarm.version for alarm in world.alarms()} == {2}


@pytest.mark.usefixtures("going_back")
def test_a_champion_of_long_ago_stays_as_its_release_did_not_break_it(world: World) -> None:
    world.now += timedelta(days=2)
    world.registry.promote(MODEL, 2, reason="a release")
    world.now += timedelta(days=2)
    world.serve(72)
    world.serve(1, fails={2: 0.05})
    world.reflexes().tick()
    assert world.registry.traffic(MODEL).versions == (2,)
    assert [alarm.version for alarm in world.alarms()] == [2]


@pytest.mark.usefixtures("going_back")
def test_it_does_not_go_back_to_a_version_that_broke_too(world: World) -> None:
    world.now += timedelta(days=2)
    world.serve(72)
    world.serve(1, fails={1: 0.05})
    world.reflexes().tick()
    world.registry.promote(MODEL, 2, reason="a mending")
    world.serve(1, fails={2: 0.05})
    world.reflexes().tick()
    assert world.registry.traffic(MODEL).versions == (2,)


@pytest.mark.usefixtures("going_back")
def test_a_model_younger_than_the_policy_s_day_goes_back(world: World) -> None:
    world.serve(72)
    world.registry.promote(MODEL, 2, reason="a release")
    world.serve(1, fails={2: 0.05})
    world.reflexes().tick()
    assert world.registry.traffic(MODEL).versions == (1,)


@pytest.mark.usefixtures("going_back")
def test_the_first_version_of_a_model_stays_as_there_is_none_before_it(world: World) -> None:
    world.serve(72)
    world.serve(1, fails={1: 0.05})
    world.reflexes().tick()
    assert world.registry.traffic(MODEL).versions == (1,)
    assert [alarm.version for alarm in world.alarms()] == [1]


def _broken_once(world: World, version: int) -> None:
    """A fault of a champion, told and over again, after which nothing went back."""
    used = world.used()
    alarms = Alarms(MODEL, store=used.store, clock=used.clock, actor="ticker", publish=lambda *_: None)
    fault = service_alarm(MODEL, version, ServiceFinding("errors", True, "", 0.5, 0.01), world.now)
    for alarm in (fault, recovery_of(fault, world.now, "well again")):
        alarms.report(alarm)


@pytest.mark.usefixtures("going_back")
@pytest.mark.parametrize(
    ("broken", "back_to"), [(1, 2), (2, 3)], ids=["the one before it", "the version before"]
)
@pytest.mark.parametrize("age", [timedelta(hours=2), timedelta(days=90)], ids=["young", "old"])
def test_whether_it_goes_back_is_said_by_the_version_that_it_would_go_back_to(
    world: World, broken: int, back_to: int, age: timedelta
) -> None:
    for version in (1, 2):
        if version > 1:
            world.registry.promote(MODEL, version, reason="a release")
        if version == broken:
            _broken_once(world, version)
        world.now += age
    world.serve(72)
    world.registry.promote(MODEL, 3, reason="the next release")
    world.serve(1, fails={3: 0.05})
    world.reflexes().tick()
    assert world.registry.traffic(MODEL).versions == (back_to,)


@pytest.mark.usefixtures("going_back")
def test_it_goes_back_to_no_older_version_where_the_one_before_is_gone(world: World) -> None:
    world.registry.promote(MODEL, 2, reason="a release")
    world.serve(72)
    world.registry.promote(MODEL, 3, reason="the next release")
    world.registry.delete_version(MODEL, 2, reason="no more")
    world.serve(1, fails={3: 0.05})
    world.reflexes().tick()
    assert world.registry.traffic(MODEL).versions == (3,)


@pytest.mark.usefixtures("going_back")
def test_a_version_that_it_went_back_to_was_not_released_by_that(world: World) -> None:
    world.registry.promote(MODEL, 2, reason="a release")
    world.now += timedelta(days=2)
    world.serve(72)
    world.registry.promote(MODEL, 3, reason="the next release")
    world.serve(1, fails={3: 0.05})
    running = world.reflexes()
    running.tick()
    assert world.registry.traffic(MODEL).versions == (2,)
    world.serve(72)
    running.tick()
    world.serve(1, fails={2: 0.05})
    running.tick()
    assert world.registry.traffic(MODEL).versions == (2,)
    assert {alarm.version for alarm in world.alarms() if not alarm.recovered} == {2, 3}


def test_without_the_policy_s_word_nothing_goes_back(world: World) -> None:
    world.now += timedelta(days=2)
    world.serve(72)
    world.registry.promote(MODEL, 2, reason="a release")
    world.serve(1, fails={2: 0.05})
    world.reflexes().tick()
    assert world.registry.traffic(MODEL).versions == (2,)
    assert len(world.alarms()) == 1


def test_one_model_that_fails_does_not_keep_the_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.canary()
    world.serve(1, fails={2: 0.1})
    monkeypatch.setattr(world, "models", lambda _now: ["another", MODEL])
    one = world.windows

    def windows(model: str, wanted: Iterable[int], now: float) -> Mapping[int, WindowCounts]:
        if model == "another":
            raise ValueError("counts that cannot be read")
        return one(model, wanted, now)

    monkeypatch.setattr(world, "windows", windows)
    with pytest.raises(ExceptionGroup, match="1 models"):
        world.reflexes().tick()
    assert world.registry.traffic(MODEL).versions == (1,)


def test_people_are_told_in_the_tick_itself(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once: list[str] = []
    monkeypatch.setattr(
        "toque.functions.reflexes.reflexes.tell_people", lambda alarm: at_once.append(alarm.key)
    )
    world.canary()
    world.serve(1, fails={2: 0.1})
    running = world.reflexes()
    for _ in range(3):
        running.tick()
    assert at_once == world.told()
