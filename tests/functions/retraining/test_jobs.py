"""From an alarm to a rollout, with the real feature store, training, gate and registry, in a folder."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.waiting import until
from toque.featurestore import Entity, FeatureService, FeatureView, Field, Float64, String
from toque.functions import Context, use_context
from toque.functions.evaluation import Gate
from toque.functions.features.jobs import build_training_set, training_set_lineage
from toque.functions.monitoring import Alarm, alarms
from toque.functions.project import ModelDefinition, Project, load_project
from toque.functions.retraining import challengers
from toque.functions.retraining import jobs as module
from toque.functions.retraining.jobs import (
    RetrainResult,
    inspect_model,
    inspect_models,
    inspections,
    request_retrain,
    retrain,
    retrains,
)
from toque.functions.retraining.policy import (
    RetrainingPolicy,
    RetrainState,
    Running,
    Situation,
    decide,
    step,
)
from toque.functions.retraining.triggers import last_seen
from toque.functions.retraining.windows import TrainingWindow
from toque.functions.rollout import rollout_status
from toque.functions.runtime.durable.invocation import ledger_of
from toque.functions.runtime.durable.workflow import Run, use_run
from toque.functions.training import FunctionTrainer, TabularParams, Trained, TrainingRequest, train_tabular
from toque.registry import AutomaticApproval, ModelPolicy, Table, TableSnapshot, open_store

MODEL, DAY = "late", timedelta(days=1)
START = datetime(2013, 1, 1, tzinfo=UTC)
TURN = START + 40 * DAY  # from here on the opposite is true
PER_DAY = 60

state = FeatureView("state", [Entity("item")], [Field("x", Float64), Field("kind", String)])
POLICY = RetrainingPolicy(
    windows=(TrainingWindow(name="all"), TrainingWindow(name="recent", days=25)),
    cooldown=10 * DAY,
    settle=DAY,
)
DEFINITION = ModelDefinition(
    name=MODEL,
    service="late",
    entities="items",
    label="late",
    numeric=("x",),
    categorical=("kind",),
    training=TabularParams(hidden=(16,), epochs=8, batch_size=64, lr=0.02),
    gate=Gate(max_log_loss_ratio={"constant": 1.0}, max_ece=0.3, min_rows=50),
    governance=ModelPolicy(
        guarded=frozenset({"champion"}),
        gates=("offline",),
        automatic_approval=AutomaticApproval(reason="the world turns without people"),
    ),
    retraining=POLICY,
)


class Wall:
    """Two clocks in one: the platform's, and the wall's by which a retrain is dead."""

    def __init__(self) -> None:
        self.now = START + 75 * DAY
        self.wall = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Wall:
    made = Wall()
    monkeypatch.setattr(module, "system_clock", lambda: made.wall)
    return made


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of a project whose world turned on day 40, with a champion from before."""
    folder = tmp_path_factory.mktemp("prepared") / "store"
    url = f"file://{folder}"
    with use_context(Context(open_store(url), url, clock=Wall(), actor="trainer")) as context:
        context.features().apply([state, FeatureService("late", [state])])
        items = write_items(context)
        first = build_training_set("late", items, "late", START, TURN, name="training/first")
        registry = context.registry()
        registry.create_model(MODEL, policy=DEFINITION.governance)
        train_tabular(MODEL, first, "late", ["x"], ["kind"], DEFINITION.training)
        registry.record_gate(MODEL, 1, "offline", passed=True)
        registry.as_actor("ada").approve(MODEL, 1)
        registry.set_alias(MODEL, "champion", 1)
    return folder


@pytest.fixture
def ctx(prepared: Path, tmp_path: Path, clock: Wall, monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    """A copy of the prepared store, and the project that watches it."""
    project = ModuleType("turned_project")
    project.FEATURES, project.MODELS = [state, FeatureService("late", [state])], [DEFINITION]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "turned_project", project)
    shutil.copytree(prepared, tmp_path / "store")
    url = f"file://{tmp_path}/store"
    with use_context(
        Context(open_store(url), url, project="turned_project", clock=clock, actor="trainer")
    ) as context:
        yield context


