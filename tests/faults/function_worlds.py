"""Worlds of the platform's functions: rollouts, the prediction log, erasure, retention, quotas, alerts and backups."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import redis

from tests.conditions.faults import FaultyStore, KilledError, Verb
from tests.faults.templates import fill_once, redis_of_the_matrix
from tests.functions.prediction_log.logbook import T0, record
from tests.functions.rollout.conftest import RolloutPlatform
from toque.functions import Context, use_context
from toque.functions.alerting.jobs import acknowledge_alert, alert_journal, silence_alerts
from toque.functions.maintenance.backup import back_up, restore
from toque.functions.maintenance.compaction import compact_open_days, compact_tables
from toque.functions.maintenance.costs import sum_costs
from toque.functions.maintenance.erasure.jobs import erase_subject, finish_erasures
from toque.functions.maintenance.erasure.record import Erasures
from toque.functions.maintenance.registry import tidy_registry
from toque.functions.maintenance.retention import apply_retention, set_retention
from toque.functions.monitoring import Alarm, call_false_alarm, false_alarm_budget
from toque.functions.monitoring.alarms import alarm_journal
from toque.functions.prediction_log import LogWriter, default_wal_root, drain_predictions, predictions
from toque.functions.prediction_log.records import PREDICTIONS, predictions_table
from toque.functions.quotas import remove_quota, set_quota
from toque.functions.rollout import RolloutPolicy, end_rollout, record_metric, start_rollout, tick_rollout
from toque.functions.rollout.errors import NoRollout, RolloutActive
from toque.functions.rollout.evidence.metrics import MetricValue, read_metric
from toque.functions.rollout.jobs import pause_rollout, resume_rollout, rollouts
from toque.functions.runtime.context import context
from toque.functions.runtime.durable.ledger import Ledger
from toque.functions.runtime.durable.slots import quotas_in
from toque.registry import ModelPolicy, Registry, Table
from toque.registry.errors import Forbidden, Unavailable
from toque.registry.history import audit
from toque.registry.store import FolderStore
from toque.registry.times import utc_now

MODEL = "late"
DAY = timedelta(days=1)
UNIT, BESIDE = "user-1234", "user-12345"
REVENUE = MetricValue(prediction_id="p1", value=3.0, observed_at=T0)
POLICY = RolloutPolicy(shadow_min_labels=200)


class PlatformWorld:
    """Context of a platform whose store may fail."""

    def __init__(self, faulty: FaultyStore, *, now: Any = T0, redis_url: str | None = None) -> None:
        self.faulty, self.now, self.redis_url = faulty, now, redis_url
        self.folder = TemporaryDirectory()
        self.anew()

    def restart(self) -> None:
        """Start the process anew, a minute after the kill: what it held a lease of is free again."""
        store = self.faulty.store
        for key in list(store.list("leaders/")):
            store.put(key, b"")
        self.anew()

    def anew(self) -> None:
        """Forget what was read."""
        self.context = self.context_of(self.faulty)

    def context_of(self, store: Any) -> Context:
        return Context(
            store,
            self.faulty.store.url,
            redis_url=self.redis_url,
            clock=lambda: self.now,
            actor="ada",
            log_folder=f"{self.folder.name}/wal",
        )

    def close(self) -> None:
        self.folder.cleanup()

    def call(self, function: Callable[..., Any], *args: Any, **named: Any) -> Any:
        with use_context(self.context):
            return function(*args, **named)

    def read(self, function: Callable[..., Any], *args: Any) -> Any:
        with use_context(self.context_of(self.faulty.store)):
            return function(*args)

    def check(self) -> None:
        report = audit(self.faulty.store)
        assert not report.findings, report.findings

    def rollout(self) -> object:
        """Say what stands in the rollout's journal and in the traffic, and check that every decision comes out again."""
        rollout = self.read(rollouts, MODEL)
        history = rollout.history()
        for entry in rollout.entries():
            if entry.body["event"] == "decided":
                assert rollout.explain(entry.number).same
        traffic = Registry(self.faulty.store, actor="auditor").traffic(MODEL)
        open_stage = history.open and (history.open.stage, history.open.challenger, history.open.paused)
        ends = [(item.challenger, item.stage) for item in history.outcomes]
        return open_stage, ends, [(arm.name, arm.version) for arm in traffic.arms], traffic.shadows

    def logged(self) -> list[str]:
        """Ids of the predictions in the table."""
        store = self.faulty.store
        return sorted(
            predictions(store, MODEL, T0 - 400 * DAY, T0 + 400 * DAY).column("prediction_id").to_pylist()
        )

    def journal(self, open_fold: Callable[..., Any], *args: Any) -> object:
        return self.read(open_fold, *args).refresh()


