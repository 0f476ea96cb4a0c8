"""Benchmark of where HAProxy sends the turns of conversations: to the replica that has their prefix, or to the one with the fewest requests.

Two doors, each with an engine of its own, stand behind two HAProxies with the configuration that Serve writes: one chooses by
conversation, as for language models, the other one as Serve does. They take turns, each time with conversations that are new, whose callers
think half a second to four before they go on: without a pause the fewest requests are where the answer before came from. A turn
finds its prefix if the engine had all of the turn before in its cache; the first turns, which have none before, do not count.

The exit code is 1 if by conversation not more turns find their prefix, or the first token does not come sooner at p50.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiohttp
import numpy as np
from ray.serve.config import HTTPOptions, gRPCOptions

from toque.clusters.ray_private import haproxy as serve_haproxy
from toque.load.benchmarks.generative.doors import Side, door, register_weights, stream
from toque.load.benchmarks.harness import bound, in_turns, main, say, temporary
from toque.load.benchmarks.servers import process
from toque.load.scenarios.sending.processes import free_port

HAPROXY = Path(__file__).resolve().parents[3] / "clusters" / "haproxy.sh"
CONTEXT, ANSWER_TOKENS, THINKS_S = 2_048, 8, (0.5, 4.0)
WORDS = (
    "river", "stone", "lamp", "garden", "winter", "market", "violin", "harbour", "letter", "cloud", "bridge", "apple",
)  # fmt: skip
_GUIDE = "You are a patient guide of a small museum. Answer in one sentence. "
SYSTEM = {"role": "system", "content": _GUIDE * 8}


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer of a conversation. first_s: seconds until its first token; prompt, cached: tokens; before: tokens of the turn before, 0 for the first."""

    first_s: float
    prompt: int
    cached: int
    before: int


def run(weights: Path, *, rounds: int = 3, conversations: int = 8, turns: int = 6, threads: int = 1) -> None:
    """Measure both sides in turn, and print a line for each."""
    with temporary() as folder, ExitStack() as stack:
        store_url, token = register_weights(folder, weights, CONTEXT)
        doors = [stack.enter_context(door(folder, store_url, token, threads)) for _ in range(2)]
        ports, headers = [port for _, port in doors], doors[0][0].headers
        seeds = itertools.count(0, 500)
        calls: dict[str, Callable[[], list[Turn]]] = {}
        for name in ("generative", "plain"):
            side = stack.enter_context(haproxy(folder / name, name, ports, headers))
            calls[name] = partial(_measure, side, conversations, turns, seeds)
        results = in_turns(calls, rounds)
    by_conversation, plain = (
        _figures(name, list(itertools.chain(*taken))) for name, taken in results.items()
    )
    bound("share of turns that find their prefix, above Serve's", by_conversation[0] - plain[0], least=1e-9)
    bound("of Serve's time to the first token", by_conversation[1] / plain[1], most=0.9999)


@contextmanager
def haproxy(folder: Path, application: str, ports: list[int], headers: Mapping[str, str]) -> Iterator[Side]:
    """Start an HAProxy before the doors, as Serve does for an application of this name."""
    port, backend = free_port(), f"http-{application}"
    folder.mkdir()
    served = serve_haproxy.HAProxyConfig(
        socket_path=str(folder / "admin.sock"), server_state_base=str(folder), server_state_file=str(folder / "state"),
        metrics_socket_path=str(folder / "metrics.sock"), timeout_connect_s=1,
        http_options=HTTPOptions(host="127.0.0.1", port=port), grpc_options=gRPCOptions(),
        stats_port=free_port(), metrics_port=free_port(),
    )  # fmt: skip
    servers = [
        serve_haproxy.ServerConfig(f"replica-{number}", "127.0.0.1", one) for number, one in enumerate(ports)
    ]
    config = serve_haproxy.BackendConfig(
        app_name=application, name=backend, path_prefix="/v1", servers=servers, http_health_check_path=""
    )
    file = folder / "haproxy.cfg"
    serve_haproxy.HAProxyApi(served, {backend: config}, str(file))._generate_config_file_internal()  # noqa: SLF001  # as Serve's manager
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    side = Side(application, f"http://127.0.0.1:{port}/v1", headers)
    with process([str(HAPROXY), "-db", "-f", str(file)], folder / "log", path, ready=side.answers):
        yield side


def _measure(side: Side, conversations: int, turns: int, seeds: Iterator[int]) -> list[Turn]:
    """Have conversations at once; returns all turns but the first ones."""
    seed = next(seeds)

    async def converse_all() -> list[list[Turn]]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            works = [converse(session, side, seed + number, turns) for number in range(conversations)]
            return await asyncio.gather(*works)

    return [turn for taken in asyncio.run(converse_all()) for turn in taken[1:]]


async def converse(session: aiohttp.ClientSession, side: Side, seed: int, turns: int) -> list[Turn]:
    """Have one conversation, turn after turn."""
    chance, messages, taken = random.Random(seed), [SYSTEM], list[Turn]()
    for number in range(turns):
        await asyncio.sleep(chance.uniform(*THINKS_S) * (number > 0))
        words = " ".join(chance.choices(WORDS, k=120))
        messages.append({"role": "user", "content": f"Tell me of this: {words}"})
        answer = await stream(session, side, messages, max_tokens=ANSWER_TOKENS)
        messages.append({"role": "assistant", "content": answer.text})
        cached = (answer.usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        before = taken[-1].prompt if taken else 0
        taken.append(Turn(answer.first_s, answer.usage["prompt_tokens"], cached, before))
    return taken


def _figures(name: str, turns: list[Turn]) -> tuple[float, float]:
    """Print one side; returns the share of turns that find their prefix, and the median seconds to the first token."""
    share = sum(turn.cached >= turn.before for turn in turns) / len(turns)
    first_s, late_s = np.quantile([turn.first_s for turn in turns], [0.5, 0.9])
    cached = sum(turn.cached for turn in turns) / sum(turn.prompt for turn in turns)
    say(
        f"{name:10}: {len(turns)} turns, {share:.3f} find their prefix, {cached:.3f} of the prompts' tokens cached; "
        f"first token {1e3 * first_s:.0f} ms at p50, {1e3 * late_s:.0f} ms at p90"
    )
    return share, float(first_s)


if __name__ == "__main__":
    main(run, "xllamacpp", "aiohttp", "ray")
