"""Benchmark of batch inference of a language model: tokens a second beside the engine's own, and rows after kills.

python -m toque.load.benchmarks.generative.prompt_batches WEIGHTS.gguf [--prompts 1000] [--tokens 16] [--rounds 4] [--kills 5] [--threads 1]
    [--parts speed kills]

The floor is the same engine with all its slots busy, whose answers are thrown away. Both start an engine of their own for each round,
and take turns over parts of the prompts; the ratio is the median over the rounds. Then one run over all prompts is killed by SIGKILL as
often as it is told to be, each time after more rows were written, and its table is counted.

The exit code is 1 if the ratio is under .95, or a row is missing or there twice.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import aiohttp
import pyarrow as pa

from toque.functions import Context, use_context
from toque.functions.evaluation.batch_inference import predict_batch
from toque.functions.generative import EngineSettings, Prompt, register_generative
from toque.functions.generative.engines import EngineProcess, EngineSpec, Patience, engine_of
from toque.load.benchmarks.timing import print_machine
from toque.registry import ObjectStore, Registry, Table, TableSnapshot, open_store

LEAST_SHARE = 0.95
MODEL, SLOTS, CONTEXT = "bench", 8, 256
SETTINGS = EngineSettings(context_length=CONTEXT, slots=SLOTS)
_RUN = (
    "import sys; from toque.load.benchmarks.generative.prompt_batches import answer; "
    "answer(sys.argv[1], int(sys.argv[2]), 'killed', int(sys.argv[3]), shard_rows=int(sys.argv[4]))"
)


def question(number: int) -> str:
    """Text of a prompt; those of no two numbers are equal."""
    return f"Write a short story about a town by the sea. Story number {number}."


def sampling(tokens: int) -> dict[str, object]:
    """Parameters by which each answer has so many tokens."""
    return {"temperature": 0, "max_tokens": tokens, "logit_bias": {"2": -100}}


async def engine_alone(weights: Path, numbers: range, tokens: int, threads: int, folder: Path) -> float:
    """Have an engine answer prompts as fast as it can; returns tokens a second, its start included."""
    begin = time.perf_counter()
    spec = EngineSpec(weights, settings=SETTINGS, threads=threads)
    process = EngineProcess(
        engine_of("llama.cpp"), spec, folder / "engine.log", patience=Patience(hung_s=300)
    )
    process.start()
    try:
        await process.ready(300)
        slots = asyncio.Semaphore(2 * SLOTS)
        made = await asyncio.gather(*(_ask(process, slots, number, tokens) for number in numbers))
    finally:
        await process.close()
    return sum(made) / (time.perf_counter() - begin)


async def _ask(process: EngineProcess, slots: asyncio.Semaphore, number: int, tokens: int) -> int:
    asked = {
        "model": process.engine.model_name(process.spec),
        "messages": [{"role": "user", "content": question(number)}],
        "seed": number,
        **sampling(tokens),
    }
    async with slots:
        while True:
            try:
                async with process.client.post(f"{process.base}/v1/chat/completions", json=asked) as answer:
                    answer.raise_for_status()
                    return int((await answer.json())["usage"]["completion_tokens"])
            except aiohttp.ClientConnectionError:
                await process.ready(300)


def answer(
    store_url: str, version: int, output: str, threads: int, *, shard_rows: int | None = None
) -> tuple[int, float]:
    """Answer a version of the table of prompts; returns the tokens in the output, and the seconds that it took."""
    with use_context(Context(store=open_store(store_url), store_url=store_url)) as context:
        done = predict_batch(
            MODEL,
            TableSnapshot(name="prompts", version=version),
            version=1,
            output=output,
            threads=threads,
            shard_rows=shard_rows,
        )
        made = Table(context.store, output).read(columns=["answer_tokens"])["answer_tokens"].to_numpy().sum()
    return int(made), done.seconds


def kill_and_count(store_url: str, version: int, prompts: int, kills: int, threads: int) -> bool:
    """Kill a run so many times, let the last one end, and say what is in the table; returns whether every row is once."""
    table = Table(open_store(store_url), "killed")

    def written() -> int:
        return table.read(columns=["row"]).num_rows if table.exists() else 0

    shard_rows = max(1, prompts // (8 * (kills + 2)))
    line = [sys.executable, "-c", _RUN, store_url, str(version), str(threads), str(shard_rows)]
    at_kills = []
    for number in range(kills):
        run, before, share = subprocess.Popen(line), written(), prompts * (number + 1) // (kills + 2)
        while written() <= max(before, share) and run.poll() is None:
            time.sleep(0.2)
        if run.poll() is not None:
            raise RuntimeError(f"the run ended before kill {number + 1} of {kills}: give more --prompts")
        run.kill()
        run.wait()
        at_kills.append(written())
    subprocess.run(line, check=True)
    rows = sorted(table.read(columns=["row"])["row"].to_pylist())
    whole = rows == list(range(prompts))
    print(f"killed {kills} times with {at_kills} rows written: {len(rows)} rows, each once: {whole}")
    return whole


def main() -> int:
    """Measure both in turn, then kill; prints a line for each round."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("weights", type=lambda given: Path(given).resolve())
    for name, value in (("prompts", 1_000), ("tokens", 16), ("rounds", 4), ("kills", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--parts", nargs="+", choices=["speed", "kills"], default=["speed", "kills"])
    given = parser.parse_args()
    print_machine("xllamacpp", "aiohttp", "pyarrow")
    reached = True
    with tempfile.TemporaryDirectory(prefix="toque-bench-") as folder:
        store = open_store(f"file://{folder}/store")
        prompt = Prompt.model_validate({"parameters": sampling(given.tokens)})
        register_generative(
            Registry(store, actor="bench"), MODEL, weights=given.weights, settings=SETTINGS, prompt=prompt
        )
        if "speed" in given.parts:
            reached = _compare(given, store, Path(folder)) >= LEAST_SHARE
        if "kills" in given.parts:
            rows = pa.table({"prompt": [question(at) for at in range(given.prompts)]})
            version = Table(store, "prompts").overwrite(rows).version
            reached &= kill_and_count(store.url, version, given.prompts, given.kills, given.threads)
    return int(not reached)


def _compare(given: argparse.Namespace, store: ObjectStore, folder: Path) -> float:
    """Have both sides answer parts of the prompts in turn; returns the median ratio."""
    each, ratios = given.prompts // given.rounds, []
    for number in range(given.rounds):
        numbers = range(number * each, (number + 1) * each)
        part = Table(store, "prompts").overwrite(pa.table({"prompt": [question(at) for at in numbers]}))
        found: dict[str, float] = {}
        for side in ("alone", "batch") if number % 2 else ("batch", "alone"):
            if side == "alone":
                work = engine_alone(given.weights, numbers, given.tokens, given.threads, folder)
                found[side] = asyncio.run(work)
            else:
                made, seconds = answer(store.url, part.version, f"out-{number}", given.threads)
                found[side] = made / seconds
        ratios.append(found["batch"] / found["alone"])
        print(
            f"{each} prompts: engine alone {found['alone']:7.1f} tokens/s, predict_batch {found['batch']:7.1f}, "
            f"ratio {ratios[-1]:.3f}",
            flush=True,
        )
    print(f"median ratio {median(ratios):.3f} (reach {LEAST_SHARE}), load {os.getloadavg()[0]:.0f}")
    return median(ratios)


if __name__ == "__main__":
    sys.exit(main())
