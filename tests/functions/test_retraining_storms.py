"""The loop under pressure: a hundred alarms at once, a retrain's own effects, a blackout; and what the journal says of each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from toque.functions import Context, use_context
from toque.functions.monitoring import Alarm, alarms
from toque.functions.project import ModelDefinition
from toque.functions.retraining import jobs as module
from toque.functions.retraining.challengers import Challenger
from toque.functions.retraining.jobs import RetrainResult, inspect_model, retrain, retrains
from toque.functions.retraining.policy import RULES, Blackout, RetrainingPolicy
from toque.functions.rollout import end_rollout, rollout_status
from toque.registry import AutomaticApproval, ModelPolicy, open_store

DAY = timedelta(days=1)
SEGMENTS = ("late-AA", "late-DL", "late-UA")
GOVERNANCE = ModelPolicy(
    guarded=frozenset({"champion"}),
    gates=("offline",),
    automatic_approval=AutomaticApproval(reason="storms pass without people"),
)
POLICY = RetrainingPolicy(cooldown=10 * DAY, settle=3 * DAY)


class Clock:
    now = datetime(2013, 6, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


class TrainingStub:
    """Stands in for training: each order is counted and registers a version that passed its gate."""

    def __init__(self, ctx: Context, file: Path) -> None:
        self.ctx, self.file, self.trained = ctx, file, list[str]()
        self.meanwhile: Callable[[], object] = lambda: None

    def __call__(self, definition: ModelDefinition, *_: Any) -> tuple[Challenger, ...]:
        self.trained.append(definition.name)
        self.meanwhile()
        return (Challenger(window="all", version=self.version(definition.name), passed=True, log_loss=0.5),)

    def version(self, model: str) -> int:
        registry = self.ctx.registry()
        made = registry.create_version(model, self.file)
        registry.record_gate(model, made.version, "offline", passed=True)
        return made.version


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ctx(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    declare(monkeypatch, POLICY)
    url = f"file://{tmp_path}/store"
    with use_context(Context(open_store(url), url, project="storms", clock=clock, actor="storm")) as context:
        yield context


@pytest.fixture
def training(ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingStub:
    file = tmp_path / "model.txt"
    file.write_text("a model")
    made, registry = TrainingStub(ctx, file), ctx.registry()
    for model in SEGMENTS:
        registry.create_model(model, policy=GOVERNANCE)
        version = made.version(model)
        registry.as_actor("ada").approve(model, version)
        registry.set_alias(model, "champion", version)
    monkeypatch.setattr(module, "train_challengers", made)
    return made


def declare(monkeypatch: pytest.MonkeyPatch, policy: RetrainingPolicy) -> None:
    """A project with one model for each segment, which nothing watches: alarms are raised by the tests."""
    models = [
        ModelDefinition(
            name=name,
            service="late",
            entities="items",
            label="late",
            numeric=("x",),
            monitors=(),
            retraining=policy,
            governance=GOVERNANCE,
        )
        for name in SEGMENTS
    ]
    project = ModuleType("storms")
    project.FEATURES, project.MODELS = [], models  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "storms", project)


def alarm(clock: Clock, model: str = SEGMENTS[0], number: int = 0, **changes: Any) -> Alarm:
    fields: dict[str, Any] = {
        "key": f"{model}/performance/loss/{number}",
        "model": model,
        "monitor": "performance",
        "subject": f"loss {number}",
        "version": 1,
        "raised_at": clock.now,
        "start": clock.now - 2 * DAY,
        "end": clock.now - DAY,
        "text": "the loss rose",
    }
    return Alarm(**(fields | changes))


def entries(model: str = SEGMENTS[0]) -> list[dict[str, Any]]:
    return [entry.body for entry in retrains(model).journal.entries()]


def test_a_hundred_alarms_at_once_make_one_retrain_for_each_segment(
    ctx: Context, clock: Clock, training: TrainingStub
) -> None:
    raised = [alarm(clock, SEGMENTS[n % len(SEGMENTS)], n) for n in range(100)]
    with ThreadPoolExecutor(8) as pool:
        told = [pool.submit(copy_context().run, retrain, one) for one in raised]
        answers: list[RetrainResult] = [one.result() for one in told]
    assert sorted(training.trained) == list(SEGMENTS)
    assert sum(one.action == "retrain" for one in answers) == len(SEGMENTS)
    # "cooldown": of one that looked between the end of the training and the start of the rollout.
    assert {one.rule for one in answers if one.action == "skip"} <= {"running", "rollout_open", "cooldown"}
    for model in SEGMENTS:
        assert [body["event"] for body in entries(model)].count("started") == 1
        assert rollout_status(model).open is not None


def test_a_retrain_never_triggers_the_next(ctx: Context, clock: Clock, training: TrainingStub) -> None:
    model, rules = SEGMENTS[0], []
    training.meanwhile = lambda: rules.append(
        retrain(alarm(clock, number=1)).rule
    )  # an alarm while it trains
    first = retrain(alarm(clock))
    rules.append(retrain(alarm(clock, number=2)).rule)  # one that its shadow raised
    clock.now += DAY
    end_rollout(model, "promote", "it is better")
    rules.append(retrain(alarm(clock, number=3)).rule)  # a late one about the champion of before
    inspect_model(model)  # sees the new champion
    own: dict[str, Any] = {
        "version": first.version,
        "monitor": "drift",
    }  # what the new champion brings by being new
    rules += [retrain(alarm(clock, number=number, **own)).rule for number in range(4, 10)]
    assert rules == ["running", "rollout_open", "other_champion", *["settling"] * 6]
    assert training.trained == [model]
    clock.now += POLICY.settle
    assert retrain(alarm(clock, number=10, version=first.version)).rule == "cooldown"
    clock.now += POLICY.cooldown  # the world went on changing: that is a reason of its own
    training.meanwhile = lambda: None
    assert retrain(alarm(clock, number=11, version=first.version)).action == "retrain"


def test_a_policy_in_blackout_waits_and_goes_on_with_what_still_stands(
    ctx: Context, clock: Clock, training: TrainingStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, holidays = SEGMENTS[0], Blackout(start=clock.now - DAY, end=clock.now + 5 * DAY)
    declare(monkeypatch, POLICY.model_copy(update={"blackouts": (holidays,)}))
    alarms(model).report(alarm(clock))
    for _ in range(5):
        (waited,) = inspect_model(model).retraining
        assert (waited.action, waited.rule) == ("skip", "blackout")
        assert waited.text == f"blackout until {holidays.end}"
        clock.now += DAY
    assert training.trained == []
    assert [one.action for one in inspect_model(model).retraining] == ["retrain"]
    assert [body["event"] for body in entries()] == ["skipped", "started", "finished"]


def test_each_decision_on_record_says_what_every_rule_found(
    ctx: Context, clock: Clock, training: TrainingStub
) -> None:
    retrain(alarm(clock))
    retrain(alarm(clock, number=1))
    end_rollout(SEGMENTS[0], "inconclusive", "enough")
    clock.now += DAY
    retrain(alarm(clock, number=2))
    decided = [body for body in entries() if "decision" in body]
    assert [body["decision"]["rule"] for body in decided] == ["go", "rollout_open", "cooldown"]
    for body in decided:
        findings = body["decision"]["findings"]
        assert len(findings) == len(RULES)
        assert all(one["text"] for one in findings)
        fired = [one["rule"] for one in findings if one["fired"]]
        assert (fired or ["go"])[0] == body["decision"]["rule"]
        assert {"alarm", "world", "policy", "at"} <= body.keys()
    cooling = next(one for one in decided[-1]["decision"]["findings"] if one["rule"] == "cooldown")
    assert "1 day, 0:00:00 since the last start, cooldown 20 days, 0:00:00 after 1 in vain" in cooling["text"]
