"""Benchmark of many adapters on one base by llama.cpp: what each takes of the memory, and what all answer in a second.

Adapters of random numbers on all matrices of all layers; each has an engine, and all engines have the same weights. In turn: as many
streams as there are adapters, all of the base, all of one adapter, and then one of each. Then the engine of one is left until it has
ended, and asked again. The exit code is 1 if an engine has pages of the weights for itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import psutil

from toque.functions.generative import EngineSettings
from toque.functions.generative.engines import EngineProcesses, EngineSpec, Lease, Patience, engine_of
from toque.load.benchmarks.harness import bound, main, say, temporary

SETTINGS = EngineSettings(context_length=512, slots=8)
IDLE_S = 1
_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def run(
    weights: Path, *, adapters: int = 8, tokens: int = 32, rounds: int = 3, threads: int = 2, rank: int = 8
) -> None:
    """Write the adapters, and measure engines that have them."""
    with temporary() as folder:
        write, base = (
            partial(write_adapter, weights, rank=rank),
            EngineSpec(weights, settings=SETTINGS, threads=threads),
        )
        files = [write(folder / f"{seed}.gguf", seed=seed) for seed in range(adapters)]
        asyncio.run(measure(base, files, folder, tokens, rounds))


def write_adapter(weights: Path, file: Path, *, rank: int, seed: int) -> Path:
    """Write a LoRA of random numbers on all matrices of a model's layers."""
    import gguf  # late: the extra `llm`

    rng, writer = np.random.default_rng(seed), gguf.GGUFWriter(file, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
    for tensor in gguf.GGUFReader(weights).tensors:
        if tensor.name.split(".")[-2] in _MATRICES:
            inputs, outputs = (int(size) for size in tensor.shape)
            for part, shape in (("a", (rank, inputs)), ("b", (outputs, rank))):
                writer.add_tensor(f"{tensor.name}.lora_{part}", rng.normal(0, 0.02, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


async def measure(base: EngineSpec, files: Sequence[Path], folder: Path, tokens: int, rounds: int) -> None:
    """Start an engine for the base and for each adapter, and measure memory, rates and wakings."""
    patience = Patience(hung_s=300, check_s=0.2)
    engines = EngineProcesses(engine_of("llama.cpp"), folder / "logs", patience=patience)
    leases = list[Lease]()
    begin = 0.0
    for spec in (base, *(replace(base, adapter=file) for file in files)):
        begin = time.perf_counter()
        leases.append(engines.lease(spec))
        await leases[-1].ready(300)
    say(f"the last of {len(leases)} engines was ready after {time.perf_counter() - begin:.2f} s")
    own_mb = await asyncio.to_thread(report_memory, leases, base.weights)
    for _ in range(rounds):
        await ask_all("all streams of the base", [leases[0]] * len(files), tokens)
        await ask_all("all of one adapter", [leases[1]] * len(files), tokens)
        await ask_all("one of each adapter", leases[1:], tokens)
    for lease in leases:
        lease.release()
    idle = replace(base, adapter=files[0], settings=SETTINGS.model_copy(update={"idle_s": IDLE_S}))
    woken_s = [await wake(engines, idle) for _ in range(rounds)]
    say(
        f"first token of an adapter whose engine had ended: {median(woken_s):.2f} s ({min(woken_s):.2f} to {max(woken_s):.2f})"
    )
    await engines.close()
    bound("MB of the weights that an engine has for itself", own_mb, most=0)


def report_memory(leases: Sequence[Lease], weights: Path) -> float:
    """Print what the engines take; returns the MB of the weights that all together have for themselves."""
    sizes = []
    for lease in leases:
        process = psutil.Process(lease.process.pid)
        used, maps = process.memory_full_info(), process.memory_maps()
        own = sum(one.private_clean + one.private_dirty for one in maps if one.path == str(weights))
        sizes.append((used.uss / 1e6, used.pss / 1e6, own / 1e6))
    for name, (private, with_share, _) in (("base", sizes[0]), ("an adapter", sizes[-1])):
        say(f"{name}: {private:.0f} MB for itself, {with_share:.0f} MB with its part of the weights")
    say(f"all of them: {sum(with_share for _, with_share, _ in sizes):.0f} MB")
    return float(sum(own for _, _, own in sizes))


async def ask_all(name: str, leases: Sequence[Lease], tokens: int) -> None:
    """Have all leases answer at once, and print the rate and the first tokens."""
    begin = time.perf_counter()
    answers = await asyncio.gather(*(stream(lease, number, tokens) for number, lease in enumerate(leases)))
    seconds = max(times[-1] for times in answers) - begin
    firsts = sorted(times[0] - begin for times in answers)
    say(
        f"{name:<28} {sum(map(len, answers)) / seconds:6.1f} tokens/s, first token {median(firsts):.2f} s, "
        f"the last one's {firsts[-1]:.2f} s"
    )


async def stream(lease: Lease, number: int, tokens: int) -> list[float]:
    """Have an answer streamed; returns when its pieces came, by a monotonic clock."""
    body = {
        "prompt": f"Tell me about the number {number}, and what it is used for:", "max_tokens": tokens, "temperature": 0, "stream": True,
        "ignore_eos": True, "cache_prompt": False,
    }  # fmt: skip
    async with lease.process.client.post(f"{lease.process.base}/v1/completions", json=body) as answer:
        answer.raise_for_status()
        return [time.perf_counter() async for line in answer.content if line.startswith(b"data: {")]


async def wake(engines: EngineProcesses, spec: EngineSpec) -> float:
    """Seconds from a request for an engine that has ended, as nobody asked it, to its first token."""
    version = engines.lease(spec)
    await version.ready(300)
    while version.process.pid is not None:  # noqa: ASYNC110  # it ends on this loop
        await asyncio.sleep(0.05)
    begin = time.perf_counter()
    answer = version.again()
    await answer.ready(300)
    first = (await stream(answer, 0, 1))[0]
    answer.release()
    version.release()
    return first - begin


if __name__ == "__main__":
    main(run)
