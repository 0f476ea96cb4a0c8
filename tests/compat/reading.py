"""What a reader sees of a store, through the public names, as values that JSON holds.

The writer of a store keeps these values beside it; the test reads them again with later code and compares. Only names
that users, examples and other rooms import are used here.
"""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.routing import Mount

from tests.compat import tasks
from tests.compat.project import DAY, DRIFT, NOW, PERFORMANCE, QUALITY, SERVED_FROM, START
from toque.functions import Context, Invocation, use_context
from toque.functions.alerting.jobs import alert_status
from toque.functions.monitoring import (
    alarms,
    monitor_status,
    results_table,
    standing_alarms,
    watch_drift,
    watch_performance,
    watch_quality,
)
from toque.functions.prediction_log import outcomes, predictions
from toque.functions.project import load_project
from toque.functions.quotas import quotas
from toque.functions.retraining.jobs import inspections, retrains
from toque.functions.rollout import explain_rollout, look_at_rollout, rollout_budget, rollout_status
from toque.functions.runtime import FixedClock
from toque.functions.runtime.durable.invocation import ledger_of
from toque.functions.runtime.triggers.schedule import Schedule, status
from toque.functions.training import load
from toque.ray_apps.mlflow import build_app
from toque.registry import Access, Journal, Registry, Table, Traffic, open_store

PROJECT = "tests.compat.project"
MOMENTS = [START + days * DAY + timedelta(hours=1) for days in (0, 1, 2, 3, 4, 14, 25)]


def context_of(folder: Path, redis_url: str | None, *, after: timedelta = timedelta(0)) -> Context:
    """The surroundings of a reader of the store in `folder`, when it was closed or some time after."""
    url = f"file://{folder.resolve()}"
    clock = FixedClock(NOW + after)
    return Context(open_store(url), url, redis_url, project=PROJECT, clock=clock, actor="reader")


def everything(folder: Path, redis_url: str, notes: dict[str, Any]) -> dict[str, Any]:
    """All that is compared, part by part; `notes` are the writer's, and stand beside it."""
    with use_context(context_of(folder, redis_url)) as used:
        seen = {
            "access": access(used, notes["tokens"]),
            "models": {name: model(used.registry(), name) for name in ("late", "price")},
            "signature": plain(used.registry().verify_signature("price", 2, notes["signer"])),
            "layer": {
                name: [claim.number, claim.buckets]
                for name, claim in used.registry().layer("checkout").items()
            },
            "experiments": experiments(used.registry()),
            "mlflow": asyncio.run(mlflow(used, notes)),
            "features": features(used),
            "answers": answers(used.registry()),
            "log": log(used),
            "rollouts": rollouts(used),
            "monitoring": monitoring(used),
            "retraining": retraining(),
            "alerts": plain(alert_status("late")),
            "quotas": plain(quotas()),
            "invocations": {name: invocation(each) for name, each in notes["invocations"].items()},
            "costs": sorted((plain(each) for each in ledger_of(used).costs()), key=json.dumps),
            "schedules": plain(status(used, schedules=schedules())),
            "events": {topic: journal(used, f"events/{topic}") for topic in ("harvest", "alarm")},
            "results_kept": {"digest": tasks.square.digest, "keys": sorted(used.store.list("memos/"))},
        }
    return {"notes": notes, "seen": json.loads(json.dumps(seen))}


def plain(value: Any) -> Any:
    """`value` as JSON: models by their fields, numbers that are none as text."""
    if isinstance(value, BaseModel):
        return plain(value.model_dump(mode="json"))
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def journal(used: Context, name: str) -> list[Any]:
    """The entries of a journal: number, actor, time, digest and body."""
    return [plain([entry.number, entry.actor, entry.at, entry.digest, entry.body])
            for entry in Journal(used.store, name, actor=used.actor).entries()]  # fmt: skip


def access(used: Context, tokens: dict[str, str]) -> Any:
    """Every token, and whose each of `tokens` is."""
    found = Access(used.store, actor="root", clock=used.clock)
    return {
        "tokens": [_as_by_role(token) for token in found.list_tokens()],
        "people": {name: _as_by_role(found.verify(token)) for name, token in tokens.items()},
    }


