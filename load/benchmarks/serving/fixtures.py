"""What the serving benchmarks ask by h2load, and the predictor, models, splits and features that they start with."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from toque.featurestore import Entity, FeatureService, FeatureStore, FeatureView, Field, Float64
from toque.functions.model_formats.program import export_program, save_program
from toque.load.benchmarks.harness import NotPossible, Ratio, in_turns, say, temporary
from toque.load.benchmarks.servers import Child, module, process, redis_server, until
from toque.load.benchmarks.serving.floor import COLUMNS, small_mlp
from toque.load.scenarios.sending.processes import free_port
from toque.registry import Access, Registry, Signature, TensorSpec, open_store

ROW = [round(0.1 * i, 1) for i in range(COLUMNS)]
LONG_ROW, FEATURES = 500, 40
SERVICE, KEY = "forty_features", "k1"
FEATURE_NAMES = [f"f{n:02}" for n in range(FEATURES)]
_VIEWS = {f"view_{n}": FEATURE_NAMES[10 * n : 10 * n + 10] for n in range(FEATURES // 10)}
_DATATYPES = {"float32": "FP32", "float64": "FP64", "uint8": "UINT8", "object": "BYTES"}
_INFER = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True, slots=True)
class Load:
    """Answers of one round: requests a second, and milliseconds at two quantiles."""

    rate: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Target:
    """Request that is sent again and again.

    url: "http://…", or "grpc://host:port" for calls of ModelInfer, whose message is `body`.
    """

    name: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def answers(self) -> bool:
        """Whether its own request is answered."""
        try:
            return httpx.post(self.url, content=self.body, headers=self.headers, timeout=5).is_success
        except httpx.HTTPError:
            return False

    def ask(self, connections: int, seconds: float, folder: Path) -> Load:
        """Run h2load once, with one request at a time per connection. Raises: NotPossible if an answer is no success."""
        if shutil.which("h2load") is None:
            raise NotPossible("this benchmark needs h2load (apt-get install nghttp2-client)")
        url, headers, body, shortest, kind = self.url, dict(self.headers), self.body, 0, "--h1"
        if url.startswith("grpc://"):
            address = url.removeprefix("grpc://")
            url = f"http://{address}{_INFER}"
            body = b"\0" + len(body).to_bytes(4, "big") + body
            kind = "--npn-list=h2c"
            shortest = 5 + len(_called(address, headers, self.body))  # a message has a head of five bytes
            headers |= {"Content-Type": "application/grpc", "TE": "trailers"}
        sent, log = folder / "h2load.body", folder / "h2load.log"
        log.unlink(missing_ok=True)
        sent.write_bytes(body)
        command = ["h2load", "-t1", f"-c{connections}", "-m1", f"-D{seconds:.0f}", kind, "-d", str(sent)]
        command += [part for name, value in headers.items() for part in ("-H", f"{name.lower()}: {value}")]
        command += ["--log-file", str(log), url]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows = [line.split() for line in log.read_text().splitlines()]
        count, size = (re.search(what, printed) for what in (r"(\d+) succeeded", r"\((\d+)\) data"))
        assert count is not None and size is not None  # noqa: S101, PT018 - h2load prints them
        # a refusal by gRPC is a 200 too, and has no message
        if not rows or {row[1] for row in rows} != {"200"} or int(size[1]) < int(count[1]) * shortest:
            raise NotPossible(f"{self.name}: answers that are no predictions:\n{printed}")
        p50, p99 = np.quantile([int(row[2]) for row in rows], [0.5, 0.99]) / 1e3
        return Load(len(rows) / seconds, float(p50), float(p99))


def _called(address: str, headers: Mapping[str, str], message: bytes) -> bytes:
    """Call once as a client does. Raises: grpc.RpcError if it is refused."""
    import grpc  # late: only gRPC needs it

    with grpc.insecure_channel(address) as channel:
        metadata = (("authorization", headers["Authorization"]),)
        answer: bytes = channel.unary_unary(_INFER)(message, metadata=metadata, wait_for_ready=True)
    return answer


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


def json_body(row: Sequence[float] = ROW) -> bytes:
    """Encode one row as the protocol's JSON."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, len(row)], "data": list(row)}
    return json.dumps({"inputs": [tensor]}).encode()


def binary_body(inputs: Mapping[str, npt.NDArray[Any]], **head: Any) -> tuple[bytes, dict[str, str]]:
    """Encode a request: numbers as binary tensors, so that no bit is lost on the way, texts as JSON; the body, and its headers.

    head: what stands beside the inputs.
    """
    tensors, binary = list[dict[str, Any]](), b""
    for name, array in inputs.items():
        tensor = {"name": name, "datatype": _DATATYPES[array.dtype.name], "shape": list(array.shape)}
        if array.dtype.kind == "O":
            tensors.append(tensor | {"data": [text.decode() for text in array.ravel()]})
        else:
            tensors.append(tensor | {"parameters": {"binary_data_size": array.nbytes}})
            binary += array.tobytes()
    encoded = json.dumps(head | {"inputs": tensors}).encode()
    return encoded + binary, {"Inference-Header-Content-Length": str(len(encoded))} if binary else {}


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

    @property
    def headers(self) -> dict[str, str]:
        """Headers of a request with JSON."""
        return {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"}

    def target(self, model: str, body: bytes | None = None, **headers: str) -> Target:
        """Make the target that asks a model by HTTP for one row."""
        url = f"{self.url}/v2/models/{model}/infer"
        return Target(model, url, self.headers | headers, body or json_body())


@dataclass(frozen=True, slots=True)
class BenchmarkModel:
    """Model that the benchmark serves.

    tags: of its versions; arms: shares of further versions; shadow: whether one more listens.
    """

    module: torch.nn.Module
    tags: dict[str, str] = field(default_factory=dict)
    arms: tuple[float, ...] = ()
    shadow: bool = False
    columns: int = COLUMNS

    def signature(self) -> Signature:
        """Describe its rows, by the names of the features where it is asked by key."""
        names = FEATURE_NAMES if "feature_service" in self.tags else None
        return Signature(
            inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, self.columns], columns=names)],
            outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 1])],
            example={"x": [[0.1] * self.columns]},
        )


