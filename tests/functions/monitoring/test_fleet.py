"""Alarms of a whole fleet: healthy ones stay quiet for half a year, a shift is found about as soon as by the rule before.

A window's mean of a column is simulated, with as many columns as monitors have, in windows of seven days that slide by one. The rule
before: each window at the level .01, three of the last four.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import special

from toque.functions.stats import LordPlusPlus

COLUMNS, WINDOW, OLD_LEVEL = 5, 7, 0.01


def window_p(rng: np.random.Generator, monitors: int, days: int) -> npt.NDArray[np.float64]:
    """Corrected p-values (days, monitors) of windows of days that share six of their seven days with their neighbours."""
    daily = rng.normal(size=(days + WINDOW - 1, monitors, COLUMNS))
    sums = np.cumsum(np.concatenate([np.zeros((1, monitors, COLUMNS)), daily]), axis=0)
    z = (sums[WINDOW:] - sums[:-WINDOW]) / math.sqrt(WINDOW)
    p = np.sort(2 * special.ndtr(-np.abs(z)), axis=2)
    return np.asarray((p * COLUMNS / np.arange(1, COLUMNS + 1)).min(axis=2).clip(max=1.0))


def alarms_of_fleet(p: npt.NDArray[np.float64]) -> int:
    """Number of alarms of a fleet by one budget; a monitor whose alarm stands is not tested."""
    rule, standing, alarms = LordPlusPlus(), np.zeros(p.shape[1], dtype=bool), 0
    smallest = levels(p.size)
    for day in p:
        standing &= day <= OLD_LEVEL
        open_monitors = np.flatnonzero(~standing)
        if (
            not rule.alarms
        ):  # the levels of so many tests are those of the sequence: no test need be done one by one
            own = smallest[rule.tests : rule.tests + len(open_monitors)]
            if (day[open_monitors] > own).all():
                rule = LordPlusPlus(tests=rule.tests + len(open_monitors))
                continue
        for monitor in open_monitors:
            rule, _, alarm = rule.step(float(day[monitor]))
            standing[monitor] |= alarm
            alarms += alarm
    return alarms


def levels(tests: int) -> npt.NDArray[np.float64]:
    """Levels of a sequence without an alarm."""
    age = np.arange(1, tests + 1)
    return np.asarray(
        LordPlusPlus().start * 0.07720838 * np.log(np.maximum(age, 2)) / (age * np.exp(np.sqrt(np.log(age))))
    )


def alarms_before(p: npt.NDArray[np.float64]) -> int:
    """Number of alarms by three of the last four windows at a level of their own."""
    flagged = p <= OLD_LEVEL
    counts = np.stack([flagged[shift : len(flagged) - 3 + shift] for shift in range(4)]).sum(axis=0)
    agree = counts >= 3
    return int((agree[1:] & ~agree[:-1]).sum() + agree[0].sum())


def test_the_levels_here_are_those_of_the_rule() -> None:
    rule, own = LordPlusPlus(), []
    for _ in range(50):
        rule, level, _ = rule.step(1.0)
        own.append(level)
    assert levels(50) == pytest.approx(own)


@pytest.mark.parametrize(
    ("fleets", "models", "days"),
    [(8, 50, 30), pytest.param(200, 50, 180, marks=pytest.mark.proof)],
)
def test_a_healthy_fleet_is_quiet(fleets: int, models: int, days: int) -> None:
    # Chance that a healthy fleet ever alarms <= .025: loud fleets <= .025 + 3 s.e.; the rule before alarms in each.
    rng = np.random.default_rng(1)
    before, now = [], []
    for _ in range(fleets):
        p = window_p(rng, models * 10, days)
        before.append(alarms_before(p) * 30 / days)
        now.append(alarms_of_fleet(p))
    print(f"alarms a month: before {np.mean(before):.1f}; fleets with any now: {np.mean(np.array(now) > 0)}")  # noqa: T201
    assert min(before) > 0
    assert np.mean(np.array(now) > 0) <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / fleets)


@pytest.mark.parametrize(
    ("size", "runs"),
    [(8.0, 100), (12.0, 100), *(pytest.param(z, 2_000, marks=pytest.mark.proof) for z in (8.0, 12.0))],
)
def test_a_shift_is_found_hardly_later_than_before(size: float, runs: int) -> None:
    # size: of the shift, in standard errors of a whole window. A fleet of 500 monitors in its 90th day without an alarm.
    rng, tested = np.random.default_rng(2), 500 * 90
    level = levels(tested + 500 * 3 * WINDOW)[tested::500]
    before, now = [], []
    for _ in range(runs):
        daily = rng.normal(size=4 * WINDOW)
        daily[WINDOW:] += size / math.sqrt(WINDOW)
        z = np.convolve(daily, np.ones(WINDOW), "valid")[1:] / math.sqrt(WINDOW)
        p = np.minimum(1.0, 2 * special.ndtr(-np.abs(z)) * COLUMNS)
        flagged = p <= OLD_LEVEL
        three = np.array([flagged[max(0, day - 3) : day + 1].sum() >= 3 for day in range(len(p))])
        before.append(np.argmax(three) + 1)
        found = p <= level[: len(p)]
        assert found.any()
        now.append(np.argmax(found) + 1)
    ratio = np.mean(now) / np.mean(before)
    print(f"{size} s.e.: before {np.mean(before):.2f} days, now {np.mean(now):.2f}: {ratio:.3f}")  # noqa: T201
    assert ratio <= 1.20
