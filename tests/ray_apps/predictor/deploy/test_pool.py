"""Many models in few replicas under a memory limit: every request is answered, the least recently used models leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ray_apps.admissions import patient_admission
from tests.ray_apps.predictor.conftest import SIGNATURE, MemoryLog, load_fake_scorer, tensors
from toque.functions.prediction_log.records import decode_prediction
from toque.ray_apps.predictor.deploy.deployment import PoolEndpoint
from toque.ray_apps.predictor.deploy.pool import Pool
from toque.ray_apps.predictor.http.auth import TokenAuthenticator
from toque.ray_apps.predictor.http.model_endpoint import ModelEndpoint
from toque.ray_apps.predictor.inference.predictor import Predictor
from toque.ray_apps.predictor.inference.recording import Recorder
from toque.ray_apps.predictor.versions.engine import Engine
from toque.ray_apps.predictor.versions.loaded import OVERHEAD_BYTES
from toque.registry import Access, Registry, Signature, open_store

MODEL_BYTES = 2 * OVERHEAD_BYTES + 1_024
"""More than a model and its version are estimated to take."""


@dataclass
class Replica:
    """One replica of a pool in this process, with a loader that can be held up."""

    folder: Path
    store_url: str
    limit_models: int
    options: dict[str, Any]
    token: str
    go_on: threading.Event = field(default_factory=threading.Event)
    log: MemoryLog = field(default_factory=MemoryLog)
    peak_bytes: int = 0

    def __post_init__(self) -> None:
        self.go_on.set()
        self.store = open_store(self.store_url)
        self.auth = TokenAuthenticator(patient_admission(Access(self.store, actor="pool")))
        self.pool = Pool(
            self.make_endpoint, limit_bytes=self.limit_models * MODEL_BYTES, poll_s=0.02, **self.options
        )
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(PoolEndpoint(self.pool, self.auth)),
            base_url="http://pool",
            headers={"Authorization": f"Bearer {self.token}"},
        )

    def load(self, folder: Path, signature: Signature) -> Any:
        assert self.go_on.wait(60)
        self.peak_bytes = max(self.peak_bytes, self.pool.size_bytes)
        return load_fake_scorer(folder, signature)

    def make_endpoint(self, model: str) -> ModelEndpoint:
        registry = Registry(self.store, actor="pool")
        engine = Engine(model, registry, self.load, scratch=self.folder / "loading", retain=1)
        return ModelEndpoint(Predictor(engine, Recorder(model, self.log)), self.auth)

    async def ask(self, model: str, path: str = "/infer") -> httpx.Response:
        return await self.client.post(f"/{model}{path}", json=tensors())

    async def status(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.client.get("/")).json()
        return found


@dataclass
class ServedPool:
    folder: Path
    registry: Registry
    token: str
    replicas: list[Replica] = field(default_factory=list)

    def version(self, model: str, value: float) -> int:
        path = self.folder / f"{model}-{value}"
        path.mkdir()
        (path / "model.json").write_text(json.dumps({"value": value}))
        return self.registry.create_version(model, path=path, signature=SIGNATURE).version

    def models(self, count: int) -> list[str]:
        """So many models; number i answers i + 0.003."""
        names = [f"model-{i}" for i in range(count)]
        with ThreadPoolExecutor(16) as threads:  # most of it is waiting for the disk
            list(threads.map(self._model, names, range(count)))
        return names

    def _model(self, name: str, number: int) -> None:
        self.registry.create_model(name)
        self.registry.promote(name, self.version(name, float(number)))

    def replica(self, limit_models: int, **options: Any) -> Replica:
        made = Replica(self.folder, self.registry.store.url, limit_models, options, self.token)
        self.replicas.append(made)
        return made


@pytest.fixture
async def served_pool(tmp_path: Path) -> AsyncIterator[ServedPool]:
    store = open_store(f"file://{tmp_path}/store")
    made = ServedPool(
        tmp_path, Registry(store, actor="ada"), Access(store, actor="root").create_token("p", "predictor")
    )
    yield made
    for replica in made.replicas:
        await replica.pool.close()
        await replica.client.aclose()


def value(response: httpx.Response) -> int:
    assert response.status_code == 200, response.text
    return int(response.json()["outputs"][0]["data"][0])


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.01)


async def test_two_replicas_answer_for_200_models_under_a_memory_limit(served_pool: ServedPool):
    names = served_pool.models(200)
    replicas = [served_pool.replica(40), served_pool.replica(40)]
    for half in (names[:100], names[100:]):
        asked = [(i, name) for i, name in enumerate(half)]
        answers = await asyncio.gather(*(replicas[i % 2].ask(name) for i, name in asked))
        assert [value(answer) for answer in answers] == [int(name.removeprefix("model-")) for name in half]
    for replica in replicas:
        status = await replica.status()
        assert status["evictions"] >= 100 - 40
        assert status["loads"] == 100
        assert len(status["models"]) <= 40
        assert replica.peak_bytes <= status["limit_bytes"]


async def test_the_most_recently_used_models_stay(served_pool: ServedPool):
    a, b, c, d = served_pool.models(4)
    replica = served_pool.replica(3)
    for name in (a, b, c, a, d):
        await replica.ask(name)
    assert (await replica.status())["models"] == [c, a, d]
    assert value(await replica.ask(b)) == 1  # evicted, and answers again


async def test_pinned_models_are_loaded_first_and_never_leave(served_pool: ServedPool):
    a, *others = served_pool.models(6)
    replica = served_pool.replica(2, pinned=(a,))
    await replica.client.get("/")  # Serve says by itself that the replica is up
    await until(lambda: replica.pool.describe()["models"] == [a])
    for name in others:
        assert (await replica.ask(name)).status_code == 200
    status = await replica.status()
    assert a in status["models"]
    assert status["evictions"] == 4


async def test_loading_holds_up_no_model_that_is_here(served_pool: ServedPool):
    hot, cold = served_pool.models(2)
    replica = served_pool.replica(5)
    await replica.ask(hot)
    replica.go_on.clear()
    waiting = asyncio.ensure_future(replica.ask(cold))
    await until(lambda: replica.pool.describe()["waiting"] == 1)
    for _ in range(20):
        assert value(await replica.ask(hot)) == 0
    assert not waiting.done()
    replica.go_on.set()
    assert value(await waiting) == 1


async def test_a_model_in_use_is_not_evicted(served_pool: ServedPool):
    a, b = served_pool.models(2)
    replica = served_pool.replica(1, patience_s=0.05)
    assert value(await replica.ask(a)) == 0
    replica.pool._residents[a].users += 1  # as during an answer
    refused = await replica.ask(b)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    replica.pool._residents[a].users -= 1
    assert value(await replica.ask(b)) == 1
    assert (await replica.status())["models"] == [b]
    assert replica.peak_bytes <= MODEL_BYTES


async def test_many_that_wait_for_one_place_are_all_answered(served_pool: ServedPool):
    a, b, c = served_pool.models(3)
    replica = served_pool.replica(2)
    replica.go_on.clear()
    waiting = [asyncio.ensure_future(replica.ask(name)) for name in (a, b, c) * 3]
    await until(lambda: replica.pool.describe()["waiting"] == 9)
    replica.go_on.set()
    answers = await asyncio.gather(*waiting)
    assert [value(answer) for answer in answers] == [0, 1, 2] * 3
    assert replica.peak_bytes <= 2 * MODEL_BYTES


async def test_a_model_that_is_larger_than_the_limit_evicts_nobody(served_pool: ServedPool):
    (small,) = served_pool.models(1)
    path = served_pool.folder / "big"
    path.mkdir()
    (path / "model.json").write_text(json.dumps({"value": 1.0}) + " " * 10 * MODEL_BYTES)
    served_pool.registry.create_model("big")
    served_pool.registry.promote(
        "big", served_pool.registry.create_version("big", path=path, signature=SIGNATURE).version
    )
    replica = served_pool.replica(3)
    await replica.ask(small)
    refused = await replica.ask("big")
    assert refused.status_code == 503
    assert "memory_limit_bytes" in refused.json()["error"]
    assert (await replica.status())["models"] == [small]


async def test_too_many_that_wait_are_told_to_come_again_and_who_is_here_is_answered(served_pool: ServedPool):
    hot, *cold = served_pool.models(4)
    replica = served_pool.replica(5, max_waiting=2)
    await replica.ask(hot)
    replica.go_on.clear()
    waiting = [asyncio.ensure_future(replica.ask(name)) for name in cold[:2]]
    await until(lambda: replica.pool.describe()["waiting"] == 2)
    refused = await replica.ask(cold[2])
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert value(await replica.ask(hot)) == 0
    replica.go_on.set()
    assert [value(await one) for one in waiting] == [1, 2]


@pytest.mark.parametrize("name", ["nobody", "..", "a%2Fb", "-"])
async def test_unknown_models_are_404_and_leave_nothing_behind(served_pool: ServedPool, name: str):
    replica = served_pool.replica(2)
    assert (await replica.ask(name)).status_code == 404
    assert replica.pool._residents == {}


async def test_nobody_loads_anything_without_a_token(served_pool: ServedPool):
    (name,) = served_pool.models(1)
    replica = served_pool.replica(2)
    refused = await replica.client.post(
        f"/{name}/infer", json=tensors(), headers={"Authorization": "Bearer no"}
    )
    assert refused.status_code == 401
    assert replica.pool._residents == {}


async def test_promotions_are_followed_and_a_split_holds(served_pool: ServedPool):
    (name,) = served_pool.models(1)
    replica = served_pool.replica(3)
    assert value(await replica.ask(name)) == 0
    served_pool.registry.promote(name, served_pool.version(name, 7.0))

    async def served() -> int:
        return value(await replica.ask(name))

    deadline = time.monotonic() + 60
    while await served() != 7:
        assert time.monotonic() < deadline
    served_pool.registry.rollback(name, "champion")
    while await served() != 0:
        assert time.monotonic() < deadline
    assert {decode_prediction(one)["version"] for one in replica.log.payloads} == {1, 2}


async def test_every_route_of_a_model_is_there(served_pool: ServedPool):
    (name,) = served_pool.models(1)
    client = served_pool.replica(3).client
    assert (await client.get(f"/{name}/ready")).json() == {"name": name, "ready": True}
    assert (await client.get(f"/{name}")).json()["inputs"][0]["name"] == "numeric"
    assert (await client.get(f"/{name}/versions/1/ready")).status_code == 200
    assert (await client.get(f"/{name}/status")).json()["champion"] == 1
    assert (await client.get(f"/{name}/nowhere")).status_code == 404


async def test_versions_by_number_do_not_stay_beyond_the_limit(served_pool: ServedPool):
    a, b = served_pool.models(2)
    for number in range(4):
        served_pool.version(a, 10.0 + number)
    replica = served_pool.replica(3)
    for version in range(2, 6):
        assert value(await replica.ask(a, f"/versions/{version}/infer")) == 8 + version
    assert value(await replica.ask(b)) == 1
    await until(lambda: replica.pool.size_bytes <= 3 * MODEL_BYTES)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No work of a pool ends by an error that nobody foresaw."""
    yield
    assert "work in the pool failed" not in caplog.text
    with contextlib.suppress(AttributeError):
        caplog.clear()