def _fill(faulty: FaultyStore) -> None:
    with TemporaryDirectory() as folder:
        registry = Registry(faulty.store, actor="trainer")
        registry.create_model(MODEL, policy=ModelPolicy(approvals=0))
        for number in (1, 2):
            path = Path(folder) / f"{number}.txt"
            path.write_text(str(number))
            registry.create_version(MODEL, path)
        registry.set_alias(MODEL, "champion", 1)


def _fill_shadow(faulty: FaultyStore) -> None:
    """Fill a store with a rollout whose shadow has all labels that the next tick needs to make it a canary."""
    _fill(faulty)
    platform = RolloutPlatform(faulty.store)
    world = PlatformWorld(faulty, now=platform.now)
    world.call(start_rollout, MODEL, 2, POLICY)
    platform.registry.now = Registry(faulty.store, actor="reader").traffic(MODEL)
    for _ in range(2):
        platform.serve_a_day()
    world.close()


def world(faulty: FaultyStore) -> PlatformWorld:
    fill_once(faulty, _fill)
    return PlatformWorld(faulty)


def in_shadow(faulty: FaultyStore) -> PlatformWorld:
    fill_once(faulty, _fill_shadow)
    return PlatformWorld(faulty, now=RolloutPlatform(faulty.store).now + 2 * DAY)


def paused(faulty: FaultyStore) -> PlatformWorld:
    filled = in_shadow(faulty)
    filled.call(pause_rollout, MODEL, "a look")
    filled.anew()
    return filled


def with_records(faulty: FaultyStore) -> PlatformWorld:
    """Log three predictions, which are in the stream."""
    url = redis_of_the_matrix()
    redis.Redis.from_url(url).flushall()
    filled = PlatformWorld(faulty, redis_url=url)
    log = _writer(filled)
    for number in (1, 2, 3):
        log.append(record(f"p{number}", unit=UNIT if number == 1 else BESIDE))
    log.close()
    return filled


def _writer(world: PlatformWorld) -> LogWriter:
    root = default_wal_root(world.context.store_url, world.context.log_folder)
    return LogWriter(root, "predictions", redis_of_the_matrix(), poll_s=0.001)


def with_table(faulty: FaultyStore) -> PlatformWorld:
    filled = with_records(faulty)
    filled.call(drain_predictions)
    for number in (4, 5):  # a file of its own each
        log = _writer(filled)
        log.append(record(f"p{number}", unit=BESIDE))
        log.close()
        filled.call(drain_predictions)
    filled.anew()
    return filled


def _fill_small_files(faulty: FaultyStore) -> None:
    """Fill the day's table as drains do that find one record item."""
    platform = RolloutPlatform(faulty.store)
    for number in range(40):
        rows = [platform._row(f"p{number}", 1, "champion", T0, 0.0, shadow=False)]
        Table(faulty.store, predictions_table(MODEL)).append(
            pa.Table.from_pylist(rows, schema=PREDICTIONS), partition_by=["day"]
        )


def with_small_files(faulty: FaultyStore) -> PlatformWorld:
    fill_once(faulty, _fill_small_files)
    return PlatformWorld(faulty)


def with_invocation(faulty: FaultyStore) -> PlatformWorld:
    """Submit an invocation days ago, whatever the time of day is now."""
    ledger = Ledger(faulty.store, actor="ada", clock=lambda: utc_now() - 3 * DAY)
    ledger.submit(tick_rollout, {"model": MODEL}, key="one")
    return PlatformWorld(faulty)


