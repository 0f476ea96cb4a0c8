"""What is said before a rollout starts, against what then happens."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from tests.functions.rollout.conftest import RolloutPlatform
from toque.functions.prediction_log import outcomes
from toque.functions.rollout import Evidence, PairedLoss, RolloutPolicy, RolloutState, decide, plan
from toque.functions.rollout.evidence.sums import ArmCounts
from toque.functions.rollout.planning.jobs import replayed_loss
from toque.functions.stats import ClusterSums, SeriesSums
from toque.registry import Signature, TensorSpec

START = datetime(2013, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)
FLIGHTS = RolloutPolicy(planned_labels=4_000, shadow_min_labels=600, shadow_timeout=timedelta(days=14))
DAYS_SPREAD = 0.007 * np.sqrt(48)  # a standard error of .007 after 48 days


def cohort(rng: np.random.Generator, effect: float, *, labels: int = 140) -> PairedLoss:
    difference = effect + DAYS_SPREAD * rng.normal() + 0.2 * rng.normal(size=labels)
    return PairedLoss(
        by_unit=ClusterSums.of_sums(difference, np.ones(labels)),
        by_cohort=SeriesSums.one(float(difference.sum()), labels),
        pairs=labels,
        requests=labels,
    )


def past(days: int = 400) -> PairedLoss:
    rng, total = np.random.default_rng(1), PairedLoss()
    for _ in range(days):
        total += cohort(rng, 0.0)
    return total


PAST = past()


def test_the_flights_rollout_is_announced_to_stay_undecided() -> None:
    found = plan(PAST, FLIGHTS, 0.015)
    assert found.chance_promoted < 0.4
    assert found.smallest_effect is not None
    assert found.smallest_effect > 0.015
    assert found.days_needed is not None
    assert found.days_needed > found.days_worst
    assert found.dependence > 5
    said = " ".join(found.summary)
    assert "lengthen shadow_timeout and canary_timeout" in said
    assert "more cohorts help" in said


def test_shares_sum_to_one_and_the_smallest_effect_has_the_power() -> None:
    found = plan(PAST, FLIGHTS, 0.015)
    assert found.chance_promoted + found.chance_stopped + found.chance_undecided == pytest.approx(1.0)
    assert found.smallest_effect is not None
    assert plan(PAST, FLIGHTS, found.smallest_effect).chance_promoted == pytest.approx(0.8, abs=0.01)
    assert plan(PAST, FLIGHTS, 0.0).chance_promoted <= FLIGHTS.alpha


def rollout(rng: np.random.Generator, policy: RolloutPolicy, effect: float) -> tuple[str, float]:
    state = RolloutState(
        rollout=0, champion=1, challenger=2, policy=policy, stage="shadow", started_at=START, stage_since=START,
        traffic_entry=0,
    )  # fmt: skip
    loss, canary = PairedLoss(), ArmCounts()
    for day in range(1, 100):
        loss += cohort(rng, effect)
        canary += ArmCounts(champion=900, challenger=100) if state.stage == "canary" else ArmCounts()
        now = START + day * DAY + policy.label_delay
        decision = decide(state, Evidence(champion=1, loss=loss, canary=canary), policy, now)
        if decision.action == "advance":
            state = state.model_copy(update={"stage": "canary", "stage_since": now})
        elif decision.action != "hold":
            return decision.action, (now - START) / DAY
    raise AssertionError("no rollout lasts longer than its time limits")


# 300 rollouts by the judge itself: each share within 4 s.e. (.115 at .5) of the planned one, the days within a tenth.
def test_the_judge_does_what_was_planned() -> None:
    rng = np.random.default_rng(2)
    policy = FLIGHTS.model_copy(update={"alpha": 0.2})
    planned = plan(PAST, policy, 0.02)
    ended = [rollout(rng, policy, 0.02) for _ in range(300)]
    promoted = np.mean([action == "promote" for action, _ in ended])
    stopped = np.mean([action == "roll_back" for action, _ in ended])
    assert 0.2 < promoted < 0.95
    assert promoted == pytest.approx(planned.chance_promoted, abs=0.115)
    assert stopped == pytest.approx(planned.chance_stopped, abs=0.06)
    assert np.mean([days for _, days in ended]) == pytest.approx(planned.days_expected, rel=0.1)


def test_independent_labels_need_fewer() -> None:
    careless = FLIGHTS.model_copy(update={"dependence": "unit"})
    assert plan(PAST, careless, 0.015).chance_promoted > plan(PAST, FLIGHTS, 0.015).chance_promoted


def test_minute_cohorts_are_joined_and_time_limits_that_are_too_short_say_so() -> None:
    minutes = FLIGHTS.model_copy(update={"cohort": timedelta(minutes=1), "label_delay": timedelta(0)})
    assert plan(PAST, minutes, 0.015).chance_promoted > 0.9  # 1,440 times the labels
    short = FLIGHTS.model_copy(update={"shadow_timeout": timedelta(days=2)})
    found = plan(PAST, short, 0.015)
    assert found.smallest_effect is None
    assert any("No improvement, however large" in line for line in found.summary)


def test_a_past_that_tells_nothing_is_refused() -> None:
    one = cohort(np.random.default_rng(3), 0.0)
    with pytest.raises(ValueError, match="at least two past cohorts, got 1"):
        plan(one, FLIGHTS, 0.01)
    same = PairedLoss.of_cohort(np.full(9, 0.5), np.full(9, 0.5), list("abcdefghi"), pairs=9, requests=9)
    with pytest.raises(ValueError, match="are the versions the same"):
        plan(same + same, FLIGHTS, 0.01)
    with pytest.raises(ValueError, match="finite"):
        plan(PAST, FLIGHTS, float("nan"))
    assert "take the plan as a guess" in plan(past(3), FLIGHTS, 0.01).summary[-1]


def test_a_replay_finds_what_a_shadow_would_have(platform: RolloutPlatform) -> None:
    platform.registry.by_hand(1, shadows=[2])
    for _ in range(4):
        platform.serve_a_day(requests=50)

    def read(start: datetime, end: datetime) -> pa.Table:
        rows = outcomes(platform.store, "late", start, end, labelled_only=False)
        logged = [[0.5 * v for v in row] for row in rows["outputs"].to_pylist()]
        numeric = pa.array(logged, type=pa.list_(pa.float32()))
        rows = rows.set_column(rows.schema.get_field_index("numeric"), rows.schema.field("numeric"), numeric)
        empty = pa.array([[] for _ in range(rows.num_rows)], type=pa.list_(pa.string()))
        return rows.set_column(
            rows.schema.get_field_index("categorical"), rows.schema.field("categorical"), empty
        )

    number = TensorSpec(name="numeric", datatype="FP32", shape=[-1, 1], columns=["a"])
    output = TensorSpec(name="probability", datatype="FP32", shape=[-1, 1])
    logged = Signature(
        inputs=[number, TensorSpec(name="categorical", datatype="BYTES", shape=[-1, 0], columns=[])],
        outputs=[output],
    )
    fewer = Signature(inputs=[number], outputs=[output])  # no input `categorical`
    halved = SimpleNamespace(predict=lambda inputs: {"probability": inputs["numeric"]}, signature=fewer)
    loss = replayed_loss(read, halved, FLIGHTS, champion=1, logged=logged, start=START, now=platform.now)
    assert loss.labels == 150  # the fourth day still waits for labels
    assert loss.by_cohort.clusters == 3
    served = outcomes(platform.store, "late", START, START + 3 * DAY).to_pylist()
    by_hand = []
    for row in served:
        if row["version"] == 1:
            q = np.clip(0.5 * row["outputs"][0], 0.01, 0.99)
            by_hand.append(-np.log(q) if row["label"] else -np.log1p(-q))
    assert loss.challenger_loss == pytest.approx(sum(by_hand), rel=1e-6)


def test_a_replay_of_texts_judges_what_the_challenger_would_have_said() -> None:
    """Rows of a model without numbers; the challenger says everything in capitals."""
    count, said = 40, ["oak st", "elm rd"]
    at = [START + DAY * place / 20 for place in range(count)]
    rows = pa.table(
        {
            "prediction_id": [str(place) for place in range(count)],
            "version": [1] * count,
            "arm": ["champion"] * count,
            "shadow": [False] * count,
            "unit": pa.nulls(count, pa.string()),
            "predicted_at": pa.array(at, pa.timestamp("us", "UTC")),
            "latency_ms": [1.0] * count,
            "outputs": pa.array([[6.0]] * count, pa.list_(pa.float32())),
            "numeric": pa.nulls(count, pa.list_(pa.float32())),
            "categorical": pa.array([[said[place % 2]] for place in range(count)], pa.list_(pa.string())),
            "label": [float("nan")] * count,
            "answer_text": [said[place % 2] for place in range(count)],
            "label_text": ["Oak St", "elm rd"] * (count // 2),
        }
    )

    def read(start: datetime, end: datetime) -> pa.Table:
        inside = [start <= moment < end for moment in at]
        return rows.filter(pa.array(inside))

    texts = Signature(
        inputs=[TensorSpec(name="categorical", datatype="BYTES", shape=[-1, 1], columns=["typed"])],
        outputs=[TensorSpec(name="text", datatype="BYTES", shape=[-1, 1])],
    )
    capitals = SimpleNamespace(
        predict=lambda inputs: {"text": np.char.title(inputs["categorical"].astype(str)).astype(object)},
        signature=texts,
    )
    policy = FLIGHTS.model_copy(update={"loss": "edit_distance"})
    now = START + 2 * DAY + policy.label_delay
    found = replayed_loss(read, capitals, policy, champion=1, logged=texts, start=START, now=now)
    assert found.labels == count
    # "oak st" is two letters from "Oak St", as "Elm Rd" is from "elm rd": of six
    assert found.champion_loss == pytest.approx(20 * 2 / 6)
    assert found.challenger_loss == pytest.approx(20 * 2 / 6)
