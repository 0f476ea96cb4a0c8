"""Sums of a whole rollout and of a split: read once, by the day, from where a reader stopped, whichever put it was killed at."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from tests.functions.rollout.conftest import DAY, MODEL, START, RolloutPlatform
from toque.functions.prediction_log import outcomes
from toque.functions.rollout.evidence.cohort_sums import Sums, sum_cohorts, unit_counts
from toque.functions.rollout.policy import Guardrail, RolloutPolicy
from toque.functions.rollout.state import RolloutState

DAYS = 6
POLICY = RolloutPolicy(guardrails=(Guardrail(name="sold", source="label", margin=0.1),))
SHADOWS = RolloutState(
    rollout=4, champion=1, challenger=2, policy=POLICY, stage="shadow", started_at=START, stage_since=START,
    traffic_entry=11, rivals=(3, 4), entered=(2, 3, 4),
)  # fmt: skip
CANARY = SHADOWS.model_copy(
    update={"rivals": (), "stage": "canary", "canary_since": START + DAY / 2, "entered": (2,)}
)


class Killed(BaseException):
    """A process is gone."""


class Log:
    """Reader of a platform's log, which notes the spans that it was asked for."""

    def __init__(self, platform: RolloutPlatform) -> None:
        self.platform = platform
        self.spans: list[tuple[datetime, datetime]] = []

    def __call__(self, start: datetime, end: datetime) -> pa.Table:
        self.spans.append((start, end))
        return outcomes(self.platform.store, MODEL, start, end, labelled_only=False)


class Store:
    """Sums in memory, whose process is killed at its `fuse`-th put: before it is made, or right after."""

    def __init__(self, fuse: int = 0, *, after: bool = False) -> None:
        self.kept: dict[str, bytes] = {}
        self.fuse, self.after = fuse, after

    def find(self, key: str) -> bytes | None:
        return self.kept.get(key)

    def put(self, key: str, data: bytes) -> None:
        self.fuse -= 1
        if self.fuse == 0 and not self.after:
            raise Killed
        self.kept[key] = data
        if self.fuse == 0:
            raise Killed


@pytest.fixture
def log(platform: RolloutPlatform) -> Log:
    platform.quality |= {3: 0.7, 4: 0.4}
    platform.failing = {1: 0.02, 3: 0.1}
    platform.registry.statuses[4] = "READY"
    platform.registry.set_traffic(MODEL, {"canary": (2, 0.3)}, shadows=(2, 3, 4))
    for _ in range(DAYS):
        platform.serve_a_day(60)
    return Log(platform)


def states_of(state: RolloutState) -> list[RolloutState]:
    return [state, *(state.only(version) for version in state.rivals)]


def summed(store: Store, log: Log, state: RolloutState, now: datetime | None = None) -> list[Sums]:
    return sum_cohorts(store, MODEL, states_of(state), log, now or log.platform.now)


@pytest.mark.parametrize("state", [SHADOWS, CANARY], ids=["rivals", "canary"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_reader_that_is_killed_at_any_put_goes_on_to_the_same_bits(
    log: Log, state: RolloutState, when: str
) -> None:
    calm = Store()
    wanted = summed(calm, log, state)
    kinds = len(states_of(state)) + (state.canary_since is not None)
    assert len(calm.kept) == kinds
    for fuse in itertools.count(1):
        store = Store(fuse, after=when == "after")
        try:
            summed(store, log, state)
            break
        except Killed:
            log.spans.clear()
            assert summed(store, log, state) == wanted
            assert store.kept == calm.kept
            done = (fuse - (when == "before")) // kinds  # days that all sums have
            assert log.spans[0][0] == START + done * DAY
    assert fuse == kinds * (DAYS - 1) + 1  # each day once for each of them; the last day still waits


def test_rivals_are_summed_in_one_reading_a_day_at_a_time(log: Log) -> None:
    together = summed(Store(), log, SHADOWS)
    assert log.spans == [(START + day * DAY, START + (day + 1) * DAY) for day in range(DAYS)]
    for state, sums in zip(states_of(SHADOWS), together, strict=True):
        assert [sums] == sum_cohorts(Store(), MODEL, [state], log, log.platform.now)
        assert sums.whole.loss.labels > 0
    assert len({sums.whole.loss.challenger_loss for sums in together}) == 3


def test_hours_are_read_by_the_day(log: Log) -> None:
    hourly = SHADOWS.model_copy(update={"policy": RolloutPolicy(cohort=timedelta(hours=1))})
    days, hours = summed(Store(), log, SHADOWS)[0].whole, summed(Store(), log, hourly)[0].whole
    assert len(log.spans) == 2 * DAYS
    assert (days.loss.labels, days.shadow) == (hours.loss.labels, hours.shadow)
    assert days.loss_units.clusters() == hours.loss_units.clusters()


def ramped(entry: int | None) -> dict[str, Any]:
    """A step of the ramp, or a split that was set by hand."""
    return {"step": 1} if entry is None else {"split_entry": entry}


@pytest.mark.parametrize("entry", [None, 17], ids=["ramp", "by hand"])
def test_a_split_reads_from_its_beginning_on_and_the_loss_goes_on(log: Log, entry: int | None) -> None:
    platform, store = log.platform, Store()
    before = summed(store, log, CANARY)[0]
    split = CANARY.model_copy(update={"step_since": platform.now} | ramped(entry))
    for _ in range(2):
        platform.serve_a_day(60)
    log.spans.clear()
    (sums,) = summed(store, log, split)
    assert min(start for start, _ in log.spans) == START + (DAYS - 1) * DAY  # where the loss was
    assert sums.whole.loss.labels > before.whole.loss.labels
    assert sums.split.canary.champion + sums.split.canary.challenger == 120
    assert sum(unit_counts(sums.split.units).model_dump().values()) < 120
    assert sums.split.metrics["sold"].rows <= 60
    fresh = summed(Store(), log, split)[0]  # all of it in one reading
    assert (fresh.whole, fresh.split) == (sums.whole, sums.split)


def test_sums_of_another_release_are_made_anew(log: Log) -> None:
    store = Store()
    wanted = summed(store, log, CANARY)
    reads = len(log.spans)
    store.kept = {key: data.replace(b'"layout":5', b'"layout":4') for key, data in store.kept.items()}
    log.spans.clear()
    assert summed(store, log, CANARY) == wanted
    assert len(log.spans) == reads
