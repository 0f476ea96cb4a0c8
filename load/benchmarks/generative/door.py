"""Benchmark of the door of language models: tokens a second and the first token through it, and of the engine alone.

Both are llama.cpp with the same settings and run beside each other; only one is asked at a time, and they take turns, so that a noisy
neighbour hits both. The door is that of a platform with tokens, prediction log and Redis. The figures are the medians over all rounds; each
ratio is of the two that ran in the same round.

The exit code is 1 if the door's tokens a second are under .97 of the engine's, or its first token comes more than 5 ms later, at p50.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import aiohttp
import numpy as np

from toque.load.benchmarks.generative.doors import Answer, Side, door, engine, register_weights, stream
from toque.load.benchmarks.harness import Ratio, bound, in_turns, main, say, temporary
from toque.load.benchmarks.servers import redis_server

CONTEXT = 1_024
_QUESTION = "Write a long story about a small town by the sea, and the people who live there. Story number"
_ENDLESS = {"2": -100}  # it never ends by itself


def run(
    weights: Path,
    *,
    rounds: int = 5,
    tokens: int = 64,
    streams: tuple[int, ...] = (1, 8),
    threads: int | None = None,
) -> None:
    """Measure both sides in turn, and print lines for each number of streams."""
    with temporary() as folder, redis_server(folder, appends=True) as redis_url:
        store_url, token = register_weights(folder, weights, CONTEXT)
        with (
            engine(folder, weights, CONTEXT, threads) as alone,
            door(folder, store_url, token, threads, redis_url=redis_url) as (behind, _),
        ):
            for count in streams:
                calls = {
                    side.name: partial(_measure, side, count, tokens, itertools.count(1))
                    for side in (alone, behind)
                }
                sides = in_turns(calls, rounds)
                for name, results in sides.items():
                    rate, first_ms = np.median(results, axis=0)
                    say(f"{count:3} streams, {name:16}: {rate:8.1f} tokens/s, first token {first_ms:8.1f} ms")
                base, ours = (np.array(results).T for results in sides.values())
                share, later_ms = Ratio.of(ours[0], base[0]).median, float(np.median(ours[1] - base[1]))
                bound(f"of the engine's tokens/s, {count} streams", share, least=0.97)
                bound(f"ms that the first token comes later, {count} streams", later_ms, most=5.0)


def _measure(side: Side, streams: int, tokens: int, numbers: Iterator[int]) -> tuple[float, float]:
    """Ask for so many answers at once; returns tokens a second, and the median milliseconds until a first token."""

    async def ask_all() -> tuple[list[Answer], float]:
        connector = aiohttp.TCPConnector(limit=0, force_close=True)  # llama.cpp closes those that are kept
        async with aiohttp.ClientSession(connector=connector) as session:

            async def ask(number: int, most: int) -> Answer:
                messages = [{"role": "user", "content": f"{_QUESTION} {number}."}]
                return await stream(session, side, messages, max_tokens=most, logit_bias=_ENDLESS)

            await ask(0, 1)  # the beginning of the prompt is in the cache now
            begin = time.perf_counter()
            answers = await asyncio.gather(*(ask(next(numbers), tokens) for _ in range(streams)))
            return answers, time.perf_counter() - begin

    answers, elapsed_s = asyncio.run(ask_all())
    made = sum(answer.usage["completion_tokens"] for answer in answers)
    return made / elapsed_s, float(np.median([answer.first_s for answer in answers])) * 1e3


if __name__ == "__main__":
    main(run, "xllamacpp", "aiohttp", "uvicorn")
