"""Values of any size that the log holds of a label, an answer or a metric: a rollout goes on, and can be ended."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from tests.conditions.values import any_recorded
from tests.functions.rollout.conftest import RolloutPlatform
from toque.functions.rollout.controller import Rollouts
from toque.functions.rollout.evidence.cohort_sums import WholeSums
from toque.functions.rollout.evidence.metrics import MetricRows, MetricValue, read_metric, write_metric
from toque.functions.rollout.policy import Guardrail, RolloutPolicy, Slo
from toque.functions.rollout.status import TickResult

DAY = timedelta(days=1)
SOURCES = ("label", "output", "table")
POLICY = RolloutPolicy(
    loss="squared_error",
    shadow_min_labels=200,
    canary_share=0.4,
    season=timedelta(0),
    guardrails=tuple(Guardrail(name=source, source=source, margin=0.5) for source in SOURCES),
    slos=(Slo(name="answers", target=0.5),),
)


def controller(platform: RolloutPlatform) -> Rollouts:
    """Controller that reads outcome metrics from their tables, too."""
    rollouts = platform.rollouts()
    rollouts._read_metric = lambda guardrail, since: MetricRows(
        read_metric(platform.store, guardrail.name, since)
    )
    return rollouts


def start_canary(platform: RolloutPlatform) -> None:
    controller(platform).start(2, POLICY, reason="a try")
    while controller(platform).history().open.stage != "canary":
        live_a_day(platform)


def live_a_day(platform: RolloutPlatform, recorded: float = 1.0, *, of: Collection[str] = ()) -> TickResult:
    """Serve a day, on which one request has the value `recorded` as its label, answer or metric, and tick."""
    began, row, label = platform.now, platform._row, platform._label

    def answers(name: str, *rest: Any, **named: Any) -> dict[str, Any]:
        answer: dict[str, Any] = row(name, *rest, **named)
        return answer | {"outputs": [recorded]} if "output" in of and name.endswith("-7") else answer

    def labels(ids: list[str], truth: np.ndarray, at: Any) -> None:
        values = truth.astype(float)
        values[7] = recorded if "label" in of else values[7]
        label(ids, values, at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platform, "_row", answers)
        patch.setattr(platform, "_label", labels)
        platform.serve_a_day()
    values = [1.0 + request % 3 for request in range(200)]
    values[7] = recorded if "table" in of else values[7]
    ids = [f"{began:%j}-{request}" for request in range(200)]
    rows = [  # as they lie in a table, whatever was refused at the door
        MetricValue.model_construct(prediction_id=name, value=value, observed_at=platform.now)
        for name, value in zip(ids, values, strict=True)
    ]
    write_metric(platform.store, "table", rows)
    return controller(platform).tick()


@any_recorded
def test_no_recorded_value_stops_a_tick_a_guard_or_a_promotion_of_others(
    platform: RolloutPlatform, recorded: float
) -> None:
    start_canary(platform)
    live_a_day(platform, recorded, of=SOURCES)
    ticks = [live_a_day(platform) for _ in range(2)]
    rollouts = controller(platform)
    assert rollouts.status().stage == ticks[-1].stage
    if ticks[-1].stage == "canary":
        platform.failing = {2: 1.0}
        ticks += [live_a_day(platform) for _ in range(2)]
        assert "rolled_back" in [tick.stage for tick in ticks]
    too_large = np.isfinite(recorded) and abs(recorded) > 1e100
    assert ("promoted" in [tick.stage for tick in ticks]) <= (not too_large)
    decided = [entry.number for entry in rollouts.entries() if "decision" in entry.body]
    assert all(rollouts.explain(entry).same for entry in decided)


@pytest.mark.parametrize("source", SOURCES)
def test_a_person_ends_a_rollout_whatever_was_recorded(platform: RolloutPlatform, source: str) -> None:
    start_canary(platform)
    live_a_day(platform, 1e160 if source != "output" else 3e38, of=(source,))
    live_a_day(platform)
    assert controller(platform).end("roll_back", reason="no answers").stage == "rolled_back"
    assert platform.registry.now.versions == (1,)


def test_values_that_no_sum_holds_are_named(platform: RolloutPlatform) -> None:
    start_canary(platform)
    live_a_day(platform, 1e160, of=("label",))
    for _ in range(4):
        live_a_day(platform)
    assert controller(platform).history().open is not None  # nothing is promoted with it
    decisions = [
        entry.body["decision"] for entry in controller(platform).entries() if "decision" in entry.body
    ]
    texts = " ".join(finding["text"] for finding in decisions[-1]["findings"])
    assert "1 values are beyond 1e+100: give the guardrail of the next rollout a floor and a cap" in texts


def test_sums_of_before_that_held_infinity_are_summed_anew(platform: RolloutPlatform) -> None:
    start_canary(platform)
    live_a_day(platform)
    key = "rollouts/late/evidence/00000000.json"
    sums = WholeSums.model_validate_json(platform.store.find(key) or b"")
    infinite = sums.loss.model_copy(update={"champion_loss": float("inf")})
    platform.store.put(key, sums.model_copy(update={"loss": infinite}).model_dump_json().encode())
    assert b'"champion_loss":null' in (platform.store.find(key) or b"")
    live_a_day(platform)
    summed = WholeSums.model_validate_json(platform.store.find(key) or b"")
    assert summed.loss.labels > sums.loss.labels


@pytest.mark.parametrize("action", ["roll_back", "inconclusive"])
def test_a_person_ends_a_rollout_whose_evidence_cannot_be_read(
    platform: RolloutPlatform, action: Any
) -> None:
    def fail(*_: Any) -> Any:
        raise OSError("the log is gone")

    start_canary(platform)
    rollouts = controller(platform)
    rollouts._read = fail
    with pytest.raises(OSError, match="gone"):
        rollouts.end("promote", reason="blindly")
    assert not rollouts.end(action, reason="no answers").is_open
    assert platform.registry.now.versions == (1,)
