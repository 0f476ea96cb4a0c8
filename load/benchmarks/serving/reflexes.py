"""Benchmark of the reflexes: how soon a bad canary on Serve is rolled back, and people are told.

python -m toque.load.benchmarks.serving.reflexes [--runs 50] [--at-once 5] [--fault fails slow healthy] [--share 0.1] [--per-minute 10000]

Starts a platform of its own, with the platform's defaults for every guard, and `--at-once` models whose alerts go to a web server of
this process. Each run rolls a version of a model out into a canary, whose users meet the fault from its first answer on: `fails`, five
percent of its requests; `slow`, twice the median time; `healthy`, none, for two minutes. Requests of each model come at random moments (a
Poisson process), `--per-minute` for both versions. Printed are seconds from the canary's first answer until the decision in the journal,
and until the page has come.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from toque.functions.model_formats.program import export_program, save_program
from toque.functions.runtime.changes.announcer import Announcer
from toque.load.benchmarks.platform.counter import Platform, started
from toque.load.benchmarks.serving.throughput import free_port
from toque.load.benchmarks.timing import print_machine
from toque.registry import Registry, Signature, TensorSpec, open_store
from toque.registry.audit_keys import AuditKeys

FAULTS = ("fails", "slow", "healthy")
CODES, KNOWN = 200, 100  # values of an input: those that the failing version knows are the first hundred
FAIL_SHARE = 0.05
LABOUR = 6  # products of matrices of a prediction: a median of about a millisecond
CALLERS = 8
PATIENCE_S = 300.0
HEALTHY_S = 120.0
POLICY = {
    "promote_by": "service",
    "ramp_hold": "PT0S",
    "error_margin": 0.5,
}  # into the canary at once; no guard is changed
PROJECT = """
from toque.functions.alerting import AlertPolicy, Webhook
from toque.functions.project import ModelDefinition

FEATURES = []
MODELS = [ModelDefinition(name=name, service="none", entities="none", label="y", numeric=("x",), monitors=(),
                          retraining=None, inspect="0 0 1 1 *",
                          alerts=AlertPolicy(owner="bench", sinks=(Webhook(name="page", url="{url}"),)))
          for name in {models}]
"""
SIGNATURE = Signature(
    inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, 1])],
    outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 1])],
    example={"x": [[1.0]]},
)


class Table(torch.nn.Module):
    """Model that looks a code up and works for a while; a code that it does not know is an error."""

    values: torch.Tensor
    weights: torch.Tensor

    def __init__(self, *, known: int = CODES, labour: int = LABOUR) -> None:
        super().__init__()
        self.register_buffer("values", torch.linspace(0, 1, known))
        self.register_buffer("weights", torch.eye(200))
        self.labour = labour

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Look the codes of (rows, 1) up."""
        found = self.values[x[:, 0].long()]
        work = self.weights + 0 * found[0]
        for _ in range(self.labour):
            work = work @ self.weights
        return (found + 0 * work[0, 0]).unsqueeze(1)


@dataclass(frozen=True)
class Page:
    """Alert that came to the pager; at: seconds since the epoch."""

    at: float
    text: str


