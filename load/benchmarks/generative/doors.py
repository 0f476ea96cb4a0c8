"""Doors of language models and engines that benchmarks start, and streams of answers from them."""

from __future__ import annotations

import contextlib
import secrets
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import orjson

from toque.functions.generative import EngineSettings, register_generative
from toque.load.benchmarks.servers import module, process
from toque.load.scenarios.sending.processes import free_port
from toque.registry import Access, Registry, open_store

MODEL, SLOTS = "bench", 8
START_S = 300.0
_ENGINE = Path(__file__).resolve().parents[3] / "functions" / "generative" / "engines" / "llama_cpp_server.py"


@dataclass(frozen=True, slots=True)
class Side:
    """An address that is asked, with what it takes to be let in."""

    name: str
    url: str
    headers: Mapping[str, str]

    def answers(self) -> bool:
        """Whether it answers with a token."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 1}
        with contextlib.suppress(httpx.HTTPError):
            answer = httpx.post(f"{self.url}/chat/completions", json=body, headers=self.headers, timeout=60)
            return answer.is_success
        return False


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer that was streamed to its end. first_s: seconds until its first token; usage: as the engine counts tokens."""

    text: str
    first_s: float
    usage: Mapping[str, Any]


async def stream(
    session: aiohttp.ClientSession, side: Side, messages: Sequence[Any], **options: Any
) -> Answer:
    """Ask for one answer, and read it to its end. Raises: aiohttp.ClientError."""
    body = {"model": MODEL, "messages": messages, "temperature": 0, "stream": True, **options}
    body["stream_options"] = {"include_usage": True}
    begin, first_s, said, usage = time.perf_counter(), 0.0, list[str](), dict[str, Any]()
    async with session.post(f"{side.url}/chat/completions", json=body, headers=side.headers) as answer:
        answer.raise_for_status()
        async for event in _events(answer):
            usage = event.get("usage") or usage
            if event["choices"] and (text := event["choices"][0]["delta"].get("content")):
                first_s = first_s or time.perf_counter() - begin
                said.append(text)
    return Answer("".join(said), first_s, usage)


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for line in answer.content:
        if line.startswith(b"data: {"):
            yield orjson.loads(line[6:])


def _threads(threads: int | None) -> list[object]:
    return ["--threads", threads] if threads else []


@contextmanager
def engine(folder: Path, weights: Path, context: int, threads: int | None) -> Iterator[Side]:
    """Run llama.cpp alone, without a door."""
    port, key = free_port(), secrets.token_hex(16)
    options = ["--weights", weights, "--name", MODEL, "--port", port, "--context", context, "--slots", SLOTS]
    command = [sys.executable, "-I", str(_ENGINE), *map(str, [*options, *_threads(threads)])]
    side = Side("engine alone", f"http://127.0.0.1:{port}/v1", {"authorization": f"Bearer {key}"})
    own = {"TOQUE_ENGINE_KEY": key}
    with process(command, folder / "engine.log", own, ready=side.answers, within_s=START_S):
        yield side


def register_weights(folder: Path, weights: Path, context: int) -> tuple[str, str]:
    """Register a language model in a new store; returns the store's URL and a caller's token."""
    store = open_store(f"file://{folder}/store")
    registry = Registry(store, actor="bench")
    register_generative(
        registry, MODEL, weights=weights, settings=EngineSettings(context_length=context, slots=SLOTS)
    )
    registry.promote(MODEL, 1)
    return store.url, Access(store, actor="bench").create_token("bench", "caller")


@contextmanager
def door(
    folder: Path, store_url: str, token: str, threads: int | None, *, redis_url: str = ""
) -> Iterator[tuple[Side, int]]:
    """Run a door, with an engine of its own; yields it and its port. redis_url: by which it logs."""
    port = free_port()
    side = Side("behind the door", f"http://127.0.0.1:{port}/v1", {"authorization": f"Bearer {token}"})
    own = {"TOQUE_STORE": store_url, "TMPDIR": str(folder)}
    own |= {"TOQUE_REDIS_URL": redis_url, "TOQUE_WAL": str(folder / "wal")} if redis_url else {}
    command = module("toque.ray_apps.generative", "--port", port, *_threads(threads))
    with process(command, folder / f"door-{port}.log", own, ready=side.answers, within_s=START_S):
        yield side, port
