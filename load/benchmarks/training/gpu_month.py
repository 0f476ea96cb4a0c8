"""A month of a 64-card cluster with twelve teams, decided by the platform's own queue rule.

Jobs are drawn as the Philly trace of Microsoft (Jeon et al., USENIX ATC 2019) is modelled by Narayanan et al., "Heterogeneity-Aware
Cluster Scheduling Policies for Deep Learning Workloads", OSDI 2020: of 1, 2, 4 and 8 cards in 70, 10, 15 and 5 of a hundred, and
10^x minutes long, with x uniform in [1.5, 3] for four in five and in [3, 4] for the fifth; they arrive by a Poisson process. What the
trace does not say is assumed: the teams, their quotas, one urgent job in twenty, which does not yield and declares a limit of one and
a half times its time, that any other needs 5 to 40 s to save its state, and that it takes a minute to take up again. The bound on utilisation is one on every packing, offline ones included: work that could
have been done by any moment t within cards, quotas and budgets, and all cards from t on. The exit code is 1 if a quota or a budget is
passed, utilisation is below .9 of the bound, or an urgent job waits for a minute, those left out whose team has no budget for it.
"""

from __future__ import annotations

import heapq
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import numpy as np

from toque.functions.runtime.admission.occupancy import Shares, Spent
from toque.functions.runtime.admission.request import Quota, QuotaRequest
from toque.functions.runtime.admission.rule import next_look, schedule
from toque.functions.runtime.cards import Node
from toque.load.benchmarks.harness import bound, main, say

