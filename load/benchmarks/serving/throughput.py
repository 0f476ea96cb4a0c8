"""Benchmark of the predictor's throughput against a bare ASGI floor, with a breakdown of one request.

python -m toque.load.benchmarks.serving.throughput [--seconds 4] [--rounds 3] [--connections 1 16 64] [--grpc] [--batching] [--standalone]

Both servers run at once on this machine, each in one process behind nothing (floor) or behind Serve's HAProxy (ours), and are measured in
turns by `wrk`, so that a noisy neighbour hits both. The model is the same small MLP, one row, 20 numbers.
Ours authenticates, checks, splits and logs.
"""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import ExitStack
from typing import Annotated

from toque.load.benchmarks.harness import main, say, temporary
from toque.load.benchmarks.open_loop import ask_steadily
from toque.load.benchmarks.servers import asgi_server, free_port, module, redis_server
from toque.load.benchmarks.serving.fixtures import (
    KEY,
    LONG_ROW,
    ROW,
    BenchmarkModel,
    Predictor,
    Target,
    WideMlp,
    binary_body,
    compare,
    fill_features,
    grpc_body,
    json_body,
    keyed_models,
    need,
    predictor,
    register,
    split_models,
)
from toque.load.benchmarks.serving.floor import small_mlp

BATCH_ROWS = 32
FLOOR = ("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--lifespan", "off")


def run(
    *,
    seconds: float = 4,
    rounds: int = 3,
    connections: tuple[int, ...] = (1, 16, 64),
    grpc: Annotated[
        bool, "also by gRPC, with JSON by the same caller (h2load), and a model of 500 numbers"
    ] = False,
    batching: Annotated[bool, "a larger model, without and with batches; the first is the baseline"] = False,
    splits: Annotated[bool, "also behind a 3-way split, without and with a shadow"] = False,
    keys: Annotated[bool, "also a model of 40 features, with tensors and by key"] = False,
    steady: Annotated[bool, "also 70 % of the most, open loop"] = False,
    standalone: Annotated[bool, "ours without Ray and HAProxy"] = False,
) -> None:
    """Start both servers, measure them in turns, and print the result."""
    need("wrk", *["h2load"] * grpc)
    models = served(grpc=grpc, batching=batching, splits=splits, keys=keys)
    with temporary() as folder, ExitStack() as stack:
        store_url, grpc_port = f"file://{folder}/store", free_port()
        token = register(store_url, folder / "artifacts", models)
        redis_url = stack.enter_context(redis_server(folder, appends=True))
        if keys:
            fill_features(store_url, redis_url)
        options = ["--standalone"] * standalone + ["--grpc-port", str(grpc_port)] * grpc
        room = max(os.cpu_count() or 1, len(models))  # idle replicas need room, not time
        serving = predictor(
            folder,
            store_url,
            token,
            *models,
            *options,
            "--num-cpus",
            room,
            redis_url=redis_url,
            asked=next(iter(models)),
        )
        ours = targets(stack.enter_context(serving), list(models), f"grpc://127.0.0.1:{grpc_port}" * grpc)
        if not batching:
            url, _ = stack.enter_context(
                asgi_server("toque.load.benchmarks.serving.floor:app", folder, *FLOOR)
            )
            ours.insert(0, Target("bare ASGI floor", url, {"Content-Type": "application/json"}, json_body()))
        most = compare(ours, connections, seconds, rounds, folder)
        for target in ours[:2] * (rounds * steady):
            rate = 0.7 * most[target.name]
            say(
                f"{target.name:24}{ask_steadily(target.url, target.headers, target.body, rate=rate, seconds=10)}"
            )
    if not batching:
        subprocess.run(module("toque.ray_apps.predictor.breakdown"), check=True)


def served(*, grpc: bool, batching: bool, splits: bool, keys: bool) -> dict[str, BenchmarkModel]:
    """Describe the served models by name."""
    if batching:
        tags = {"max_batch_rows": str(BATCH_ROWS)}
        return {
            "wide": BenchmarkModel(WideMlp().eval()),
            "wide-batches": BenchmarkModel(WideMlp().eval(), tags),
        }
    models = {"mlp": BenchmarkModel(small_mlp())} | (split_models() if splits else {})
    if grpc:
        models["long-row"] = BenchmarkModel(small_mlp(LONG_ROW), columns=LONG_ROW)
    return models | (keyed_models() if keys else {})


def targets(ours: Predictor, models: list[str], grpc: str) -> list[Target]:
    """List the targets of our own server. grpc: address of its gRPC door, empty for none."""
    found = []
    for model in models:
        row = {"long-row": (ROW * LONG_ROW)[:LONG_ROW], "forty": ROW + ROW}.get(model, ROW)
        asked = ours.target(model, json_body(row))
        if model == "forty-by-key":
            entities = {"parameters": {"entities": [{"key": KEY}]}}
            found.append(ours.target(model, json.dumps({"inputs": [], **entities}).encode()))
            continue
        if model != "long-row":
            found.append(asked)
        if model in {"mlp", "long-row"}:
            body, length = binary_body(row)
            url = asked.url if model == "long-row" else ""
            found.append(Target(f"{model}, binary", asked.url, {**asked.headers, **length}, body, h2load=url))
        if grpc and model in {"mlp", "long-row"}:
            found.append(
                Target(f"{model}, by h2load", asked.url, asked.headers, asked.body, h2load=asked.url)
            )
            body = grpc_body(model, row)
            found.append(Target(f"{model}, gRPC", asked.url, asked.headers, body, h2load=grpc))
    return found


if __name__ == "__main__":
    main(run, "torch")
