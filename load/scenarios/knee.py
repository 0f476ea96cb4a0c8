"""Search for the knee: the highest rate at which a model's objectives still hold.

Rates double until one breaks, then the gap between the highest that held and the lowest that broke is halved, on a logarithmic
scale. A rate has broken when it did so twice: a neighbour that takes the machine for a moment breaks any rate once, and what
is beyond the knee does not hold by luck.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from toque.load.scenarios.result import LoadRun
from toque.load.scenarios.scenario import Scenario, Steady
from toque.load.scenarios.sending.processes import put_load
from toque.load.scenarios.target import Target
from toque.load.scenarios.windows import median_p99_ms

_MOST_STEPS = 40
_LEAST_RATE = 0.5
BUSY = 0.85  # share of a core from which on the client may be what broke


@dataclass(frozen=True, slots=True)
class Criterion:
    """Objectives of a step: p99 of the median window, and the share of requests without a good answer."""

    p99_ms: float = 100.0
    error_share: float = 0.01


@dataclass(frozen=True, slots=True)
class Step:
    """Step of the search: the rate, what was measured, and whether the objectives held."""

    rate: float
    held: bool
    p99_ms: float
    error_share: float
    requests_per_s: float
    client_busy: float | None = None


@dataclass(frozen=True, slots=True)
class Knee:
    """Result of a search for the knee. held: the highest rate that held, 0 if none did; broke: the lowest above it that broke."""

    held: float
    broke: float
    steps: tuple[Step, ...]

    @property
    def by_the_client(self) -> bool:
        """Whether a client took so much of its core at the rate that broke that it may be the limit."""
        return any((step.client_busy or 0) > BUSY for step in self.steps if step.rate == self.broke)


def find_knee(
    target: Target,
    scenario: Scenario,
    *,
    criterion: Criterion,
    start: float = 20.0,
    precision: float = 0.1,
    report: Callable[[Step], None] | None = None,
) -> Knee:
    """Search by loads on a target. scenario: of every step, but for its rate. Raises: NotPossible; ValueError."""

    def ask(rate: float) -> Step:
        shape = Steady(rate=rate, seconds=scenario.shape.seconds)
        run = put_load(target, "knee", scenario.model_copy(update={"shape": shape}))
        step = step_of(rate, run, criterion)
        if report:
            report(step)
        return step

    return search(ask, start=start, precision=precision)


def search(ask: Callable[[float], Step], *, start: float, precision: float) -> Knee:
    """Search with whatever measures a rate. Raises: ValueError if the arguments are no rate and no precision."""
    if start <= 0 or precision <= 0:
        raise ValueError(f"start={start:g} and precision={precision:g} must be above 0")
    steps: list[Step] = []
    while len(steps) < _MOST_STEPS and (rate := next_rate(steps, start=start, precision=precision)):
        steps.append(ask(rate))
    return knee_of(steps)


def step_of(rate: float, run: LoadRun, criterion: Criterion) -> Step:
    """Judge a run as a step."""
    found, p99_ms = run.measured(), median_p99_ms(run.each_window())
    held = p99_ms <= criterion.p99_ms and found.error_share <= criterion.error_share
    return Step(rate, held, p99_ms, found.error_share, found.requests_per_s, run.client_busy)


def next_rate(steps: Sequence[Step], *, start: float, precision: float) -> float | None:
    """Decide which rate to ask next; None when the knee is known."""
    if not steps:
        return start
    low, high = _held(steps), _broke(steps)
    last = steps[-1]
    if not last.held and last.rate > low and _times_broken(steps, last.rate) < 2:
        return last.rate
    if math.isinf(high):
        return low * 2
    if low == 0:
        return high / 2 if high / 2 >= _LEAST_RATE else None
    return math.sqrt(low * high) if high / low > 1 + precision else None


def knee_of(steps: Sequence[Step]) -> Knee:
    """Read the knee from the steps there were."""
    return Knee(_held(steps), _broke(steps), tuple(steps))


def _held(steps: Sequence[Step]) -> float:
    return max((step.rate for step in steps if step.held), default=0.0)


def _broke(steps: Sequence[Step]) -> float:
    low = _held(steps)
    rates = {step.rate for step in steps if step.rate > low and _times_broken(steps, step.rate) >= 2}
    return min(rates, default=math.inf)


def _times_broken(steps: Sequence[Step], rate: float) -> int:
    return sum(step.rate == rate and not step.held for step in steps)
