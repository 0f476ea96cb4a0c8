"""Benchmark of where HAProxy sends the turns of conversations: to the replica that has their prefix, or to the one with the fewest requests.

python -m toque.load.benchmarks.generative.conversations WEIGHTS.gguf [--rounds 3] [--conversations 8] [--turns 6] [--threads 1]

Two doors, each with an engine of its own, stand behind two HAProxies with the configuration that Serve writes: one chooses by
conversation, as for language models, the other one as Serve does. They take turns, each time with conversations that are new, whose callers
think half a second to four before they go on: without a pause the fewest requests are where the answer before came from. A turn
finds its prefix if the engine had all of the turn before in its cache; the first turns, which have none before, do not count.

The exit code is 1 if by conversation not more turns find their prefix, or the first token does not come sooner at p50.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions, gRPCOptions

from toque.functions.generative import EngineSettings, register_generative
from toque.load.benchmarks.generative.door import MODEL, Side, events, start, wait_ready
from toque.load.benchmarks.serving.throughput import free_port
from toque.load.benchmarks.timing import print_machine
from toque.registry import Access, Registry, open_store

HAPROXY = Path(__file__).resolve().parents[3] / "clusters" / "haproxy.sh"
SLOTS, CONTEXT, ANSWER_TOKENS, THINKS_S = 8, 2_048, 8, (0.5, 4.0)
WORDS = (
    "river",
    "stone",
    "lamp",
    "garden",
    "winter",
    "market",
    "violin",
    "harbour",
    "letter",
    "cloud",
    "bridge",
    "apple",
)
SYSTEM = {"role": "system", "content": "You are a patient guide of a small museum. Answer in one sentence. " * 8}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer of a conversation. first_s: seconds until its first token; prompt, cached: tokens; before: tokens of the turn before, 0 for the first."""

    first_s: float
    prompt: int
    cached: int
    before: int

    @property
    def found(self) -> bool:
        """Whether the engine had the turn before in its cache."""
        return self.cached >= self.before


async def converse(session: aiohttp.ClientSession, side: Side, seed: int, turns: int) -> list[Turn]:
    """Have one conversation, turn after turn."""
    chance, messages, found = random.Random(seed), [SYSTEM], list[Turn]()
    for number in range(turns):
        await asyncio.sleep(chance.uniform(*THINKS_S) * (number > 0))
        asked = " ".join(chance.choices(WORDS, k=120))
        messages.append({"role": "user", "content": f"Tell me of this: {asked}"})
        turn, said = await _ask(session, side, messages, found[-1].prompt if found else 0)
        messages.append({"role": "assistant", "content": said})
        found.append(turn)
    return found


