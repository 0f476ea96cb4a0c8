"""Benchmark of traffic changes: the time until a change holds in all replicas, as callers see it.

The small MLP in replicas on Serve behind HAProxy, two versions of it. While callers ask without a pause, the champion is changed by one
append and changed back. A change is as old as the last answer of the version that it dismissed: from when the append returned to when that
answer was there. The exit code is 1 if one took more than a second, or a request failed.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections import Counter

import httpx

from toque.load.benchmarks.harness import bound, main, say, temporary
from toque.load.benchmarks.serving.fixtures import BenchmarkModel, Prepared, Target, another_version, register
from toque.load.benchmarks.serving.floor import small_mlp
from toque.registry import Registry, open_store

MOST_S = 1.0
WATCHED_S = 2.0  # after a change, for the last answer of the old champion


def run(*, replicas: int = 2, changes: int = 40, callers: int = 8) -> None:
    """Start the platform, change the policy under load, and judge how long the changes took."""
    model = BenchmarkModel(small_mlp())
    with temporary() as folder:
        store_url = f"file://{folder}/store"
        token = register(store_url, folder / "artifacts", {"mlp": model})
        registry = Registry(open_store(store_url), actor="bench")
        second = another_version(registry, folder / "artifacts", "mlp", model)
        place = Prepared(folder, store_url, token)
        with place.run("mlp", "--replicas", replicas, "--no-log") as ours:
            took, counts = asyncio.run(measure(ours.target("mlp"), registry, (second, 1), changes, callers))
    p50 = statistics.median(took)
    say(f"{len(took)} changes under {counts['answers']} answers, {replicas} replicas: p50 {p50:.2f} s")
    bound("seconds of the longest change", max(took), most=MOST_S)
    bound("failed requests", counts["failed"], most=0)
    bound("changes that were seen", len(took), least=changes)


async def measure(
    target: Target, registry: Registry, versions: tuple[int, int], changes: int, callers: int
) -> tuple[list[float], Counter[str]]:
    """Change the champion again and again under load; returns the seconds that each change took, and counts of requests."""
    last: dict[str, float] = {}
    counts = Counter[str]()

    async def ask(client: httpx.AsyncClient) -> None:
        while True:
            try:
                answer = await client.post(target.url, content=target.body, headers=dict(target.headers))
                last[answer.json()["model_version"]] = time.monotonic()
                counts["answers"] += 1
            except (httpx.HTTPError, KeyError):
                counts["failed"] += 1

    async def change(times: int) -> list[float]:
        took = []
        for version in itertools.islice(itertools.cycle(versions), times):
            await asyncio.to_thread(registry.promote, "mlp", version)
            appended = time.monotonic()
            await asyncio.sleep(WATCHED_S)
            took += [max(0.0, at - appended) for other, at in last.items() if other != str(version)]
        return took

    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=callers), timeout=30) as client:
        asking = [asyncio.create_task(ask(client)) for _ in range(callers)]
        await change(len(versions))  # both are loaded from here on
        took = await change(changes)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    return took, counts


if __name__ == "__main__":
    main(run, "torch", "ray")
