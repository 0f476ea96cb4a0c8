"""Soak of a platform of its own: mixed load with promotions, retrains, kills and a full disk.

python -m toque.load.soak [--minutes 60] [--rate 60] [--every 20] [--folder build/soak]

The platform, its store and the report lie in `--folder`, which is emptied first. By root, the prediction log lies on a disk of 64 MiB that
is filled up now and then; else that part is left out, and the report says so. Exit code 0: every failed request was in a process
that was killed, and nothing grew; 1: not so; 2: nothing could be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import redis

from toque.load.benchmarks.platform.counter import NotPossible as NotStarted
from toque.load.benchmarks.platform.counter import Platform, started
from toque.load.benchmarks.serving.floor import small_mlp
from toque.load.benchmarks.serving.models import (
    KEY,
    BenchmarkModel,
    define_features,
    fill_features,
    keyed_models,
    register,
)
from toque.load.benchmarks.timing import print_machine
from toque.load.benchmarks.training.tabular import COLUMNS, synthetic_table
from toque.load.scenarios.keeping import HttpDoor, record
from toque.load.scenarios.plan import plan_of
from toque.load.scenarios.scenario import Ask, Scenario
from toque.load.scenarios.sending.processes import Sending, start_sending
from toque.load.scenarios.shape import Wave
from toque.load.scenarios.target import NotPossible, Target
from toque.load.soak.disturbances import Disturbances
from toque.load.soak.project import KEYED, RETRAINED, STEADY
from toque.load.soak.samples import Sample, sample
from toque.load.soak.verdict import growths, memory_by_role, unexcused
from toque.registry import Table, TableSnapshot, open_store

_SAMPLE_S = 5.0
_READY_S = 180.0
_TRAINING_ROWS = 4_000
_DISK = "64m"


def main() -> None:
    """Run the soak and print its verdict."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=float, default=60, help="requests/s at the top of the wave")
    parser.add_argument("--every", type=float, default=20, help="seconds between two disturbances")
    parser.add_argument("--folder", type=Path, default=Path("build/soak"))
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended then too
    print_machine("ray", "torch")
    try:
        sys.exit(soak(given))
    except (NotStarted, NotPossible, httpx.HTTPError, OSError) as error:
        print(f"soak: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("soak: interrupted; the platform has been ended")


def soak(given: argparse.Namespace) -> int:
    """Soak a new platform; returns the exit code. Raises: NotStarted, NotPossible, httpx.HTTPError, OSError."""
    folder = given.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    store_url, home = (folder / "store").as_uri(), folder / "home"
    models = {STEADY: BenchmarkModel(small_mlp(), arms=(0.1,)), KEYED: keyed_models()[KEYED]}
    register(store_url, folder / "artifacts", models)
    define_features(store_url)
    rows = Table(open_store(store_url), "rows").append(synthetic_table().slice(0, _TRAINING_ROWS))
    with (
        _small_disk(folder / "store-wal") as disk,
        started(home, store_url, project="toque.load.soak.project", cpus=8) as platform,
    ):
        redis_url = json.loads((home / "up.json").read_text())["redis_url"]
        fill_features(store_url, redis_url)
        first = _train(platform, rows)
        body = {"version": first, "reason": "first"}
        platform.client.post(f"/models/{RETRAINED}/promote", json=body).raise_for_status()
        _wait_ready(platform)
        disturbances = Disturbances(platform.client, home, given.every, disk, lambda: _train(platform, rows))
        scenario, samples = _scenario(given, folder), list[Sample]()
        with _sending(platform, scenario) as sending, redis.Redis.from_url(redis_url) as keys:
            thread = threading.Thread(target=disturbances.run)
            thread.start()
            try:
                _watch(sending, samples, home, [home, folder / "store-wal"], keys)
            finally:
                disturbances.stop.set()
                thread.join()
            report = _report(given, sending, samples, disturbances, disk)
        (folder / "report.json").write_text(json.dumps(report, indent=1))
        kept = record(
            HttpDoor(platform.client), "load", "soak",
            params={"minutes": given.minutes, "rate": given.rate}, metrics=report["figures"],
            tags={"toque.load": "soak", "toque.load.held": str(report["held"]).lower()},
            files={"soak.json": json.dumps(report)},
        )  # fmt: skip
    print(f"kept as run {kept} of {store_url}, and in {folder / 'report.json'}")
    return 0 if report["held"] else 1


def _scenario(given: argparse.Namespace, folder: Path) -> Scenario:
    """Scenario of the soak: a wave of tensors, tensors for the retrained model, and requests by key."""
    keys = folder / "keys.jsonl"
    keys.write_text(json.dumps({"entities": {"key": KEY}}) + "\n")
    seconds = given.minutes * 60
    return Scenario(
        shape=Wave(
            kind="wave", rate=given.rate / 3, to_rate=given.rate, period_s=min(600, seconds), seconds=seconds
        ),
        mix=(Ask(model=STEADY, weight=2), Ask(model=RETRAINED), Ask(model=KEYED, keys=keys)),
        connections=32,
        patience_s=5,
        as_users=True,  # the retrained model is judged by them
    )


def _sending(platform: Platform, scenario: Scenario) -> Any:
    target = Target(
        str(platform.client.base_url).rstrip("/"),
        platform.client.headers["Authorization"].split()[1],
        STEADY,
    )
    plan = plan_of(target.url, STEADY, scenario, metadata_of=target.metadata, log_requests=True)
    return start_sending(plan, target.token)


def _watch(
    sending: Sending, samples: list[Sample], home: Path, folders: list[Path], keys: redis.Redis
) -> None:
    """Take samples until the load has ended."""
    while not sending.collect():
        samples.append(sample(home, folders, keys))
        time.sleep(_SAMPLE_S)


def _train(platform: Platform, rows: TableSnapshot) -> int:
    """Train and register the next version of the retrained model. Raises: httpx.HTTPError."""
    arguments = {
        "model": RETRAINED, "training_set": rows.model_dump(mode="json"), "label": COLUMNS.label,
        "numeric": list(COLUMNS.numeric), "categorical": list(COLUMNS.categorical), "params": {"epochs": 2},
    }  # fmt: skip
    answer = platform.client.post("/functions/train_tabular", json=arguments, timeout=300)
    return int(answer.raise_for_status().json()["version"])


def _wait_ready(platform: Platform) -> None:
    """Wait until every model answers. Raises: NotPossible."""
    deadline = time.monotonic() + _READY_S
    for model in (STEADY, RETRAINED, KEYED):
        while platform.client.get(f"/v2/models/{model}/ready").status_code != 200:
            if time.monotonic() > deadline:
                raise NotPossible(f"model {model!r} is not ready within {_READY_S:.0f} s")
            time.sleep(0.5)


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path | None]:
    """Mount a small disk at a folder; None where only root may."""
    if os.geteuid() != 0:
        yield None
        return
    folder.mkdir(mode=0o700)
    options = f"size={_DISK},mode=0700"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
    )
    try:
        yield folder if mounted.returncode == 0 else None
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def _report(
    given: argparse.Namespace,
    sending: Sending,
    samples: list[Sample],
    disturbances: Disturbances,
    disk: Path | None,
) -> dict[str, Any]:
    """Print and put together what came of it."""
    requests, found = sending.requests(), sending.windows.measured()
    failed = [each for each in requests if each["problem"]]
    bad = unexcused(failed, disturbances.kills)
    grown = growths(samples)
    made = Counter(event.name for event in disturbances.events if not event.problem)
    unmade = [event for event in disturbances.events if event.problem]
    held = not bad and not found.dropped and not unmade and all(each.judged is not False for each in grown)
    print(
        f"{given.minutes:g} min: {found.due} due, {found.answered} answered, {len(failed)} failed, {found.dropped} dropped"
    )
    print(
        f"p50 {found.latency_ms(0.5):.1f} ms, p99 {found.latency_ms(0.99):.1f} ms; {dict(made)}, {len(disturbances.kills)} kills"
    )
    for event in unmade:
        print(f"NOT MADE: {event.name}: {event.problem}")
    if disk is None:
        print("no disk was filled: only root may mount a small one")
    print(f"{len(failed) - len(bad)} failed in a process that was killed, {len(bad)} otherwise")
    for problem, count in Counter(each["problem"][:100] for each in bad).most_common(10):
        print(f"  FAILED {count} x {problem}")
    for each in grown:
        print(f"  {each}")
    for role, (before, after) in memory_by_role(samples).items():
        print(f"    {role}: {before:.0f} MiB, at the end {after:.0f}")
    print("held" if held else "NOT HELD")
    figures = {"due": found.due, "failed": len(failed), "unexcused": len(bad), "dropped": found.dropped,
               "kills": len(disturbances.kills), "p99_ms": found.latency_ms(0.99)}  # fmt: skip
    return {
        "held": held,
        "figures": {name: float(value) for name, value in figures.items() if value < float("inf")},
        "growths": [asdict(each) for each in grown],
        "events": [asdict(each) for each in disturbances.events],
        "unexcused": [dict(each) for each in bad[:1000]],
        "disk": disk is not None,
    }


if __name__ == "__main__":
    main()
