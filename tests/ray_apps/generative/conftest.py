from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import openai
import pytest
import uvicorn

from tests.language_model import language_model_weights, write_small_model
from tests.ports import free_port
from tests.ray_apps.admissions import patient_admission
from toque.functions.generative import EngineSettings, register_generative
from toque.functions.generative.engines import EngineProcesses, Patience, engine_environment, engine_of
from toque.functions.prediction_log.records import LoggedTensor, read_value
from toque.ray_apps.admission.request_limits import TokenBudgets
from toque.ray_apps.generative.__main__ import mounted
from toque.ray_apps.generative.answering.generator import Generator
from toque.ray_apps.generative.build import GenerativeDoor, GenerativeModels
from toque.ray_apps.generative.series import LoadMeter
from toque.ray_apps.generative.versions import VersionStarter
from toque.ray_apps.predictor.http.auth import TokenAuthenticator
from toque.ray_apps.predictor.inference.live import LiveCounter
from toque.ray_apps.predictor.inference.recording import Recorder
from toque.ray_apps.predictor.versions.follower import VersionFollower
from toque.registry import Access, Limits, Registry, open_store
from toque.registry.access import workspace_store

MODEL, TOOLED = "smol", "smol-tools"
TEMPLATE = Path(__file__).with_name("tools_template.jinja")
TOOL_PARSER = "hermes"
"""vLLM's, of the calls that the template writes."""
SLOTS = 4
BOUNDS = {
    "frugal": Limits(tokens_per_minute=300),
    "hasty": Limits(tokens_per_minute=100_000),
    "impatient": Limits(tokens_per_minute=100_000),
    "urgent": Limits(service_tier="priority"),
}
"""Of tokens, by name."""
VLLM = os.environ.get("TOQUE_TEST_VLLM")
"""Command of vLLM in an environment of its own: then it answers in place of llama.cpp, which tests of the client take."""
START_S = 900.0 if VLLM else 300.0
ASK_S = START_S if VLLM else 120.0
"""How long a client waits, the first one for the engine's start too."""


@pytest.fixture(scope="session")
def weights() -> Path:
    return language_model_weights()


@pytest.fixture(scope="session")
def served_weights(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights as the engine reads them: the file, or for vLLM a folder made of it."""
    if VLLM is None:
        return weights
    from examples.gpt.tune import from_gguf  # late: transformers

    return from_gguf(weights, tmp_path_factory.mktemp("folder") / "weights")


@pytest.fixture(scope="session")
def small(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of which a token takes a millisecond, for tests of what does not depend on what is said."""
    return write_small_model(tmp_path_factory.mktemp("small") / "weights.gguf", weights)


@dataclass
class MemoryLog:
    payloads: list[bytes] = field(default_factory=list)

    def append(self, payload: bytes) -> int:
        return self.extend([payload])

    def extend(self, payloads: Sequence[bytes]) -> int:
        self.payloads += payloads
        return len(self.payloads)

    def rows(self) -> list[list[Any]]:
        return [msgpack.unpackb(each) for each in self.payloads]

    @staticmethod
    def outputs(row: Sequence[Any]) -> dict[str, Any]:
        """Outputs of a row, as the readers of the log make them; a text of one item is that item."""
        tensors = [LoggedTensor(*each) for each in row[-1] or ()]
        found = {
            each.name: read_value(each.datatype, each.shape, each.values(1)[0])
            for each in tensors
            if each.output
        }
        return {name: value[0] if value.dtype == object else value.tolist() for name, value in found.items()}


@dataclass
class ServedDoor:
    """A door on a port of its own, in a thread, with real engines behind it."""

    url: str
    registry: Registry
    access: Access
    log: MemoryLog
    token: str
    viewer: str
    bounded: dict[str, str]
    door: GenerativeDoor
    engines: EngineProcesses
    loop: asyncio.AbstractEventLoop
    budgets: TokenBudgets

    def client(self, token: str | None = None, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=self.url, api_key=token or self.token, max_retries=0, **{"timeout": ASK_S, **options}
        )

    def run(self, work: Any) -> Any:
        """Run a coroutine on the door's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)


@dataclass
class _Server:
    """The thread of a door."""

    folder: Path
    port: int
    ready: threading.Event = field(default_factory=threading.Event)
    served: ServedDoor | None = None
    stopping: asyncio.Event | None = None

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self.stopping, self.served = asyncio.Event(), self._make()
        door = self.served.door

        config = uvicorn.Config(mounted(door), port=self.port, lifespan="off", log_level="warning", ws="none")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.01)
        self.ready.set()
        await self.stopping.wait()
        server.should_exit = True
        await serving
        await door.close()

    def _make(self) -> ServedDoor:
        platform = open_store(f"file://{self.folder}/store")
        access, log, budgets = Access(platform, actor="root"), MemoryLog(), TokenBudgets()
        meter = LoadMeter()
        engines = EngineProcesses(
            engine_of("vllm", VLLM) if VLLM else engine_of("llama.cpp"), self.folder / "logs",
            environment=engine_environment(os.environ), patience=Patience(start_s=START_S),
        )  # fmt: skip
        loop = asyncio.get_running_loop()

        def workspace(name: str) -> GenerativeModels:
            registry = Registry(workspace_store(platform, name), actor="generative")
            starter = VersionStarter(
                registry, engines, workspace=name, loop=loop, folder=self.folder / "weights", threads=1,
                start_s=START_S,
            )  # fmt: skip

            def make(model: str) -> Generator:
                follower = VersionFollower(model, registry, starter.start, retain=1, dropped=starter.dropped)
                return Generator(
                    follower, Recorder(model, log), workspace=name, budgets=budgets, live=LiveCounter(None),
                    meter=meter,
                )  # fmt: skip

            return GenerativeModels(registry, make)

        door = GenerativeDoor(
            workspace,
            TokenAuthenticator(patient_admission(Access(platform, actor="door")), workspace=None),
            meter=meter,
            on_close=engines.close,
        )
        return ServedDoor(
            url=f"http://127.0.0.1:{self.port}/v1",
            registry=Registry(platform, actor="ada"),
            access=access,
            log=log,
            token=access.create_token("caller", "caller"),
            viewer=access.create_token("viewer", "viewer"),
            bounded={
                name: access.create_token(name, "caller", limits=limits) for name, limits in BOUNDS.items()
            },
            door=door,
            engines=engines,
            loop=loop,
            budgets=budgets,
        )


@pytest.fixture(scope="session")
def served(served_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedDoor]:
    """A door with one language model, whose version 1 is the champion; one for all tests, as an engine takes seconds."""
    server = _Server(tmp_path_factory.mktemp("generative"), free_port())
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert server.ready.wait(60)
    assert server.served is not None
    registry = server.served.registry
    settings = EngineSettings(context_length=512, slots=SLOTS, max_tokens=32, tool_parser=TOOL_PARSER)
    register_generative(registry, MODEL, weights=served_weights, settings=settings)
    registry.promote(MODEL, 1)
    settings = EngineSettings(context_length=768, slots=1, max_tokens=60, tool_parser=TOOL_PARSER)
    template = TEMPLATE.read_text()
    register_generative(registry, TOOLED, weights=served_weights, settings=settings, chat_template=template)
    registry.promote(TOOLED, 1)
    yield server.served
    assert server.stopping is not None
    server.served.loop.call_soon_threadsafe(server.stopping.set)
    thread.join(60)


@pytest.fixture
def client(served: ServedDoor) -> openai.OpenAI:
    return served.client()
