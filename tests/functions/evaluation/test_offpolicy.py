"""Off-policy estimates: by hand, and against a simulation in which the truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest

from tests.conditions.units import ONCE, Units, in_arm, level_of
from toque.functions.evaluation import EvaluationError, OffPolicy, doubly_robust, ips, judge_split, snips

REWARD, LOGGED, TARGET = [1.0, 0.0, 2.0, 1.0], [0.5, 0.25, 0.5, 0.8], [0.25, 0.5, 1.0, 0.4]
# weights .5, 2, 2, .5; w·r = .5, 0, 4, .5


def test_the_estimates_by_hand() -> None:
    assert ips(REWARD, LOGGED, TARGET).estimate == pytest.approx(5.0 / 4)
    assert snips(REWARD, LOGGED, TARGET).estimate == pytest.approx(5.0 / 5)
    # q_target + w (r − q_logged): 1 + .5·.5 = 1.25, 1 − 2·.5 = 0, 1 + 2·1.5 = 4, 1 + .5·.5 = 1.25
    robust = doubly_robust(REWARD, LOGGED, TARGET, model_logged=[0.5] * 4, model_target=[1.0] * 4)
    assert robust.estimate == pytest.approx(6.5 / 4)
    found = ips(REWARD, LOGGED, TARGET)
    # sum of squared deviations of .5, 0, 4, .5 from 1.25: 10.25; standard error √(10.25 / 3 / 4)
    assert found.high - found.estimate == pytest.approx(1.959964 * math.sqrt(10.25 / 12))
    assert found.effective_rows == pytest.approx(25 / 8.5)  # (Σw)² / Σw²
    assert (found.mean_weight, found.max_weight) == (1.25, 2.0)
    assert not found.sufficient  # three rows' worth
    # self-normalised: residuals w (r − 1) = 0, −2, 2, 0; √(8 / 3 / 4) / mean weight
    assert snips(REWARD, LOGGED, TARGET).high - 1.0 == pytest.approx(1.959964 * math.sqrt(8 / 12) / 1.25)


def log_of(*rows: tuple[str, float | None]) -> pa.Table:
    arms, chances = zip(*rows, strict=True)
    return pa.table({"arm": pa.array(arms, pa.string()), "propensity": pa.array(chances, pa.float64())})


def test_a_split_is_judged_by_the_propensity_in_the_rows() -> None:
    rows = log_of(
        ("champion", 0.5),
        ("one", 0.25),
        ("champion", 0.5),
        ("shadow", None),
        ("pinned", None),
        ("rule:nl", 1.0),
    )
    reward = [1.0, 2.0, 0.0, 50.0, 60.0, 70.0]  # of those that were not drawn: must not count
    # weights of target {champion: .2, one: .8}: .4, 3.2, .4
    found = judge_split(rows, reward, {"champion": 0.2, "one": 0.8})
    assert found.estimate == pytest.approx((0.4 * 1 + 3.2 * 2) / 4.0)
    assert found.rows == 3
    assert judge_split(rows, reward, {"one": 1.0}, estimate=ips).estimate == pytest.approx(4 * 2 / 3)


def test_the_split_in_force_earns_what_it_earned() -> None:
    rng = np.random.default_rng(11)
    canary = rng.random(4_000) < 0.2
    reward = rng.normal(np.where(canary, 2.0, 1.0))
    rows = log_of(*(("one", 0.2) if each else ("champion", 0.8) for each in canary))
    found = judge_split(rows, reward, {"champion": 0.8, "one": 0.2})
    assert found.estimate == pytest.approx(reward.mean())
    whole = judge_split(rows, reward, {"one": 1.0})
    assert whole.estimate == pytest.approx(reward[canary].mean())
    assert whole.low < 2.0 < whole.high  # seeded; a 95 % interval


@pytest.mark.parametrize(
    ("rows", "target", "message"),
    [
        ([("pinned", None)], {"champion": 1.0}, "none of 1 rows has a propensity"),
        ([("champion", 1.0)], {"canary": 1.0}, "of arms in the log"),
        ([("champion", 0.5), ("one", 0.5)], {"champion": 0.8, "one": 0.8}, "sum to at most 1"),
    ],
)
def test_a_split_that_the_log_says_nothing_about_is_refused(
    rows: list[tuple[str, float | None]], target: dict[str, float], message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        judge_split(log_of(*rows), [1.0] * len(rows), target)


def logged_policy(rng: np.random.Generator, rows: int = 500) -> tuple[np.ndarray, ...]:
    """Two actions worth x and 1 − x; the log prefers the first, the target the better one: truth .9·⅔ + .1·⅓."""
    x = rng.random(rows)
    best = (x < 0.5).astype(int)
    first = rng.random(rows) < 0.7
    action = np.where(first, 0, 1)
    worth = np.where(action == 0, x, 1 - x)
    reward = (rng.random(rows) < np.sqrt(worth)).astype(float)
    target = np.where(action == best, 0.9, 0.1)
    value = np.sqrt(np.stack([x, 1 - x]))
    wanted = np.where(best == 0, 0.9, 0.1) * value[0] + np.where(best == 0, 0.1, 0.9) * value[1]
    return reward, np.where(first, 0.7, 0.3), target, np.sqrt(worth), wanted


def robust(
    reward: np.ndarray, logged: np.ndarray, target: np.ndarray, q: np.ndarray, v: np.ndarray
) -> OffPolicy:
    return doubly_robust(reward, logged, target, model_logged=q, model_target=v)


def wrong(reward: np.ndarray, logged: np.ndarray, target: np.ndarray, *_: np.ndarray) -> OffPolicy:
    flat = np.full(len(reward), 0.3)
    return doubly_robust(reward, logged, target, model_logged=flat, model_target=flat)


# best == 1 where x < ½: action 1 is worth 1 − x there. E[√max] = ∫ = 2·(2/3)(1 − ½^1.5) and E[√min] = 2·(2/3)·½^1.5.
TRUTH = 0.9 * (4 / 3) * (1 - 0.5**1.5) + 0.1 * (4 / 3) * 0.5**1.5


# 400 logs: the 95 % intervals miss the truth in at most .05 + 4 s.e. = .094, with a wrong reward model too.
@pytest.mark.parametrize(
    "estimate",
    [lambda *log: ips(*log[:3]), lambda *log: snips(*log[:3]), robust, wrong],
    ids=["ips", "snips", "doubly robust", "doubly robust, wrong model"],
)
def test_intervals_hold_the_truth(estimate: Callable[..., OffPolicy]) -> None:
    rng = np.random.default_rng(1)
    found = [estimate(*logged_policy(rng)) for _ in range(400)]
    assert all(one.sufficient for one in found)
    missed = np.mean([not one.low <= TRUTH <= one.high for one in found])
    assert missed <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 400)


def test_a_good_reward_model_narrows_the_interval() -> None:
    given = logged_policy(np.random.default_rng(2), 5_000)
    plain, better = ips(*given[:3]), robust(*given)
    assert better.high - better.low < 0.8 * (plain.high - plain.low)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": [0.5]}, "need one finite target chance for each of 4"),
        ({"reward": [], "logged": [], "target": []}, "got none"),
        ({"reward": [1.0, math.nan, 2.0, 1.0]}, "no numbers"),
        ({"logged": [0.5, 0.0, 0.5, 0.8]}, "never tried"),
        ({"target": [0.5, 1.2, 0.5, 0.8]}, "target chances"),
    ],
)
def test_logs_without_evidence_are_refused(change: dict[str, list[float]], message: str) -> None:
    given = {"reward": REWARD, "logged": LOGGED, "target": TARGET} | change
    with pytest.raises(EvaluationError, match=message):
        ips(**given)
    with pytest.raises(EvaluationError, match="never takes"):
        snips(REWARD, LOGGED, [0.0] * 4)


def test_one_row_concludes_nothing() -> None:
    assert not ips([1.0], [0.5], [0.5]).sufficient


def split_log(rng: np.random.Generator, units: Units) -> tuple[pa.Table, np.ndarray]:
    """A log in which a unit stays in its arm, and has a taste of its own; the arms are the same, and a reward is 0 on average."""
    run = int(rng.integers(2**31))
    ids = units.draw(rng, 1_000)
    ours = in_arm(ids, 0.3, salt=2 * run)
    reward = level_of(ids, salt=2 * run + 1) + 0.5 * rng.normal(size=len(ids))
    rows = pa.table(
        {
            "arm": np.where(ours, "one", "champion"),
            "propensity": np.where(ours, 0.3, 0.7),
            "unit": [f"unit-{number}" for number in ids],
        }
    )
    return rows, reward


# 100 logs each: the 95 % intervals miss the truth in at most .05 + 4 s.e. = .137, however often a unit comes back.
@pytest.mark.parametrize("units", [ONCE, Units("returning", 100), Units("unequal", 500, spread=1.0)], ids=str)
@pytest.mark.parametrize("estimate", [ips, snips])
def test_intervals_hold_the_truth_where_units_come_back(
    units: Units, estimate: Callable[..., OffPolicy]
) -> None:
    rng = np.random.default_rng(12)
    judged = [judge_split(*split_log(rng, units), {"one": 1.0}, estimate=estimate) for _ in range(100)]
    missed = np.mean([not one.low <= 0.0 <= one.high for one in judged])
    assert missed <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 100)


def test_rows_of_a_request_without_a_unit_are_one_observation() -> None:
    rows = pa.table(
        {
            "arm": ["one"] * 5,
            "propensity": [0.5] * 5,
            "unit": pa.array([None, None, "ada", "ada", None], pa.string()),
            "prediction_id": ["a:0", "a:1", "b", "c", "d"],
        }
    )
    judged = judge_split(rows, [1.0] * 5, {"one": 1.0})
    assert (judged.rows, judged.units) == (5, 3)
    with pytest.raises(EvaluationError, match="one unit for each of 4 rows"):
        ips(REWARD, LOGGED, TARGET, units=["a", "b"])