@dataclass
class Pager:
    """Web server that keeps the first alert of each model and subject that was raised."""

    port: int = field(default_factory=free_port)
    raised: dict[tuple[str, str], Page] = field(default_factory=dict)

    @contextlib.contextmanager
    def listening(self) -> Iterator[tuple[Pager, str]]:
        """Listen for alerts within the block; yields this pager and the URL."""
        raised = self.raised

        class Hook(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                alert = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                about = alert["alarm"]
                if alert["status"] == "raised":
                    page = Page(time.time(), about["text"])
                    raised.setdefault((about["model"], about["subject"]), page)
                self.send_response(HTTPStatus.OK)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Keep silent on each request."""

        with ThreadingHTTPServer(("127.0.0.1", self.port), Hook) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield self, f"http://127.0.0.1:{self.port}/"
            server.shutdown()


@dataclass
class Callers:
    """Callers of one model, who ask at random moments until they are stopped.

    spoilt: share of requests with a code that the failing version does not know, once its canary has answered.
    """

    platform: Platform
    model: str
    per_minute: float
    spoilt: float = 0.0
    canary_at: float | None = None
    answers: int = 0
    errors: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Ask the model within the block, all callers at once."""
        threads = [threading.Thread(target=self._ask, args=(n,), daemon=True) for n in range(CALLERS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _ask(self, seed: int) -> None:
        chance, due = random.Random(seed), time.monotonic()
        base, headers = self.platform.client.base_url, self.platform.client.headers
        with httpx.Client(base_url=base, headers=headers, timeout=30) as client:
            while not self._stop.is_set():
                due += chance.expovariate(self.per_minute / 60 / CALLERS)
                self._stop.wait(max(0.0, due - time.monotonic()))
                bad = self.canary_at is not None and chance.random() < self.spoilt
                code = chance.uniform(KNOWN, CODES - 1) if bad else chance.uniform(0, KNOWN - 1)
                tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [float(int(code))]}
                try:
                    self._note(client.post(f"/v2/models/{self.model}/infer", json={"inputs": [tensor]}))
                except httpx.HTTPError:
                    self.errors += 1

    def _note(self, answer: httpx.Response) -> None:
        self.answers += 1
        if answer.status_code != HTTPStatus.OK:
            self.errors += 1
        elif self.canary_at is None and answer.json()["parameters"]["arm"] == "canary":
            self.canary_at = time.time()


@dataclass
class Run:
    """Result of one run: seconds from the canary's first answer; infinite where it did not come.

    rule: that rolled the canary back. why: text of the page. requests, errors: of all callers.
    """

    decided_s: float
    paged_s: float
    rule: str
    why: str
    requests: int
    errors: int


@dataclass(frozen=True)
class Bench:
    """Running platform with models to roll out. versions: number of the version of each fault, the same for every model."""

    platform: Platform
    pager: Pager
    versions: Mapping[str, int]

    def run(self, model: str, fault: str, per_minute: float, policy: Mapping[str, Any]) -> Run:
        """Roll a version out until it is rolled back and told, or for as long as a healthy one is watched.

        policy: of the rollout, beside what lets the version into its canary at once.
        """
        spoilt = FAIL_SHARE if fault == "fails" else 0.0
        callers = Callers(self.platform, model, per_minute, spoilt=spoilt)
        with callers.asking():
            begun = call(
                self.platform,
                "start_rollout",
                model=model,
                version=self.versions[fault],
                policy={**POLICY, **policy},
                reason=fault,
            )
            number = begun["rollout"]
            self._wait(callers, number, HEALTHY_S if fault == "healthy" else PATIENCE_S)
            last = call(self.platform, "rollout_status", model=model)
            outcome = next((one for one in last.get("outcomes", []) if one["rollout"] == number), None)
            if outcome is None:
                end = {"action": "inconclusive", "reason": "the run is over"}
                call(self.platform, "end_rollout", model=model, **end)
        began = callers.canary_at or float("inf")
        page = self.pager.raised.get((model, f"rollout-{number}"), Page(float("inf"), ""))
        ended = float("inf")
        if outcome is not None:
            ended = datetime.fromisoformat(outcome["ended_at"]).timestamp()
        rule = "none" if outcome is None else outcome["rule"]
        return Run(ended - began, page.at - began, rule, page.text, callers.answers, callers.errors)

    def _wait(self, callers: Callers, number: int, limit_s: float) -> None:
        """Wait until people are told of a roll-back, at most `limit_s` from the canary's first answer."""
        deadline = time.monotonic() + PATIENCE_S
        answered = False
        while time.monotonic() < deadline and (callers.model, f"rollout-{number}") not in self.pager.raised:
            time.sleep(0.1)
            if callers.canary_at is not None and not answered:
                answered, deadline = True, time.monotonic() + limit_s


def call(platform: Platform, name: str, **arguments: Any) -> Any:
    """Call a function of the platform. Raises: httpx.HTTPError."""
    answer = platform.client.post(f"/functions/{name}", json=arguments, timeout=PATIENCE_S)
    answer.raise_for_status()
    return answer.json()


@contextlib.contextmanager
def prepared(folder: Path, models: Sequence[str], cpus: int) -> Iterator[Bench]:
    """Start a platform that serves models, each with a version of each fault, and alerts this process."""
    with Pager().listening() as (pager, url):
        (folder / "reflex_project.py").write_text(PROJECT.format(models=list(models), url=url))
        paths = [str(folder), str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
        environment = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        store_url = f"file://{folder}/store"
        with started(
            folder / "home", store_url, project="reflex_project", cpus=cpus, environment=environment
        ) as found:
            versions = _register(folder, store_url, models)
            for model in models:
                _until_served(found, model)
            yield Bench(found, pager, versions)


def _register(folder: Path, store_url: str, models: Sequence[str]) -> dict[str, int]:
    """Register a champion and a version of each fault for every model; returns the numbers."""
    running = json.loads((folder / "home" / "up.json").read_text())
    keys = folder / "home" / "keys" / "audit"
    store = open_store(
        store_url,
        audit_keys=AuditKeys.of_file(keys) if keys.exists() else None,
        announce=Announcer(running["redis_url"]),
    )
    registry = Registry(store, actor="bench")
    modules = {
        "champion": Table(),
        "fails": Table(known=KNOWN),
        "slow": Table(labour=2 * LABOUR + 2),
        "healthy": Table(),
    }
    for name, module in modules.items():
        (folder / name).mkdir()
        save_program(export_program(module, {"x": torch.ones(2, 1)}), folder / name / "model.pt2")
    versions: dict[str, int] = {}
    for model in models:
        registry.create_model(model)
        for name in modules:
            versions[name] = registry.create_version(model, path=folder / name, signature=SIGNATURE).version
        registry.promote(model, versions["champion"])
    return versions


def _until_served(platform: Platform, model: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while platform.client.get(f"/v2/models/{model}/ready").status_code != HTTPStatus.OK:
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"{model} does not answer within {PATIENCE_S:.0f} s; see the logs of its replica"
            )
        time.sleep(0.5)


def report(fault: str, runs: list[Run]) -> None:
    """Print the quantiles of a fault's runs."""
    back = sum(run.decided_s < float("inf") for run in runs)
    print(f"{fault}: {back} of {len(runs)} rolled back, by {sorted({run.rule for run in runs})}")
    if back:
        for name, values in (
            ("rolled back", [run.decided_s for run in runs]),
            ("paged", [run.paged_s for run in runs]),
        ):
            p50, p95 = (np.quantile(values, q, method="higher") for q in (0.5, 0.95))
            print(
                f"  {name} after {p50:.1f} s (p50), {p95:.1f} s (p95), {max(values):.1f} s at most",
                flush=True,
            )


def main(arguments: list[str] | None = None) -> dict[str, list[Run]]:
    """Run the benchmark; returns the runs by fault."""
    parser = argparse.ArgumentParser(description="how soon a bad canary is rolled back and told")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--at-once", type=int, default=1, help="models that are rolled out at the same time")
    parser.add_argument("--fault", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument(
        "--per-minute", type=float, default=10_000, help="requests of both versions of a model"
    )
    parser.add_argument("--cpus", type=int, default=4)
    chosen = parser.parse_args(arguments)
    print_machine()
    models = [f"late-{number}" for number in range(chosen.at_once)]
    found: dict[str, list[Run]] = {fault: [] for fault in chosen.fault}
    with (
        tempfile.TemporaryDirectory(prefix="toque-reflexes-") as name,
        prepared(Path(name), models, chosen.cpus + len(models)) as bench,
        ThreadPoolExecutor(len(models)) as threads,
    ):

        def take_turns(model: str, runs: int) -> None:
            for fault in chosen.fault:
                for number in range(runs):
                    run = bench.run(model, fault, chosen.per_minute, {"canary_share": chosen.share})
                    found[fault].append(run)
                    load = os.getloadavg()[0]
                    print(f"run {number + 1} of {model}, {fault}, at load {load:.0f}: {run}", flush=True)

        shares = [len(range(n, chosen.runs, len(models))) for n in range(len(models))]
        list(threads.map(take_turns, models, shares))
    for fault, runs in found.items():
        report(fault, runs)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