def write_items(context: Context, days: int = 75) -> TableSnapshot:
    rng = np.random.default_rng(3)
    count = days * PER_DAY
    at = [START + DAY * (i / PER_DAY) for i in range(count)]
    x = rng.normal(size=count)
    turned = np.array([when >= TURN for when in at])
    late = rng.random(count) < 1 / (1 + np.exp(np.where(turned, 2.0, -2.0) * x))
    names = [f"i{i}" for i in range(count)]
    times = pa.array(at, pa.timestamp("us", "UTC"))
    context.features().write_offline(
        state,
        pa.table({"item": names, "x": x, "kind": rng.choice(["a", "b"], count), "event_timestamp": times}),
    )
    known = pa.array([when + timedelta(hours=5) for when in at], pa.timestamp("us", "UTC"))
    rows = {"item": names, "event_timestamp": times, "late": late.astype(float), "label_known_at": known}
    return Table(context.store, "items").append(pa.table(rows))


def alarm(clock: Wall, number: int = 0, **changes: Any) -> Alarm:
    fields: dict[str, Any] = {
        "key": f"{MODEL}/performance/surprise/1/{number}",
        "model": MODEL,
        "monitor": "performance",
        "subject": "surprise",
        "version": 1,
        "raised_at": clock.now,
        "start": clock.now - 2 * DAY,
        "end": clock.now - DAY,
        "text": "surprised",
    }
    return Alarm(**(fields | changes))


def events(ctx: Context) -> list[str]:
    return [entry.body["event"] for entry in retrains(MODEL).journal.entries()]


@pytest.mark.slow
def test_an_alarm_becomes_a_challenger_in_shadow(ctx: Context, clock: Wall) -> None:
    done = retrain(alarm(clock))
    assert (done.action, done.rule) == ("retrain", "rolled_out")
    assert {one.window for one in done.challengers} == {"all", "recent"}
    registry = ctx.registry()
    version = registry.get_version(MODEL, done.version)
    assert version.gates["offline"].passed
    assert [(each.actor, each.automatic) for each in version.approvals] == [("retraining-policy", True)]
    assert version.lineage.parent == 1
    assert version.tags["feature_service"] == "late"
    assert version.tags["window"] == next(
        one.window for one in done.challengers if one.version == done.version
    )
    assert registry.traffic(MODEL).shadows == (done.version,)
    assert rollout_status(MODEL).open is not None
    held_out(ctx, clock, done)
    # a hundred more alarms, and an inspection, change nothing
    again = [retrain(alarm(clock, number)) for number in range(1, 101)]
    assert {(one.action, one.rule) for one in again} == {("skip", "rollout_open")}
    assert inspect_model(MODEL).rollout.stage == "shadow"
    assert events(ctx) == ["started", "finished", "skipped"]


def meeting(request: TrainingRequest) -> Trained:
    """A trainer that fails, and says whether another trained at the same time in this process."""
    try:
        TOGETHER.wait(timeout=1)
    except threading.BrokenBarrierError:
        raise RuntimeError("alone") from None
    raise RuntimeError("together")


TOGETHER = threading.Barrier(2)


