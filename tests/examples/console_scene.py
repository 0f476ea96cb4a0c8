"""What people find in the console on the demo's platform: the demo's own data, and what a few days of it lack."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from examples.flights.features import flight_delay
from examples.flights.model import delay_model
from tests.ray_apps.console.tasks import Scene
from tests.waiting import until
from toque.featurestore import Entity, FeatureService, FeatureView, Field, Float64, String
from toque.functions.evaluation import evaluate_gate
from toque.functions.monitoring.alarms import Alarm, Alarms
from toque.functions.quotas import set_quota
from toque.functions.rollout import start_rollout
from toque.functions.runtime.context import Context, context_of, use_context
from toque.functions.training import train_tabular
from toque.ray_apps.local.state_file import RunningPlatform
from toque.registry import Access, Entry, Journal, ModelVersion, Table, TableSnapshot

MODEL, RUNS = delay_model.name, 20
EXPERIMENT = f"{MODEL}-sweep"
DEAD = "feature_health"
TEAM = "forecasting"
ROLES = ("viewer", "operator", "approver", "admin")


@contextmanager
def on_the_demo(running: RunningPlatform) -> Iterator[Context]:
    """Act as a colleague of the one who ran the demo."""
    used = context_of(running.environment() | {"TOQUE_ACTOR": "grace"})
    with use_context(used):
        yield used


def tokens(running: RunningPlatform, used: Context, look: str) -> dict[str, str]:
    """Make a token for each role, and wait until the gateway knows the last of them, which takes it two seconds at most."""
    access = _access(used)
    made = {role: access.create_token(f"{role}-{look}", role) for role in ROLES}
    asked = {"Authorization": f"Bearer {made[ROLES[-1]]}"}
    until(lambda: httpx.get(f"{running.url}/models", headers=asked, timeout=60).is_success)
    return made


def _access(used: Context) -> Access:
    """Tokens by the clock on the wall, as the doors have it, and not by the demo's, by which they ended years ago."""
    return Access(used.store, actor="grace")


def set_scene(running: RunningPlatform, used: Context, look: str) -> Scene:
    """Add to the demo's data what the tasks ask for and a few days may not have brought; returns what stands where.

    look: part of the names, so that one look takes nothing away from the next.
    """
    failed, waiting, rolled = _versions(used)
    start_rollout(MODEL, rolled, reason="retrained on April")
    _access(used).create_token(f"intern-{look}", "viewer")
    _raise_alarms(used, look)
    _add_stale_view(used, look)
    _log_runs(used)
    with httpx.Client(
        base_url=running.url, headers={"Authorization": f"Bearer {running.token()}"}, timeout=60
    ) as http:
        _kill_letter(http)
        http.post("/functions/sum_costs", json={"days": 2}).raise_for_status()
        callers = {
            each["caller"] for each in http.get("/costs", params={"days": 3650}).raise_for_status().json()
        }
        names = [
            each["name"] for each in http.get("/reports", params={"subject": MODEL}).raise_for_status().json()
        ]
    set_quota(TEAM, members=sorted(callers))
    promotion = _first_promotion(used)
    return Scene(
        model=MODEL,
        failed=failed,
        lacks=f"gate '{delay_model.gate.name}'",
        waiting=waiting,
        answered=MODEL,
        made_of=delay_model.numeric[0],
        experiment=EXPERIMENT,
        compared=RUNS,
        best="best_loss",
        dead=DEAD,
        told=f"drift/{look}",
        silenced=f"performance/{look}",
        since=f"{promotion.at:%Y-%m-%d}",
        until=f"{promotion.at + timedelta(days=31):%Y-%m-%d}",
        changed_by=promotion.actor,
        reason=f"alias: {MODEL}@{promotion.body['version']}",
        token=f"intern-{look}",
        stale=_view(look),
        users=f"closures_{look.replace('-', '_')}_service",
        report=names[0],
        report_says=MODEL,
        team=TEAM,
    )


def _first_promotion(used: Context) -> Entry:
    """Find the entry that made the first version the champion: of the account that ran the demo."""
    history = used.registry().history(MODEL)
    return next(each for each in history if each.body["kind"] == "alias")


def _versions(used: Context) -> tuple[int, int, int]:
    """Find a version whose gate failed, or make one; register the champion's files again: as a version that waits for approval, and one to roll out."""
    registry = used.registry()
    champion = registry.get_version(MODEL, "champion")
    failed = next(iter(_refused(used)), None) or _untrained(used)
    with tempfile.TemporaryDirectory() as folder:
        registry.download(MODEL, champion.version, folder)
        waiting, rolled = (_again(used, champion, Path(folder)).version for _ in range(2))
    for version in (waiting, rolled):
        assert _judged(used, version)
    return failed, waiting, rolled