async def _ask(
    session: aiohttp.ClientSession, side: Side, messages: list[Any], before: int
) -> tuple[Turn, str]:
    body = {
        "model": MODEL, "messages": messages, "max_tokens": ANSWER_TOKENS, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    begin, first, said, usage = time.perf_counter(), 0.0, list[str](), dict[str, Any]()
    async with session.post(f"{side.url}/chat/completions", json=body, headers=side.headers) as answer:
        answer.raise_for_status()
        async for event in events(answer):
            usage = event.get("usage") or usage
            if event["choices"] and event["choices"][0]["delta"].get("content"):
                first = first or time.perf_counter() - begin
                said.append(event["choices"][0]["delta"]["content"])
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return Turn(first, usage["prompt_tokens"], cached, before), "".join(said)


async def measure(side: Side, conversations: int, turns: int, seed: int) -> list[Turn]:
    """Have conversations at once; returns all turns but the first ones."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        works = [converse(session, side, seed + each, turns) for each in range(conversations)]
        return [turn for found in await asyncio.gather(*works) for turn in found[1:]]


def haproxy(
    stack: contextlib.ExitStack, folder: Path, application: str, ports: list[int], token: str
) -> Side:
    """Start an HAProxy before the doors, as Serve does for an application of this name."""
    port, backend = free_port(), f"http-{application}"
    folder.mkdir()
    served = HAProxyConfig(
        socket_path=str(folder / "admin.sock"), server_state_base=str(folder), server_state_file=str(folder / "state"),
        metrics_socket_path=str(folder / "metrics.sock"), timeout_connect_s=1,
        http_options=HTTPOptions(host="127.0.0.1", port=port), grpc_options=gRPCOptions(),
        stats_port=free_port(), metrics_port=free_port(),
    )  # fmt: skip
    servers = [ServerConfig(f"replica-{at}", "127.0.0.1", each) for at, each in enumerate(ports)]
    backends = {
        backend: BackendConfig(
            app_name=application,
            name=backend,
            path_prefix="/v1",
            servers=servers,
            http_health_check_path="",
        )
    }
    file = folder / "haproxy.cfg"
    HAProxyApi(served, backends, str(file))._generate_config_file_internal()  # noqa: SLF001  # as Serve's manager
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    start(stack, [str(HAPROXY), "-db", "-f", str(file)], {**os.environ, "PATH": path})
    return Side(application, f"http://127.0.0.1:{port}/v1", {"authorization": f"Bearer {token}"})


def sides(stack: contextlib.ExitStack, weights: Path, threads: int) -> tuple[Side, Side]:
    """Start two doors, and the two HAProxies before them."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="toque-bench-")))
    store = open_store(f"file://{folder}/store")
    registry = Registry(store, actor="bench")
    register_generative(
        registry, MODEL, weights=weights, settings=EngineSettings(context_length=CONTEXT, slots=SLOTS)
    )
    registry.promote(MODEL, 1)
    token = Access(store, actor="bench").create_token("bench", "caller")
    ports = [free_port(), free_port()]
    for port in ports:
        line = [
            sys.executable,
            "-m",
            "toque.ray_apps.generative",
            "--port",
            str(port),
            "--threads",
            str(threads),
        ]
        start(stack, line, {**os.environ, "TOQUE_STORE": store.url, "TMPDIR": str(folder)})
        asyncio.run(
            wait_ready(Side(str(port), f"http://127.0.0.1:{port}/v1", {"authorization": f"Bearer {token}"}))
        )
    plain, by_conversation = (
        haproxy(stack, folder / name, name, ports, token) for name in ("plain", "generative")
    )
    return plain, by_conversation


def main() -> int:
    """Measure both sides in turn, and print a line for each."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("weights", type=Path)
    for name, value in (("--rounds", 3), ("--conversations", 8), ("--turns", 6), ("--threads", 1)):
        parser.add_argument(name, type=int, default=value)
    given = parser.parse_args()
    print_machine("xllamacpp", "aiohttp", "ray")
    found: dict[str, list[Turn]] = {}
    with contextlib.ExitStack() as stack:
        both = sides(stack, given.weights, given.threads)
        for side in both:
            asyncio.run(wait_ready(side))
        for number in range(given.rounds):
            for side in both if number % 2 else both[::-1]:
                seed = 1_000 * number + 500 * both.index(side)
                found.setdefault(side.name, []).extend(
                    asyncio.run(measure(side, given.conversations, given.turns, seed))
                )
    figures = {name: _print(name, turns) for name, turns in found.items()}
    (share, first), (share_plain, first_plain) = figures["generative"], figures["plain"]
    return int(share <= share_plain or first >= first_plain)


def _print(name: str, turns: list[Turn]) -> tuple[float, float]:
    share, first = sum(each.found for each in turns) / len(turns), median(each.first_s for each in turns)
    late = sorted(each.first_s for each in turns)[int(0.9 * len(turns))]
    cached = sum(each.cached for each in turns) / sum(each.prompt for each in turns)
    print(
        f"{name:10}: {len(turns)} turns, {share:.3f} find their prefix, {cached:.3f} of the prompts' tokens cached; "
        f"first token {1e3 * first:.0f} ms at p50, {1e3 * late:.0f} ms at p90"
    )
    return share, first


if __name__ == "__main__":
    sys.exit(main())
