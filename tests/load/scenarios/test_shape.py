"""Arrivals of every shape against its rate, and histograms against numpy's quantiles."""

import numpy as np
import pytest

from toque.load.scenarios.plan import Part, Plan
from toque.load.scenarios.scenario import Ramp, Scenario, Spike, Steady, Steps, Wave, arrivals
from toque.load.scenarios.windows import BINS, bin_of, counts_of, quantile_ms, upper_ms

SHAPES = [
    Steady(rate=200, seconds=10),
    Ramp(kind="ramp", rate=10, to_rate=400, seconds=10),
    Steps(kind="steps", rate=50, to_rate=350, steps=4, seconds=10),
    Spike(kind="spike", rate=100, to_rate=900, at_s=4.25, for_s=1.5, seconds=10),
    Wave(kind="wave", rate=50, to_rate=350, period_s=5, seconds=10),
]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.kind)
def test_arrivals_follow_the_rate_and_are_a_poisson_process(shape):
    drawn = np.array(list(arrivals(shape, warm_up_s=2, share=1.0, rng=np.random.default_rng(3))))
    assert (np.diff(drawn) >= 0).all()
    assert drawn[0] >= -2
    assert drawn[-1] < 10
    moments = np.linspace(0, 10, 100_001)
    mass = np.concatenate(
        [[0], np.cumsum((shape.rate_at(moments)[1:] + shape.rate_at(moments)[:-1]) / 2 * 1e-4)]
    )
    counted = np.histogram(drawn[drawn >= 0], bins=np.arange(0, 10.5, 0.5))[0]
    expected = np.diff(np.interp(np.arange(0, 10.5, 0.5), moments, mass))
    # 20 counts, each Poisson: none further off than 5 standard errors, but in one of 10^5 seeds
    assert (np.abs(counted - expected) < 5 * np.sqrt(expected)).all()
    first = shape.rate_at(np.array([0.0]))[0]
    assert abs((drawn < 0).sum() - 2 * first) < 5 * np.sqrt(2 * first)


def test_processes_send_the_whole_together_and_each_something_else():
    plan = Plan(
        url="http://here", parts=(Part(path="/m", weight=1, bodies=("{}",)),), processes=4,
        scenario=Scenario(shape=Steady(rate=400, seconds=10), warm_up_s=0),
    )  # fmt: skip
    each = [[due_s for due_s, _, _ in plan.requests(index)] for index in range(4)]
    assert abs(sum(map(len, each)) - 4000) < 5 * np.sqrt(4000)
    assert len({due_s for times in each for due_s in times}) == sum(map(len, each))
    assert each[1] == [due_s for due_s, _, _ in plan.requests(1)]


def test_a_histogram_knows_each_latency_to_a_64th():
    seconds = np.exp(np.random.default_rng(1).normal(-5, 2.5, size=20_000))
    counts = counts_of((bin_of(float(each)), 1) for each in seconds)
    for share in (0.01, 0.5, 0.9, 0.99, 0.999):
        exact_ms = float(np.quantile(seconds, share, method="inverted_cdf")) * 1e3
        assert exact_ms - 1e-3 <= quantile_ms(counts, share) <= exact_ms * (1 + 1 / 64) + 2e-3
    assert bin_of(1e9) == BINS - 1
    edges = [upper_ms(at) for at in range(BINS)]
    assert edges == sorted(set(edges))
    assert all(bin_of((edges[at] + 1e-4) / 1e3) == at + 1 for at in range(0, BINS - 1, 37))
