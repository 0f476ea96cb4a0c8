"""Traffic of a minute-by-minute world, counted as predictors count it, and judged by the code that decides on Serve."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np

from toque.functions.live_counts import BINS, WINDOW_S, ArmTally, Failures
from toque.functions.reflexes.champion import BASELINE_WINDOWS, SPANS, ServiceFinding, judge_champion
from toque.functions.reflexes.reflexes import EVERY_S
from toque.functions.rollout import Evidence, RolloutPolicy, RolloutState, Slo, decide
from toque.functions.rollout.evidence.live import GUARD_WINDOWS, LiveCounts, LiveEvidence, guard_at
from toque.functions.rollout.judge.decide import LIVE_RULES, Decision

BEGAN = datetime(2027, 1, 4, 9, 0, 13, tzinfo=UTC)
FLUSH_S = 1.0  # a process sends once a second; and so it is at most two seconds old
WORST_DELAY_S = 2 * FLUSH_S
EDGES = 2.0 ** (np.arange(BINS + 1) / 8 - 7)  # of `latency_bins`, in ms


@dataclass
class Arm:
    """One version's behaviour: share of requests that fail or are not answered, and its latency in ms, lognormal."""

    fails: float = 0.0
    missing: float = 0.0
    median_ms: float = 8.0
    spread: float = 0.5


@dataclass
class Second:
    """What happened in each second of each arm: requests, errors, missing, latencies by bin."""

    requests: np.ndarray
    errors: np.ndarray
    missing: np.ndarray
    latency: np.ndarray = field(repr=False)

    @classmethod
    def simulate(cls, arm: Arm, per_second: np.ndarray, rng: np.random.Generator) -> Second:
        requests = rng.poisson(per_second)
        errors = rng.binomial(requests, arm.fails)
        missing = rng.binomial(requests - errors, arm.missing)
        cells = np.clip(np.log(EDGES / arm.median_ms) / arm.spread, -9, 9)
        upper = 0.5 * (1 + np.vectorize(_erf)(cells / np.sqrt(2)))
        shares = np.diff(upper)
        shares[0] += upper[0]
        shares[-1] += 1 - upper[-1]
        return cls(requests, errors, missing, rng.multinomial(requests - errors, shares / shares.sum()))

    def between(self, begin: int, end: int) -> LiveCounts:
        """Sum the seconds from `begin` to before `end` as a rollout sees them."""
        span = slice(max(begin, 0), max(end, 0))
        bins = self.latency[span].sum(axis=0)
        return LiveCounts(
            requests=int(self.requests[span].sum()),
            errors=int(self.errors[span].sum()),
            missing=int(self.missing[span].sum()),
            error_requests=int(self.errors[span].sum()),
            missing_requests=int(self.missing[span].sum()),
            latency={int(index): int(bins[index]) for index in np.flatnonzero(bins)},
        )


def _erf(x: float) -> float:
    return math.erf(x)


def canary_ticks(
    champion: Arm,
    canary: Arm,
    *,
    per_minute: float,
    share: float,
    seconds: int,
    rng: np.random.Generator,
    policy: RolloutPolicy | None = None,
    bad_from: int = 0,
) -> Iterator[tuple[float, Decision]]:
    """Judge a canary at each tick, at a random phase. per_minute: requests of both arms. bad_from: second of the change."""
    policy = policy or RolloutPolicy(canary_share=share)
    rate = np.full(seconds, per_minute / 60)
    good = Second.simulate(champion, rate * share, rng)
    bad = Second.simulate(canary, rate * share, rng)
    ours = good if bad_from >= seconds else bad
    if 0 < bad_from < seconds:
        late = np.arange(seconds) >= bad_from
        ours = Second(
            np.where(late, bad.requests, good.requests),
            np.where(late, bad.errors, good.errors),
            np.where(late, bad.missing, good.missing),
            np.where(late[:, None], bad.latency, good.latency),
        )
    theirs = Second.simulate(champion, rate * (1 - share), rng)
    state = RolloutState(
        rollout=3, champion=1, challenger=2, policy=policy, stage="canary", started_at=BEGAN - timedelta(days=3),
        stage_since=BEGAN, canary_since=BEGAN, traffic_entry=7,
    )  # fmt: skip
    offset = BEGAN.timestamp()
    at = rng.uniform(0, EVERY_S)
    while at < seconds:
        seen = int(at - rng.uniform(0, WORST_DELAY_S))
        guard = guard_at(BEGAN + timedelta(seconds=at))
        recent = int((guard - 1) * GUARD_WINDOWS * WINDOW_S - offset)
        live = LiveEvidence(
            champion=theirs.between(recent, seen),
            challenger=ours.between(recent, seen),
            split_champion=theirs.between(0, seen),
            split_challenger=ours.between(0, seen),
        )
        evidence = Evidence(champion=1, canary_share=share, live=live)
        yield at, decide(state, evidence, policy, BEGAN + timedelta(seconds=at), rules=LIVE_RULES)
        at += EVERY_S


