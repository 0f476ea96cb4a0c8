"""What the serving benchmarks ask, by wrk or h2load, and the predictor that they start."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import numpy as np

from toque.load.benchmarks.harness import NotPossible, Ratio, in_turns, say
from toque.load.benchmarks.servers import Child, free_port, module, process, until
from toque.load.benchmarks.serving.floor import COLUMNS
from toque.load.scenarios.sending.h2load import ask_by_h2load

ROW = [round(0.1 * i, 1) for i in range(COLUMNS)]
_PACKAGES = {"wrk": "wrk", "h2load": "nghttp2-client"}
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def need(*tools: str) -> None:
    """Refuse to begin without some programs. Raises: NotPossible."""
    for tool in tools:
        if shutil.which(tool) is None:
            raise NotPossible(f"this benchmark needs {tool} (apt-get install {_PACKAGES.get(tool, tool)})")


@dataclass(frozen=True, slots=True)
class Load:
    """Answers of one round: requests a second, and milliseconds at two quantiles."""

    rate: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Target:
    """Request that is sent again and again. h2load: what that is to ask, instead of wrk; "grpc://host:port" for the message of a call."""

    name: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    h2load: str = ""

    def answers(self) -> bool:
        """Whether its own request is answered."""
        try:
            return httpx.post(self.url, content=self.body, headers=self.headers, timeout=5).is_success
        except httpx.HTTPError:
            return False

    def ask(self, connections: int, seconds: float, folder: Path) -> Load:
        """Run wrk or h2load once; refuses to report one with errors. Raises: NotPossible."""
        if self.h2load:
            times_us = ask_by_h2load(self.h2load, self.headers, self.body, connections, seconds, folder)
            p50, p99 = np.quantile(times_us, [0.5, 0.99]) / 1e3
            return Load(len(times_us) / seconds, float(p50), float(p99))
        script = folder / "request.lua"
        body = "".join(f"\\x{byte:02x}" for byte in self.body)
        headers = [f"wrk.headers['{name}'] = '{value}'" for name, value in self.headers.items()]
        script.write_text("\n".join(["wrk.method = 'POST'", f'wrk.body = "{body}"', *headers]))
        options = ["-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "20s", "--latency"]
        command = ["wrk", *options, "-s", str(script), self.url]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        if "Non-2xx" in told or "Socket errors" in told:
            raise NotPossible(f"{self.name}: a request failed:\n{told}")
        ((rate,), *quantiles) = (
            re.findall(rf"{what}\s+([\d.]+)(us|ms|s)?", told) for what in ("Requests/sec:", "50%", "99%")
        )
        p50, p99 = (float(value) * _UNITS[unit] for ((value, unit),) in quantiles)
        return Load(float(rate[0]), p50, p99)


def compare(
    targets: Sequence[Target], connections: Sequence[int], seconds: float, rounds: int, folder: Path
) -> dict[str, float]:
    """Ask all targets in turns, print medians and ratios to the first, and return the highest median rate of each."""
    for target in targets:
        target.ask(16, 2, folder)  # warm
    most = dict.fromkeys((target.name for target in targets), 0.0)
    for count in connections:
        calls = {target.name: partial(target.ask, count, seconds, folder) for target in targets}
        loads = in_turns(calls, rounds)
        base = [load.rate for load in loads[targets[0].name]]
        for name, found in loads.items():
            rates = [load.rate for load in found]
            rate, p50, p99 = np.median([[load.rate, load.p50_ms, load.p99_ms] for load in found], axis=0)
            most[name] = max(most[name], float(rate))
            say(
                f"{name:24}{count:4} connections{rate:8.0f} requests/s, p50 {p50:6.2f} ms, p99 {p99:7.2f} ms; "
                f"{Ratio.of(rates, base)} of {targets[0].name}"
            )
    return most


def headers_of(token: str) -> dict[str, str]:
    """Headers of a request with JSON."""
    return {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}


def json_body(row: Sequence[float] = ROW) -> bytes:
    """Encode one row as the protocol's JSON."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, len(row)], "data": list(row)}
    return json.dumps({"inputs": [tensor]}).encode()


def binary_body(row: Sequence[float] = ROW) -> tuple[bytes, dict[str, str]]:
    """Encode one row as a binary tensor: the body, and the header with the length of its JSON."""
    data = struct.pack(f"<{len(row)}f", *row)
    parameters = {"binary_data_size": len(data)}
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, len(row)], "parameters": parameters}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + data, {"Inference-Header-Content-Length": str(len(head))}


def grpc_body(model: str = "mlp", row: Sequence[float] = ROW) -> bytes:
    """Encode one row as a gRPC message with raw contents."""
    from tritonclient.grpc import service_pb2  # late: only gRPC needs it

    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype="FP32", shape=[1, len(row)])
    request.raw_input_contents.append(struct.pack(f"<{len(row)}f", *row))
    message: bytes = request.SerializeToString()
    return message


@dataclass(frozen=True, slots=True)
class Predictor:
    """Running predictor, and its process."""

    url: str
    token: str
    child: Child

    def target(self, model: str, body: bytes | None = None, **headers: str) -> Target:
        """Make the target that asks a model by HTTP for one row."""
        own = headers_of(self.token) | headers
        return Target(model, f"{self.url}/v2/models/{model}/infer", own, body or json_body())


@contextmanager
def predictor(
    folder: Path,
    store_url: str,
    token: str,
    *options: object,
    redis_url: str = "",
    environment: Mapping[str, str] | None = None,
    asked: str | None = "mlp",
) -> Iterator[Predictor]:
    """Run a predictor on a store. asked: model that answers before the block begins, None for none. Raises: NotPossible."""
    port = free_port()
    own = {"TOQUE_STORE": store_url} | ({"TOQUE_REDIS_URL": redis_url} if redis_url else {})
    command, log = (
        module("toque.ray_apps.predictor", "--port", port, *options),
        folder / f"predictor-{port}.log",
    )
    with process(
        command,
        log,
        own | dict(environment or {}),
        ready=lambda: b"ready\n" in log.read_bytes(),
        within_s=300,
    ) as child:
        running = Predictor(f"http://127.0.0.1:{port}", token, child)
        if asked is not None:
            until(running.target(asked).answers, f"{asked} does not answer")
        yield running
