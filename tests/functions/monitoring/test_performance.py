from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from toque.functions.monitoring.performance import (
    Cohort,
    PerformanceMonitor,
    PerformanceState,
    Verdict,
    judge,
)
from toque.functions.rollout import ClusterSums

MONITOR = PerformanceMonitor()


def cohort(index: int, losses: Any, *, requests: int | None = None, surprise: Any = None) -> Cohort:
    units = np.arange(len(losses)).astype(str)
    sums = {"loss": ClusterSums.of(np.asarray(losses, float), units)}
    if surprise is not None:
        sums["surprise"] = ClusterSums.of(np.asarray(surprise, float), units)
    return Cohort(index=index, requests=len(losses) if requests is None else requests, sums=sums)


def watch(
    rng: np.random.Generator,
    cohorts: int,
    *,
    labels: int = 100,
    flip_at: int | None = None,
    baseline: float | None = 0.2,
    shock: float = 0.0,
    monitor: PerformanceMonitor = MONITOR,
) -> list[int]:
    """Cohorts at which a 0/1 loss of .2, which flips to .3 at `flip_at`, alarmed."""
    state = PerformanceState.begin(1, 0, validated_loss=baseline)
    alarms = []
    for index in range(cohorts):
        rate = 0.2 + 0.1 * (flip_at is not None and index >= flip_at) + shock * rng.normal()
        state, verdicts = judge(state, cohort(index, rng.random(labels) < rate), monitor)
        if any(verdict.kind == "alarm" for verdict in verdicts):
            alarms.append(index)
    return alarms


def test_nothing_happened_and_it_stays_quiet() -> None:
    # 200 null streams of 10,000 labels: streams with any alarm <= .05 + 4 s.e.
    rng = np.random.default_rng(1)
    alarmed = sum(bool(watch(rng, 100)) for _ in range(200)) / 200
    assert alarmed <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 200)


def test_days_that_differ_by_themselves_stay_quiet_too() -> None:
    # 100 seasons of 92 days whose means vary three times as much as their labels: alarmed <= .1 + 4 s.e.
    rng = np.random.default_rng(2)
    alarmed = sum(bool(watch(rng, 92, labels=200, shock=0.06)) for _ in range(100)) / 100
    assert alarmed <= 0.1 + 4 * np.sqrt(0.1 * 0.9 / 100)


def test_a_flip_from_a_fifth_to_three_tenths_is_found_within_six_hundred_labels() -> None:
    rng = np.random.default_rng(3)
    found = [watch(rng, 46, flip_at=40) for _ in range(100)]
    assert sum(any(40 <= at < 46 for at in alarms) for alarms in found) >= 90


def test_one_terrible_day_alone_seldom_alarms() -> None:
    # 100 streams of 40 cohorts with one day of .95: alarmed <= .05 + 4 s.e.
    rng = np.random.default_rng(4)
    alarmed = 0
    for _ in range(100):
        state = PerformanceState.begin(1, 0, validated_loss=0.2)
        kinds: list[str] = []
        for index in range(40):
            rate = 0.95 if index == 20 else 0.2
            state, verdicts = judge(state, cohort(index, rng.random(200) < rate), MONITOR)
            kinds += [verdict.kind for verdict in verdicts]
        alarmed += "alarm" in kinds
    assert alarmed / 100 <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 100)


def test_hard_days_that_were_called_hard_surprise_nobody() -> None:
    rng = np.random.default_rng(5)
    state = PerformanceState.begin(1, 0, validated_loss=0.4)
    found: list[Verdict] = []
    for index in range(30):
        state, verdicts = judge(
            state, cohort(index, rng.normal(0.6, 0.3, 200), surprise=rng.normal(0, 0.3, 200)), MONITOR
        )
        found += verdicts
    alarmed = {verdict.measure for verdict in found if verdict.kind == "alarm"}
    assert alarmed == {"loss"}