def keyed_models() -> dict[str, BenchmarkModel]:
    """Make two models of 40 features: one that is sent them, one that looks them up."""
    module, by_key = small_mlp(FEATURES), {"feature_service": SERVICE}
    return {
        "forty": BenchmarkModel(module, columns=FEATURES),
        "forty-by-key": BenchmarkModel(module, by_key, columns=FEATURES),
    }


def define_features(store_url: str, redis_url: str | None = None) -> FeatureStore:
    """Define forty features in four views, if they are not yet; before a platform starts, which signs what it writes."""
    features = FeatureStore(open_store(store_url), redis_url=redis_url)
    entity = Entity("key", join_keys=["key"])
    views = [
        FeatureView(view, entities=[entity], schema=[Field(name, Float64) for name in names], ttl=None)
        for view, names in _VIEWS.items()
    ]
    features.apply([entity, *views, FeatureService(SERVICE, features=views)])
    return features


def fill_features(store_url: str, redis_url: str) -> None:
    """Write forty features in four views to Redis, one row each."""
    features, now = define_features(store_url, redis_url), [datetime.now(UTC)]
    key: dict[str, Any] = {"key": [KEY], "event_timestamp": pa.array(now, pa.timestamp("us", "UTC"))}
    for view, names in _VIEWS.items():
        features.push(view, pa.table(key | {name: [0.5] for name in names}), to="online")


def register(store_url: str, folder: Path, models: Mapping[str, BenchmarkModel]) -> str:
    """Register the models and set their traffic; returns a token that may predict."""
    store = open_store(store_url)
    registry = Registry(store, actor="bench")
    for name, model in models.items():
        registry.create_model(name)
        champion, *others = [
            another_version(registry, folder, name, model) for _ in range(1 + len(model.arms) + model.shadow)
        ]
        registry.promote(name, champion)
        if others:
            arms = {f"arm-{n}": (others[n], share) for n, share in enumerate(model.arms)}
            shadows = [others[-1]] if model.shadow else []
            registry.set_traffic(name, arms, shadows=shadows, reason="benchmark")
    return Access(store, actor="bench").create_token("bench", "predictor")


def another_version(registry: Registry, folder: Path, name: str, model: BenchmarkModel) -> int:
    """Register a version of a model that the registry knows; a network is exported once to `folder`. Returns its number."""
    path = folder / str(id(model.module))
    if not path.exists():
        path.mkdir(parents=True)
        example = torch.full((2, model.columns), 0.1)
        save_program(export_program(model.module, {"x": example}), path / "model.pt2")
    return registry.create_version(name, path=path, signature=model.signature(), tags=model.tags).version


@dataclass(frozen=True, slots=True)
class Prepared:
    """Store with models, a token that may predict, and a Redis, empty for none, on which predictors can be run."""

    folder: Path
    store_url: str
    token: str
    redis_url: str = ""

    @contextmanager
    def run(
        self, *options: object, environment: Mapping[str, str] | None = None, asked: str | None = "mlp"
    ) -> Iterator[Predictor]:
        """Run a predictor on it. asked: model that answers before the block begins, None for none. Raises: NotPossible."""
        port = free_port()
        log = self.folder / f"predictor-{port}.log"
        command = module("toque.ray_apps.predictor", "--port", port)
        own = {"TOQUE_STORE": self.store_url} | (
            {"TOQUE_REDIS_URL": self.redis_url} if self.redis_url else {}
        )
        own |= environment or {}
        command += map(str, options)
        with process(command, log, own, ready=lambda: b"ready\n" in log.read_bytes(), within_s=300) as child:
            running = Predictor(f"http://127.0.0.1:{port}", self.token, child)
            if asked is not None:
                until(running.target(asked).answers, f"{asked} does not answer")
            yield running


@contextmanager
def prepared(models: Mapping[str, BenchmarkModel], *, replica: bool = False) -> Iterator[Prepared]:
    """Register models in a new store, and run a Redis that predictors log to. replica: that another one follows."""
    with temporary() as folder, ExitStack() as stack:
        store_url = f"file://{folder}/store"
        token = register(store_url, folder / "artifacts", models)
        redis_url = stack.enter_context(redis_server(folder, appends=True))
        if replica:
            stack.enter_context(redis_server(folder, appends=True, replica_of=redis_url))
        yield Prepared(folder, store_url, token, redis_url)
