"""Benchmark of the prediction log: one predictor that logs and one that does not, in turns.

python -m load.benchmarks.serving.prediction_log [--starts 6] [--rounds 4] [--seconds 1] [--connections 1 16 64]

Each in one process, without Ray and HAProxy, with the small MLP of `load.benchmarks.serving.throughput` and a Redis that the log is shipped to. A
round is both, one after the other, so a neighbour that comes hits both. Two processes of the same program differ by some
percent for as long as they live, so both are started several times: a ratio is the mean over starts of the median over rounds,
with its standard error. The CPU of a request is the process's own, answering, shipping and following the policy together.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from load.benchmarks.serving.floor import small_mlp
from load.benchmarks.serving.models import BenchmarkModel, register
from load.benchmarks.serving.throughput import (
    Target,
    free_port,
    json_body,
    measure,
    process,
    redis_binary,
    wait_for,
    wait_for_port,
)
from load.benchmarks.timing import print_machine


@dataclass
class Server:
    """Running predictor; by number of connections its requests per second and CPU microseconds of a request, by round."""

    target: Target
    pid: int
    cpu_us: dict[int, list[float]] = field(default_factory=dict)

    def round(self, connections: int, seconds: float, folder: Path) -> None:
        """Measure one more round of requests."""
        before = cpu_s(self.pid)
        measure(self.target, connections, seconds, folder)
        requests = self.target.rates[connections][-1] * seconds
        self.cpu_us.setdefault(connections, []).append((cpu_s(self.pid) - before) / requests * 1e6)


def cpu_s(pid: int) -> float:
    """Read the CPU seconds of a process, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(stack: contextlib.ExitStack, folder: Path) -> tuple[Server, Server]:
    """Start Redis, the predictor that logs and the one that does not."""
    store_url, redis_port = f"file://{folder}/store", free_port()
    token = register(store_url, folder / "artifacts", {"mlp": BenchmarkModel(small_mlp())})
    redis = [redis_binary(), "--port", str(redis_port), "--bind", "127.0.0.1", "--dir", str(folder)]
    redis += ["--requirepass", "bench", "--appendonly", "yes", "--save", ""]
    stack.enter_context(process(redis, folder / "redis.log", {}))
    wait_for_port(redis_port)
    environment = {"TOQUE_STORE": store_url, "TOQUE_REDIS_URL": f"redis://:bench@127.0.0.1:{redis_port}/0"}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}

    def serve(name: str, *flags: str) -> Server:
        port, log = free_port(), folder / f"{name}.log"
        command = [
            sys.executable,
            "-m",
            "ray_apps.predictor",
            "--port",
            str(port),
            "mlp",
            "--standalone",
            *flags,
        ]
        child = stack.enter_context(process(command, log, environment))
        target = Target(name, f"http://127.0.0.1:{port}/v2/models/mlp/infer", headers, json_body())
        wait_for(target, child, log)
        measure(target, 16, 2, folder)  # warm
        target.rates.clear()
        return Server(target, child.pid)

    return serve("logged"), serve("not-logged", "--no-log")


def one_start(arguments: argparse.Namespace) -> tuple[Server, Server]:
    """Measure both in turns, in new processes."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        both = start(stack, Path(name))
        for _ in range(arguments.rounds):
            for connections in arguments.connections:
                for server in both:
                    server.round(connections, arguments.seconds, Path(name))
    return both


def report(starts: list[tuple[Server, Server]], connections: int) -> None:
    """Print a line for each predictor, and their ratio."""
    for server in zip(*starts, strict=True):
        rate = statistics.mean(statistics.median(one.target.rates[connections]) for one in server)
        cpu = statistics.mean(statistics.median(one.cpu_us[connections]) for one in server)
        print(
            f"{server[0].target.name:12}{connections:4} connections{rate:8.0f} requests/s{cpu:6.0f} us of CPU each"
        )
    ratios = [
        statistics.median(
            one / other
            for one, other in zip(
                logged.target.rates[connections], plain.target.rates[connections], strict=True
            )
        )
        for logged, plain in starts
    ]
    error = statistics.stdev(ratios) / len(ratios) ** 0.5
    print(f"ratio       {connections:4} connections{statistics.mean(ratios):8.3f} +- {error:.3f}")


def main() -> None:
    """Measure both predictors and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--starts", type=int, default=6, help="at least 2")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    arguments = parser.parse_args()
    print_machine("torch")
    starts = [one_start(arguments) for _ in range(arguments.starts)]
    for connections in arguments.connections:
        report(starts, connections)


if __name__ == "__main__":
    main()