def test_without_a_cluster_one_challenger_trains_at_a_time(
    ctx: Context, clock: Wall, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = FunctionTrainer(function=meeting, split="random", valid_fraction=0.2)
    own = DEFINITION.model_copy(update={"trainer": trainer, "training": None})
    monkeypatch.setattr(sys.modules["turned_project"], "MODELS", [own])
    done = retrain(alarm(clock))
    problems = [(one.window, one.problem) for one in done.challengers]
    assert problems == [("all", "training failed: alone"), ("recent", "training failed: alone")]


def held_out(ctx: Context, clock: Wall, done: RetrainResult) -> None:
    """The newest rows are in no training set, and each window is as long as it says."""
    split = clock.now - POLICY.label_delay - POLICY.holdout
    for one in done.challengers:
        snapshot = ctx.registry().get_version(MODEL, one.version).lineage.datasets[0]
        times = Table(ctx.store, snapshot.name).read(version=snapshot.version)["event_timestamp"].to_pylist()
        assert max(times) < split
        assert (min(times) >= split - 25 * DAY) == (one.window == "recent")


class Stub:
    """Stands in for the training of challengers, to fail in ways that real training seldom does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *outcomes: Any) -> None:
        self.outcomes = list(outcomes)
        self.calls = 0
        monkeypatch.setattr(module, "train_challengers", self)

    def __call__(self, *_: Any) -> Any:
        self.calls += 1
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


class KilledError(BaseException):
    """The process died."""


def test_no_challenger_that_passes_is_an_answer_and_is_waited_for_longer(
    ctx: Context, clock: Wall, monkeypatch: pytest.MonkeyPatch
) -> None:
    vain = (module.Challenger(window="all", version=7, problem="log loss / champion 1.2, at most 1"),)
    stub = Stub(monkeypatch, vain, vain)
    done = retrain(alarm(clock))
    assert (done.action, done.rule) == ("retrain", "no_challenger")
    assert "log loss / champion" in done.text
    clock.now += 11 * DAY  # past the cooldown, not past the doubled one
    assert retrain(alarm(clock, 1)).rule == "cooldown"
    clock.now += 10 * DAY
    assert retrain(alarm(clock, 2)).rule == "no_challenger"
    assert stub.calls == 2


@pytest.mark.parametrize("ceiling", [None, 1], ids=["switched off", "used up"])
def test_without_automatic_approval_a_challenger_waits_for_a_person(
    ctx: Context, clock: Wall, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ceiling: int | None
) -> None:
    registry = ctx.registry()
    governed = ModelPolicy(guarded=frozenset({"champion"}), gates=("offline",))
    if ceiling is not None:
        automatic = AutomaticApproval(reason="one a month", max_per_30_days=ceiling)
        governed = governed.model_copy(update={"automatic_approval": automatic})
    registry.set_policy(MODEL, governed)
    (tmp_path / "weights.bin").write_bytes(b"w")
    for _ in range(2):
        registry.create_version(MODEL, tmp_path / "weights.bin")
    if ceiling is not None:
        registry.as_actor("retraining-policy").approve(MODEL, 3, automatic=True)
    Stub(monkeypatch, (module.Challenger(window="all", version=2, passed=True, loss=0.1),))
    done = retrain(alarm(clock))
    assert (done.rule, done.version) == ("rolled_out", 2)
    assert "waits for a person's approval" in done.text
    assert registry.get_version(MODEL, 2).approvals == ()
    assert registry.traffic(MODEL).shadows == (2,)
    registry.as_actor("ada").approve(MODEL, 2)
    assert not registry.get_version(MODEL, 2).approvals[0].automatic


def test_a_retrain_that_fails_is_an_incident_and_makes_none_wait(
    ctx: Context, clock: Wall, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = ValueError("the labels are gone")
    Stub(monkeypatch, gone, gone, ())
    for number in range(2):
        with pytest.raises(ValueError, match="labels are gone"):
            retrain(alarm(clock, number))
        assert retrains(MODEL).refresh().finished[-1].text == "ValueError: the labels are gone"
        (incident,) = alarms(MODEL).standing()
        assert (incident.monitor, incident.subject) == ("operations", "retraining")
        assert "failed: ValueError: the labels are gone" in incident.text
        clock.now += timedelta(minutes=1)
    assert retrain(alarm(clock, 3)).rule == "cooldown"  # it failed again: an hour, not days
    clock.now += timedelta(hours=1)
    assert retrain(alarm(clock, 4)).rule == "no_challenger"
    assert alarms(MODEL).standing() == []


def test_a_retrain_killed_before_its_failure_is_told_is_taken_up_again(
    ctx: Context, clock: Wall, monkeypatch: pytest.MonkeyPatch
) -> None:
    Stub(monkeypatch, ValueError("the labels are gone"), ())
    with monkeypatch.context() as patched:
        patched.setattr(module, "_report_failure", raising(KilledError()))
        with pytest.raises(KilledError):
            retrain(alarm(clock))
    clock.wall += timedelta(hours=1)
    assert retrain(alarm(clock, 1)).rule == "no_challenger"


def raising(error: BaseException) -> Any:
    def fail(*_: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize("years", [0, 1, 12])
def test_rows_of_any_age_are_learnt_from_and_judged_by(ctx: Context, clock: Wall, years: int) -> None:
    newest, clock.now = START + 75 * DAY, clock.now + 365 * years * DAY
    running = Running(number=7, alarm=alarm(clock), at=clock.now, wall=clock.wall, champion=1)
    jobs, gate_set, empty = challengers._training_jobs(DEFINITION, POLICY, running)
    assert [job.window.name for job in jobs] == [window.name for window in POLICY.windows]
    assert empty == {}
    held_out, learnt = (training_set_lineage(one) for one in (gate_set, jobs[0].arguments["training_set"]))
    last = newest - POLICY.label_delay if years == 0 else newest
    assert last - DAY < held_out.end <= last + timedelta(microseconds=1)
    assert (held_out.end - held_out.start, held_out.start) == (POLICY.holdout, learnt.end)
    assert learnt.rows > 5 * held_out.rows > 0


def test_a_window_without_rows_is_said_and_stops_no_other(ctx: Context, clock: Wall) -> None:
    windows = (TrainingWindow(name="all"), TrainingWindow(name="recent", days=60))
    later = pa.array([START + 400 * DAY] * 10, pa.timestamp("us", "UTC"))
    rows = {
        "item": [f"i{i}" for i in range(10)],
        "event_timestamp": later,
        "late": [1.0] * 10,
        "label_known_at": later,
    }
    Table(ctx.store, "items").append(pa.table(rows))
    clock.now = START + 500 * DAY
    running = Running(number=7, alarm=alarm(clock), at=clock.now, wall=clock.wall, champion=1)
    policy = POLICY.model_copy(update={"windows": windows})
    jobs, _, empty = challengers._training_jobs(DEFINITION, policy, running)
    assert [job.window.name for job in jobs] == ["all"]
    assert "has no rows with 'late'" in str(empty["recent"])


def test_a_retrain_that_was_killed_is_taken_up_again_by_the_next_inspection(
    ctx: Context, clock: Wall, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = Stub(monkeypatch, KilledError(), ())
    with pytest.raises(KilledError):
        retrain(alarm(clock))
    assert [one.rule for one in inspect_model(MODEL).retraining] == ["running"]
    clock.wall += POLICY.lost_after
    resumed = inspect_model(MODEL).retraining
    assert [(one.action, one.rule) for one in resumed] == [("resume", "no_challenger")]
    assert stub.calls == 2
    assert events(ctx) == ["started", "skipped", "resumed", "finished"]
    assert retrains(MODEL).refresh().running is None


def test_a_durable_inspection_submits_the_retrain_and_ends(
    ctx: Context, clock: Wall, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = Stub(monkeypatch, KilledError(), ())
    with pytest.raises(KilledError):
        retrain(alarm(clock))
    clock.wall += POLICY.lost_after
    ledger = ledger_of(ctx)
    followed = ledger.follow(ledger.submit(inspect_model, {"model": MODEL}))
    with use_run(Run(ledger, followed, "worker")):
        first, again = (inspect_model(MODEL).retraining for _ in range(2))  # its worker may be lost
    assert [(one.action, one.rule) for one in first] == [("submitted", "dead")]
    assert first == again
    (sent,) = (each for each in ledger.invocations() if each.function == "retrain")
    assert first[0].invocation == sent.id
    assert stub.calls == 1
    assert events(ctx) == ["started"]
    taken_up = retrain(Alarm(**ledger.arguments(sent)["alarm"]))
    assert (taken_up.action, taken_up.rule, stub.calls) == ("resume", "no_challenger", 2)


def test_a_retrain_that_takes_long_is_running_as_long_as_its_heart_beats(
    ctx: Context, clock: Wall, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = POLICY.model_copy(update={"lost_after": timedelta(seconds=1)})
    changed = DEFINITION.model_copy(update={"retraining": impatient})
    monkeypatch.setattr(sys.modules["turned_project"], "MODELS", [changed])
    rules: list[str] = []

    def trains_for_days(*_: Any) -> tuple[()]:
        clock.wall += 3 * DAY
        until(lambda: last_seen(MODEL, retrains(MODEL).refresh().running) == clock.wall)
        rules.extend(one.rule for one in inspect_model(MODEL).retraining)
        clock.wall += timedelta(seconds=0.9)
        rules.append(retrain(alarm(clock, 1)).rule)
        return ()

    monkeypatch.setattr(module, "train_challengers", trains_for_days)
    assert retrain(alarm(clock)).rule == "no_challenger"
    assert rules == ["running", "running"]
    assert events(ctx) == ["started", "skipped", "finished"]


@pytest.mark.slow
@pytest.mark.parametrize("before", ["_roll_out", "_end"])
def test_a_retrain_killed_near_its_end_does_nothing_twice(
    ctx: Context, clock: Wall, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    def killed(*_: Any) -> None:
        raise KilledError

    one_window = POLICY.model_copy(update={"windows": POLICY.windows[1:]})
    definition = DEFINITION.model_copy(update={"retraining": one_window})
    monkeypatch.setattr(sys.modules["turned_project"], "MODELS", [definition])
    with monkeypatch.context() as patch:
        patch.setattr(module, before, killed)
        with pytest.raises(KilledError):
            retrain(alarm(clock))
    entries = len(ctx.registry().history(MODEL))
    trained = [one.version for one in ctx.registry().list_versions(MODEL)]
    clock.wall += POLICY.lost_after
    (done,) = inspect_model(MODEL).retraining
    assert (done.action, done.rule) == ("resume", "rolled_out")
    assert [one.version for one in ctx.registry().list_versions(MODEL)] == trained
    if before == "_end":  # all was done: the registry hears nothing new
        assert len(ctx.registry().history(MODEL)) == entries
    opened = rollout_status(MODEL).open
    assert opened is not None
    assert opened.challenger == done.version == retrains(MODEL).refresh().finished[-1].version


def test_every_decision_can_be_made_again_from_the_journal(
    ctx: Context, clock: Wall, monkeypatch: pytest.MonkeyPatch
) -> None:
    Stub(monkeypatch, (), ())
    for number in range(3):
        retrain(alarm(clock, number))
        clock.now += 12 * DAY
    remade, before = 0, RetrainState()
    for entry in retrains(MODEL).journal.entries():
        if "decision" in entry.body:
            body = entry.body
            again = decide(
                before,
                Alarm.model_validate(body["alarm"]),
                Situation.model_validate(body["world"]),
                RetrainingPolicy.model_validate(body["policy"]),
                datetime.fromisoformat(body["at"]),
            )
            assert again.model_dump(mode="json") == body["decision"]
            remade += 1
        before = step(before, entry)
    assert remade == 3


def test_an_inspection_offers_what_stands(ctx: Context, clock: Wall, monkeypatch: pytest.MonkeyPatch) -> None:
    Stub(monkeypatch, ())
    assert inspect_model(MODEL).retraining == ()
    alarms(MODEL).report(alarm(clock))
    assert [one.rule for one in inspect_model(MODEL).retraining] == ["no_challenger"]
    assert [one.rule for one in inspect_model(MODEL).retraining] == ["cooldown"]


def test_an_incident_is_never_offered_and_hides_no_other_alarm(
    ctx: Context, clock: Wall, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = Stub(monkeypatch, (), ())
    incident = alarm(clock, key=f"{MODEL}/quality/volume/1", monitor="quality", subject="volume")
    assert retrain(incident).rule == "no_trigger"
    alarms(MODEL).report(incident)
    assert inspect_model(MODEL).retraining == ()
    alarms(MODEL).report(alarm(clock))
    broken = {"key": f"{MODEL}/quality/nulls/1", "monitor": "quality", "subject": "nulls", "columns": ("x",)}
    alarms(MODEL).report(alarm(clock, **broken))
    assert [one.rule for one in inspect_model(MODEL).retraining] == ["broken_feed"]
    assert stub.calls == 0
    alarms(MODEL).report(alarm(clock, **broken | {"key": f"{MODEL}/quality/nulls/2", "recovered": True}))
    assert [one.rule for one in inspect_model(MODEL).retraining] == ["no_challenger"]


@pytest.mark.parametrize("max_age", [None, 30 * DAY], ids=["an alarm that counts", "the policy's own"])
@pytest.mark.parametrize(
    ("limits", "rule"),
    [
        ({"triggers": ("performance", "age")}, "no_trigger"),
        ({"important": ("kind",)}, "unimportant"),
        ({"quorum": 2}, "no_quorum"),
    ],
)
def test_an_alarm_that_does_not_count_hides_no_other(
    ctx: Context,
    clock: Wall,
    monkeypatch: pytest.MonkeyPatch,
    limits: dict[str, Any],
    rule: str,
    max_age: timedelta | None,
) -> None:
    Stub(monkeypatch, ())
    policy = POLICY.model_copy(update=limits | {"max_age": max_age})
    changed = DEFINITION.model_copy(update={"retraining": policy})
    monkeypatch.setattr(sys.modules["turned_project"], "MODELS", [changed])
    drift = {"key": f"{MODEL}/drift/x/1", "monitor": "drift", "subject": "x", "columns": ("x",)}
    alarms(MODEL).report(alarm(clock, **drift))
    assert [one.rule for one in inspect_model(MODEL).retraining] == [rule]
    clock.now += 31 * DAY
    if max_age is None:
        alarms(MODEL).report(alarm(clock))
    assert [one.rule for one in inspect_model(MODEL).retraining] == ["no_challenger"]


def test_a_champion_grown_old_is_an_alarm(ctx: Context, clock: Wall, monkeypatch: pytest.MonkeyPatch) -> None:
    Stub(monkeypatch, ())
    old = DEFINITION.model_copy(update={"retraining": POLICY.model_copy(update={"max_age": 30 * DAY})})
    sys.modules["turned_project"].MODELS = [old]  # type: ignore[attr-defined]
    assert inspect_model(MODEL).retraining == ()
    clock.now += 29 * DAY
    assert inspect_model(MODEL).retraining == ()
    clock.now += 2 * DAY
    assert [one.rule for one in inspect_model(MODEL).retraining] == ["no_challenger"]


def test_asked_for_by_hand_it_begins_now(ctx: Context, clock: Wall, monkeypatch: pytest.MonkeyPatch) -> None:
    Stub(monkeypatch, (), (), ())
    for reason in ("new data came", "and again", "and again"):
        done: RetrainResult = request_retrain(MODEL, reason)
        assert done.rule == "no_challenger"
    assert retrain(alarm(clock)).rule == "cooldown"


def test_each_model_has_its_inspection_scheduled(ctx: Context) -> None:
    (schedule,) = inspections(load_project("turned_project"))
    assert (schedule.name, schedule.cron.arguments) == ("inspect-late", {"model": MODEL})


def test_many_models_are_inspected_together_and_one_that_fails_alone(
    ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = load_project("turned_project").models
    many = {f"late-{n}": models[MODEL].model_copy(update={"name": f"late-{n}"}) for n in range(120)}
    project = Project("many", (), many)
    schedules = inspections(project)
    assert [len(one.cron.arguments["models"]) for one in schedules] == [50, 50, 20]
    assert [name for one in schedules for name in one.cron.arguments["models"]] == list(many)
    monkeypatch.setattr(sys.modules["turned_project"], "MODELS", list((models | many).values()))
    looked: list[str] = []

    def watch(definition: ModelDefinition) -> tuple[()]:
        looked.append(definition.name)
        if definition.name == "late-1":
            raise ValueError("its table is gone")
        return ()

    monkeypatch.setattr("toque.functions.retraining.jobs.run_monitors", watch)
    with pytest.raises(ExceptionGroup, match="1 of 3 inspections failed") as failed:
        inspect_models(["late-0", "late-1", "late-2"])
    assert looked == ["late-0", "late-1", "late-2"]
    assert failed.value.exceptions[0].__notes__ == ["while model 'late-1' was inspected"]
    assert [one.model for one in inspect_models(["late-0", "late-2"])] == ["late-0", "late-2"]


@pytest.mark.parametrize(
    ("limits", "days", "monitor"),
    [
        ({"schedule": "0 0 1 * *"}, 40, "schedule"),
        ({"max_age": 30 * DAY}, 30, "age"),
        ({"min_new_labels": 20 * PER_DAY}, 21, "volume"),
    ],
)
def test_a_policy_raises_alarms_of_its_own_when_they_are_due(
    ctx: Context,
    clock: Wall,
    monkeypatch: pytest.MonkeyPatch,
    limits: dict[str, Any],
    days: int,
    monitor: str,
) -> None:
    policy = POLICY.model_copy(update=limits | {"cooldown": DAY, "backoff": 1.0})
    definition = DEFINITION.model_copy(update={"retraining": policy, "monitors": ()})
    monkeypatch.setattr(sys.modules["turned_project"], "MODELS", [definition])
    Stub(monkeypatch, (), ())
    clock.now = TURN
    assert inspect_model(MODEL).retraining == ()  # the champion is seen for the first time
    clock.now += days * DAY
    (done,) = inspect_model(MODEL).retraining
    assert done.rule == "no_challenger"
    started = next(one for one in retrains(MODEL).journal.entries() if one.body["event"] == "started")
    assert started.body["alarm"]["monitor"] == monitor
    clock.now += 2 * DAY
    assert [one.rule for one in inspect_model(MODEL).retraining] == (
        ["no_challenger"] if monitor == "age" else []
    )


def test_a_window_may_choose_among_the_rows_of_its_time(ctx: Context, clock: Wall) -> None:
    windows = (
        TrainingWindow(name="all"),
        TrainingWindow(name="season", season_days=20),
        TrainingWindow(name="fading", half_life_days=10),
    )
    running = Running(number=4, alarm=alarm(clock), at=clock.now, wall=clock.wall, champion=1)
    policy = POLICY.model_copy(update={"windows": windows})
    (everything, season, fading), *_ = challengers._training_jobs(DEFINITION, policy, running)
    sizes = {}
    for job in (everything, season, fading):
        made = job.arguments["training_set"]
        times = Table(ctx.store, made.name).read(version=made.version)["event_timestamp"].to_pylist()
        sizes[job.window.name] = len(times)
        assert job.arguments["datasets"] == [
            TableSnapshot(name="items", version=Table(ctx.store, "items").version())
        ]
    assert 0 < sizes["season"] < sizes["all"]
    assert 0 < sizes["fading"] < sizes["all"] / 2