def _as_by_role(holder: Any) -> Any:
    """A token or principal in the words of the release whose tokens had a role, and whose roles had numbers."""
    if holder is None:
        return None
    numbers = {"viewer": 1, "caller": 2, "operator": 3, "approver": 4, "admin": 5}
    found = plain(holder)
    (grant,) = found.pop("grants")
    for later in ("limits", "last_used_at", "token"):
        found.pop(later, None)
    assert (grant["workspace"], grant["model"]) == ("default" if grant["role"] != "admin" else "*", None)
    return {**found, "role": numbers[grant["role"]]}


def model(registry: Registry, name: str) -> Any:
    """A model with its versions, history, traffic, and who was live when."""
    every = range(1, 1 + max(registry.get_model(name).versions))
    return plain(
        {
            "versions": [registry.find_version(name, number) for number in every],
            "listed": [version.version for version in registry.list_versions(name)],
            "unmet": {number: registry.unmet(name, number) for number in every},
            "aliases": registry.get_model(name).aliases,
            "tags": registry.get_model(name).tags,
            "policy": registry.get_model(name).policy,
            "champion_at": {str(at): registry.alias_at(name, "champion", at) for at in MOMENTS},
            "history": [
                [entry.number, entry.actor, entry.at, entry.digest, entry.body]
                for entry in registry.history(name)
            ],
            "traffic": registry.traffic(name),
            "arms": assigned(registry.traffic(name)),
            "verified": registry.verify(name),
        }
    )


def assigned(traffic: Traffic) -> list[str]:
    """The arms that some units and a request with attributes meet."""
    ruled = traffic.by_rule({"group": "staff"})
    return [*(traffic.assign(f"unit-{i}").name for i in range(50)), "" if ruled is None else ruled.name]


def experiments(registry: Registry) -> Any:
    """Every run with its series and artifacts, by experiment, and two searches."""
    found: dict[str, Any] = {}
    for each in registry.all_experiments():
        runs = registry.search_runs(each.name, order_by="attributes.start_time")
        found[each.name] = {
            "title": each.title,
            "tags": dict(each.tags),
            "runs": {run.id: _run(registry, run.id) for run in runs},
        }
    found["by_loss"] = [run.name for run in registry.search_runs("ovens", "metrics.loss < 0.5")]
    found["by_heat"] = [run.name for run in registry.search_runs("ovens", "params.heat = '200'")]
    return found


def _run(registry: Registry, run_id: str) -> Any:
    run = registry.get_run(run_id)
    record = run.record()
    series = {
        name: [[point.step, point.value, str(point.at)] for point in run.series(name)]
        for name in record.metrics
    }
    with TemporaryDirectory() as folder:
        texts = {path: run.download_artifact(path, folder).read_text()
                 for path in record.artifacts if path.endswith(".txt")}  # fmt: skip
    return plain({"record": record.to_json(), "series": series, "texts": texts})


async def mlflow(used: Context, notes: dict[str, Any]) -> Any:
    """The run and the logged model of outside, as MLflow's clients read them."""
    ids = notes["mlflow"]
    door = Starlette(routes=[Mount("/api", build_app(used.store))])
    headers = {"Authorization": f"Bearer {notes['tokens']['ada']}"}
    transport = httpx.ASGITransport(app=door)
    async with httpx.AsyncClient(transport=transport, base_url="http://door", headers=headers) as client:

        async def get(path: str, **query: str) -> Any:
            return (await client.get(f"/api/2.0/mlflow/{path}", params=query)).raise_for_status().json()

        return [
            await get("experiments/get", experiment_id=ids["experiment"]),
            await get("runs/get", run_id=ids["run"]),
            await get("metrics/get-history", run_id=ids["run"], metric_key="loss"),
            await get(f"logged-models/{ids['model']}"),
            await get("registered-models/get", name="price"),
            await get("runs/get", run_id=notes["gone"]),
        ]


