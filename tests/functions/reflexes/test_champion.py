"""When a champion's last minutes are found broken: soon after it breaks, and not on a healthy day."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from tests.conditions.units import Units, parameters
from tests.functions.reflexes.simulation import Arm, Day, Second, champion_ticks
from toque.functions.live_counts import ArmTally, Failures
from toque.functions.reflexes.champion import (
    BASELINE_WINDOWS,
    QUIET_SPANS,
    SPANS,
    ServiceFinding,
    is_quiet,
    judge_champion,
)
from toque.functions.rollout import Slo

HOUR = 4_260  # seconds of a world before its champion breaks: the hour before and the span


def breaks(after: Arm, *, seed: int, per_minute: float = 1_000) -> float:
    """Seconds until a champion that breaks at a random moment is found broken."""
    rng = np.random.default_rng(seed)
    at = HOUR + int(rng.uniform(0, 60))
    rate = np.full(at + 240, per_minute / 60)
    good, bad = (Second.simulate(arm, rate, rng) for arm in (Arm(fails=0.001), after))
    late = np.arange(len(rate)) >= at
    world = Second(
        np.where(late, bad.requests, good.requests),
        np.where(late, bad.errors, good.errors),
        np.where(late, bad.missing, good.missing),
        np.where(late[:, None], bad.latency, good.latency),
    )
    ticks = champion_ticks(world, rng=rng, begin=at)
    return next((when - at for when, found in ticks if any(one.broken for one in found)), float("inf"))


def tally(requests: int, errors: int = 0, bins: dict[int, int] | None = None) -> ArmTally:
    latency = ArmTally().latency.copy()
    for index, count in (bins or {}).items():
        latency[index] = count
    return ArmTally(requests, Failures.of(range(errors)), latency=latency)


def broken(recent: ArmTally, before: ArmTally, *slos: Slo) -> set[str]:
    return {one.subject for one in judge_champion([recent, recent], before, slos) if one.broken}


@pytest.mark.parametrize("after", [Arm(fails=0.02), Arm(fails=0.001, missing=0.02)], ids=["fails", "silent"])
def test_a_champion_that_starts_to_fail_two_percent_is_found_within_two_minutes(after: Arm) -> None:
    found = [breaks(after, seed=seed) for seed in range(20)]
    assert np.quantile(found, 0.95, method="higher") <= 110  # which leaves ten seconds for the page


def test_a_champion_that_gets_three_times_as_slow_is_found_within_two_minutes() -> None:
    assert max(breaks(Arm(fails=0.001, median_ms=24.0), seed=seed) for seed in range(5)) <= 120


def test_nothing_asked_is_nothing_broken() -> None:
    assert broken(tally(0), tally(60_000)) == set()
    assert broken(tally(1_000, errors=100), tally(0)) == set()  # no level of its own and no objective


def test_without_an_hour_before_a_champion_that_fails_half_of_all_is_broken() -> None:
    assert broken(tally(1_000, errors=500), tally(0)) == {"errors"}
    assert (
        broken(ArmTally(1_000, refused=Failures.of(range(900))), tally(0)) == set()
    )  # its first caller is trying


class Quiet:
    """A champion of few requests, minute by minute, judged as the ticker judges it."""

    def __init__(self, requests: np.ndarray, errors: np.ndarray) -> None:
        self._sums = [np.concatenate([[0], np.cumsum(each)]) for each in (requests, errors)]

    def last(self, minute: int, first: int, until: int = 0) -> ArmTally:
        """Requests of the minutes from `first` before the end of a minute on, to `until` before it."""
        begin, end = max(minute + 1 - first, 0), max(minute + 1 - until, 0)
        requests, errors = (int(sums[end] - sums[begin]) for sums in self._sums)
        return ArmTally(requests, Failures.of(range(errors)))

    def findings(self, minute: int) -> list[ServiceFinding]:
        recent = [self.last(minute, span) for span in SPANS]
        before = self.last(minute, max(SPANS) + BASELINE_WINDOWS, max(SPANS))
        longer = QUIET_SPANS if is_quiet(recent, before) else ()
        return judge_champion(recent, before, quiet=[self.last(minute, span) for span in longer])

    def is_broken(self, minute: int) -> bool:
        return any(finding.broken for finding in self.findings(minute))


@pytest.mark.parametrize(
    ("every", "share", "within"),
    [(10, 1.0, 110), (6, 1.0, 60), (6, 0.75, 110), (2, 1.0, 35), (2, 0.75, 60), (1, 1.0, 20), (1, 0.75, 30)],
)
def test_an_outage_of_few_requests_is_found_and_over_when_it_ends(
    every: int, share: float, within: int
) -> None:
    """A request in so many minutes; healthy for three hours, failing for five, healthy again."""
    minutes = np.arange(12 * 60)
    requests = (minutes % every == 0).astype(int)
    outage = (minutes >= 3 * 60) & (minutes < 8 * 60)
    errors = requests * outage * ((minutes // every) % 4 < 4 * share)
    world = Quiet(requests, errors)
    broken_at = [int(minute) for minute in minutes if world.is_broken(int(minute))]
    assert 3 * 60 < broken_at[0] <= 3 * 60 + within
    assert broken_at[-1] < 8 * 60 + max(SPANS) + every
    (over,) = (one for one in world.findings(8 * 60 + 30) if one.subject == "errors")
    assert over.level <= over.limit  # what ends the alarm


def test_a_single_failure_and_a_caller_s_few_tries_are_no_outage() -> None:
    minutes = np.arange(12 * 60)
    requests = (minutes % 10 == 0).astype(int)
    errors = requests * (minutes >= 5 * 60) * (minutes < 6 * 60 + 30)  # nine in a row
    assert not any(Quiet(requests, errors).is_broken(int(minute)) for minute in minutes)


@pytest.mark.parametrize("an_hour", [12, 40, 100])
def test_a_tenth_of_few_requests_that_fail_by_chance_page_once_a_year_at_most(an_hour: int) -> None:
    # Four years: at most four pages expected, 12 with four standard errors; begun in the same two hours they are one page.
    rng = np.random.default_rng(an_hour)
    requests = rng.poisson(an_hour / 60, 4 * 365 * 24 * 60)
    world = Quiet(requests, rng.binomial(requests, 0.1))
    ends = np.arange(max(QUIET_SPANS), len(requests))
    may = np.zeros(len(ends), dtype=np.bool_)
    for span in (*SPANS, *QUIET_SPANS):
        asked, failed = (sums[ends + 1] - sums[ends + 1 - span] for sums in world._sums)
        may |= (failed >= 10) & (2 * failed >= asked)
    pages = [int(minute) for minute in ends[may] if world.is_broken(int(minute))]
    assert sum(later - earlier > 120 for earlier, later in pairwise([-1_000, *pages])) <= 12


def calls(requests: int, fails: float, units: Units, seed: int = 0) -> ArmTally:
    """Requests of a population, of which a part fails by chance, and every one of those units that are broken."""
    rng = np.random.default_rng(seed)
    ids = units.draw(rng, requests)
    failed = units.fails(ids) | (rng.random(requests) < fails)
    return ArmTally(requests, Failures.of(ids[failed].tolist()))


@pytest.mark.parametrize("units", parameters())
def test_a_champion_that_fails_a_part_of_everybody_s_requests_is_broken_whoever_they_are(
    units: Units,
) -> None:
    before = calls(60_000, 0.001, units)
    assert broken(calls(2_000, 0.001, units, seed=1), before) == set()
    assert broken(calls(2_000, 0.05, units, seed=1), before) == {"errors"}


@pytest.mark.parametrize("callers", [1, 2, 3, 5, 15, 50, 500])
def test_an_outage_is_one_with_any_number_of_callers(callers: int) -> None:
    units = Units("callers", callers)
    assert broken(calls(100, 1.0, units), calls(60_000, 0.001, units)) == {"errors"}
    assert broken(calls(100, 1.0, units), tally(0)) == {"errors"}


def test_a_caller_that_breaks_is_no_outage_and_does_not_become_a_level_that_hides_one() -> None:
    well, broken_one = Units("callers", 100), Units("callers", 100, broken=1)
    assert broken(calls(12_000, 0.0, broken_one), calls(60_000, 0.0, well)) == set()
    assert broken(calls(12_000, 0.02, broken_one), calls(60_000, 0.0, broken_one)) == {"errors"}


def test_without_an_hour_before_an_objective_still_holds() -> None:
    slo = Slo(name="answers", target=0.999)
    assert broken(tally(1_000, errors=30), tally(0), slo) == {"slo-answers"}
    assert broken(tally(1_000, errors=3), tally(0), slo) == set()


def test_an_objective_of_latency_counts_slow_answers() -> None:
    slo = Slo(name="fast", target=0.99, slow_ms=8.0)
    fast, slow = {64: 1_000}, {64: 700, 88: 300}  # bins at 2 ms and at 16 ms
    assert broken(tally(1_000, bins=fast), tally(0), slo) == set()
    assert broken(tally(1_000, bins=slow), tally(0), slo) == {"slo-fast"}


def test_what_was_usual_an_hour_ago_is_usual() -> None:
    before = tally(60_000, errors=3_000)
    assert broken(tally(2_000, errors=110), before) == set()
    assert broken(tally(2_000, errors=500), before) == {"errors"}


def test_three_errors_of_a_quiet_night_page_nobody() -> None:
    assert broken(tally(40, errors=3), tally(2_400, errors=2)) == set()


def test_a_healthy_morning_pages_nobody() -> None:
    rng = np.random.default_rng(5)
    world = Day(1_000, hours=3.0).simulate(rng)
    for _, found in champion_ticks(world, rng=rng):
        assert not [one.text for one in found if one.broken]


@pytest.mark.proof
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("busiest", [200, 1_000, 10_000])
def test_24_healthy_hours_with_a_daily_cycle_page_nobody(busiest: float) -> None:
    rng = np.random.default_rng(24)
    slos = (Slo(name="answers", target=0.999), Slo(name="fast", target=0.99, slow_ms=100.0))
    for _, found in champion_ticks(Day(busiest).simulate(rng), rng=rng, slos=slos):
        assert not [one.text for one in found if one.broken]


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_caller_that_goes_on_failing_is_no_recovery(share: float) -> None:
    """One unit carries the traffic: after an hour its failures are the usual level, and its repeats count once."""

    def steady(requests: int) -> ArmTally:
        return ArmTally(requests, Failures(int(share * requests), {7: int(share * requests)}))

    (begun,) = (one for one in judge_champion([steady(1_200)] * 2, tally(7_200)) if one.subject == "errors")
    assert begun.broken
    for usual in (steady(7_200), tally(7_200)):
        (later,) = (one for one in judge_champion([steady(1_200)] * 2, usual) if one.subject == "errors")
        assert later.level > begun.limit
    (over,) = (one for one in judge_champion([tally(1_200, 1)] * 2, steady(7_200)) if one.subject == "errors")
    assert over.level <= begun.limit
