"""Benchmark of the prediction log: one predictor that logs and one that does not, in turns; or one for each mode of the log.

python -m toque.load.benchmarks.serving.prediction_log [--modes | --code BEFORE NOW] [--starts 6] [--rounds 4] [--seconds 1]
    [--connections 1 16 64]

With --code both log, one by the code in each of two folders, such as two worktrees. With --modes the baseline is mode `file`; Redis has a replica, since it runs on the predictors' machine and mode `two_nodes` then
waits for one. Each in one process, without Ray and HAProxy, with the small MLP of `toque.load.benchmarks.serving.throughput` and a Redis that the log is shipped to. A
round is all of them, one after the other, so a neighbour that comes hits all. Two processes of the same program differ by some
percent for as long as they live, so they are started several times: a ratio is the mean over starts of the median over rounds,
with its standard error. The CPU of a request is the process's own, answering, shipping and following the policy together.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
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
    wait_for,
    wait_for_port,
)
from toque.load.benchmarks.timing import print_machine


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


Variant = tuple[str, list[str], dict[str, str]]
"""Name of a predictor, its flags and its environment beside the common one; the first of several is the baseline."""
LOGGED: list[Variant] = [("not-logged", ["--no-log"], {}), ("logged", [], {})]
MODES: list[Variant] = [(mode, [], {"TOQUE_LOG_MODE": mode}) for mode in ("file", "redis", "two_nodes")]


def of_code(folders: Sequence[str]) -> list[Variant]:
    """Make a predictor of the code in each folder, the first of which is the baseline."""
    return [
        (Path(folder).name, [], {"PYTHONPATH": str(Path(folder).resolve()), "PYTHONSAFEPATH": "1"})
        for folder in folders
    ]


def start_redis(stack: contextlib.ExitStack, folder: Path, *, replica_of: int | None = None) -> int:
    """Start a Redis with an append-only file, a replica if that is asked for; returns its port."""
    port = free_port()
    own = folder / f"redis-{port}"
    own.mkdir()
    command = [redis_binary(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(own)]
    command += ["--requirepass", "bench", "--masterauth", "bench", "--appendonly", "yes", "--save", ""]
    command += [] if replica_of is None else ["--replicaof", "127.0.0.1", str(replica_of)]
    stack.enter_context(process(command, own / "log", {}))
    wait_for_port(port)
    return port


def start(stack: contextlib.ExitStack, folder: Path, variants: list[Variant]) -> list[Server]:
    """Start Redis and the predictors."""
    store_url = f"file://{folder}/store"
    token = register(store_url, folder / "artifacts", {"mlp": BenchmarkModel(small_mlp())})
    redis_port = start_redis(stack, folder)
    if variants is MODES:
        start_redis(stack, folder, replica_of=redis_port)
    environment = {"TOQUE_STORE": store_url, "TOQUE_REDIS_URL": f"redis://:bench@127.0.0.1:{redis_port}/0"}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}

    def serve(name: str, flags: list[str], own: dict[str, str]) -> Server:
        port, log = free_port(), folder / f"{name}.log"
        command = [
            sys.executable,
            "-m",
            "toque.ray_apps.predictor",
            "--port",
            str(port),
            "mlp",
            "--standalone",
        ]
        child = stack.enter_context(process([*command, *flags], log, environment | own))
        target = Target(name, f"http://127.0.0.1:{port}/v2/models/mlp/infer", headers, json_body())
        wait_for(target, child, log)
        measure(target, 16, 2, folder)  # warm
        target.rates.clear()
        return Server(target, child.pid)

    return [serve(*variant) for variant in variants]


def one_start(arguments: argparse.Namespace, variants: list[Variant]) -> list[Server]:
    """Measure the predictors in turns, in new processes."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        servers = start(stack, Path(name), variants)
        for _ in range(arguments.rounds):
            for connections in arguments.connections:
                for server in servers:
                    server.round(connections, arguments.seconds, Path(name))
    return servers


def report(starts: list[list[Server]], connections: int) -> None:
    """Print a line for each predictor, with its ratio to the first."""
    for servers in zip(*starts, strict=True):
        rate = statistics.mean(statistics.median(one.target.rates[connections]) for one in servers)
        cpu = statistics.mean(statistics.median(one.cpu_us[connections]) for one in servers)
        ratios = [
            statistics.median(
                mine / base
                for mine, base in zip(
                    one.target.rates[connections], first.target.rates[connections], strict=True
                )
            )
            for one, (first, *_) in zip(servers, starts, strict=True)
        ]
        error = statistics.stdev(ratios) / len(ratios) ** 0.5
        print(
            f"{servers[0].target.name:12}{connections:4} connections{rate:8.0f} requests/s{cpu:6.0f} us of CPU each"
            f"{statistics.mean(ratios):8.3f} +- {error:.3f} of {starts[0][0].target.name}"
        )


def compare(arguments: argparse.Namespace, variants: list[Variant]) -> None:
    """Measure predictors against the first of them, in several starts, and print the result."""
    starts = [one_start(arguments, variants) for _ in range(arguments.starts)]
    for connections in arguments.connections:
        report(starts, connections)


def argument_parser(about: str | None) -> argparse.ArgumentParser:
    """Make the parser of a comparison. about: what it compares."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=6, help="at least 2")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    return parser


def main() -> None:
    """Measure the predictors and print the result."""
    parser = argument_parser(__doc__)
    parser.add_argument("--modes", action="store_true", help="compare the modes of the log")
    parser.add_argument("--code", nargs=2, metavar="FOLDER", help="compare the code in two folders")
    arguments = parser.parse_args()
    print_machine("torch")
    compare(arguments, of_code(arguments.code) if arguments.code else MODES if arguments.modes else LOGGED)


if __name__ == "__main__":
    main()
