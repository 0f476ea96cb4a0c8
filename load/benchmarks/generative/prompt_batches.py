"""Benchmark of batch inference of a language model: tokens a second beside the engine's own, and rows after kills.

The floor is the same engine with all its slots busy, whose answers are thrown away. Both start an engine of their own for each round,
and take turns over parts of the prompts; the ratio is the median over the rounds. Then one run over all prompts is killed by SIGKILL as
often as it is told to be, each time after more rows were written, and its table is counted.

The exit code is 1 if the ratio is under .95, or a row is missing or there twice.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Literal

import aiohttp
import pyarrow as pa

from toque.functions import Context, use_context
from toque.functions.evaluation.batch_inference import predict_batch
from toque.functions.generative import EngineSettings, Prompt, register_generative
from toque.functions.generative.engines import EngineProcess, EngineSpec, Patience, engine_of
from toque.load.benchmarks.harness import NotPossible, Ratio, Stopwatch, bound, in_turns, main, say, temporary
from toque.registry import ObjectStore, Registry, Table, TableSnapshot, open_store

MODEL, SLOTS, CONTEXT = "bench", 8, 256
SETTINGS = EngineSettings(context_length=CONTEXT, slots=SLOTS)
_RUN = (
    "import sys; from toque.load.benchmarks.generative.prompt_batches import answer; "
    "answer(sys.argv[1], int(sys.argv[2]), 'killed', int(sys.argv[3]), shard_rows=int(sys.argv[4]))"
)
Part = Literal["speed", "kills"]


def run(
    weights: Path,
    *,
    prompts: int = 1_000,
    tokens: int = 16,
    rounds: int = 4,
    kills: int = 5,
    threads: int = 1,
    parts: tuple[Part, ...] = ("speed", "kills"),
) -> None:
    """Measure both in turn, then kill."""
    with temporary() as folder:
        store, weights = open_store(f"file://{folder}/store"), weights.resolve()
        registry = Registry(store, actor="bench")
        prompt = Prompt.model_validate({"parameters": sampling(tokens)})
        register_generative(registry, MODEL, weights=weights, settings=SETTINGS, prompt=prompt)
        if "speed" in parts:
            ratios = []
            for number in range(rounds):
                numbers = range(number * (prompts // rounds), (number + 1) * (prompts // rounds))
                table = _write(store, numbers)
                alone = partial(asyncio.run, engine_alone(weights, numbers, tokens, threads, folder))
                batch = partial(answer, store.url, table.version, f"out-{number}", threads)
                calls = {"alone": alone, "batch": batch}
                rates = in_turns(dict(list(calls.items())[:: -1 if number % 2 else 1]), 1)
                ratios.append(Ratio.of(rates["batch"], rates["alone"]).median)
                told = (
                    f"engine alone {rates['alone'][0]:7.1f} tokens/s, predict_batch {rates['batch'][0]:7.1f}"
                )
                say(f"{len(numbers)} prompts: {told}")
            bound("of the engine's rate, median", median(ratios), least=0.95)
        if "kills" in parts:
            version = _write(store, range(prompts)).version
            kill_and_count(store.url, version, prompts, kills, threads)


def _write(store: ObjectStore, numbers: range) -> TableSnapshot:
    return Table(store, "prompts").overwrite(pa.table({"prompt": [question(number) for number in numbers]}))


def question(number: int) -> str:
    """Text of a prompt; those of no two numbers are equal."""
    return f"Write a short story about a town by the sea. Story number {number}."


def sampling(tokens: int) -> dict[str, object]:
    """Parameters by which each answer has so many tokens."""
    return {"temperature": 0, "max_tokens": tokens, "logit_bias": {"2": -100}}


async def engine_alone(weights: Path, numbers: range, tokens: int, threads: int, folder: Path) -> float:
    """Have an engine answer prompts as fast as it can; returns tokens a second, its start included."""
    watch, spec = Stopwatch(), EngineSpec(weights, settings=SETTINGS, threads=threads)
    patience = Patience(hung_s=300)
    process = EngineProcess(engine_of("llama.cpp"), spec, folder / "engine.log", patience=patience)
    process.start()
    try:
        await process.ready(300)
        slots = asyncio.Semaphore(2 * SLOTS)
        answers = await asyncio.gather(*(_ask(process, slots, number, tokens) for number in numbers))
    finally:
        await process.close()
    return sum(answers) / watch.wall_s


async def _ask(process: EngineProcess, slots: asyncio.Semaphore, number: int, tokens: int) -> int:
    messages, model = [{"role": "user", "content": question(number)}], process.engine.model_name(process.spec)
    body = {"model": model, "messages": messages, "seed": number, **sampling(tokens)}
    async with slots:
        while True:
            try:
                async with process.client.post(f"{process.base}/v1/chat/completions", json=body) as response:
                    response.raise_for_status()
                    return int((await response.json())["usage"]["completion_tokens"])
            except aiohttp.ClientConnectionError:
                await process.ready(300)


def answer(
    store_url: str, version: int, output: str, threads: int, *, shard_rows: int | None = None
) -> float:
    """Answer a version of the table of prompts; returns tokens a second."""
    rows = TableSnapshot(name="prompts", version=version)
    with use_context(Context(store=open_store(store_url), store_url=store_url)) as used:
        batch = predict_batch(MODEL, rows, version=1, output=output, threads=threads, shard_rows=shard_rows)
        made = Table(used.store, output).read(columns=["answer_tokens"])["answer_tokens"].to_numpy().sum()
    return float(made / batch.seconds)


def kill_and_count(store_url: str, version: int, prompts: int, kills: int, threads: int) -> None:
    """Kill a run so many times, let the last one end, and say what is in the table, where every row must be once."""
    table = Table(open_store(store_url), "killed")

    def written() -> int:
        return table.read(columns=["row"]).num_rows if table.exists() else 0

    shard_rows = max(1, prompts // (8 * (kills + 2)))
    command = [sys.executable, "-c", _RUN, store_url, str(version), str(threads), str(shard_rows)]
    at_kills = []
    for number in range(kills):
        least, child = max(written(), prompts * (number + 1) // (kills + 2)), subprocess.Popen(command)
        while written() <= least and child.poll() is None:
            time.sleep(0.2)
        if child.poll() is not None:
            raise NotPossible(f"the run ended before kill {number + 1} of {kills}: give more --prompts")
        child.kill()
        child.wait()
        at_kills.append(written())
    subprocess.run(command, check=True)
    rows = sorted(table.read(columns=["row"])["row"].to_pylist())
    say(f"killed {kills} times with {at_kills} rows written: {len(rows)} rows")
    bound("each row once", rows == list(range(prompts)), least=1)


if __name__ == "__main__":
    main(run, "xllamacpp", "aiohttp", "pyarrow")
