"""Benchmark of the replay: predictions of four kinds of models are served, logged, drained and scored again, bit for bit.

python -m toque.load.benchmarks.serving.replay [--rows 10000] [--connections 24] [--models xgboost sklearn torch-image torch-text]

Each model makes batches of up to 16 rows, and requests have one row or three, so that most rows are scored beside others. The
predictor is a process of its own; the replay runs in this one. For comparison each row is also scored alone, which tells how many
outputs would differ if the log did not say what was scored at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from toque.functions import Context, use_context
from toque.functions.evaluation.log_replay import compare, load_scorer, replay_predictions
from toque.functions.prediction_log import drain
from toque.functions.prediction_log.reading.exact import exact_rows, newest_rows
from toque.load.benchmarks.serving.prediction_log import start_redis
from toque.load.benchmarks.serving.replayed_models import REPLAYED, ReplayedModel
from toque.load.benchmarks.serving.throughput import Target, free_port, process, wait_for
from toque.load.benchmarks.timing import print_machine
from toque.registry import Access, Registry, open_store, utc_now

TAGS = {"max_batch_rows": "16", "max_batch_wait_ms": "3"}
ROWS_OF_A_REQUEST = (1, 1, 3)
ATTEMPTS = 5


def register(store_url: str, folder: Path, name: str, model: ReplayedModel) -> str:
    """Register and promote a model; returns a token that may ask for predictions."""
    store = open_store(store_url)
    registry = Registry(store, actor="bench")
    registry.create_model(name)
    folder.mkdir()
    model.save(folder)
    registry.create_version(name, path=folder, signature=model.signature, tags=TAGS)
    registry.promote(name, 1)
    return Access(store, actor="bench").create_token(f"bench-{name}", "predictor")


def body_of(inputs: Mapping[str, Any], name: str) -> tuple[bytes, dict[str, str]]:
    """Encode a request: numbers as binary tensors, so that no bit is lost on the way, texts as JSON."""
    names = {"float64": "FP64", "uint8": "UINT8", "object": "BYTES"}
    tensors: list[dict[str, Any]] = []
    binary = b""
    for tensor, array in inputs.items():
        described = {"name": tensor, "datatype": names[array.dtype.name], "shape": list(array.shape)}
        if array.dtype.kind == "O":
            tensors.append(described | {"data": [each.decode() for each in array.ravel()]})
        else:
            tensors.append(described | {"parameters": {"binary_data_size": array.nbytes}})
            binary += array.tobytes()
    head = json.dumps({"id": name, "inputs": tensors}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))} if binary else {}
    return head + binary, headers


async def post(client: httpx.AsyncClient, url: str, body: bytes, headers: Mapping[str, str]) -> None:
    """Send one request, again if its connection was closed: a starved machine keeps the predictor waiting past its limits."""
    for attempt in range(ATTEMPTS):
        try:
            answer = await client.post(url, content=body, headers=headers)
        except httpx.TransportError:
            if attempt == ATTEMPTS - 1:
                raise
        else:
            answer.raise_for_status()
            return


async def ask(url: str, token: str, model: ReplayedModel, rows: int, connections: int) -> int:
    """Have at least `rows` rows predicted over several connections; returns how many requests that took."""
    rng = np.random.default_rng(7)
    requests = math.ceil(rows / sum(ROWS_OF_A_REQUEST) * len(ROWS_OF_A_REQUEST))
    bodies = (
        body_of(model.rows(rng, ROWS_OF_A_REQUEST[i % len(ROWS_OF_A_REQUEST)]), f"r{i}")
        for i in range(requests)
    )
    limits = httpx.Limits(max_connections=connections)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    async with httpx.AsyncClient(limits=limits, headers=headers, timeout=120) as client:

        async def work() -> None:
            for body, own in bodies:
                await post(client, url, body, own)

        await asyncio.gather(*(work() for _ in range(connections)))
    return requests


def measure(name: str, arguments: argparse.Namespace, stack: contextlib.ExitStack, folder: Path) -> bool:
    """Serve, drain and replay one model, and print the result; returns whether every bit was the same."""
    model = REPLAYED[name]
    url = f"file://{folder}/store"
    token = register(url, folder / name, name, model)
    redis_url = f"redis://:bench@127.0.0.1:{start_redis(stack, folder)}/0"
    port, log = free_port(), folder / f"{name}.log"
    command = [sys.executable, "-m", "toque.ray_apps.predictor", "--port", str(port), name, "--standalone"]
    child = stack.enter_context(process(command, log, {"TOQUE_STORE": url, "TOQUE_REDIS_URL": redis_url}))
    address = f"http://127.0.0.1:{port}/v2/models/{name}/infer"
    first, own = body_of(model.rows(np.random.default_rng(1), 1), "first")
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"} | own
    wait_for(Target(name, address, headers, first), child, log, within_s=600)
    try:
        asyncio.run(ask(address, token, model, arguments.rows, arguments.connections))
    except httpx.TransportError as error:
        end = log.read_text(errors="replace")[-3000:]
        raise RuntimeError(
            f"{name} does not answer any more (exit {child.poll()}): {error!r}\n{end}"
        ) from error
    child.terminate()
    child.wait(60)
    store = open_store(url)
    drain(store, redis_url, wal_root=folder / "store-wal")
    used = Context(store, url, actor="bench")
    begin = time.perf_counter()
    with use_context(used):
        found = replay_predictions(name, limit=arguments.rows)
    seconds = time.perf_counter() - begin
    alone = scored_alone(used, name, model, arguments.rows)
    print(
        f"{name:12}{found.rows:7} rows{found.equal:7} equal{found.different:5} different{found.filled:5} beside filled places"
        f"{found.rows / seconds:8.0f} rows/s{alone:7} would differ if scored alone  {found.skipped or ''}"
    )
    return found.equal == found.rows and found.rows >= arguments.rows


def scored_alone(used: Context, name: str, model: ReplayedModel, limit: int) -> int:
    """Count the rows whose outputs come out otherwise if each row is scored by itself."""
    now = utc_now()
    rows = newest_rows(used.store, name, now - timedelta(days=1), now, version=1, limit=limit)
    apart = (
        replace(row, batch=f"{row.prediction_id}-{i}", at=0, rows=1)
        for i, row in enumerate(exact_rows(used.store, name, model.signature, rows))
    )
    scorer, running = load_scorer(used.registry(), used.registry().get_version(name, 1), threads=1)
    with running:
        return compare(scorer, model.signature, apart).different


def main() -> None:
    """Measure each model, and exit with 1 unless every logged prediction replays bit for bit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=24)
    parser.add_argument("--models", nargs="+", choices=[*REPLAYED], default=[*REPLAYED])
    arguments = parser.parse_args()
    print_machine("torch", "xgboost-cpu", "scikit-learn", "numpy")
    whole = True
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            whole &= measure(name, arguments, stack, Path(folder))
    sys.exit(not whole)


if __name__ == "__main__":
    main()