def test_probabilities_that_lie_above_the_truth_are_overstated() -> None:
    # Called at .3, true at .2: the loss falls, and the entropy promised more; only the comparison of means tells.
    rng = np.random.default_rng(8)
    state = PerformanceState.begin(1, 0, validated_loss=0.6)
    alarmed: set[str] = set()
    for index in range(30):
        label = (rng.random(200) < 0.2).astype(float)
        loss = -(label * np.log(0.3) + (1 - label) * np.log(0.7))
        sums = {
            "loss": ClusterSums.of(loss, np.arange(200)),
            "overstated": ClusterSums.of(0.3 - label, np.arange(200)),
            "understated": ClusterSums.of(label - 0.3, np.arange(200)),
        }
        state, verdicts = judge(state, Cohort(index=index, requests=200, sums=sums), MONITOR)
        alarmed |= {verdict.measure for verdict in verdicts if verdict.kind == "alarm"}
    assert alarmed == {"overstated"}


@pytest.mark.parametrize(
    ("losses", "requests", "text"),
    [
        ([], 0, "0 labels of 0"),
        ([0.5] * 10, 200, "30 are needed"),
        ([0.5] * 40, 2_000, "have a label"),
    ],
)
def test_too_little_is_said_and_not_judged(losses: list[float], requests: int, text: str) -> None:
    state = PerformanceState.begin(1, 3, validated_loss=0.4)
    after, verdicts = judge(state, cohort(3, losses, requests=requests), MONITOR)
    assert {verdict.kind for verdict in verdicts} == {"insufficient"}
    assert text in verdicts[0].text
    assert after.tracks == state.tracks
    assert after.next_cohort == 4


def test_without_a_validated_loss_the_first_cohorts_are_the_baseline() -> None:
    rng = np.random.default_rng(6)
    state = PerformanceState.begin(1, 0, validated_loss=None)
    for index in range(MONITOR.baseline_cohorts):
        state, verdicts = judge(state, cohort(index, rng.random(200) < 0.2), MONITOR)
        assert verdicts[0].kind == "baseline"
    baseline = state.tracks["loss"].baseline
    assert baseline is not None
    assert abs(baseline - 0.2) < 0.04


def test_a_new_champion_starts_afresh_but_knows_the_traffic() -> None:
    rng = np.random.default_rng(7)
    state = PerformanceState.begin(1, 0, validated_loss=0.1)
    for index in range(12):
        state, _ = judge(state, cohort(index, rng.random(200) < 0.2), MONITOR)
    after = state.of_version(2, validated_loss=0.2)
    assert after.version == 2
    assert after.tracks["loss"].level == 0.0
    assert after.tracks["loss"].differences == state.tracks["loss"].differences != ()
    assert after.next_cohort == state.next_cohort


def test_the_state_survives_json() -> None:
    state = PerformanceState.begin(1, 0, validated_loss=0.2)
    state, _ = judge(state, cohort(0, [0.1, 0.7] * 50, surprise=[0.1, -0.1] * 50), MONITOR)
    assert PerformanceState.model_validate_json(state.model_dump_json()) == state


def test_page_hinkley_stays_quiet_finds_a_flip_and_goes_on_from_what_it_remembered() -> None:
    # 30 null streams of 60 cohorts: streams with an alarm <= .05 + 4 s.e.; a flip after 40 cohorts is found in >= 90 %
    monitor = PerformanceMonitor(detector="page_hinkley", threshold=8.0)
    rng = np.random.default_rng(4)
    quiet = [watch(rng, 60, monitor=monitor) for _ in range(30)]
    assert sum(map(bool, quiet)) / 30 <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 30)
    found = [watch(rng, 60, flip_at=40, monitor=monitor) for _ in range(20)]
    assert sum(any(at >= 40 for at in alarms) for alarms in found) >= 18
    state = stored = PerformanceState.begin(1, 0, validated_loss=0.2)
    for index in range(40):
        one = cohort(index, rng.random(100) < 0.2 + 0.01 * index)
        state, verdicts = judge(state, one, monitor)
        stored = PerformanceState.model_validate_json(stored.model_dump_json())
        stored, again = judge(stored, one, monitor)
        assert verdicts == again
