"""Benchmark of the pool: latencies of ten hot models, without and with 190 cold ones.

python -m toque.load.benchmarks.serving.pool [--seconds 20] [--hot 100] [--cold 3] [--models 200] [--fit 60] [--standalone]

All models are the small MLP of `toque.load.benchmarks.serving.throughput`. The pool has two replicas behind Serve's HAProxy (--standalone: one
process without Ray) and memory for `--fit` models in each. Requests are sent on a schedule (open loop) and timed
from the moment they were due: `--hot` a second to ten models in turns, and `--cold` a second to the others, each of
which has mostly to be loaded first. Phases without and with the cold ones take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import torch

from toque.functions.model_formats.program import export_program, save_program
from toque.load.benchmarks.serving.floor import COLUMNS, small_mlp
from toque.load.benchmarks.serving.models import ROW
from toque.load.benchmarks.serving.throughput import (
    free_port,
    json_body,
    process,
    redis_binary,
    wait_until_ready,
)
from toque.registry import Access, Registry, Signature, TensorSpec, open_store

HOT = 10
FOOTPRINT_BYTES = 300 << 10
"""Estimate the memory of a model of this benchmark, with a margin."""


def register(store_url: str, folder: Path, names: list[str]) -> str:
    """Register the same program as champion of every model; returns a token that may predict."""
    example = torch.tensor([ROW, ROW], dtype=torch.float32)
    signature = Signature(
        inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, COLUMNS])],
        outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 1])],
        example={"x": example[:1].tolist()},
    )
    folder.mkdir(parents=True)
    save_program(export_program(small_mlp(), {"x": example}), folder / "model.pt2")
    store = open_store(store_url)
    registry = Registry(store, actor="bench")

    def one(name: str) -> None:
        registry.create_model(name)
        registry.promote(name, registry.create_version(name, path=folder, signature=signature).version)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(one, names))
    return Access(store, actor="bench").create_token("bench", "predictor")


class Caller:
    """Client that sends requests on a schedule and collects `failures`."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.failures: list[str] = []

    async def send(self, names: Iterable[str], rate: float, seconds: float) -> list[float]:
        """Send requests to the models in turns, `rate` a second; returns milliseconds from when each was due."""
        begin, times = time.perf_counter(), []
        pending: set[asyncio.Task[None]] = set()

        async def ask(name: str, due: float) -> None:
            answer = await self._client.post(f"/v2/models/{name}/infer", content=json_body())
            times.append((time.perf_counter() - due) * 1e3)
            if answer.status_code != 200:
                self.failures.append(f"{answer.status_code} {answer.text[:120]}")

        for number, name in zip(range(int(rate * seconds)), itertools.cycle(names), strict=False):
            due = begin + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            task = asyncio.create_task(ask(name, due))
            pending.add(task)
            task.add_done_callback(pending.discard)
        await asyncio.gather(*pending)
        return times


async def run(url: str, token: str, names: list[str], arguments: argparse.Namespace) -> None:
    """Send a request to every model once, then measure."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60, limits=limits) as client:
        caller = Caller(client)
        first = await caller.send(names, 5, len(names) / 5)
        print(f"each of {len(names)} models once: {describe(first)}, {len(caller.failures)} failed")
        hot, cold = names[:HOT], names[HOT:]
        measured: dict[str, list[float]] = {"hot alone": [], "hot beside cold": [], "cold": []}
        await caller.send(hot, arguments.hot, 3)
        for _ in range(arguments.rounds):
            measured["hot alone"] += await caller.send(hot, arguments.hot, arguments.seconds)
            both = await asyncio.gather(
                caller.send(hot, arguments.hot, arguments.seconds),
                caller.send(cold, arguments.cold, arguments.seconds),
            )
            measured["hot beside cold"] += both[0]
            measured["cold"] += both[1]
        for name, times in measured.items():
            print(f"{name:18} {describe(times)}")
        print(f"failed: {len(caller.failures)} {caller.failures[:3]}")
        print(f"a replica: {json.dumps(await status(client))}")


async def status(client: httpx.AsyncClient) -> dict[str, Any]:
    """Read what one replica reports on its pool."""
    found: dict[str, Any] = (await client.get("/v2/models/")).json()
    return found | {"models": len(found["models"])}


def describe(times: list[float]) -> str:
    """Format the count and quantiles of latencies in ms."""
    cuts = statistics.quantiles(times, n=100)
    return f"{len(times):6} requests, p50 {cuts[49]:7.2f} ms, p95 {cuts[94]:7.2f} ms, p99 {cuts[98]:7.2f} ms"


def main() -> None:
    """Register the models, serve them, measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--hot", type=float, default=100, help="requests a second to the ten hot models")
    parser.add_argument("--cold", type=float, default=3, help="requests a second to the others")
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--fit", type=int, default=60, help="how many models a replica has memory for")
    parser.add_argument("--standalone", action="store_true", help="one process, without Ray and HAProxy")
    parser.add_argument("--bare", action="store_true", dest="standalone", help=argparse.SUPPRESS)  # old name
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = [f"model-{number}" for number in range(arguments.models)]
        store_url = f"file://{folder}/store"
        token = register(store_url, folder / "artifact", names)
        port, redis_port = free_port(), free_port()
        redis = [redis_binary(), "--port", str(redis_port), "--bind", "127.0.0.1", "--dir", str(folder)]
        redis += ["--requirepass", "bench", "--appendonly", "yes", "--save", ""]
        ours = [sys.executable, "-m", "toque.ray_apps.predictor", "--pool", "--port", str(port)]
        ours += ["--pool-bytes", str(arguments.fit * FOOTPRINT_BYTES)]
        ours += ["--standalone"] * arguments.standalone
        environment = {
            "TOQUE_STORE": store_url,
            "TOQUE_REDIS_URL": f"redis://:bench@127.0.0.1:{redis_port}/0",
        }
        log = folder / "ours.log"
        with process(redis, folder / "redis.log", {}), process(ours, log, environment) as child:
            wait_until_ready(child, log)
            asyncio.run(run(f"http://127.0.0.1:{port}", token, names, arguments))


if __name__ == "__main__":
    main()
