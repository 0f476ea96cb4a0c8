"""Benchmark of the predictor's throughput against a bare ASGI floor, with a breakdown of one request.

Both servers run at once on this machine, each in one process behind nothing (floor) or behind Serve's HAProxy (ours), and are measured in
turns by h2load in a closed loop, so that a noisy neighbour hits both. The model is the same small MLP, one row, 20 numbers.
Ours authenticates, checks, splits and logs.
"""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import ExitStack
from typing import Annotated

import numpy as np

from toque.load.benchmarks.harness import main, say
from toque.load.benchmarks.open_loop import ask_steadily
from toque.load.benchmarks.servers import asgi_server, module, until
from toque.load.benchmarks.serving import fixtures
from toque.load.benchmarks.serving.fixtures import LONG_ROW, ROW, BenchmarkModel, Predictor, Target, json_body
from toque.load.benchmarks.serving.floor import small_mlp, wide_mlp
from toque.load.scenarios.sending.processes import free_port

FLOOR = ("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--lifespan", "off")


def run(
    *,
    seconds: float = 4,
    rounds: int = 3,
    connections: tuple[int, ...] = (1, 16, 64),
    grpc: Annotated[bool, "also by gRPC, and 500 numbers"] = False,
    batching: Annotated[bool, "a larger model, without and with batches; the first is the baseline"] = False,
    splits: Annotated[bool, "also behind a 3-way split, without and with a shadow"] = False,
    keys: Annotated[bool, "also a model of 40 features, with tensors and by key"] = False,
    dedicated: Annotated[bool, "also a version in a replica of its own, a hop further"] = False,
    steady: Annotated[bool, "also 70 % of the most, open loop"] = False,
    standalone: Annotated[bool, "ours without Ray and HAProxy"] = False,
) -> None:
    """Start both servers, measure them in turns, and print the result."""
    models = served(grpc=grpc, batching=batching, splits=splits, keys=keys)
    apart = {"dedicated": BenchmarkModel(small_mlp())} if dedicated else {}
    with fixtures.prepared(models | apart) as place, ExitStack() as stack:
        if keys:
            fixtures.fill_features(place.store_url, place.redis_url)
        # idle replicas need room, not time
        options = [*models, "--num-cpus", max(os.cpu_count() or 1, len(models) + 3 * dedicated)]
        options += [*["--standalone"] * standalone, *["--dedicated", *apart] * dedicated]
        grpc_port = free_port()
        options += ["--grpc-port", grpc_port] * grpc
        ours = stack.enter_context(place.run(*options, asked=next(iter(models))))
        targets = targets_of(ours, list(models), f"grpc://127.0.0.1:{grpc_port}" * grpc)
        for name in apart:
            targets.append(ours.target(name))
            until(targets[-1].answers, "the dedicated version does not answer")
        if not batching:
            floor = asgi_server("toque.load.benchmarks.serving.floor:app", place.folder, *FLOOR)
            url, _ = stack.enter_context(floor)
            json_headers = {"Content-Type": "application/json"}
            targets.insert(0, Target("bare ASGI floor", url, json_headers, json_body()))
        most = fixtures.compare(targets, connections, seconds, rounds, place.folder)
        for target in targets[:2] * (rounds * steady):
            rate = 0.7 * most[target.name]
            sent = ask_steadily(target.url, target.headers, target.body, rate=rate, seconds=10)
            say(f"{target.name:24}{sent}")
    if not batching:
        subprocess.run(module("toque.ray_apps.predictor.breakdown"), check=True)


def served(*, grpc: bool, batching: bool, splits: bool, keys: bool) -> dict[str, BenchmarkModel]:
    """Describe the served models by name."""
    if batching:
        wide = wide_mlp()
        return {"wide": BenchmarkModel(wide), "wide-batches": BenchmarkModel(wide, {"max_batch_rows": "32"})}
    models = {"mlp": BenchmarkModel(small_mlp())}
    if splits:
        models["mlp-split"] = BenchmarkModel(small_mlp(), arms=(0.09, 0.01))
        models["mlp-split-shadow"] = BenchmarkModel(small_mlp(), arms=(0.09, 0.01), shadow=True)
    if grpc:
        models["long-row"] = BenchmarkModel(small_mlp(LONG_ROW), columns=LONG_ROW)
    return models | (fixtures.keyed_models() if keys else {})


def targets_of(ours: Predictor, models: list[str], grpc: str) -> list[Target]:
    """List the targets of our own server. grpc: address of its gRPC door, empty for none."""
    targets = []
    for model in models:
        row = {"long-row": (ROW * LONG_ROW)[:LONG_ROW], "forty": ROW + ROW}.get(model, ROW)
        body = json_body(row)
        if model == "forty-by-key":
            body = json.dumps({"inputs": [], "parameters": {"entities": [{"key": fixtures.KEY}]}}).encode()
        targets.append(ours.target(model, body))
        if model in {"mlp", "long-row"}:
            url, headers = targets[-1].url, targets[-1].headers
            array, output = np.array([row], np.float32), {"binary_data_output": True}
            binary, length = fixtures.binary_body({"x": array}, parameters=output)
            targets.append(Target(f"{model}, binary", url, {**headers, **length}, binary))
            if grpc:
                targets.append(Target(f"{model}, gRPC", grpc, headers, fixtures.grpc_body(model, row)))
    return targets


if __name__ == "__main__":
    main(run, "torch", "ray")