CARDS, EACH = 64, 8
NODES = [Node(f"node-{number}", EACH) for number in range(CARDS // EACH)]
LEAST_OF_BOUND, MOST_URGENT_S, URGENT = 0.9, 60.0, 10
_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
_DAY_S = 86_400.0
_SIZES, _SIZE_SHARES = (1, 2, 4, 8), (0.70, 0.10, 0.15, 0.05)
_MEAN_CARD_S = 1.9 * 60 * (0.8 * (1000 - 10**1.5) / (1.5 * np.log(10)) + 0.2 * 9000 / np.log(10))
_LIMIT = 1.5
_SAVE_S, _TAKE_UP_S = (5.0, 40.0), 60.0
_BUDGETED = 2  # teams whose budget does not last


@dataclass(frozen=True, slots=True)
class Job:
    """Training that somebody submits in the simulated month. at_s: when it is submitted; work_s: how long it runs undisturbed."""

    name: str
    team: str
    at_s: float
    cards: int
    work_s: float
    urgent: bool


def draw_jobs(days: float, load: float, seed: int) -> list[Job]:
    """Draw the jobs of some days; load: card seconds that are asked for, of those that there are."""
    jobs: list[Job] = []
    chance, at_s = random.Random(seed), 0.0
    teams = [f"team-{number:02d}" for number in range(12)]
    weights = [1 / (1 + number) for number in range(12)]
    rate = load * CARDS / _MEAN_CARD_S
    while (at_s := at_s + chance.expovariate(rate)) < days * _DAY_S:
        exponent = chance.uniform(1.5, 3) if chance.random() < 0.8 else chance.uniform(3, 4)
        team, cards = chance.choices(teams, weights)[0], chance.choices(_SIZES, _SIZE_SHARES)[0]
        is_urgent = chance.random() < 0.05
        jobs.append(Job(f"job-{len(jobs):05d}", team, at_s, cards, 60 * 10**exponent, is_urgent))
    return jobs


def draw_quotas(jobs: Sequence[Job]) -> dict[str, Quota]:
    """Quotas of all teams: cards at a time, and for two of the larger ones a budget of three quarters of what they ask for."""
    asked: defaultdict[str, float] = defaultdict(float)
    for job in jobs:
        asked[job.team] += job.cards * job.work_s / 3600
    largest = sorted(asked, key=lambda team: -asked[team])
    quotas = {}
    for number, team in enumerate(largest):
        budget = 0.75 * asked[team] if 0 < number <= _BUDGETED else None
        quotas[team] = Quota(
            gpus=40 if number < 2 else 24, gpu_hours=budget, share=2.0 if number == 0 else 1.0
        )
    return quotas


@dataclass
class Outcome:
    """What became of a month.

    passed: how often a quota was exceeded; budget: the largest part of a budget that was used; urgent_s: waits of urgent jobs;
    decision_s: of each decision.
    """

    useful_card_s: float = 0.0
    passed: int = 0
    budget: float = 0.0
    preemptions: int = 0
    finished: int = 0
    urgent_s: list[float] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    decision_s: list[float] = field(default_factory=list)


@dataclass
class _Run:
    """Job that runs: since when, until when undisturbed, and with which run of it that end belongs."""

    request: QuotaRequest
    since_s: float
    until_s: float
    number: int


class Month:
    """Simulation of a cluster: time passes from event to event, and the rule decides at each."""

    def __init__(self, jobs: Iterable[Job], quotas: dict[str, Quota], seed: int) -> None:
        self.jobs = {job.name: job for job in jobs}
        self.quotas, self.outcome = quotas, Outcome()
        self._chance = random.Random(seed)
        self._left = {name: job.work_s for name, job in self.jobs.items()}
        self._waiting: dict[str, QuotaRequest] = {}
        self._running: dict[str, _Run] = {}
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._begun: set[str] = set()
        self._unpaid: set[str] = set()
        self._events = [(job.at_s, 0, "submit", name) for name, job in self.jobs.items()]
        self._runs = 0
        heapq.heapify(self._events)

    def play(self, until_s: float) -> Outcome:
        """Let time pass until then; what runs at the end counts as far as it got."""
        while self._events and (now_s := self._events[0][0]) <= until_s:
            while self._events and self._events[0][0] <= now_s:
                self._happen(now_s, *heapq.heappop(self._events)[1:])
            self._decide(now_s)
        for name in list(self._running):
            self._leave(name, until_s)
        return self.outcome

    def _happen(self, now_s: float, number: int, kind: str, name: str) -> None:
        if kind == "submit":
            job = self.jobs[name]
            workers, urgency = 2 if job.cards == EACH else 1, URGENT if job.urgent else 0
            limit_s = _LIMIT * job.work_s if job.urgent else None
            request = QuotaRequest(
                name, job.team, 0.0, job.cards, urgency, _time(job.at_s), workers=workers, limit_s=limit_s
            )
            self._waiting[name] = replace(request, preemptible=not job.urgent)
        elif name in self._running and self._running[name].number == number:
            request = self._leave(name, now_s)
            if kind == "yield":
                self._waiting[name] = replace(
                    request, started_at=None, nodes=(), backfilled=False, yielding=False
                )
            else:
                self.outcome.finished += 1

    def _leave(self, name: str, now_s: float) -> QuotaRequest:
        """End a run: its cards are free, what it did is done, and what it held is spent."""
        run, job = self._running.pop(name), self.jobs[name]
        done_s = max(0.0, min(self._left[name], now_s - run.since_s - self._lost_s(name)))
        self._left[name] -= done_s
        self._begun.add(name)
        self.outcome.useful_card_s += done_s * job.cards
        self._spent[job.team] += (now_s - run.since_s) * job.cards
        return run.request

    def _lost_s(self, name: str) -> float:
        """Seconds that a run needs to take up what an earlier one saved."""
        return _TAKE_UP_S if name in self._begun else 0.0

    def _decide(self, now_s: float) -> None:
        spent = {("default", team): Spent(gpu_s=used) for team, used in self._spent.items()}
        shares, now = Shares({"default": self.quotas}, spent), _time(now_s)
        running = [run.request for run in self._running.values()]
        begun = time.perf_counter()
        decision = schedule(self._waiting.values(), running, NODES, shares, now)
        self.outcome.decision_s.append(time.perf_counter() - begun)
        for name in decision.preempt:
            run = self._running[name]
            run.request = replace(run.request, yielding=True)
            self.outcome.preemptions += 1
            heapq.heappush(self._events, (now_s + self._chance.uniform(*_SAVE_S), run.number, "yield", name))
        self._unpaid |= {name for name, why in decision.wait.items() if why.startswith("next month")}
        for request in decision.start:
            self._start(request, now_s)
        self._check(now_s)
        look = next_look([run.request for run in self._running.values()], shares, now)
        if look is not None and look > now:
            heapq.heappush(self._events, ((look - _BEGIN).total_seconds(), 0, "look", ""))

    def _start(self, request: QuotaRequest, now_s: float) -> None:
        name, self._runs = request.invocation, self._runs + 1
        del self._waiting[name]
        waited_s = now_s - self.jobs[name].at_s
        if name not in self._begun | self._unpaid:
            (self.outcome.urgent_s if self.jobs[name].urgent else self.outcome.waits_s).append(waited_s)
        until_s = now_s + self._lost_s(name) + self._left[name]
        self._running[name] = _Run(request, now_s, until_s, self._runs)
        heapq.heappush(self._events, (until_s, self._runs, "end", name))

    def _check(self, now_s: float) -> None:
        """Count what is occupied by hand, apart from the rule."""
        of_node, of_team, used = (
            defaultdict[str, float](float),
            defaultdict[str, float](float),
            self._spent.copy(),
        )
        for name, run in self._running.items():
            job = self.jobs[name]
            of_team[job.team] += job.cards
            used[job.team] += (now_s - run.since_s) * job.cards
            for node in run.request.nodes:
                of_node[node] += job.cards / len(run.request.nodes)
        over = [team for team, held in of_team.items() if held > (self.quotas[team].gpus or CARDS)]
        self.outcome.passed += len(over) + sum(held > EACH for held in of_node.values())
        for team, quota in self.quotas.items():
            if quota.gpu_hours:
                self.outcome.budget = max(self.outcome.budget, used[team] / 3600 / quota.gpu_hours)


def bound_card_s(jobs: Sequence[Job], quotas: dict[str, Quota], days: float) -> float:
    """Bound the card seconds that any packing of the jobs can do within some days, cards, quotas and budgets kept."""
    grid = np.arange(0.0, days * _DAY_S + 1, 600.0)
    total = np.zeros_like(grid)
    for team, quota in quotas.items():
        own = [job for job in jobs if job.team == team]
        able = np.zeros_like(grid)
        for job in own:
            able += np.clip(grid - job.at_s, 0.0, job.work_s) * job.cards
        cap = float(quota.gpus or CARDS)
        # no faster than its quota after any moment
        able = cap * grid + np.minimum.accumulate(able - cap * grid)
        total += np.minimum(able, np.inf if quota.gpu_hours is None else 3600 * quota.gpu_hours)
    return float(np.min(total + CARDS * (grid[-1] - grid)))


def _time(seconds: float) -> datetime:
    return _BEGIN + timedelta(seconds=seconds)


def run(*, days: float = 30.0, load: float = 1.05, seed: int = 1) -> None:
    """Play a month, and print its figures."""
    jobs = draw_jobs(days, load, seed)
    quotas = draw_quotas(jobs)
    outcome = Month(jobs, quotas, seed).play(days * _DAY_S)
    whole, most_card_s = CARDS * days * _DAY_S, bound_card_s(jobs, quotas, days)
    waits, decisions = np.array(outcome.waits_s) / 3600, np.array(outcome.decision_s) * 1e3
    say(f"{len(jobs)} jobs, {outcome.finished} finished; {outcome.preemptions} preemptions")
    say(f"utilisation {outcome.useful_card_s / whole:.3f}, bound {most_card_s / whole:.3f}")
    say(f"other jobs wait, h: p50 {np.median(waits):.2f}, p90 {np.quantile(waits, 0.9):.2f}")
    say(f"decision, ms: p50 {np.median(decisions):.1f}, p99 {np.quantile(decisions, 0.99):.1f}")
    bound("utilisation of its bound", outcome.useful_card_s / most_card_s, least=LEAST_OF_BOUND)
    bound("times that a quota was passed", outcome.passed, most=0)
    bound("most of a budget that was used", outcome.budget, most=1)
    bound("seconds that an urgent job waited", max(outcome.urgent_s, default=0.0), most=MOST_URGENT_S)


if __name__ == "__main__":
    main(run)
