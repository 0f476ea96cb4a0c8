"""The tables of conditions are what they say: a test that varies them varies what its name promises."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conditions import days, units


@pytest.mark.parametrize("population", units.parameters())
def test_a_population_is_the_same_whenever_it_is_drawn_from(population: units.Units) -> None:
    first, second = (population.draw(np.random.default_rng(seed), 20_000) for seed in (1, 2))
    if population.count is None:
        assert len(np.unique(np.concatenate([first, second]))) == 40_000
    else:
        assert max(first.max(), second.max()) < population.count
        assert len(np.intersect1d(first, second)) > 0.4 * population.count
    assert population.fails(np.unique(first)).sum() == population.broken


def test_a_heavy_tail_gives_a_hundredth_of_the_units_a_large_part_of_the_requests() -> None:
    ids = units.HEAVY_TAILED.draw(np.random.default_rng(3), 50_000)
    counts = np.sort(np.bincount(ids.astype(np.int64), minlength=2_000))[::-1]
    assert 0.25 < counts[:20].sum() / counts.sum() < 0.5  # a lognormal of spread 2: .37


def test_levels_are_standard_normal_and_independent_of_the_arm() -> None:
    ids = np.arange(100_000)
    levels, canary = units.level_of(ids), units.in_arm(ids, 0.25)
    assert abs(levels.mean()) < 0.02
    assert abs(levels.std() - 1) < 0.02
    assert abs(canary.mean() - 0.25) < 0.01
    assert abs(levels[canary].mean()) < 0.03
    assert np.array_equal(levels, units.level_of(ids))


@pytest.mark.parametrize("process", days.parameters())
def test_days_have_the_variance_and_the_correlation_that_they_name(process: days.Days) -> None:
    drawn = process.draw(np.random.default_rng(4), 70_000)[700:]
    assert abs(drawn.mean()) < 0.05
    assert abs(drawn.std() - 1) < 0.05
    if not process.weekly:
        assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1] - process.correlation) < 0.02
    else:
        assert np.corrcoef(drawn[7:], drawn[:-7])[0, 1] > 0.85


def test_a_novelty_wears_off() -> None:
    drawn = np.mean([days.NOVELTY.draw(np.random.default_rng(seed), 28) for seed in range(400)], axis=0)
    assert drawn[0] > 2.5
    assert abs(drawn[14:].mean()) < 0.1
