"""Retrains that scheduled inspections submit: one waits at a time, and none that the policy wants is lost."""

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
from toque.functions.retraining.jobs import RetrainResult, inspect_model, retrain, retrains
from toque.functions.retraining.policy import Blackout, RetrainingPolicy
from toque.functions.runtime.durable.attempt import Attempt, run_attempt
from toque.functions.runtime.durable.invocation import ledger_of
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.durable.queue import QueueWriter
from toque.functions.runtime.durable.record import Record
from toque.functions.runtime.durable.workflow import Run, use_run
from toque.registry import open_store

MODEL, DAY = "late", timedelta(days=1)
POLICY = RetrainingPolicy(cooldown=10 * DAY, backoff=1.0)


class Clock:
    """Clock of the platform, which a test moves."""

    now = datetime(2013, 6, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


class KilledError(BaseException):
    """The process died."""


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ctx(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    """A store with a champion against which an alarm stands, and a project whose trainings pass no gate."""
    declare(monkeypatch, POLICY)
    monkeypatch.setattr(module, "train_challengers", lambda *_: ())
    (tmp_path / "weights.bin").write_bytes(b"w")
    url = f"file://{tmp_path}/store"
    with use_context(Context(open_store(url), url, project="queued", clock=clock, actor="ticker")) as context:
        registry = context.registry()
        registry.create_model(MODEL)
        registry.create_version(MODEL, tmp_path / "weights.bin")
        registry.set_alias(MODEL, "champion", 1)
        alarms(MODEL).report(alarm(clock))
        yield context


def declare(monkeypatch: pytest.MonkeyPatch, policy: RetrainingPolicy) -> None:
    """A project of one model that nothing watches: alarms are raised by the tests."""
    definition = ModelDefinition(
        name=MODEL,
        service="late",
        entities="items",
        label="late",
        numeric=("x",),
        monitors=(),
        retraining=policy,
    )
    project = ModuleType("queued")
    project.FEATURES, project.MODELS = [], [definition]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "queued", project)


def alarm(clock: Clock, subject: str = "loss", **changes: Any) -> Alarm:
    fields: dict[str, Any] = {
        "key": f"{MODEL}/performance/{subject}/{clock.now:%j}",
        "model": MODEL,
        "monitor": "performance",
        "subject": subject,
        "version": 1,
        "raised_at": clock.now,
        "start": clock.now - 2 * DAY,
        "end": clock.now - DAY,
        "text": "the loss rose",
    }
    return Alarm(**(fields | changes))


def inspection(ctx: Context) -> Callable[[], RetrainResult]:
    """A durable inspection, which runs at each call: its worker may be lost."""
    ledger = ledger_of(ctx)
    followed = ledger.follow(ledger.submit(inspect_model, {"model": MODEL}))

    def run() -> RetrainResult:
        with use_run(Run(ledger, followed, "worker")):
            (offered,) = inspect_model(MODEL).retraining
        return offered

    return run


def inspect(ctx: Context) -> RetrainResult:
    """What a further durable inspection says of its one alarm."""
    return inspection(ctx)()


def begin(ctx: Context, submitted: RetrainResult) -> Record:
    """Run an invocation of `retrain` in this process as a worker would, to its end."""
    ledger, invocation = ledger_of(ctx), str(submitted.invocation)
    followed = ledger.follow(invocation)
    run_attempt(Attempt(retrain, followed.record, followed.head, ctx, 15.0, 0.0, ledger.clock()))
    return ledger.read(invocation)


def submitted(ctx: Context) -> list[str]:
    return [each.id for each in ledger_of(ctx).invocations(function="retrain")]


def starts() -> int:
    return [one.body["event"] for one in retrains(MODEL).journal.entries()].count("started")


def test_inspections_submit_no_other_retrain_while_one_waits(ctx: Context) -> None:
    offered = [inspect(ctx) for _ in range(3)]
    assert {(one.action, one.rule) for one in offered} == {("submitted", "go")}
    assert {one.invocation for one in offered} == set(submitted(ctx))
    assert len(submitted(ctx)) == 1
    assert begin(ctx, offered[0]).status == "succeeded"
    assert starts() == 1


def test_two_alarms_of_one_model_get_one_retrain(ctx: Context, clock: Clock) -> None:
    first = inspect(ctx)
    clock.now += DAY
    alarms(MODEL).report(alarm(clock, "calibration"))
    alarms(MODEL).report(alarm(clock, recovered=True))
    assert inspect(ctx).invocation == first.invocation
    assert len(submitted(ctx)) == 1


def test_an_alarm_that_its_policy_words_anew_each_time_is_submitted_once(
    ctx: Context, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(monkeypatch, POLICY.model_copy(update={"max_age": 20 * DAY}))
    alarms(MODEL).report(alarm(clock, recovered=True, key="over"))
    with use_run(None):
        assert inspect_model(MODEL).retraining == ()  # the champion is seen for the first time
    clock.now += 21 * DAY
    first = inspect(ctx)
    clock.now += 20 * DAY  # twice too old: the key of the alarm has changed, too
    assert inspect(ctx).invocation == first.invocation
    assert len(submitted(ctx)) == 1


def test_a_retrain_that_failed_is_offered_again_at_once(
    ctx: Context, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("the labels are gone")

    monkeypatch.setattr(module, "train_challengers", fail)
    first = inspect(ctx)
    assert begin(ctx, first).status == "dead"
    again = inspect(ctx)
    assert again.action == "submitted"
    assert again.invocation != first.invocation
    begin(ctx, again)
    assert starts() == 2
    assert inspect(ctx).rule == "cooldown"  # it failed again: after an hour
    clock.now += timedelta(hours=1)
    assert inspect(ctx).action == "submitted"


def test_an_alarm_of_new_data_after_a_retrain_is_offered(ctx: Context, clock: Clock) -> None:
    first = inspect(ctx)
    assert begin(ctx, first).status == "succeeded"
    clock.now += POLICY.cooldown
    alarms(MODEL).report(alarm(clock))
    again = inspect(ctx)
    assert again.action == "submitted"
    assert again.invocation != first.invocation
    assert inspect(ctx).invocation == again.invocation
    begin(ctx, again)
    assert starts() == 2


def test_a_retrain_that_the_policy_defers_when_it_begins_is_offered_again(
    ctx: Context, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    holidays = Blackout(start=clock.now + DAY, end=clock.now + 3 * DAY)
    declare(monkeypatch, POLICY.model_copy(update={"blackouts": (holidays,)}))
    for _ in range(2):  # the second skip is like the first, which the journal does not repeat
        first = inspect(ctx)
        assert first.action == "submitted"
        clock.now = holidays.start
        assert begin(ctx, first).status == "succeeded"
        assert (inspect(ctx).rule, starts()) == ("blackout", 0)
        clock.now = holidays.end
        holidays = Blackout(start=clock.now + DAY, end=clock.now + 3 * DAY)
        declare(monkeypatch, POLICY.model_copy(update={"blackouts": (holidays,)}))
    again = inspect(ctx)
    assert again.action == "submitted"
    begin(ctx, again)
    assert starts() == 1


def test_a_retrain_over_the_budget_when_it_begins_is_offered_again(
    ctx: Context, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"budget": 1, "budget_window": 30 * DAY, "cooldown": timedelta(0)}
    declare(monkeypatch, POLICY.model_copy(update=small))
    first = inspect(ctx)
    retrain(alarm(clock))  # by hand, meanwhile
    assert begin(ctx, first).status == "succeeded"
    assert (inspect(ctx).rule, starts()) == ("budget", 1)
    clock.now += 30 * DAY
    begin(ctx, inspect(ctx))
    assert starts() == 2


def test_a_retrain_that_ended_before_it_began_is_offered_again(ctx: Context) -> None:
    cancelled = inspect(ctx)
    ledger_of(ctx).cancel(str(cancelled.invocation))
    again = inspect(ctx)
    assert again.action == "submitted"
    assert again.invocation != cancelled.invocation
    assert inspect(ctx).invocation == again.invocation
    begin(ctx, again)
    assert starts() == 1


def test_a_dead_retrain_is_taken_up_by_one_submission(
    ctx: Context, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall = [datetime(2026, 1, 1, tzinfo=UTC)]
    monkeypatch.setattr(module, "system_clock", lambda: wall[0])

    def killed(*_: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(module, "train_challengers", killed)
        with pytest.raises(KilledError):
            retrain(alarm(clock))
    wall[0] += POLICY.lost_after
    offered = [inspect(ctx) for _ in range(2)]
    assert {(one.action, one.rule) for one in offered} == {("submitted", "dead")}
    assert len(submitted(ctx)) == 1
    begin(ctx, offered[0])
    assert retrains(MODEL).refresh().running is None
    assert starts() == 1


def test_an_inspection_that_runs_twice_submits_once_even_if_its_retrain_has_ended(ctx: Context) -> None:
    run = inspection(ctx)
    first = run()
    ledger_of(ctx).cancel(str(first.invocation))
    assert run() == first
    assert submitted(ctx) == [first.invocation]


@pytest.mark.parametrize("lost", ["the first entry", "the note"])
def test_an_inspection_killed_while_it_submits_loses_nothing(
    ctx: Context, clock: Clock, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    declare(monkeypatch, POLICY.model_copy(update={"max_age": 20 * DAY}))
    alarms(MODEL).report(alarm(clock, recovered=True, key="over"))
    with use_run(None):
        assert inspect_model(MODEL).retraining == ()
    clock.now += 21 * DAY
    run = inspection(ctx)

    def killed(*_: Any, **__: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(*((Ledger, "submit") if lost == "the first entry" else (QueueWriter, "add")), killed)
        with pytest.raises(KilledError):
            run()
    assert submitted(ctx) == []
    clock.now += DAY  # the next inspection words the alarm otherwise
    offered = inspect(ctx)
    assert submitted(ctx) == [offered.invocation]  # found by its note
    begin(ctx, offered)
    assert starts() == 1


def test_inspections_at_once_submit_one_retrain(ctx: Context) -> None:
    runs = [inspection(ctx) for _ in range(8)]
    with ThreadPoolExecutor(len(runs)) as pool:
        told = [pool.submit(copy_context().run, run) for run in runs]
        invocations = {one.result().invocation for one in told}
    assert invocations == set(submitted(ctx))
    assert len(invocations) == 1
