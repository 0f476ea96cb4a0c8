"""Benchmark of the door of language models: tokens a second and the first token through it, and of the engine alone.

python -m toque.load.benchmarks.generative.door WEIGHTS.gguf [--rounds 5] [--tokens 64] [--streams 1 8] [--threads N]

Both are llama.cpp with the same settings and run beside each other; only one is asked at a time, and they take turns, so that a noisy
neighbour hits both. The door is that of a platform with tokens, prediction log and Redis. The figures are the medians over all rounds; each
ratio is of the two that ran one after the other.

The exit code is 1 if the door's tokens a second are under .97 of the engine's, or its first token comes more than 5 ms later, at p50.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import orjson

from toque.functions.generative import EngineSettings, register_generative
from toque.load.benchmarks.serving.prediction_log import start_redis
from toque.load.benchmarks.serving.throughput import free_port
from toque.load.benchmarks.timing import print_machine
from toque.registry import Access, Registry, open_store

LEAST_SHARE, MOST_LATER_MS = 0.97, 5.0
MODEL = "bench"
SLOTS, CONTEXT = 8, 1_024
START_S = 300.0
_ROOT = Path(__file__).resolve().parents[3]
_ENGINE = _ROOT / "functions" / "generative" / "engines" / "llama_cpp_server.py"
_QUESTION = "Write a long story about a small town by the sea, and the people who live there. Story number"


@dataclass(frozen=True, slots=True)
class Side:
    """An address that is asked, with what it takes to be let in."""

    name: str
    url: str
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Measured:
    """Tokens a second of all streams together, and the median time until the first token, in milliseconds."""

    tokens_per_s: float
    first_ms: float


async def events(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """Iterate over the events of a streamed answer."""
    async for line in answer.content:
        if line.startswith(b"data: {"):
            yield orjson.loads(line[6:])


async def stream(session: aiohttp.ClientSession, side: Side, number: int, tokens: int) -> tuple[int, float]:
    """Ask for one answer; returns its tokens and the seconds until the first. Raises: aiohttp.ClientError."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"{_QUESTION} {number}."}],
        "max_tokens": tokens,
        "temperature": 0,
        "logit_bias": {"2": -100},  # it never ends by itself
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begin, first, count = time.perf_counter(), 0.0, 0
    async with session.post(f"{side.url}/chat/completions", json=body, headers=side.headers) as answer:
        answer.raise_for_status()
        async for event in events(answer):
            if not first and event["choices"] and event["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - begin
            if event.get("usage"):
                count = event["usage"]["completion_tokens"]
    return count, first


async def measure(side: Side, streams: int, tokens: int, number: int) -> Measured:
    """Ask for so many answers at once."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)  # llama.cpp closes those that are kept
    async with aiohttp.ClientSession(connector=connector) as session:
        await stream(session, side, 0, 1)  # the beginning of the prompt is in the cache now
        begin = time.perf_counter()
        found = await asyncio.gather(
            *(stream(session, side, number + each, tokens) for each in range(streams))
        )
        elapsed_s = time.perf_counter() - begin
    return Measured(sum(count for count, _ in found) / elapsed_s, median(first for _, first in found) * 1e3)


def start(stack: contextlib.ExitStack, line: list[str], environment: dict[str, str]) -> None:
    """Start a server that ends with the benchmark."""
    server = subprocess.Popen(
        line, env=environment, cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def end() -> None:
        server.terminate()
        server.wait(30)

    stack.callback(end)


async def wait_ready(side: Side) -> None:
    """Wait until a side answers. Raises: TimeoutError."""
    until = time.monotonic() + START_S
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < until:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                if (await stream(session, side, 0, 1))[0]:
                    return
            await asyncio.sleep(0.2)
    raise TimeoutError(f"{side.name} does not answer within {START_S:g} s")


def sides(stack: contextlib.ExitStack, weights: Path, threads: int | None) -> tuple[Side, Side]:
    """Start the engine alone, and the door with an engine of its own."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="toque-bench-")))
    ports = free_port(), free_port()
    computing = ["--threads", str(threads)] if threads else []
    sizes = ["--context", str(CONTEXT), "--slots", str(SLOTS), *computing]
    engine = ["-I", str(_ENGINE), "--weights", str(weights), "--name", MODEL, "--port", str(ports[0]), *sizes]
    key = secrets.token_hex(16)
    start(stack, [sys.executable, *engine], {**os.environ, "TOQUE_ENGINE_KEY": key})
    store = open_store(f"file://{folder}/store")
    settings = EngineSettings(context_length=CONTEXT, slots=SLOTS)
    registry = Registry(store, actor="bench")
    register_generative(registry, MODEL, weights=weights, settings=settings)
    registry.promote(MODEL, 1)
    token = Access(store, actor="bench").create_token("bench", "caller")
    redis_url = f"redis://:bench@127.0.0.1:{start_redis(stack, folder)}/0"
    platform = {"TOQUE_STORE": store.url, "TOQUE_REDIS_URL": redis_url, "TOQUE_WAL": str(folder / "wal")}
    door = ["-m", "toque.ray_apps.generative", "--port", str(ports[1]), *computing]
    start(stack, [sys.executable, *door], {**os.environ, **platform})
    return (
        Side("engine alone", f"http://127.0.0.1:{ports[0]}/v1", {"authorization": f"Bearer {key}"}),
        Side("behind the door", f"http://127.0.0.1:{ports[1]}/v1", {"authorization": f"Bearer {token}"}),
    )


def main() -> int:
    """Measure both sides in turn, and print a line for each number of streams."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    print_machine("xllamacpp", "aiohttp", "uvicorn")
    missed = False
    with contextlib.ExitStack() as stack:
        both = sides(stack, given.weights, given.threads)
        for side in both:
            asyncio.run(wait_ready(side))
        for streams in given.streams:
            missed |= _compare(both, streams, given.rounds, given.tokens)
    return int(missed)


def _compare(both: tuple[Side, Side], streams: int, rounds: int, tokens: int) -> bool:
    """Measure one number of streams on both sides; returns whether a reach was missed."""
    found: dict[str, list[Measured]] = {side.name: [] for side in both}
    for number in range(rounds):
        for side in both if number % 2 else both[::-1]:
            found[side.name].append(asyncio.run(measure(side, streams, tokens, 1 + number * streams)))
    for name, runs in found.items():
        rate, first = median(run.tokens_per_s for run in runs), median(run.first_ms for run in runs)
        print(f"{streams:3} streams, {name:16}: {rate:8.1f} tokens/s, first token {first:8.1f} ms")
    alone, behind = found.values()
    share = median(
        ours.tokens_per_s / theirs.tokens_per_s for theirs, ours in zip(alone, behind, strict=True)
    )
    later = median(ours.first_ms - theirs.first_ms for theirs, ours in zip(alone, behind, strict=True))
    print(
        f"{streams:3} streams, ratio {share:.3f} (reach {LEAST_SHARE}), first token {later:+.1f} ms ({MOST_LATER_MS})"
    )
    return share < LEAST_SHARE or later > MOST_LATER_MS


if __name__ == "__main__":
    sys.exit(main())
