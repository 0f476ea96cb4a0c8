"""Benchmark of traffic changes: the time until a change holds in all replicas, as callers see it.

python -m toque.load.benchmarks.serving.policy [--replicas 2] [--changes 40] [--callers 8]

The small MLP of `toque.load.benchmarks.serving.throughput` in replicas on Serve behind HAProxy, two versions of it. While callers ask without a pause, the
champion is changed by one append and changed back. A change is as old as the last answer of the version that it
dismissed: from when the append returned to when that answer was there. The exit code is 1 if one took more than a second,
or a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx

from toque.load.benchmarks.serving.floor import small_mlp
from toque.load.benchmarks.serving.models import BenchmarkModel, another_version, register
from toque.load.benchmarks.serving.throughput import (
    Target,
    free_port,
    json_body,
    process,
    wait_for,
    wait_until_ready,
)
from toque.load.benchmarks.timing import print_machine
from toque.registry import Registry, open_store

MOST_S = 1.0
WATCHED_S = 2.0  # after a change, for the last answer of the old champion


class Callers:
    """Callers that send requests in a loop, and record each version's last answer and any failure."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.last: dict[str, float] = {}
        self.answers = self.failed = 0

    async def ask(self, client: httpx.AsyncClient) -> None:
        """Run one caller until it is cancelled."""
        while True:
            try:
                answer = await client.post(
                    self._target.url, content=self._target.body, headers=self._target.headers
                )
                self.last[answer.json()["model_version"]] = time.monotonic()
                self.answers += 1
            except (httpx.HTTPError, KeyError):
                self.failed += 1


async def change(callers: Callers, registry: Registry, versions: list[int], changes: int) -> list[float]:
    """Measure the seconds that each change took."""
    took = []
    for version in itertools.islice(itertools.cycle(versions), changes):
        await asyncio.to_thread(registry.promote, "mlp", version)
        appended = time.monotonic()
        await asyncio.sleep(WATCHED_S)
        took += [max(0.0, at - appended) for other, at in callers.last.items() if other != str(version)]
    return took


async def measure(target: Target, registry: Registry, versions: list[int], given: argparse.Namespace) -> int:
    """Change the policy under load, print the times, and return the exit code."""
    callers = Callers(target)
    limits = httpx.Limits(max_connections=given.callers)
    async with httpx.AsyncClient(limits=limits, timeout=30) as client:
        asking = [asyncio.create_task(callers.ask(client)) for _ in range(given.callers)]
        await change(callers, registry, versions, len(versions))  # both are loaded from here on
        took = await change(callers, registry, versions, given.changes)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    print(
        f"{len(took)} changes under {callers.answers} answers, {given.replicas} replicas: p50 {statistics.median(took):.2f} s, "
        f"the longest {max(took):.2f} s (at most {MOST_S:g}); {callers.failed} requests failed"
    )
    return int(max(took) > MOST_S or callers.failed > 0 or len(took) != given.changes)


def main() -> None:
    """Start the platform, measure, and end it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--changes", type=int, default=40)
    parser.add_argument("--callers", type=int, default=8)
    given = parser.parse_args()
    print_machine("torch", "ray")
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder, port = Path(name), free_port()
        store_url, served = f"file://{folder}/store", BenchmarkModel(small_mlp())
        token = register(store_url, folder / "artifacts", {"mlp": served})
        registry = Registry(open_store(store_url), actor="bench")
        second = another_version(registry, folder / "second", "mlp", served).version
        log = folder / "ours.log"
        command = [sys.executable, "-m", "toque.ray_apps.predictor", "--port", str(port), "mlp"]
        command += ["--replicas", str(given.replicas), "--no-log"]
        child = stack.enter_context(process(command, log, {"TOQUE_STORE": store_url}))
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        target = Target("ours", f"http://127.0.0.1:{port}/v2/models/mlp/infer", headers, json_body())
        wait_for(target, child, log)
        wait_until_ready(child, log)
        code = asyncio.run(measure(target, registry, [second, 1], given))
    sys.exit(code)


if __name__ == "__main__":
    main()
