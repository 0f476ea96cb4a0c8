"""Runs of load made of random numbers, for what reads runs."""

from collections import Counter
from datetime import UTC, datetime

import numpy as np

from toque.load.scenarios.result import LoadRun
from toque.load.scenarios.scenario import Scenario, Steady
from toque.load.scenarios.windows import Window, bin_of


def run_of(
    rng: np.random.Generator, *, slower: float = 1.0, failing: float = 0.0, seconds: int = 60
) -> LoadRun:
    """Log-normal latencies of some 5 ms whose level wanders from second to second, as on a shared machine."""
    windows, level = [], 0.0
    for _ in range(seconds):
        level = 0.5 * level + rng.normal(0, 0.1)
        due = int(rng.poisson(50))
        failed = int(rng.binomial(due, failing))
        taken_s = 0.005 * slower * np.exp(level + rng.normal(0, 0.5, size=due - failed))
        bins = Counter(bin_of(float(each)) for each in taken_s)
        windows.append(Window(due=due, answered=due - failed, failed=failed, bins=bins).document())
    return LoadRun(
        scenario_name="s", scenario=Scenario(shape=Steady(rate=50, seconds=seconds)), url="http://here", model="m",
        started_at=datetime(2013, 1, 1, tzinfo=UTC), window_s=1, windows=tuple(windows),
    )  # fmt: skip
