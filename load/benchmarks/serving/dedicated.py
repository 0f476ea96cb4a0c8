"""Benchmark of dedicated versions: the cost of a hop to another replica, for one-row requests.

python -m toque.load.benchmarks.serving.dedicated [--seconds 4] [--rounds 3] [--connections 1 16]

Both models are the same small MLP behind one HAProxy, one replica each (of the second: one endpoint, and one replica of
its one version), measured in turns by `wrk`, with authentication and log. Needs wrk.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from toque.load.benchmarks.serving.floor import small_mlp
from toque.load.benchmarks.serving.models import BenchmarkModel, register
from toque.load.benchmarks.serving.throughput import (
    Target,
    free_port,
    json_body,
    measure,
    process,
    redis_binary,
    report,
    wait_for,
    wait_until_ready,
)


def main() -> None:
    """Start the server, measure it, and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16])
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("this benchmark needs wrk (apt-get install wrk)")
    print(f"{platform.machine()}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.0f}")
    with tempfile.TemporaryDirectory() as name:
        run(arguments, Path(name))


def run(arguments: argparse.Namespace, folder: Path) -> None:
    """Measure both models in turns."""
    store_url, port, redis_port = f"file://{folder}/store", free_port(), free_port()
    models = {name: BenchmarkModel(small_mlp()) for name in ("shared", "dedicated")}
    headers = {
        "Content-Type": "application/json",
        "Authorization": f"Bearer {register(store_url, folder / 'artifacts', models)}",
    }
    targets = [
        Target(name, f"http://127.0.0.1:{port}/v2/models/{name}/infer", headers, json_body())
        for name in models
    ]
    redis = [redis_binary(), "--port", str(redis_port), "--bind", "127.0.0.1", "--dir", str(folder)]
    redis += ["--requirepass", "bench", "--save", ""]
    ours = [sys.executable, "-m", "toque.ray_apps.predictor", "--port", str(port), "--num-cpus", "4"]
    ours += ["shared", "--dedicated", "dedicated"]
    environment = {"TOQUE_STORE": store_url, "TOQUE_REDIS_URL": f"redis://:bench@127.0.0.1:{redis_port}/0"}
    log = folder / "ours.log"
    with process(redis, folder / "redis.log", {}), process(ours, log, environment) as child:
        wait_until_ready(child, log)
        for target in targets:
            wait_for(target, child, log)
            measure(target, 16, 2, folder)  # warm
            for kept in (target.rates, target.p50, target.p99):
                kept.clear()
        for _ in range(arguments.rounds):
            for count in arguments.connections:
                for target in targets:
                    measure(target, count, arguments.seconds, folder)
        report(targets, arguments.connections)


if __name__ == "__main__":
    main()