def with_garbage(faulty: FaultyStore) -> PlatformWorld:
    filled = world(faulty)
    filled.context.registry().delete_version(MODEL, 2)
    filled.anew()
    return filled


def long_after(faulty: FaultyStore) -> PlatformWorld:
    filled = with_table(faulty)
    filled.call(set_retention, predictions=10.0)
    filled.now = T0 + 30 * DAY
    filled.anew()
    return filled


def with_idle_log(faulty: FaultyStore) -> PlatformWorld:
    """Have no writer in the streams, for whose files an erasure would wait a minute each time."""
    filled = with_table(faulty)
    redis.Redis.from_url(redis_of_the_matrix()).flushall()
    shutil.rmtree(Path(filled.folder.name) / "wal")
    return filled


def with_erasure(faulty: FaultyStore) -> PlatformWorld:
    from toque.functions.maintenance.erasure.subject import Subject

    filled = with_idle_log(faulty)
    Erasures(filled.context.store).request(Subject(unit=UNIT), actor="ada", now=T0, text=False)
    return filled


def with_quota(faulty: FaultyStore) -> PlatformWorld:
    filled = PlatformWorld(faulty)
    filled.call(set_quota, "vision", cpus=4.0)
    filled.anew()
    return filled


def with_alert(faulty: FaultyStore) -> PlatformWorld:
    filled = PlatformWorld(faulty)
    alarm = Alarm(
        key="late/drift/wind/1", model=MODEL, monitor="drift", subject="wind", version=1, raised_at=T0, start=T0 - DAY, end=T0,
        text="the wind drifts",
    )  # fmt: skip
    body = {"event": "told", "alarm": alarm.model_dump(mode="json"), "key": alarm.key, "at": T0.isoformat()}
    filled.read(alert_journal, MODEL).transact(lambda _: body)
    return filled


def with_raised_alarm(faulty: FaultyStore) -> PlatformWorld:
    filled = PlatformWorld(faulty)
    alarm = Alarm(
        key="late/drift/1/7", model=MODEL, monitor="drift", subject="wind", version=1, raised_at=T0, start=T0 - DAY, end=T0,
        text="the wind drifts",
    )  # fmt: skip
    body = {"alarm": alarm.model_dump(mode="json")}
    filled.read(alarm_fold).transact(lambda _: body)
    return filled


def alarm_fold() -> Any:
    used = context()
    return alarm_journal(MODEL, store=used.store, clock=used.clock, actor=used.actor)


def called_false(world: PlatformWorld) -> object:
    return world.read(false_alarm_budget).called_false


def rows_once(world: PlatformWorld) -> object:
    world.call(drain_predictions)  # what was left is not lost
    return world.logged()


def erased(world: PlatformWorld) -> object:
    """Check that the person is nowhere and the bystander everywhere, and that nothing is pending."""
    world.call(finish_erasures)
    erasures = Erasures(world.faulty.store)
    assert not list(erasures.pending())
    assert erasures.certificates()
    rows = predictions(world.faulty.store, MODEL, T0 - DAY, T0 + DAY).to_pylist()
    return sorted((row["prediction_id"], row["unit"]) for row in rows)


def backup(world: PlatformWorld) -> None:
    """Back up to a folder that answers: the platform's store and Redis are what may fail."""
    back_up(world.faulty, world.redis_url, FolderStore(Path(world.folder.name) / "backup"))  # type: ignore[arg-type]  # has the store's verbs


def restored(world: PlatformWorld) -> object:
    """Restore the backup into a new folder, and say what it has."""
    target = FolderStore(Path(world.folder.name) / "restored")
    restore(FolderStore(Path(world.folder.name) / "backup"), target)
    assert not audit(target).findings
    result = predictions(target, MODEL, T0 - DAY, T0 + DAY).column("prediction_id").to_pylist()
    shutil.rmtree(Path(world.folder.name) / "restored")
    return sorted(result)


