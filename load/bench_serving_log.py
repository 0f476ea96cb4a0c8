"""What the prediction log costs: one predictor that logs and one that does not, measured in turns.

python -m load.bench_serving_log [--seconds 4] [--rounds 8] [--connections 16]

Each in one process, without Ray and HAProxy, with the small MLP of `bench_serving` and a Redis that the log is shipped to. A
round is both, one after the other, so a neighbour that comes hits both; the ratio is the median over rounds. The CPU of a
request is the process's own, answering, shipping and following the policy together.
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

from load.bench_serving import (
    Target,
    free_port,
    json_body,
    measure,
    process,
    redis_binary,
    wait_for,
    wait_for_port,
)
from load.serving_bed import Served, register
from load.serving_floor import small_mlp
from load.timing import print_machine


@dataclass
class Server:
    """A predictor that runs; of each round its requests per second, and its CPU of a request in microseconds."""

    target: Target
    pid: int
    rates: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)

    def round(self, connections: int, seconds: float, folder: Path) -> None:
        """Measure once more."""
        before = cpu_s(self.pid)
        measure(self.target, connections, seconds, folder)
        self.rates.append(self.target.rates[connections][-1])
        self.cpu_us.append((cpu_s(self.pid) - before) / (self.rates[-1] * seconds) * 1e6)


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has taken, its own and the kernel's for it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(stack: contextlib.ExitStack, folder: Path) -> tuple[Server, Server]:
    """Redis, the predictor that logs and the one that does not."""
    store_url, redis_port = f"file://{folder}/store", free_port()
    token = register(store_url, folder / "artifacts", {"mlp": Served(small_mlp())})
    redis = [redis_binary(), "--port", str(redis_port), "--bind", "127.0.0.1", "--dir", str(folder)]
    redis += ["--requirepass", "bench", "--appendonly", "yes", "--save", ""]
    stack.enter_context(process(redis, folder / "redis.log", {}))
    wait_for_port(redis_port)
    environment = {"TOQUE_STORE": store_url, "TOQUE_REDIS_URL": f"redis://:bench@127.0.0.1:{redis_port}/0"}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}

    def serve(name: str, *flags: str) -> Server:
        port, log = free_port(), folder / f"{name}.log"
        command = [sys.executable, "-m", "ray_apps.predictor", "--port", str(port), "mlp", "--bare", *flags]
        child = stack.enter_context(process(command, log, environment))
        target = Target(name, f"http://127.0.0.1:{port}/v2/models/mlp/infer", headers, json_body())
        wait_for(target, child, log)
        measure(target, 16, 2, folder)  # warm
        return Server(target, child.pid)

    return serve("logged"), serve("not-logged", "--no-log")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--connections", type=int, default=16)
    arguments = parser.parse_args()
    print_machine("torch")
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        both = start(stack, Path(name))
        for _ in range(arguments.rounds):
            for server in both:
                server.round(arguments.connections, arguments.seconds, Path(name))
    for server in both:
        print(
            f"{server.target.name:12}{statistics.median(server.rates):8.0f} requests/s"
            f"{statistics.median(server.cpu_us):8.0f} us of CPU each"
        )
    logged, plain = both
    ratios = [one / other for one, other in zip(logged.rates, plain.rates, strict=True)]
    print(f"of a round   {statistics.median(ratios):8.3f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
