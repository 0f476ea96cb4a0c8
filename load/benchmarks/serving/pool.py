"""Benchmark of the pool: latencies of ten hot models, without and with 190 cold ones.

All models are the small MLP. The pool has two replicas behind Serve's HAProxy (--standalone: one process without Ray) and memory for `--fit`
models in each. Requests are sent on a schedule (open loop) and timed from the moment they were due: `--hot` a second to ten models in
turns, and `--cold` a second to the others, each of which has mostly to be loaded first. Phases without and with the cold ones take turns.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Iterable
from typing import Annotated

import httpx
import numpy as np

from toque.load.benchmarks.harness import main, say
from toque.load.benchmarks.serving.fixtures import BenchmarkModel, Predictor, json_body, prepared
from toque.load.benchmarks.serving.floor import small_mlp

HOT = 10
FOOTPRINT_BYTES = 300 << 10  # of a model of this benchmark, with a margin


def run(
    *,
    seconds: float = 20,
    rounds: int = 2,
    hot: Annotated[float, "requests a second to the ten hot models"] = 100,
    cold: Annotated[float, "requests a second to the others"] = 3,
    models: int = 200,
    fit: Annotated[int, "how many models a replica has memory for"] = 60,
    standalone: Annotated[bool, "one process, without Ray and HAProxy"] = False,
) -> None:
    """Register the models, serve them, and measure."""
    served = dict.fromkeys((f"model-{number}" for number in range(models)), BenchmarkModel(small_mlp()))
    options = ["--pool", "--pool-bytes", fit * FOOTPRINT_BYTES, *["--standalone"] * standalone]
    with prepared(served) as place, place.run(*options, asked=None) as ours:
        asyncio.run(measure(ours, list(served), hot, cold, seconds, rounds))


async def measure(
    ours: Predictor, names: list[str], hot: float, cold: float, seconds: float, rounds: int
) -> None:
    """Send a request to every model once, then phases in turns, and print them."""
    failures: list[str] = []
    alone, beside, others = list[float](), list[float](), list[float]()
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(
        base_url=ours.url, headers=ours.headers, timeout=60, limits=limits
    ) as client:

        async def send(asked: Iterable[str], rate: float, for_s: float = seconds) -> list[float]:
            """Send requests to the models in turns; returns milliseconds from when each was due."""
            begin, times = time.perf_counter(), list[float]()

            async def ask(name: str, due: float) -> None:
                try:
                    answer = await client.post(f"/v2/models/{name}/infer", content=json_body())
                    answer.raise_for_status()
                except httpx.HTTPError as error:
                    failures.append(repr(error)[:120])
                times.append((time.perf_counter() - due) * 1e3)

            async with asyncio.TaskGroup() as pending:
                for number, name in zip(range(int(rate * for_s)), itertools.cycle(asked), strict=False):
                    due = begin + number / rate
                    await asyncio.sleep(max(0.0, due - time.perf_counter()))
                    pending.create_task(ask(name, due))
            return times

        say(f"each of {len(names)} models once: {quantiles(await send(names, 5, len(names) / 5))}")
        await send(names[:HOT], hot, 3)
        for _ in range(rounds):
            alone += await send(names[:HOT], hot)
            both = await asyncio.gather(send(names[:HOT], hot), send(names[HOT:], cold))
            beside, others = beside + both[0], others + both[1]
        for what, times in (("hot alone", alone), ("hot beside cold", beside), ("cold", others)):
            say(f"{what:16} {quantiles(times)}")
        status = (await client.get("/v2/models/")).json()
    say(f"failed: {len(failures)} {failures[:3]}")
    say(f"a replica: {json.dumps(status | {'models': len(status['models'])})}")


def quantiles(times_ms: list[float]) -> str:
    """Format the count and quantiles of latencies."""
    p50, p95, p99 = np.quantile(times_ms, [0.5, 0.95, 0.99])
    return f"{len(times_ms):6} requests, p50 {p50:7.2f} ms, p95 {p95:7.2f} ms, p99 {p99:7.2f} ms"


if __name__ == "__main__":
    main(run, "torch", "ray")
