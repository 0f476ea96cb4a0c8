"""No request of up to the size limits holds a predictor's event loop: the longest gap between two ticks is measured.

Each request is sent several times, and the best attempt counts.
"""

from __future__ import annotations

import asyncio
import gc
import gzip
import socket
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
import uvicorn
import uvloop

from tests.ray_apps.predictor.conftest import MemoryLog
from tests.ray_apps.watchdog import ATTEMPTS, MAX_MS, Gaps, tick
from toque.ray_apps.predictor.http.auth import NoAuthentication
from toque.ray_apps.predictor.http.bypass import TimedProtocol
from toque.ray_apps.predictor.http.model_endpoint import ModelEndpoint
from toque.ray_apps.predictor.inference.predictor import Predictor
from toque.ray_apps.predictor.inference.recording import Recorder
from toque.ray_apps.predictor.protocol.datatypes import (
    MAX_ITEMS,
    MAX_JSON_BYTES,
    MAX_JSON_VALUES,
    MAX_TYPED_BYTES,
)
from toque.ray_apps.predictor.protocol.protobuf import PROTOBUF, ModelInferRequest
from toque.ray_apps.predictor.versions.engine import Engine
from toque.registry import Registry, Signature, TensorSpec, open_store

MEBIBYTE = 1 << 20
NAMES = (
    "binary", "binary gzip", "binary deflate", "gzip bomb", "texts", "too many texts", "json", "json nulls", "json texts",
    "json names", "json unknown names", "json of one text", "json, gzip", "json brackets", "message", "message, typed", "message, too many fields",
)  # fmt: skip


class Same:
    """A model that answers what it is given."""

    def predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"y": inputs["x"]}


@dataclass
class Server:
    """A predictor in a thread, with the longest gap between two ticks of its event loop."""

    port: int
    gaps: Gaps = field(default_factory=Gaps)


def make_endpoint(folder: Path, model: str, datatype: str) -> ModelEndpoint:
    registry = Registry(open_store(f"file://{folder}/store"), actor="ada")
    registry.create_model(model)
    (folder / model).mkdir()
    (folder / model / "model.json").write_text("{}")
    signature = Signature(
        inputs=[TensorSpec(name="x", datatype=datatype, shape=[-1, 1])],
        outputs=[TensorSpec(name="y", datatype=datatype, shape=[-1, 1])],
        example={"x": [["a"]] if datatype == "BYTES" else [[1]]},
    )
    version = registry.create_version(model, path=folder / model, signature=signature)
    registry.promote(model, version.version)
    engine = Engine(model, registry, lambda *_: Same(), scratch=folder / "loading")
    engine.follow_once()
    engine.load_wanted()
    return ModelEndpoint(Predictor(engine, Recorder(model, MemoryLog())), NoAuthentication())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("loop")
    endpoints = {f"/{name}": make_endpoint(folder, name.lower(), name) for name in ("FP32", "BYTES")}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["root_path"] = next(root for root in endpoints if scope["path"].startswith(root))
        await endpoints[scope["root_path"]](scope, receive, send)

    config = uvicorn.Config(app, port=0, http=TimedProtocol, ws="none", lifespan="off", log_level="error")
    listening = socket.create_server(("127.0.0.1", 0))
    made = Server(listening.getsockname()[1])
    running = uvicorn.Server(config)

    async def serve() -> None:
        ticking = asyncio.create_task(tick(made.gaps))
        await running.serve(sockets=[listening])
        ticking.cancel()
        for endpoint in endpoints.values():
            await endpoint.close()

    running.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    thread = threading.Thread(target=lambda: uvloop.run(serve()))
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(0.001)  # as replicas do
    gc.collect()
    gc.freeze()
    thread.start()
    yield made
    sys.setswitchinterval(interval_s)
    running.should_exit = True
    thread.join(60)
    assert not thread.is_alive()