def again_or(
    act: Callable[[PlatformWorld], object], *refusals: type[Exception]
) -> Callable[[PlatformWorld], None]:
    def again(world: PlatformWorld) -> None:
        with suppress(*refusals):
            act(world)

    return again


def verb(
    name: str,
    act: Callable[[PlatformWorld], object],
    *,
    prepare: Callable[[FaultyStore], PlatformWorld] = world,
    outcome: Callable[[PlatformWorld], object] = PlatformWorld.rollout,
    refusals: tuple[type[Exception], ...] = (),
) -> Verb[PlatformWorld]:
    return Verb(
        name,
        prepare=prepare,
        act=act,
        again=again_or(act, *refusals),
        check=PlatformWorld.check,
        outcome=outcome,
        restart=PlatformWorld.restart,
        close=PlatformWorld.close,
        tolerated=(Unavailable, Forbidden, redis.RedisError, KilledError),
    )


def blobs(world: PlatformWorld) -> object:
    return sorted(world.faulty.store.list(f"models/{MODEL}/blobs/"))


def quotas(world: PlatformWorld) -> object:
    return world.journal(quotas_in, world.faulty.store, "auditor")


def metric(world: PlatformWorld) -> object:
    return read_metric(world.faulty.store, "revenue", T0 - DAY).to_pylist()


def retention_setting(world: PlatformWorld) -> object:
    from toque.functions.maintenance.retention import retention

    return world.read(retention)


def silences(world: PlatformWorld) -> object:
    return world.journal(alert_journal, MODEL)


VERBS = [
    verb("start_rollout", lambda w: w.call(start_rollout, MODEL, 2, POLICY), refusals=(RolloutActive,)),
    verb("tick_rollout", lambda w: w.call(tick_rollout, MODEL), prepare=in_shadow),
    verb("pause_rollout", lambda w: w.call(pause_rollout, MODEL, "a look"), prepare=in_shadow),
    verb("resume_rollout", lambda w: w.call(resume_rollout, MODEL, "seen"), prepare=paused),
    verb("end_rollout", lambda w: w.call(end_rollout, MODEL, "promote", "sure"), prepare=in_shadow, refusals=(NoRollout,)),
    verb("record_metric", lambda w: w.call(record_metric, "revenue", [REVENUE]), outcome=metric),
    verb("drain_predictions", lambda w: w.call(drain_predictions), prepare=with_records, outcome=rows_once),
    verb("compact_tables", lambda w: w.call(compact_tables), prepare=with_table, outcome=PlatformWorld.logged),
    verb("compact_open_days", lambda w: w.call(compact_open_days), prepare=with_small_files, outcome=PlatformWorld.logged),
    verb("set_retention", lambda w: w.call(set_retention, predictions=10.0), outcome=retention_setting),
    verb("apply_retention", lambda w: w.call(apply_retention), prepare=long_after, outcome=PlatformWorld.logged),
    verb("erase_subject", lambda w: w.call(erase_subject, unit=UNIT), prepare=with_idle_log, outcome=erased),
    verb("finish_erasures", lambda w: w.call(finish_erasures), prepare=with_erasure, outcome=erased),
    verb("tidy_registry", lambda w: w.call(tidy_registry, 0.0), prepare=with_garbage, outcome=blobs),
    verb("sum_costs", lambda w: w.call(sum_costs), prepare=with_invocation, outcome=lambda w: w.read(sum_costs)),
    verb("set_quota", lambda w: w.call(set_quota, "vision", cpus=4.0, members=["bob"]), outcome=quotas),
    verb("remove_quota", lambda w: w.call(remove_quota, "vision"), prepare=with_quota, outcome=quotas),
    verb("silence_alerts", lambda w: w.call(silence_alerts, MODEL, "*", 2.0, "a release"), outcome=silences),
    verb("acknowledge_alert", lambda w: w.call(acknowledge_alert, MODEL, "drift/wind"), prepare=with_alert, outcome=silences),
    verb("call_false_alarm", lambda w: w.call(call_false_alarm, "late/drift/1/7"), prepare=with_raised_alarm, outcome=called_false),
    verb("back_up", backup, prepare=with_table, outcome=restored),
]  # fmt: skip