def seconds_to_roll_back(ticks: Iterator[tuple[float, Decision]]) -> float:
    """When the first tick rolled back; infinite if none did."""
    return next((at for at, decision in ticks if decision.action == "roll_back"), float("inf"))


@dataclass
class Day:
    """A day of one champion whose traffic, errors and latency follow the hour, second by second.

    busiest: requests a minute at noon; at midnight a tenth. Each figure of a second is drawn with its rate of that second.
    """

    busiest: float
    fails: float = 0.001
    median_ms: float = 8.0
    hours: float = 24.0

    def simulate(self, rng: np.random.Generator) -> Second:
        at = np.arange(int(self.hours * 3600))
        sun = 0.5 - 0.5 * np.cos(2 * np.pi * at / 86_400)
        requests = rng.poisson(self.busiest / 60 * (0.1 + 0.9 * sun))
        errors = rng.binomial(requests, self.fails * (0.5 + sun))
        missing = rng.binomial(requests - errors, self.fails / 4 * (0.5 + sun))
        median = self.median_ms * (0.7 + 0.6 * sun) * rng.lognormal(0, 0.1, len(at))
        latency = np.zeros((len(at), BINS), dtype=np.int32)
        seconds = np.repeat(at, requests - errors)
        values = median[seconds] * rng.lognormal(0, 0.5, len(seconds))
        bins = np.clip(np.floor(np.log2(values) * 8).astype(int) + 56, 0, BINS - 1)
        np.add.at(latency, (seconds, bins), 1)
        return Second(requests, errors, missing, latency)


def champion_ticks(
    world: Second, *, rng: np.random.Generator, slos: tuple[Slo, ...] = (), begin: float = 0.0
) -> Iterator[tuple[float, list[ServiceFinding]]]:
    """Judge a champion at each tick from second `begin` on; the world begins at a window's edge."""
    sums = Second(
        *(np.cumsum(each, axis=0) for each in (world.requests, world.errors, world.missing, world.latency))
    )
    at = begin + rng.uniform(0, EVERY_S)
    while at < len(world.requests):
        seen = int(at - rng.uniform(0, WORST_DELAY_S))
        begins = [(int(at // WINDOW_S) - span + 1) * WINDOW_S for span in SPANS]
        before = begins[-1] - BASELINE_WINDOWS * WINDOW_S
        recent = [_difference(sums, begin, seen) for begin in begins]
        yield at, judge_champion(recent, _difference(sums, before, begins[-1]), slos)
        at += EVERY_S


def _difference(sums: Second, begin: int, end: int) -> ArmTally:
    def of(total: np.ndarray) -> np.ndarray:
        upper = total[end - 1] if end > 0 else np.zeros_like(total[0])
        lower = total[begin - 1] if begin > 0 else np.zeros_like(total[0])
        difference: np.ndarray = upper - lower
        return difference

    errors, missing = int(of(sums.errors)), int(of(sums.missing))
    return ArmTally(
        int(of(sums.requests)),
        Failures.of(range(errors)),
        Failures.of(range(errors, errors + missing)),
        Failures(),
        of(sums.latency).astype(np.int64),
    )