def _refused(used: Context) -> list[int]:
    """List the versions whose gate failed."""
    found = used.registry().get_model(MODEL).versions.items()
    gates = {number: version.gates.get(delay_model.gate.name) for number, version in found}
    return [number for number, gate in gates.items() if gate is not None and not gate.passed]


def _untrained(used: Context) -> int:
    """Train a version for one epoch of steps that are next to nothing, and see its gate fail."""
    made = train_tabular(
        MODEL,
        _snapshot(used, f"training/{MODEL}/train"),
        delay_model.label,
        list(delay_model.numeric),
        list(delay_model.categorical),
        params=delay_model.training.model_copy(update={"epochs": 1, "lr": 1e-9}),
        features=used.features().definitions_digest(flight_delay.name),
        datasets=[_snapshot(used, delay_model.entities)],
        feature_service=flight_delay.name,
    )
    assert made.version is not None
    assert not _judged(used, made.version)
    return made.version


def _judged(used: Context, version: int) -> bool:
    held_out = _snapshot(used, f"training/{MODEL}/gate")
    return evaluate_gate(MODEL, version, held_out, delay_model.label, delay_model.gate).passed


def _snapshot(used: Context, name: str) -> TableSnapshot:
    return TableSnapshot(name=name, version=Table(used.store, name).version())


def _again(used: Context, champion: ModelVersion, files: Path) -> ModelVersion:
    return used.registry().create_version(
        MODEL,
        files,
        signature=champion.signature,
        metrics=champion.metrics,
        tags=champion.tags,
        lineage=champion.lineage,
        description="The same weights, registered again",
    )


def _raise_alarms(used: Context, look: str) -> None:
    """Raise two alarms, and record that people were told of the first, as `tell_people` does where a channel is set up."""
    alarms = Alarms(MODEL, store=used.store, clock=used.clock, actor="ticker", publish=lambda *_: None)
    now = used.clock()
    drift, loss = (_alarm(monitor, look, now) for monitor in ("drift", "performance"))
    for each in (drift, loss):
        alarms.report(each)
    told = Journal(used.store, f"alerts/{MODEL}", actor="ticker", clock=used.clock)
    body = {"event": "told", "at": now.isoformat(), "key": drift.key, "alarm": drift.model_dump(mode="json")}
    told.append(body, at=sum(1 for _ in told.entries()))


def _alarm(monitor: Any, look: str, now: datetime) -> Alarm:
    return Alarm(
        key=f"{monitor} {look}", model=MODEL, monitor=monitor, subject=look, version=1, raised_at=now,
        start=now - timedelta(days=1), end=now, text="moved",
    )  # fmt: skip


def _view(look: str) -> str:
    return f"closures_{look.replace('-', '_')}"


def _add_stale_view(used: Context, look: str) -> None:
    features, name = used.features(), _view(look)
    airport = Entity(f"{name}_airport", join_keys=[Field("closed_at", String)])
    view = FeatureView(name, [airport], [Field("runways", Float64)], ttl=timedelta(hours=1))
    features.apply([airport, view, FeatureService(f"{name}_service", [view])])
    at = used.clock() - timedelta(days=2)
    features.write_offline(name, [{"closed_at": "EWR", "event_timestamp": at, "runways": 1.0}])


def _log_runs(used: Context) -> None:
    """Log runs beside those of the demo's sweep until there are enough to compare; the first of them is the best, and has files."""
    registry = used.registry()
    there = len(registry.search_runs(EXPERIMENT))
    with tempfile.TemporaryDirectory() as folder:
        registry.download(MODEL, "champion", folder)
        for number in range(max(1, RUNS - there)):
            with registry.start_run(
                EXPERIMENT, name=f"night-{there + number}", params={"rate": number}
            ) as run:
                run.log_metrics({"best_loss": 0.9 if number else 0.2 / there})
                run.log_artifact(folder, to="model")


def _kill_letter(http: httpx.Client) -> None:
    """Submit what can only fail, and wait until its attempts are used up."""
    accepted = http.post(
        f"/functions/{DEAD}", json={"views": ["no_such_view"]}, headers={"Prefer": "respond-async"}
    )
    invocation = accepted.raise_for_status().json()["id"]
    until(
        lambda: http.get(f"/invocations/{invocation}").raise_for_status().json()["status"] == "dead",
        within_s=240,
    )
