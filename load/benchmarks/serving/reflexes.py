"""Benchmark of the reflexes: how soon a bad canary on Serve is rolled back, and people are told.

Starts a platform of its own, with the platform's defaults for every guard, and `--at-once` models whose alerts go to a web server of
this process. Each run rolls a version of a model out into a canary, whose users meet the fault from its first answer on: `fails`, five
percent of its requests; `slow`, twice the median time; `healthy`, none, for two minutes. Requests of each model come at random moments (a
Poisson process), `--per-minute` for both versions. Printed are seconds from the canary's first answer until the decision in the journal,
and until the page has come.
"""

from __future__ import annotations

import json
import math
import os
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import numpy as np
import torch

from toque.functions.model_formats.program import export_program, save_program
from toque.functions.runtime.changes import Announcer
from toque.load.benchmarks.harness import main, say, temporary
from toque.load.benchmarks.servers import Platform, posts, started
from toque.registry import Registry, Signature, TensorSpec, open_store
from toque.registry.audit_keys import AuditKeys

Fault = Literal["fails", "slow", "healthy"]
CODES, CODES_OF_FAILING = 200, 100  # values of an input, and those that the failing version has
FAIL_SHARE = 0.05
LABOUR = 6  # products of matrices of a prediction: a median of about a millisecond
CALLERS = 8
PATIENCE_S, HEALTHY_S = 300.0, 120.0
# Into the canary at once; no guard is changed.
POLICY = {"promote_by": "service", "ramp_hold": "PT0S", "error_margin": 0.5}
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


def run(
    *,
    runs: int = 50,
    at_once: Annotated[int, "models that are rolled out at the same time"] = 1,
    fault: tuple[Fault, ...] = ("fails", "slow", "healthy"),
    share: float = 0.1,
    per_minute: Annotated[float, "requests of both versions of a model"] = 10_000,
    cpus: int = 4,
) -> None:
    """Roll out again and again, and print the quantiles of each fault."""
    models = [f"late-{number}" for number in range(at_once)]
    results: dict[str, list[Run]] = {one: [] for one in fault}
    with (
        temporary() as folder,
        prepared(folder, models, cpus + len(models)) as bench,
        ThreadPoolExecutor(len(models)) as threads,
    ):

        def take_turns(model: str, count: int) -> None:
            for one in fault:
                for number in range(count):
                    results[one].append(bench.run(model, one, per_minute, {"canary_share": share}))
                    where = f"run {number + 1} of {model}, {one}, at load {os.getloadavg()[0]:.0f}"
                    say(f"{where}: {results[one][-1]}")

        list(threads.map(take_turns, models, [len(range(n, runs, len(models))) for n in range(len(models))]))
    for one, ended in results.items():
        back = sum(run.decided_s < math.inf for run in ended)
        say(f"{one}: {back} of {len(ended)} rolled back, by {sorted({run.rule for run in ended})}")
        for what in ("decided_s", "paged_s") if back else ():
            values = [getattr(run, what) for run in ended]
            p50, p95, most = (np.quantile(values, q, method="higher") for q in (0.5, 0.95, 1.0))
            say(f"  {what}: {p50:.1f} (p50), {p95:.1f} (p95), {most:.1f} at most")


class Table(torch.nn.Module):
    """Model that looks a code up and works for a while; a code beyond its entries is an error."""

    values: torch.Tensor
    weights: torch.Tensor

    def __init__(self, *, entries: int = CODES, labour: int = LABOUR) -> None:
        super().__init__()
        self.register_buffer("values", torch.linspace(0, 1, entries))
        self.register_buffer("weights", torch.eye(200))
        self.labour = labour

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Look the codes of (rows, 1) up."""
        values = self.values[x[:, 0].long()]
        work = self.weights + 0 * values[0]
        for _ in range(self.labour):
            work = work @ self.weights
        return (values + 0 * work[0, 0]).unsqueeze(1)


VERSIONS = {
    "champion": Table(),
    "fails": Table(entries=CODES_OF_FAILING),
    "slow": Table(labour=2 * LABOUR + 2),
    "healthy": Table(),
}


@dataclass
class Callers:
    """Callers of one model, who ask at random moments until they are stopped.

    spoilt: share of requests with a code that the failing version lacks, once its canary has answered.
    """

    platform: Platform
    model: str
    per_minute: float
    spoilt: float = 0.0
    canary_at: float | None = None
    answers: int = 0
    errors: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Ask the model within the block, all callers at once."""
        with ThreadPoolExecutor(CALLERS) as threads:
            for number in range(CALLERS):
                threads.submit(self._ask, number)
            try:
                yield
            finally:
                self._stop.set()

    def _ask(self, seed: int) -> None:
        chance, due = random.Random(seed), time.monotonic()
        with httpx.Client(
            base_url=self.platform.url, headers=self.platform.client.headers, timeout=30
        ) as client:
            while not self._stop.is_set():
                due += chance.expovariate(self.per_minute / 60 / CALLERS)
                self._stop.wait(max(0.0, due - time.monotonic()))
                bad = self.canary_at is not None and chance.random() < self.spoilt
                code = (
                    chance.randrange(CODES_OF_FAILING, CODES) if bad else chance.randrange(CODES_OF_FAILING)
                )
                tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [float(code)]}
                try:
                    answer = client.post(f"/v2/models/{self.model}/infer", json={"inputs": [tensor]})
                except httpx.HTTPError:
                    self.errors += 1
                    continue
                self.answers += 1
                if answer.status_code != HTTPStatus.OK:
                    self.errors += 1
                elif self.canary_at is None and answer.json()["parameters"]["arm"] == "canary":
                    self.canary_at = time.time()


