"""What a gate asks for beyond metrics, on tables and models made by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from toque.functions.evaluation import (
    Direction,
    EvaluationError,
    FairnessRule,
    Gate,
    Invariance,
    RobustnessRule,
    SliceRule,
    bootstrap,
    ece,
    log_loss,
    reliability,
)  # fmt: skip
from toque.functions.evaluation.checks import (
    Judged,
    fairness_gap,
    judge_behaviour,
    judge_fairness,
    judge_robustness,
    judge_slices,
)
from toque.functions.evaluation.offline_gate import EvaluatedVersion, extra_checks
from toque.functions.evaluation.outcome_kinds import BINARY

N = 4_000


def table(seed: int = 0, rows: int = N) -> pa.Table:
    rng = np.random.default_rng(seed)
    wind = rng.normal(size=rows)
    carrier = rng.choice(["AA", "B6", "UA", "ZZ"], rows, p=[0.4, 0.35, 0.24, 0.01])
    late = (rng.random(rows) < 1 / (1 + np.exp(-wind))).astype(float)
    plane = rng.integers(0, rows // 10, rows).astype(str)
    return pa.table({"wind": wind, "carrier": carrier, "plane": plane, "late": late})


def predict(rows: pa.Table) -> np.ndarray:
    """The truth where wind is known, a guess where it is not."""
    wind = rows["wind"].to_numpy(zero_copy_only=False).astype(float)
    return np.where(np.isfinite(wind), 1 / (1 + np.exp(-wind)), 0.5)


ROWS = table()
LABEL, ANSWER, CARRIER = ROWS["late"].to_numpy(), predict(ROWS), np.array(ROWS["carrier"].to_pylist())


def excess(worse_for: str | None = None, by: float = 0.0) -> np.ndarray:
    return np.random.default_rng(1).normal(-0.02, 0.3, N) + by * (worse_for == CARRIER)


def test_a_slice_that_is_worse_is_found_among_many_and_named() -> None:
    check, worst = judge_slices(
        SliceRule(columns=("carrier", "wind"), depth=2), ROWS, excess("UA", 0.2), None
    )
    assert not check.passed
    assert worst[0].name == "carrier = UA"
    assert "carrier = UA: loss +0." in check.note
    assert {one.name for one in worst} > {"carrier = AA", "carrier = B6"}
    assert any(" < wind <= " in one.name and " and " in one.name for one in worst)
    assert all("ZZ" not in one.name for one in worst)  # forty rows are too few to tell


# 200 models that are nowhere worse, 19 slices each: some slice is found in at most .05 + 4 s.e. = .112.
def test_looking_into_every_slice_does_not_make_one_up() -> None:
    rng, rows = np.random.default_rng(2), table(3, 1_000)
    rule = SliceRule(columns=("carrier", "wind"), depth=2, min_rows=30)
    found = sum(not judge_slices(rule, rows, rng.normal(0, 0.3, 1_000), None)[0].passed for _ in range(200))
    assert found / 200 <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 200)


def test_rows_of_one_plane_are_one_observation() -> None:
    rng = np.random.default_rng(4)
    planes = np.repeat(np.arange(40), 100).astype(str)
    each = rng.normal(0, 0.3, 40)
    shared = np.repeat(each - each.mean() + 0.06, 100)  # 1.3 standard errors of planes, 8 of rows
    rule = SliceRule(columns=("carrier",))
    by_row, by_plane = (judge_slices(rule, ROWS, shared, entity)[1] for entity in (None, planes))
    assert min(one.corrected for one in by_row) < 1e-6
    assert min(one.corrected for one in by_plane) > 0.05


@pytest.mark.parametrize(
    "rule", [SliceRule(columns=("carrier",), min_rows=N), SliceRule(columns=("wind",), min_rows=N)]
)
def test_no_slice_large_enough_does_not_pass(rule: SliceRule) -> None:
    check, worst = judge_slices(rule, ROWS, excess(), None)
    assert (check.passed, worst) == (False, ())


def test_gaps_between_groups_by_hand() -> None:
    rows = pa.table({"sex": ["f"] * 4 + ["m"] * 4 + [None]})
    label = np.array([1.0, 1, 0, 0, 1, 1, 0, 0, 1])
    answer = np.array([0.9, 0.4, 0.6, 0.1, 0.9, 0.8, 0.2, 0.1, 0.5])
    gaps = {
        measure: judge_fairness(
            FairnessRule(column="sex", measure=measure, max_gap=0.2, min_rows=2), Judged(rows, label, answer)
        )[0]
        for measure in ("selection_rate", "true_positive_rate", "false_positive_rate", "calibration")
    }
    assert {name: check.value for name, check in gaps.items()} == pytest.approx(
        {"selection_rate": 0.0, "true_positive_rate": 0.5, "false_positive_rate": 0.5, "calibration": 0.0}, abs=1e-12
    )  # fmt: skip
    assert gaps["selection_rate"].passed
    assert not gaps["true_positive_rate"].passed
    assert "too few rows: missing" in gaps["calibration"].note


def test_one_group_alone_does_not_pass() -> None:
    rule = FairnessRule(column="carrier", max_gap=1.0, min_rows=1_500)
    assert not judge_fairness(rule, Judged(ROWS, LABEL, ANSWER))[0].passed


def test_a_gap_of_losses_and_its_upper_end_are_judged() -> None:
    rng = np.random.default_rng(0)
    group = rng.choice(["a", "b"], 2_000)
    loss = rng.normal(1.0, 0.5, 2_000) + 0.2 * (group == "b")
    rows = Judged(pa.table({"group": group}), LABEL[:2_000], ANSWER[:2_000], loss)
    rule = FairnessRule(column="group", measure="loss", max_gap=0.3, max_gap_high=0.2)
    gap, high = judge_fairness(rule, rows)
    # by hand: the difference of two means of about 1,000 values of deviation one half
    assert (gap.passed, gap.value) == (True, pytest.approx(0.2, abs=4 * 0.5 * np.sqrt(2 / 1_000)))
    assert high.value - gap.value == pytest.approx(1.96 * 0.5 * np.sqrt(2 / 1_000), rel=0.1)
    assert not high.passed
    assert "95 % interval of the gap" in gap.note


def test_the_interval_of_a_gap_covers_it_with_rows_of_entities_alike() -> None:
    # 300 samples of 40 entities a group, 5 rows each: covered >= .95 - 4 s.e. = .90
    rng, rule = np.random.default_rng(3), FairnessRule(column="group", measure="loss", max_gap=1.0)
    entity = np.repeat(np.arange(80), 5)
    group = np.where(entity < 40, "a", "b")
    covered = 0
    for _ in range(300):
        loss = rng.normal(size=80)[entity] + rng.normal(size=400) + 1.0 * (group == "b")
        found = fairness_gap(rule, Judged(pa.table({"group": group}), loss, loss, loss, entity))
        covered += found.low <= 1.0 <= found.high
    assert covered / 300 >= 0.95 - 4 * np.sqrt(0.05 * 0.95 / 300)


def test_missing_and_shifted_inputs_are_measured() -> None:
    rule = RobustnessRule(max_missing_ratio=1.5, max_shift_ratio=1.1)
    missing, shifted = judge_robustness(rule, ROWS, LABEL, predict, ["wind", "carrier"], log_loss)
    assert missing.passed
    assert 1.05 < missing.value == pytest.approx(np.log(2) / log_loss(LABEL, ANSWER), rel=0.05)
    assert missing.note.startswith("wind")
    assert not shifted.passed


def test_answers_that_a_missing_input_turns_to_nan_do_not_pass() -> None:
    check = judge_robustness(
        RobustnessRule(), ROWS, LABEL, lambda rows: rows["wind"].to_numpy(zero_copy_only=False) * 0 + 0.5,
        ["wind"], log_loss,
    )[0]  # fmt: skip
    assert not check.passed
    assert "no numbers" in check.note
    assert not judge_robustness(RobustnessRule(), ROWS, LABEL, predict, [], log_loss)[0].passed


def test_invariance_and_direction_are_checked() -> None:
    assert judge_behaviour(Invariance(column="carrier", values=("AA", "XX")), ROWS, predict).value == 1.0
    assert not judge_behaviour(Invariance(column="wind"), ROWS, predict).passed
    up = Direction(column="wind", change=0.5, expected="up")
    assert judge_behaviour(up, ROWS, predict).value == 1.0
    assert not judge_behaviour(up.model_copy(update={"expected": "down"}), ROWS, predict).passed
    constant = judge_behaviour(up, ROWS, lambda rows: np.full(rows.num_rows, 0.3))
    assert not constant.passed  # it does not go the wrong way, nor anywhere


@pytest.mark.parametrize(
    "rule", [Invariance(column="wind"), Direction(column="wind", change=1.0, expected="up")]
)
def test_nan_answers_fail_behaviour_checks(rule: Any) -> None:
    assert not judge_behaviour(rule, ROWS, lambda rows: np.full(rows.num_rows, np.nan)).passed
    assert not judge_behaviour(rule, ROWS.slice(0, 0), predict).passed


def evaluated(**changes: Any) -> EvaluatedVersion:
    version = SimpleNamespace(
        model="late", version=3, files={"model.pt2": SimpleNamespace(size=5_000)},
        signature=SimpleNamespace(inputs=[SimpleNamespace(columns=["wind", "carrier"])]),
    )  # fmt: skip
    fields: dict[str, Any] = {
        "version": version, "kind": BINARY, "table": ROWS, "label": LABEL, "answers": ANSWER, "predict": predict,
        "references": {"constant": np.full(N, LABEL.mean())}, "entity": None,
    }  # fmt: skip
    return EvaluatedVersion(**(fields | changes))


EVERYTHING = Gate(
    slices=SliceRule(columns=("carrier",)),
    fairness=(FairnessRule(column="carrier", max_gap=0.2),),
    robustness=RobustnessRule(),
    behaviours=(Invariance(column="carrier"), Direction(column="wind", change=1.0, expected="up")),
    max_latency_ms=60_000.0,
    max_size_bytes=10_000,
)


def test_a_gate_with_everything_makes_every_check() -> None:
    checks = extra_checks(EVERYTHING, evaluated())
    assert len(checks) == 7
    assert [check.name for check in checks if not check.passed] == []
    assert next(check for check in checks if "latency" in check.name).value > 0
    slim = extra_checks(EVERYTHING.model_copy(update={"max_size_bytes": 4_000}), evaluated())
    assert [check.name for check in slim if not check.passed] == ["size, bytes"]


def test_what_cannot_be_checked_fails_and_says_why() -> None:
    strange = Gate(
        slices=SliceRule(columns=("tail",)),
        fairness=(FairnessRule(column="sex", max_gap=0.1),),
        behaviours=(Invariance(column="age"),),
        robustness=RobustnessRule(columns=("age",)),
    )
    checks = extra_checks(strange, evaluated())
    assert len(checks) == 4
    assert not any(check.passed for check in checks)
    assert all("lacks the column" in check.note for check in checks)
    lost = extra_checks(EVERYTHING, evaluated(references={}))
    assert [check.note for check in lost if not check.passed] == [
        "gate has no constant in max_log_loss_ratio to compare slices with; add it"
    ]
    first = Gate(slices=SliceRule(columns=("carrier",), against="champion"))
    assert extra_checks(first, evaluated()) == []  # there is no champion to be worse than


def test_calibration_comes_with_its_uncertainty() -> None:
    points = reliability(LABEL, ANSWER)
    assert [point.rows for point in points] == [400] * 10
    inside = sum(point.low <= point.answered <= point.high for point in points)
    assert inside >= 8  # nominal .95 of ten intervals
    assert reliability(np.zeros(5), np.full(5, 0.1), bins=1)[0].high == pytest.approx(1 - 0.025 ** (1 / 5))
    off = bootstrap(ece, LABEL, np.clip(ANSWER + 0.2, 0, 1))
    assert bootstrap(ece, LABEL, ANSWER).high < off.low


def test_resampling_entities_widens_intervals_of_correlated_rows() -> None:
    rng = np.random.default_rng(5)
    entity = np.repeat(np.arange(50), 20)
    label = np.repeat((rng.random(50) < 0.5).astype(float), 20)
    answer = np.full(1_000, 0.4)
    by_row, by_entity = (bootstrap(log_loss, label, answer, entity=one) for one in (None, entity))
    ratio = (by_entity.high - by_entity.low) / (by_row.high - by_row.low)
    assert ratio == pytest.approx(np.sqrt(20), rel=0.2)
    alone = bootstrap(log_loss, label, answer, entity=np.arange(1_000))
    assert (alone.high - alone.low) == pytest.approx(by_row.high - by_row.low, rel=0.2)
    with pytest.raises(EvaluationError, match="at least one"):
        bootstrap(log_loss, label[:0], answer[:0], entity=entity[:0])
