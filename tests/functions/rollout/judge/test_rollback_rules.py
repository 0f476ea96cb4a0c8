"""The split, business metrics, and what a decision of before them becomes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from tests.functions.rollout.conftest import RolloutPlatform
from toque.functions.evaluation.realised_loss import Scored, score
from toque.functions.prediction_log.records import is_sampled
from toque.functions.rollout import (
    Evidence,
    Guardrail,
    MetricSums,
    MetricValue,
    RolloutPolicy,
    UnitCounts,
    decide,
)
from toque.functions.rollout.evidence.cohort_sums import count_assigned, unit_counts
from toque.functions.rollout.evidence.metrics import MetricRows, metric_cohort, read_metric, write_metric
from toque.functions.rollout.evidence.slots import SlotSums
from toque.functions.rollout.evidence.sums import ArmCounts, PairedLoss
from toque.functions.rollout.explain import explain
from toque.functions.rollout.state import RolloutState
from toque.functions.stats import ClusterSums
from toque.registry import Entry
from toque.registry.models.traffic import Traffic

START = datetime(2013, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)
SALES = Guardrail(name="sales", margin=0.02)
POLICY = RolloutPolicy(guardrails=(SALES,), canary_timeout=60 * DAY)
BUSY = ArmCounts(champion=9_000, challenger=1_000)


def canary(policy: RolloutPolicy = POLICY, **changes: Any) -> RolloutState:
    fields: dict[str, Any] = {
        "rollout": 0, "champion": 1, "challenger": 2, "policy": policy, "stage": "canary", "started_at": START,
        "stage_since": START, "canary_since": START, "traffic_entry": 7,
    }  # fmt: skip
    return RolloutState(**(fields | changes))


def better_loss() -> PairedLoss:
    rng, total = np.random.default_rng(1), PairedLoss()
    for _ in range(20):
        base = np.full(200, 0.5)
        units = [str(i) for i in range(200)]
        total += PairedLoss.of_cohort(base + rng.normal(0.05, 0.3, 200), base, units, pairs=200, requests=200)
    return total


LOSS = better_loss()


def judge(evidence: Evidence, **changes: Any) -> Any:
    state = canary(**changes)
    return decide(state, evidence, state.policy, START + 3 * DAY)


def rows(versions: list[int], units: list[str], *, start: int = 0, **columns: Any) -> Scored:
    n = len(versions)
    at = (np.arange(start, start + n, dtype=np.int64) + columns.get("after_s", 60)) * 1_000_000
    at += int(START.timestamp()) * 1_000_000
    none = np.full(n, np.nan)
    return Scored(
        id=np.array([f"{start}-{i}" for i in range(n)], dtype=object),
        version=np.array(versions, dtype=np.int64),
        shadow=np.zeros(n, dtype=bool),
        unit=np.array(units, dtype=object),
        at=at,
        latency_ms=columns.get("latency_ms", none),
        answered=np.ones(n, dtype=bool),
        label=columns.get("label", none),
        told=columns.get("label", none),
        output=columns.get("output", none),
        loss=none,
        expected=none,
        bias=none,
        outside=columns.get("outside", np.zeros(n, dtype=bool)),
    )


def test_a_split_that_is_not_the_declared_one_ends_inconclusive_and_says_so() -> None:
    evidence = Evidence(champion=1, loss=LOSS, canary=BUSY, units=UnitCounts(champion=9_900, challenger=100))
    decision = judge(evidence, policy=RolloutPolicy())
    assert (decision.action, decision.rule) == ("inconclusive", "mismatch")
    assert "sample-ratio mismatch: 100 of 10000 units are on the canary, 1000.0 expected" in decision.text
    fair = evidence.model_copy(update={"units": UnitCounts(champion=9_020, challenger=980)})
    assert judge(fair, policy=RolloutPolicy()).action == "promote"


def test_99_to_1_where_half_was_declared_is_found_within_forty_units() -> None:
    policy = RolloutPolicy(canary_share=0.5)
    first = next(
        n
        for n in range(1, 200)
        if judge(Evidence(champion=1, units=UnitCounts(champion=n)), policy=policy).rule == "mismatch"
    )
    assert first <= 40


def test_a_mismatch_stops_a_paused_rollout_and_never_hides_a_guardrail() -> None:
    units = UnitCounts(champion=9_900, challenger=100)
    assert judge(Evidence(champion=1, units=units), paused=True).action == "inconclusive"
    failing = BUSY.model_copy(update={"challenger_errors": 200})
    decision = judge(Evidence(champion=1, units=units, canary=failing), paused=True)
    assert (decision.action, decision.rule) == ("roll_back", "errors")


def test_the_declared_share_is_that_of_champion_and_canary_alone() -> None:
    # 80 % champion, 10 % canary, 10 % some other arm: the canary has a ninth of what the two answer.
    units = UnitCounts(champion=16_000, challenger=2_000)
    shared = Evidence(champion=1, units=units, canary_share=0.1 / 0.9)
    assert judge(shared).rule != "mismatch"
    assert judge(shared.model_copy(update={"canary_share": None})).rule == "mismatch"


# 200 canaries split as declared, looked at after every 50 units: stopped in at most .05 + 4 s.e. = .112.
def test_a_fair_split_is_left_alone_however_often_one_looks() -> None:
    rng = np.random.default_rng(3)
    policy = RolloutPolicy(mismatch_alpha=0.05)
    stopped = 0
    for _ in range(200):
        arms = np.cumsum(rng.binomial(50, 0.1, 40))
        stopped += any(
            judge(
                Evidence(champion=1, units=UnitCounts(champion=50 * n - int(k), challenger=int(k))),
                policy=policy,
            ).rule
            == "mismatch"
            for n, k in enumerate(arms, 1)
        )
    assert stopped / 200 <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 200)


def test_units_count_once_from_the_challengers_first_answer_on() -> None:
    state = canary()
    lag = count_assigned(rows([1] * 5, list("abcde")), state, SlotSums())
    assert len(lag) == 0
    begun = count_assigned(rows([1, 2, 1, 1, 2, 1], ["f", "z", "a", "a", "y", "f"], start=5), state, lag)
    assert unit_counts(begun) == UnitCounts(champion=2, challenger=1)  # a and f, y; z began it
    again = SlotSums.model_validate_json(begun.model_dump_json())
    assert again == begun
    later = count_assigned(rows([2, 2, 1, 1, 3], ["z", "y", "a", "g", "h"], start=11), state, again)
    assert unit_counts(later) == UnitCounts(champion=3, challenger=1)


def test_any_batches_count_the_same_units_up_to_a_stated_number(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    units = [str(u) for u in rng.integers(0, 300, 900)]
    versions = [2 if hash(u) % 3 == 0 else 1 for u in (int(unit) for unit in units)]
    whole = count_assigned(rows(versions, units), canary(), SlotSums())
    parts = SlotSums()
    for start, stop in ((0, 1), (1, 450), (450, 900)):
        parts = count_assigned(rows(versions[start:stop], units[start:stop], start=start), canary(), parts)
    assert parts == whole
    assert len(whole) < 300
    monkeypatch.setattr("toque.functions.rollout.evidence.slots.SLOTS", 1 << 5)
    few = unit_counts(count_assigned(rows(versions, units), canary(), SlotSums()))
    assert 1 << 4 < few.champion + few.challenger <= 1 << 5


def sales(rng: np.random.Generator, change: float, *, cohorts: int = 20, shock: float = 0.0) -> MetricSums:
    total = MetricSums()
    for _ in range(cohorts):
        level = 1.0 + rng.normal(0, 0.5)  # a busy day is busy for both
        ours = level + change + shock * rng.normal() + rng.normal(0, 0.2, 100)
        theirs = level + rng.normal(0, 0.2, 900)
        arms = [ClusterSums.of_sums(values, np.ones(len(values))) for values in (theirs, ours)]
        total += MetricSums.of_cohort(*arms, requests=1_000)
    return total


def with_sales(change: float, **changes: Any) -> Evidence:
    sums = sales(np.random.default_rng(5), change, **changes)
    return Evidence(champion=1, loss=LOSS, canary=BUSY, metrics={"sales": sums})


def test_a_business_metric_that_falls_by_more_than_its_margin_rolls_back_even_while_paused() -> None:
    decision = judge(with_sales(-0.1), paused=True)
    assert (decision.action, decision.rule) == ("roll_back", "guardrails")
    assert "sales (higher is better)" in decision.text
    assert "a worsening of 0.02 is allowed" in decision.text


def test_within_the_margin_it_promotes_and_without_values_it_never_does() -> None:
    assert judge(with_sales(0.0)).action == "promote"
    assert judge(with_sales(-0.02)).action == "hold"  # neither proven harmful nor proven harmless
    for missing in ({}, {"sales": MetricSums(requests=1_000)}):
        decision = judge(Evidence(champion=1, loss=LOSS, canary=BUSY, metrics=missing))
        assert decision.action == "hold"
        assert any("guardrail sales" in f.text for f in decision.findings if f.rule == "better")


def test_lower_may_be_better() -> None:
    policy = RolloutPolicy(guardrails=(Guardrail(name="sales", margin=0.02, better="lower"),))
    assert judge(with_sales(0.1), policy=policy).rule == "guardrails"
    assert judge(with_sales(-0.1), policy=policy).action == "promote"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_sums_of_a_metric_that_are_no_numbers_neither_stop_nor_promote(bad: float) -> None:
    sums = sales(np.random.default_rng(5), 0.0).model_copy(update={"noise": bad})
    assert judge(Evidence(champion=1, loss=LOSS, canary=BUSY, metrics={"sales": sums})).action == "hold"


# 150 canaries whose metric is exactly at its margin, 15 looks each; on some days it is better, on others worse.
# Harm is "proven" in at most .05 + 4 s.e. = .12, harmlessness too.
@pytest.mark.parametrize("shock", [0.0, 0.1])
def test_a_metric_at_its_margin_is_judged_wrongly_at_most_alpha(shock: float) -> None:
    rng = np.random.default_rng(6)
    bound = 0.05 + 4 * np.sqrt(0.05 * 0.95 / 150)
    stopped = passed = 0
    for _ in range(150):
        sums, rules = MetricSums(), set()
        for _ in range(15):
            sums += sales(rng, -0.02, cohorts=1, shock=shock)
            rules.add(judge(Evidence(champion=1, loss=LOSS, canary=BUSY, metrics={"sales": sums})).rule)
        stopped += "guardrails" in rules
        passed += "better" in rules
    assert stopped / 150 <= bound
    assert passed / 150 <= bound


def scores(
    rng: np.random.Generator, champion: float, challenger: float, answers: int, share: float
) -> MetricSums:
    """Scores 0 and 1 of the answers of one cohort, of which the canary has its share."""
    ours = int(rng.binomial(answers, share))
    arms = [
        ClusterSums.of_sums((rng.random(count) < mean).astype(float), np.ones(count))
        for count, mean in ((answers - ours, champion), (ours, challenger))
    ]
    return MetricSums.of_cohort(*arms, requests=answers, bounds=(0.0, 1.0))


def score_verdicts(
    rng: np.random.Generator, champion: float, challenger: float, margin: float, *, runs: int
) -> tuple[float, float]:
    """Shares of canaries of a tenth that are rolled back, and that are ever shown harmless, within 20 looks at 200 new answers."""
    quality = Guardrail(name="sales", source="score", margin=margin)
    policy = RolloutPolicy(guardrails=(quality,), dependence="unit")
    stopped = passed = 0
    for _ in range(runs):
        sums, rules = MetricSums(), set()
        for _ in range(20):
            sums += scores(rng, champion, challenger, 200, 0.1)
            found = judge(
                Evidence(champion=1, loss=LOSS, canary=BUSY, metrics={"sales": sums}), policy=policy
            )
            rules.add(found.rule)
        stopped += "guardrails" in rules
        passed += "better" in rules
    return stopped / runs, passed / runs


# Rolled back though equal: at most .05 + 4 s.e. of 200 runs = .112, however rare a score of 1, or of 0, is.
@pytest.mark.parametrize("mean", [0.02, 0.5, 0.98])
def test_scores_roll_an_equal_canary_back_at_most_as_often_as_declared(mean: float) -> None:
    stopped, _ = score_verdicts(np.random.default_rng(11), mean, mean, 0.0, runs=200)
    assert stopped <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 200)


def test_scores_roll_a_worse_canary_back_and_pass_an_equal_one_that_never_fails() -> None:
    stopped, passed = score_verdicts(np.random.default_rng(12), 0.9, 0.6, 0.1, runs=50)
    assert (stopped, passed) == (1.0, 0.0)
    # all scores are 1: nothing varies, and that is judged, too
    assert score_verdicts(np.random.default_rng(13), 1.0, 1.0, 0.05, runs=5) == (0.0, 1.0)


# Just at its margin, shown harmless at most .05 + 4 s.e. of 100 runs = .137.
def test_a_canary_at_the_margin_of_a_score_is_shown_harmless_at_most_as_often_as_declared() -> None:
    _, passed = score_verdicts(np.random.default_rng(14), 1.0, 0.95, 0.05, runs=100)
    assert passed <= 0.05 + 4 * np.sqrt(0.05 * 0.95 / 100)


def test_of_a_sample_only_its_answers_are_expected_to_have_a_score() -> None:
    names = [f"p{number}" for number in range(400)]
    arm = replace(rows([1] * 400, names), id=np.array(names, dtype=object))
    looked_at = [name for name in names if is_sampled(name, 0.25)]
    table = pa.table({"prediction_id": looked_at[:-3], "value": np.ones(len(looked_at) - 3)})
    sums = metric_cohort(
        arm, arm, Guardrail(name="json", source="score", margin=0.0), MetricRows(table, 0.25)
    ).sums()
    assert (sums.rows, sums.requests) == (2 * len(looked_at) - 6, 2 * len(looked_at))


def test_values_come_from_a_table_by_prediction_within_their_limits(platform: RolloutPlatform) -> None:
    def value(name: str, number: float, hour: int) -> MetricValue:
        return MetricValue(prediction_id=name, value=number, observed_at=START + timedelta(hours=hour))

    given = [value("0-0", 5.0, 1), value("0-2", 1e9, 1), value("0-0", 3.0, 2), value("elsewhere", 7.0, 1)]
    assert write_metric(platform.store, "spend", given) == 4
    table = read_metric(platform.store, "spend", START)
    metric = MetricRows(table)
    assert (
        dict(zip(table["prediction_id"].to_pylist(), table["value"].to_pylist(), strict=True))["0-0"] == 3.0
    )
    guardrail = Guardrail(name="spend", source="table", margin=0.0, cap=10.0)
    arm = rows([1, 1, 1], ["a", "b", "c"])
    sums = metric_cohort(arm, arm, guardrail, metric).sums()
    assert (sums.rows, sums.requests, sums.champion_total) == (4, 6, 13.0)
    assert metric_cohort(arm, arm, guardrail, None).sums() == MetricSums(requests=6)
    assert isinstance(read_metric(platform.store, "never-written", START), pa.Table)


def test_a_rows_units_are_the_sample_of_a_metric() -> None:
    values = np.array([1.0, 3.0, 1.0, 3.0] * 25)
    alone = rows([1] * 100, [str(i) for i in range(100)], label=values)
    repeated = rows([1] * 100, [str(i // 50) for i in range(100)], label=values)
    by_row, by_unit = (metric_cohort(arm, arm, SALES, None).sums() for arm in (alone, repeated))
    assert (by_row.champion_units, by_unit.champion_units) == (100, 2)


def test_guardrails_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValidationError, match="must be below cap"):
        Guardrail(name="a", margin=0.0, floor=2.0, cap=1.0)
    with pytest.raises(ValidationError, match="twice"):
        RolloutPolicy(guardrails=(SALES, SALES))


def test_a_decision_of_before_a_rule_is_made_again_by_the_rules_there_were() -> None:
    policy = RolloutPolicy()
    body = {
        "event": "started", "at": START.isoformat(), "champion": 1, "challenger": 2,
        "policy": policy.model_dump(mode="json"), "traffic_entry": 7, "reason": "",
    }  # fmt: skip
    evidence = Evidence(champion=1, loss=LOSS, units=UnitCounts(champion=9_900, challenger=100))
    state = canary(policy, stage="shadow", canary_since=None)
    recorded = decide(
        state, evidence, policy, START + DAY, rules={"errors", "worse", "shadow_done", "timed_out"}
    )
    decided = {
        "event": "decided", "at": (START + DAY).isoformat(), "stage": "canary", "labels": 1, "traffic_entry": 7,
        "decision": recorded.model_dump(mode="json"), "evidence": evidence.model_dump(mode="json"),
    }  # fmt: skip
    entries = [
        Entry(number=n, body=b, actor="t", at=START, txn=str(n), previous="", digest="")
        for n, b in enumerate((body, decided))
    ]
    explained = explain(entries, 1)
    assert explained.same
    assert [finding.rule for finding in explained.recorded.findings] == [
        "errors", "worse", "shadow_done", "timed_out",
    ]  # fmt: skip


def season(platform: RolloutPlatform, policy: RolloutPolicy) -> Any:
    platform.rollouts().start(2, policy, reason="retrained")
    for _ in range(25):
        platform.serve_a_day(requests=150)
        tick = platform.rollouts().tick()
        if platform.rollouts().history().open is None:
            break
    assert all(
        platform.rollouts().explain(entry.number).same
        for entry in platform.rollouts().entries()
        if entry.body["event"] == "decided"
    )
    return tick


def test_answers_of_the_canary_that_get_lost_stop_the_rollout(
    platform: RolloutPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = Traffic.assign

    def leaky(traffic: Traffic, unit: str) -> Any:
        arm = split(traffic, unit)
        return traffic.champion if arm.name == "canary" and unit[-1] not in "05" else arm

    monkeypatch.setattr(Traffic, "assign", leaky)
    policy = RolloutPolicy(shadow_min_labels=200, canary_share=0.4, canary_min=10 * DAY)
    tick = season(platform, policy)
    assert (tick.stage, tick.rule) == ("inconclusive", "mismatch")
    assert "sample-ratio mismatch" in tick.text
    assert platform.registry.now.versions == (1,)


def test_a_harmless_metric_is_summed_from_the_log_and_lets_the_better_one_through(
    platform: RolloutPlatform,
) -> None:
    policy = RolloutPolicy(
        shadow_min_labels=200, canary_share=0.4, guardrails=(Guardrail(name="late", margin=0.5),)
    )
    assert season(platform, policy).stage == "promoted"
    last = platform.rollouts().entries()[-1].body["evidence"]
    assert last["metrics"]["late"]["challenger_units"] >= 100
    assert last["units"]["challenger"] > 0


def test_one_enormous_outlier_neither_promotes_nor_stops() -> None:
    for sign in (1.0, -1.0):
        difference = np.random.default_rng(7).normal(0.0, 0.3, 200)
        difference[0] = sign * 1e6
        units = [str(i) for i in range(200)]
        struck = LOSS + PairedLoss.of_cohort(difference, np.zeros(200), units, pairs=200, requests=200)
        assert judge(Evidence(champion=1, loss=struck, canary=BUSY), policy=RolloutPolicy()).action == "hold"
        ours = np.full(100, 1.0)
        ours[0] = sign * 1e9
        arms = (ClusterSums.of_sums(one, np.ones(len(one))) for one in (np.full(900, 1.0), ours))
        sums = sales(np.random.default_rng(5), 0.0) + MetricSums.of_cohort(*arms, requests=1_000)
        evidence = Evidence(champion=1, loss=LOSS, canary=BUSY, metrics={"sales": sums})
        assert judge(evidence).action == "hold"


@pytest.mark.parametrize("jump", [timedelta(days=-400), timedelta(days=4_000)])
def test_a_clock_that_jumps_never_promotes_without_evidence(jump: timedelta) -> None:
    state = canary(RolloutPolicy())
    decision = decide(state, Evidence(champion=1, canary=BUSY), state.policy, START + jump)
    assert decision.action == ("hold" if jump < timedelta(0) else "inconclusive")


def test_answers_of_the_first_seconds_say_nothing_of_the_split() -> None:
    lagging = rows([2] + [1] * 9, list("abcdefghij"), after_s=0)
    assert count_assigned(lagging, canary(), SlotSums()) == SlotSums()
    assert (
        unit_counts(count_assigned(rows([2, 1], ["k", "l"], after_s=10), canary(), SlotSums())).champion == 1
    )


def test_the_rows_of_one_request_were_assigned_together() -> None:
    ids = ["first", *(f"many:{row}" for row in range(50)), "last", "of:letters"]
    n = len(ids)
    logged = pa.table(
        {
            "prediction_id": ids,
            "version": [2] + [1] * (n - 1),
            "shadow": [False] * n,
            "unit": pa.array([None] * n, pa.string()),
            "predicted_at": pa.array(
                [START + timedelta(seconds=60 + i) for i in range(n)], pa.timestamp("us", "UTC")
            ),
            "latency_ms": [1.0] * n,
            "outputs": [[0.5]] * n,
            "label": [0.0] * n,
        }
    )
    found = count_assigned(score(logged), canary(), SlotSums())
    assert unit_counts(found) == UnitCounts(champion=3, challenger=0)
