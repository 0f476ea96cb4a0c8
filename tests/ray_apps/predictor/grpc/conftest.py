"""Two models behind an HTTP server and gRPC, for unmodified tritonclients."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import uvicorn
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.ports import free_port
from tests.ray_apps.admissions import patient_admission
from tests.ray_apps.predictor.conftest import MemoryLog
from toque.ray_apps.predictor.deploy.standalone import EndpointRouter
from toque.ray_apps.predictor.grpc import GrpcServer, HttpModels, Limits
from toque.ray_apps.predictor.http.auth import Authenticator, TokenAuthenticator
from toque.ray_apps.predictor.http.model_endpoint import ModelEndpoint
from toque.ray_apps.predictor.inference.predictor import Predictor
from toque.ray_apps.predictor.inference.recording import Recorder
from toque.ray_apps.predictor.protocol.datatypes import DTYPES
from toque.ray_apps.predictor.versions.engine import Engine
from toque.registry import Access, Condition, Registry, Signature, TensorSpec, TrafficRule, open_store

TYPED = [name for name in DTYPES if name != "FP16"]  # 16-bit floats have no typed contents and no JSON


@dataclass
class Same:
    """Answers what it is given, `factor` times where it is a number; says "slow" to the models it waits in."""

    release: threading.Event

    def predict(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        wait = inputs.get("INT64")
        if wait is not None and wait.size and wait.ravel()[0] == -77:
            self.release.wait(60)
        return {f"out_{name}": np.asarray(array) for name, array in inputs.items()}


def signature(names: list[str]) -> Signature:
    example = {"BYTES": [["a"]], "BOOL": [[True]]}
    return Signature(
        inputs=[TensorSpec(name=name, datatype=name, shape=[-1, 2]) for name in names],
        outputs=[TensorSpec(name=f"out_{name}", datatype=name, shape=[-1, 2]) for name in names],
        example={name: [example.get(name, [[1]])[0] * 2] for name in names},
    )


def values(name: str) -> np.ndarray:
    """Two rows with the ends of a datatype's range."""
    dtype = DTYPES[name]
    if name == "BYTES":
        return np.array([[b"", "ü€".encode()], [b"\x00\xff", b"x" * 300]], dtype=object)
    if name == "BOOL":
        return np.array([[True, False], [False, True]])
    info = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    return np.array([[info.min, info.max], [0, 1]], dtype=dtype)


@dataclass
class Served:
    """Two models behind an HTTP server, and by gRPC through it, or in the same process."""

    inside: bool
    http: str
    grpc: str
    token: str
    viewer: str
    release: threading.Event
    endpoints: dict[str, ModelEndpoint]

    @property
    def auth(self) -> Authenticator:
        return self.endpoints["typed"].auth

    @property
    def login(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}


def make_endpoint(folder: Path, model: str, names: list[str], release: threading.Event) -> ModelEndpoint:
    store = open_store(f"file://{folder}/store")
    registry = Registry(store, actor="ada")
    registry.create_model(model)
    path = folder / model
    path.mkdir()
    (path / "model.json").write_text("{}")
    registry.promote(model, registry.create_version(model, path=path, signature=signature(names)).version)
    dutch = Condition(attribute="country", op="in", values=("NL",))
    registry.set_traffic(model, {}, rules=[TrafficRule(name="dutch", to="champion", when=(dutch,))])
    engine = Engine(model, registry, lambda *_: Same(release), scratch=folder / "loading")
    engine.follow_once()
    engine.load_wanted()
    predictor = Predictor(engine, Recorder(model, MemoryLog()))
    return ModelEndpoint(predictor, TokenAuthenticator(patient_admission(Access(store, actor="predictor"))))


async def serve(served: Served, started: threading.Event, stop: threading.Event) -> None:
    port = int(served.http.rpartition(":")[2])
    config = uvicorn.Config(
        EndpointRouter(served.endpoints, served.auth), port=port, lifespan="off", log_level="error", ws="none"
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    running = asyncio.create_task(server.serve())
    models = (
        EndpointRouter(served.endpoints, served.auth)
        if served.inside
        else HttpModels(f"http://{served.http}")
    )
    grpc_server = GrpcServer(
        models, served.auth, served.grpc, Limits(max_message_bytes=1 << 20, max_calls=64)
    )
    await grpc_server.start()
    while not server.started:  # noqa: ASYNC110 - uvicorn tells it by a flag only
        await asyncio.sleep(0.01)
    started.set()
    await asyncio.get_running_loop().run_in_executor(None, stop.wait)
    await grpc_server.stop(1)
    server.should_exit = True
    await running
    for one in served.endpoints.values():
        await one.predictor.close()


@pytest.fixture(scope="module", params=["through the HTTP server", "in process"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    release, started, stop = threading.Event(), threading.Event(), threading.Event()
    endpoints = {
        "every": make_endpoint(folder, "every", list(DTYPES), release),
        "typed": make_endpoint(folder, "typed", TYPED, release),
    }
    access = Access(open_store(f"file://{folder}/store"), actor="root")
    made = Served(
        inside=request.param == "in process",
        http=f"127.0.0.1:{free_port()}",
        grpc=f"127.0.0.1:{free_port()}",
        token=access.create_token("predictor", "predictor"),
        viewer=access.create_token("viewer", "viewer"),
        release=release,
        endpoints=endpoints,
    )
    thread = threading.Thread(target=lambda: asyncio.run(serve(made, started, stop)))
    thread.start()
    assert started.wait(60)
    yield made
    release.set()
    stop.set()
    thread.join(60)
    assert not thread.is_alive()


@pytest.fixture
def client(served: Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served.grpc) as made:
        yield made


def inputs(names: list[str]) -> list[triton.InferInput]:
    made = []
    for name in names:
        tensor = triton.InferInput(name, [2, 2], name)
        tensor.set_data_from_numpy(values(name))
        made.append(tensor)
    return made


def place(name: str) -> str:
    """The field of the protocol that holds a datatype's typed contents."""
    own = {
        "BOOL": "bool",
        "UINT64": "uint64",
        "INT64": "int64",
        "FP32": "fp32",
        "FP64": "fp64",
        "BYTES": "bytes",
    }
    return f"{own.get(name, 'uint' if name.startswith('U') else 'int')}_contents"


def typed_request(**fields: Any) -> Any:
    """A request with typed contents, built of tritonclient's own messages."""
    request = service_pb2.ModelInferRequest(model_name="typed", **fields)
    for name in TYPED:
        tensor = request.inputs.add(name=name, datatype=name, shape=[2, 2])
        getattr(tensor.contents, place(name)).extend(values(name).ravel().tolist())
    return request


@pytest.fixture
def stub(served: Served) -> Iterator[service_pb2_grpc.GRPCInferenceServiceStub]:
    with grpc.insecure_channel(served.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)