def features(used: Context) -> Any:
    """Definitions, rows as of a moment, and rows that were brought online now."""
    store = used.features()
    asked = [{"item": f"i{i}", "shop": "ab"[i % 2], "limit": 0.5, "event_timestamp": START + i * DAY / 10}
             for i in range(0, 200, 25)]  # fmt: skip
    store.materialize_incremental(NOW)
    rows = [{name: each[name] for name in ("item", "shop", "limit")} for each in asked]
    services = store.list_feature_services()
    return plain(
        {
            "views": [view.describe() for view in store.list_feature_views()],
            "on_demand": store.get_on_demand_feature_view("above").describe(),
            "services": {name: store.definitions_digest(name) for name in services},
            "history": {name: len(store.history("feature_view", name)) for name in ("state", "visits")},
            "then": store.get_historical_features(asked, features="full").to_arrow().to_pylist(),
            "now": store.get_online_features("full", rows).to_dict(),
        }
    )


def answers(registry: Registry) -> Any:
    """What the stored versions answer to three rows."""
    learnt = {
        "numeric": np.array([[0.5], [-1.0], [np.nan]], np.float32),
        "categorical": [["a"], ["b"], ["never seen"]],
    }
    priced = {"numeric": np.array([[1.0, 2.0], [0.0, 0.0], [3.5, 0.5]], np.float32)}
    found = {}
    for name, inputs in (("late", learnt), ("price", priced)):
        for number in (1, 2):
            with TemporaryDirectory() as folder:
                version = registry.get_version(name, number)
                registry.download(name, number, to=Path(folder) / "model")
                given = load(Path(folder) / "model", signature=version.signature).predict(inputs)
            found[f"{name}@{number}"] = {output: plain(values.tolist()) for output, values in given.items()}
    return found


def log(used: Context) -> Any:
    """Drained predictions beside their labels: counts, and the first of them whole."""
    rows = outcomes(used.store, "late", START, NOW, labelled_only=False)
    shown = predictions(used.store, "late", SERVED_FROM, SERVED_FROM + DAY / 8).to_pylist()
    return plain(
        {"rows": rows.num_rows, "labelled": rows.num_rows - rows["label"].null_count, "first": shown}
    )


def rollouts(used: Context) -> Any:
    """How rollouts stand and ended, every decision made again, and the entries themselves."""
    entries = journal(used, "rollouts/late")
    decided = [entry[0] for entry in entries if "decision" in entry[-1]]
    return plain(
        {
            "status": rollout_status("late"),
            "sight": look_at_rollout("late"),
            "budget": rollout_budget("late"),
            "explained": [explain_rollout("late", number) for number in decided],
            "entries": entries,
        }
    )


def monitoring(used: Context) -> Any:
    """Findings, alarms, and that each monitor remembers up to where it has judged."""
    watched = [
        watch_quality("late", QUALITY),
        watch_performance("late", PERFORMANCE),
        watch_drift("late", DRIFT, QUALITY),
    ]
    rows = Table(used.store, results_table("late")).read().to_pylist()
    return plain(
        {
            "status": monitor_status("late"),
            "standing": standing_alarms("late"),
            "alarms": alarms("late").all(),
            "results": sorted(rows, key=lambda row: (row["monitor"], row["subject"], row["start"])),
            # Later releases say in the text which cohort is due when.
            "again": [one.model_copy(update={"text": one.text.partition(":")[0]}) for one in watched],
        }
    )


def retraining() -> Any:
    """What was decided about retraining, and what came of it."""
    fold = retrains("late")
    return plain({"state": fold.refresh(), "entries": [entry.body for entry in fold.journal.entries()]})


def invocation(invocation_id: str) -> Any:
    """A durable invocation: its record, arguments, log, and its result if it has one."""
    found = Invocation.of(invocation_id)
    record = found.record()
    lines = [line.text for segment in found.log() for line in segment.lines]
    result = found.result(timeout_s=1) if record.status == "succeeded" else None
    return plain(
        {
            "record": record,
            "arguments": ledger_of(found.used).arguments(record),
            "log": lines,
            "result": result,
        }
    )


def schedules() -> list[Schedule]:
    """The project's own schedules: its functions' and its models' inspections."""
    cron = tasks.store_harvest.schedule[0]
    return [
        Schedule(tasks.store_harvest.name, tasks.store_harvest, cron),
        *inspections(load_project(PROJECT)),
    ]