def ask(server: Server, model: str, body: bytes, **headers: str) -> int:
    """Send a request from this thread, which leaves the interpreter to the server's; returns the status."""
    lines = [f"POST /{model}/infer HTTP/1.1", "host: a", "connection: close", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    buffer = bytearray(MEBIBYTE)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        with suppress(ConnectionError):  # refused before it was whole
            connection.sendall(body)
        status = b""
        while count := connection.recv_into(buffer):
            status = status or bytes(buffer[:count])
    return int(status.split()[1])


def binary(datatype: str, count: int, data: bytes) -> tuple[bytes, dict[str, str]]:
    tensor = {
        "name": "x",
        "datatype": datatype,
        "shape": [count, 1],
        "parameters": {"binary_data_size": len(data)},
    }
    head = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    return head + data, {"inference-header-content-length": str(len(head))}


def json_body(datatype: str, values: list[Any], **more: Any) -> bytes:
    tensor = {"name": "x", "datatype": datatype, "shape": [len(values), 1], "data": values}
    return orjson.dumps({"inputs": [tensor], **more})


def message(count: int, *, raw: bool) -> bytes:
    request = ModelInferRequest()
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[count, 1])
    if raw:
        request.raw_input_contents.append(bytes(4 * count))
    else:
        tensor.contents.fp32_contents.extend([1.5] * count)
    encoded: bytes = request.SerializeToString()
    return encoded


@pytest.fixture(scope="module")
def requests() -> dict[str, tuple[str, bytes, dict[str, str], int]]:
    """Requests of hundreds of megabytes, made when the first is needed. By name: model, body, headers and the expected status of requests at the limits, and beyond."""
    numbers = 16 * MEBIBYTE - 64  # four bytes each
    floats, with_length = binary("FP32", numbers, bytes(4 * numbers))
    items, items_length = binary("BYTES", MAX_ITEMS, bytes(4 * MAX_ITEMS))
    many, many_length = binary("BYTES", 16 * MEBIBYTE - 64, bytes(4 * numbers))
    values = MAX_JSON_VALUES - 64
    brackets = b'{"inputs":[],"x":[' + b",".join([b"[]"] * (32 * MEBIBYTE // 3)) + b"]}"
    names, unknown = (
        {f"{word}_{i}": 0 for i in range(MAX_JSON_VALUES // 2 - 32)} for word in ("triton", "unknown")
    )
    text = "x" * (MAX_JSON_BYTES - 1_000)
    proto = {"content-type": PROTOBUF.decode()}
    zeros = bytes(64 * MEBIBYTE)
    return {
        "binary": ("FP32", floats, with_length, 200),
        "binary gzip": ("FP32", gzip.compress(floats, 1), with_length | {"content-encoding": "gzip"}, 200),
        "binary deflate": ("FP32", zlib.compress(floats, 1), with_length | {"content-encoding": "deflate"}, 200),
        "gzip bomb": ("FP32", gzip.compress(zeros * 4, 1), {"content-encoding": "gzip"}, 413),
        "texts": ("BYTES", items, items_length, 200),
        "too many texts": ("BYTES", many, many_length, 413),
        "json": ("FP32", json_body("FP32", [0.123456789012345] * values), {}, 200),
        "json nulls": ("FP32", json_body("FP32", [None] * values), {}, 200),
        "json texts": ("BYTES", json_body("BYTES", [str(i) for i in range(values)]), {}, 200),
        "json names": ("FP32", json_body("FP32", [1.0], parameters=names), {}, 200),
        "json unknown names": ("FP32", json_body("FP32", [1.0], parameters=unknown), {}, 400),
        "json of one text": ("BYTES", json_body("BYTES", [text]), {}, 200),
        "json, gzip": ("FP32", gzip.compress(json_body("FP32", [0.5] * values), 1), {"content-encoding": "gzip"}, 200),
        "json brackets": ("FP32", brackets, {}, 413),
        "message": ("FP32", message(numbers, raw=True), proto, 200),
        "message, typed": ("FP32", message(MAX_TYPED_BYTES // 4 - 64, raw=False), proto, 200),
        "message, too many fields": ("FP32", b"\x2a\x00" * (32 * MEBIBYTE - 64), proto, 413),
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_no_request_holds_the_event_loop(
    server: Server, requests: dict[str, tuple[str, bytes, dict[str, str], int]], name: str
):
    assert set(requests) == set(NAMES)
    model, body, headers, status = requests[name]
    gaps = []
    for _ in range(ATTEMPTS):
        server.gaps.reset()
        assert ask(server, model, body, **headers) == status
        gaps.append(server.gaps.longest_ms)
        if server.gaps.longest_ms < MAX_MS:
            break
    assert min(gaps) < MAX_MS, [f"{gap:.0f} ms" for gap in gaps]


def test_the_watchdog_sees_a_loop_that_is_held(server: Server):
    server.gaps.reset()
    array = [0.5] * 100
    until = time.monotonic() + 60
    while server.gaps.longest_ms < MAX_MS and time.monotonic() < until:
        orjson.dumps([array] * 100_000)  # holds the interpreter, as a parser does
    assert server.gaps.longest_ms > MAX_MS
