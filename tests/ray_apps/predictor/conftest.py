from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from tests.ray_apps.admissions import patient_admission
from tests.redis_server import RedisServer, running_redis
from toque.ray_apps.predictor.http.auth import TokenAuthenticator
from toque.ray_apps.predictor.http.model_endpoint import ModelEndpoint
from toque.ray_apps.predictor.inference.predictor import Predictor
from toque.ray_apps.predictor.inference.recording import Recorder
from toque.ray_apps.predictor.versions.engine import Engine
from toque.registry import Access, Registry, Signature, TensorSpec, open_store

SIGNATURE = Signature(
    inputs=[
        TensorSpec(name="numeric", datatype="FP32", shape=[-1, 2], columns=["distance", "wind"]),
        TensorSpec(name="categorical", datatype="BYTES", shape=[-1, 1], columns=["carrier"]),
    ],
    outputs=[TensorSpec(name="probability", datatype="FP32", shape=[-1, 1])],
    example={"numeric": [[1.0, 2.0]], "categorical": [["UA"]]},
)


@dataclass
class FakeScorer:
    """A scorer whose answer stands in its artifact: `{"value": 0.3}`, `{"fail": "load"}` and so on."""

    value: float
    fail: str = ""
    seen: list[Mapping[str, Any]] = field(default_factory=list)

    def predict(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        self.seen.append(inputs)
        if self.fail == "predict":
            raise RuntimeError("out of memory")
        if self.fail == "values":
            raise ValueError("a number is too large")
        rows = len(inputs["numeric"])
        if self.fail == "shape":
            return {"probability": np.zeros((rows, 2), np.float32)}
        if self.fail == "type":
            return {"probability": np.zeros((rows, 1), np.float64)}
        sums = np.nan_to_num(np.asarray(inputs["numeric"], np.float32)).sum(axis=1, keepdims=True)
        return {"probability": (self.value + 0.001 * sums).astype(np.float32)}


def load_fake_scorer(folder: Path, signature: Signature) -> FakeScorer:
    document = json.loads((folder / "model.json").read_text())
    if document.get("fail") == "load":
        raise RuntimeError("not a model")
    return FakeScorer(document["value"], document.get("fail", ""))


@dataclass
class MemoryLog:
    payloads: list[bytes] = field(default_factory=list)

    def append(self, payload: bytes) -> int:
        return self.extend([payload])

    def extend(self, payloads: Sequence[bytes]) -> int:
        self.payloads += payloads
        return len(self.payloads)


@dataclass
class ServedModel:
    """A registry with one model, and the predictor that serves it behind its HTTP endpoint."""

    folder: Path
    registry: Registry
    engine: Engine
    predictor: Predictor
    log: MemoryLog
    client: httpx.AsyncClient
    tokens: dict[str, str]
    scratch: int = 0

    def version(self, value: float = 0.25, *, tags: Mapping[str, str] | None = None, **document: Any) -> int:
        self.scratch += 1
        path = self.folder / f"artifact-{self.scratch}"
        path.mkdir()
        (path / "model.json").write_text(json.dumps({"value": value, **document}))
        made = self.registry.create_version("late", path=path, signature=SIGNATURE, tags=dict(tags or {}))
        return made.version

    def refresh(self) -> None:
        """Follow the journal and load versions once, as the engine's threads do."""
        self.engine.follow_once()
        self.engine.load_wanted()

    async def infer(self, body: Mapping[str, Any] | None = None, *, path: str = "/infer") -> httpx.Response:
        return await self.client.post(path, json=tensors() if body is None else body)


def tensors(rows: int = 1, **fields: Any) -> dict[str, Any]:
    return {
        "inputs": [
            {"name": "numeric", "datatype": "FP32", "shape": [rows, 2], "data": [1.0, 2.0] * rows},
            {"name": "categorical", "datatype": "BYTES", "shape": [rows, 1], "data": ["UA"] * rows},
        ],
        **fields,
    }


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_served_model(tmp_path: Path) -> Callable[..., ServedModel]:
    def make(**options: Any) -> ServedModel:
        store = open_store(f"file://{tmp_path}/store")
        registry = Registry(store, actor="ada")
        registry.create_model("late")
        access = Access(store, actor="root")
        tokens = {role: access.create_token(role, role) for role in ("viewer", "predictor", "admin")}
        engine = Engine(
            "late", Registry(store, actor="predictor"), load_fake_scorer, scratch=tmp_path / "loading"
        )
        log = MemoryLog()
        predictor = Predictor(engine, Recorder("late", log), **options)
        endpoint = ModelEndpoint(
            predictor,
            TokenAuthenticator(patient_admission(Access(store, actor="predictor"))),
            max_body_bytes=1 << 20,
        )
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(endpoint),
            base_url="http://replica",
            headers={"Authorization": f"Bearer {tokens['predictor']}"},
        )
        return ServedModel(tmp_path, registry, engine, predictor, log, client, tokens)

    return make


@pytest.fixture
async def served_model(make_served_model: Callable[..., ServedModel]) -> AsyncIterator[ServedModel]:
    """One champion that answers 0.25 + a thousandth of the sum of its numbers."""
    made = make_served_model()
    made.registry.promote("late", made.version())
    made.refresh()
    yield made
    await made.predictor.close()
    await made.client.aclose()
    await asyncio.sleep(0)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path / "redis") as server:
        yield server