@dataclass(frozen=True, slots=True)
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
    """Running platform with models to roll out. alerts: as they were posted; versions: number of each fault's, the same for every model."""

    platform: Platform
    alerts: Sequence[tuple[float, bytes]]
    versions: Mapping[str, int]

    def run(self, model: str, fault: str, per_minute: float, policy: Mapping[str, Any]) -> Run:
        """Roll a version out until it is rolled back and told, or for as long as a healthy one is watched.

        policy: of the rollout, beside what lets the version into its canary at once.
        """
        call = self.platform.call
        callers = Callers(self.platform, model, per_minute, spoilt=FAIL_SHARE if fault == "fails" else 0.0)
        with callers.asking():
            start = {"version": self.versions[fault], "policy": {**POLICY, **policy}, "reason": fault}
            number = call("start_rollout", model=model, **start)["rollout"]
            subject, deadline = (model, f"rollout-{number}"), time.time() + PATIENCE_S
            while time.time() < deadline and self._page(*subject)[0] == math.inf:
                time.sleep(0.1)
                if callers.canary_at is not None:
                    deadline = callers.canary_at + (HEALTHY_S if fault == "healthy" else PATIENCE_S)
            outcomes = call("rollout_status", model=model).get("outcomes", [])
            outcome = next((one for one in outcomes if one["rollout"] == number), None)
            if outcome is None:
                call("end_rollout", model=model, action="inconclusive", reason="the run is over")
        began, (paged, text) = callers.canary_at or math.inf, self._page(*subject)
        ended = datetime.fromisoformat(outcome["ended_at"]).timestamp() if outcome else math.inf
        rule = outcome["rule"] if outcome else "none"
        return Run(ended - began, paged - began, rule, text, callers.answers, callers.errors)

    def _page(self, model: str, subject: str) -> tuple[float, str]:
        """When the first alert was raised about a subject, and its text; infinite if none was."""
        for at, body in self.alerts:
            alert = json.loads(body)
            about = alert["alarm"]
            if alert["status"] == "raised" and (about["model"], about["subject"]) == (model, subject):
                return at, about["text"]
        return math.inf, ""


@contextmanager
def prepared(folder: Path, models: Sequence[str], cpus: int) -> Iterator[Bench]:
    """Start a platform that serves models, each with a version of each fault, and alerts this process."""
    with posts() as (url, alerts):
        (folder / "reflex_project.py").write_text(PROJECT.format(models=list(models), url=url))
        paths = [str(folder), str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
        own = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        store_url, home = f"file://{folder}/store", folder / "home"
        with started(home, store_url, project="reflex_project", cpus=cpus, environment=own) as platform:
            versions = _register(folder, store_url, models, platform)
            platform.wait_for(*models, within_s=PATIENCE_S)
            yield Bench(platform, alerts, versions)


def _register(folder: Path, store_url: str, models: Sequence[str], platform: Platform) -> dict[str, int]:
    """Register a champion and a version of each fault for every model; returns the numbers."""
    keys = platform.home / "keys" / "audit"
    store = open_store(
        store_url,
        audit_keys=AuditKeys.of_file(keys) if keys.exists() else None,
        announce=Announcer(platform.redis_url),
    )
    registry, versions = Registry(store, actor="bench"), dict[str, int]()
    for name, network in VERSIONS.items():
        (folder / name).mkdir()
        save_program(export_program(network, {"x": torch.ones(2, 1)}), folder / name / "model.pt2")
    for model in models:
        registry.create_model(model)
        for name in VERSIONS:
            versions[name] = registry.create_version(model, path=folder / name, signature=SIGNATURE).version
        registry.promote(model, versions["champion"])
    return versions


if __name__ == "__main__":
    main(run, "ray", "torch")
