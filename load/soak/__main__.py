"""Soak of a platform of its own: mixed load with promotions, retrains, kills and a full disk.

The platform, its store and the report lie in `--folder`, which is emptied first. By root, the prediction log lies on a disk of 64 MiB that
is filled up now and then; else that part is left out, and the report says so. Exit code 0: every failed request was in a process
that was killed, and nothing grew; 1: not so; 2: nothing could be measured.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import redis

from toque.load.benchmarks.harness import main, say
from toque.load.benchmarks.servers import Platform, started
from toque.load.benchmarks.serving import fixtures
from toque.load.benchmarks.serving.floor import small_mlp
from toque.load.benchmarks.training.fixtures import COLUMNS, synthetic_table
from toque.load.scenarios.keeping import HttpDoor, record
from toque.load.scenarios.plan import plan_of
from toque.load.scenarios.scenario import Ask, Scenario, Wave
from toque.load.scenarios.sending.processes import Sending, start_sending
from toque.load.scenarios.target import Target
from toque.load.soak.disturbances import Disturbances
from toque.load.soak.project import KEYED, RETRAINED, STEADY
from toque.load.soak.verdict import Sample, growths, memory_by_role, sample, unexcused
from toque.registry import Table, TableSnapshot, open_store

_SAMPLE_S = 5.0
_TRAINING_ROWS = 4_000
_DISK = "64m"


def run(
    *,
    minutes: float = 60,
    rate: Annotated[float, "requests/s at the top of the wave"] = 60,
    every: Annotated[float, "seconds between two disturbances"] = 20,
    folder: Path = Path("build/soak"),
) -> bool:
    """Soak a new platform, print its verdict and keep it as a run. Raises: NotPossible, httpx.HTTPError, OSError."""
    folder = folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    store_url, home = (folder / "store").as_uri(), folder / "home"
    models = {
        STEADY: fixtures.BenchmarkModel(small_mlp(), arms=(0.1,)),
        KEYED: fixtures.keyed_models()[KEYED],
    }
    fixtures.register(store_url, folder / "artifacts", models)
    fixtures.define_features(store_url)
    rows = Table(open_store(store_url), "rows").append(synthetic_table().slice(0, _TRAINING_ROWS))
    with (
        _small_disk(folder / "store-wal") as disk,
        started(home, store_url, project="toque.load.soak.project", cpus=8) as platform,
        redis.Redis.from_url(platform.redis_url) as keys,
    ):
        fixtures.fill_features(store_url, platform.redis_url)
        body = {"version": _train(platform, rows), "reason": "first"}
        platform.client.post(f"/models/{RETRAINED}/promote", json=body).raise_for_status()
        platform.wait_for(STEADY, RETRAINED, KEYED)
        disturbances = Disturbances(platform.client, home, every, disk, lambda: _train(platform, rows))
        target, samples = Target(platform.url, platform.token, STEADY), list[Sample]()
        scenario = _scenario(folder, rate, minutes * 60)
        plan = plan_of(target.url, STEADY, scenario, metadata_of=target.metadata, log_requests=True)
        with start_sending(plan, target.token) as sending:
            thread = threading.Thread(target=disturbances.run)
            thread.start()
            try:
                while not sending.collect():
                    samples.append(sample(home, [home, folder / "store-wal"], keys))
                    time.sleep(_SAMPLE_S)
            finally:
                disturbances.stop.set()
                thread.join()
            report = _report(minutes, sending, samples, disturbances, disk)
        (folder / "report.json").write_text(json.dumps(report, indent=1))
        kept = record(
            HttpDoor(platform.client), "load", "soak",
            params={"minutes": minutes, "rate": rate}, metrics=report["figures"],
            tags={"toque.load": "soak", "toque.load.held": str(report["held"]).lower()},
            files={"soak.json": json.dumps(report)},
        )  # fmt: skip
    say(f"kept as run {kept} of {store_url}, and in {folder / 'report.json'}")
    return bool(report["held"])


def _scenario(folder: Path, rate: float, seconds: float) -> Scenario:
    """Scenario of the soak: a wave of tensors, tensors for the retrained model, and requests by key."""
    keys = folder / "keys.jsonl"
    keys.write_text(json.dumps({"entities": {"key": fixtures.KEY}}) + "\n")
    wave = Wave(kind="wave", rate=rate / 3, to_rate=rate, period_s=min(600, seconds), seconds=seconds)
    mix = (Ask(model=STEADY, weight=2), Ask(model=RETRAINED), Ask(model=KEYED, keys=keys))
    # as users: the retrained model is judged by them
    return Scenario(shape=wave, mix=mix, connections=32, patience_s=5, as_users=True)


def _train(platform: Platform, rows: TableSnapshot) -> int:
    """Train and register the next version of the retrained model. Raises: httpx.HTTPError."""
    columns: dict[str, Any] = {name: list(getattr(COLUMNS, name)) for name in ("numeric", "categorical")}
    columns |= {"training_set": rows.model_dump(mode="json"), "label": COLUMNS.label}
    return int(platform.call("train_tabular", model=RETRAINED, params={"epochs": 2}, **columns)["version"])


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path | None]:
    """Mount a small disk at a folder; None where only root may."""
    if os.geteuid() != 0:
        yield None
        return
    folder.mkdir(mode=0o700)
    options = f"size={_DISK},mode=0700"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    try:
        yield folder if mounted.returncode == 0 else None
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def _report(
    minutes: float, sending: Sending, samples: list[Sample], disturbances: Disturbances, disk: Path | None
) -> dict[str, Any]:
    """Print and put together what came of it."""
    requests, found = sending.requests(), sending.windows.measured()
    failed = [request for request in requests if request["problem"]]
    bad = unexcused(failed, disturbances.kills)
    grown = growths(samples)
    made = Counter(event.name for event in disturbances.events if not event.problem)
    unmade = [event for event in disturbances.events if event.problem]
    held = not bad and not found.dropped and not unmade and all(each.judged is not False for each in grown)
    say(
        f"{minutes:g} min: {found.due} due, {found.answered} answered, {len(failed)} failed, {found.dropped} dropped"
    )
    say(
        f"p50 {found.latency_ms(0.5):.1f} ms, p99 {found.latency_ms(0.99):.1f} ms; {dict(made)}, {len(disturbances.kills)} kills"
    )
    for event in unmade:
        say(f"NOT MADE: {event.name}: {event.problem}")
    if disk is None:
        say("no disk was filled: only root may mount a small one")
    say(f"{len(failed) - len(bad)} failed in a process that was killed, {len(bad)} otherwise")
    for problem, count in Counter(each["problem"][:100] for each in bad).most_common(10):
        say(f"  FAILED {count} x {problem}")
    for each in grown:
        say(f"  {each}")
    for role, (before, after) in memory_by_role(samples).items():
        say(f"    {role}: {before:.0f} MiB, at the end {after:.0f}")
    say("held" if held else "NOT HELD")
    figures = {"due": found.due, "failed": len(failed), "unexcused": len(bad), "dropped": found.dropped,
               "kills": len(disturbances.kills), "p99_ms": found.latency_ms(0.99)}  # fmt: skip
    return {
        "held": held,
        "figures": {name: float(value) for name, value in figures.items() if value < float("inf")},
        "growths": [asdict(each) for each in grown],
        "events": [asdict(event) for event in disturbances.events],
        "unexcused": [dict(each) for each in bad[:1000]],
        "disk": disk is not None,
    }


if __name__ == "__main__":
    main(run, "ray", "torch")
