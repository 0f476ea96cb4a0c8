"""Benchmark of many adapters on one base by llama.cpp: what each takes of the memory, and what all answer in a second.

python -m toque.load.benchmarks.generative.adapters WEIGHTS.gguf [--adapters 8] [--tokens 32] [--rounds 3] [--threads 2] [--rank 8]

Adapters of random numbers on all matrices of all layers; each has an engine, and all engines have the same weights. In turn: as many
streams as there are adapters, all of one adapter, and then one of each. Then the engine of
one is left until it has ended, and asked again.

The exit code is 1 if an engine has pages of the weights for itself.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from toque.functions.generative import EngineSettings
from toque.functions.generative.engines import EngineProcesses, EngineSpec, Lease, Patience, engine_of
from toque.load.benchmarks.timing import print_machine

SETTINGS = EngineSettings(context_length=512, slots=8)
IDLE_S = 1
_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_KIB = 1_024


def write_adapter(to: Path, weights: Path, *, rank: int, seed: int) -> Path:
    """Write a LoRA of random numbers on all matrices of a model's layers."""
    import gguf  # late: the extra `llm`

    rng, writer = np.random.default_rng(seed), gguf.GGUFWriter(to, "llama")
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
    return to


def memory(pid: int | None, weights: Path) -> tuple[float, float, float]:
    """MB that a process has for itself, its part of what it shares included, and pages of the weights for itself."""
    private = shared_part = own_pages = 0
    is_weights = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            is_weights = rest[-1:] == [str(weights)]
        elif name.startswith("Private_"):
            private += int(rest[0])
            own_pages += int(rest[0]) * is_weights
        elif name == "Pss:":
            shared_part += int(rest[0])
    return private * _KIB / 1e6, shared_part * _KIB / 1e6, own_pages * _KIB / 1e6


async def stream(lease: Lease, number: int, tokens: int) -> tuple[int, float, float]:
    """Have an answer streamed; returns its pieces, and when the first and the last came, by a monotonic clock."""
    asked = {
        "prompt": f"Tell me about the number {number}, and what it is used for:", "max_tokens": tokens, "temperature": 0, "stream": True,
        "ignore_eos": True, "cache_prompt": False,
    }  # fmt: skip
    async with lease.process.client.post(f"{lease.process.base}/v1/completions", json=asked) as answer:
        answer.raise_for_status()
        times = [time.perf_counter() async for line in answer.content if line.startswith(b"data: {")]
    return len(times), times[0], times[-1]


async def run(name: str, leases: Sequence[Lease], tokens: int) -> None:
    """Have all leases answer at once, and print the rate and the first tokens."""
    begin = time.perf_counter()
    made = await asyncio.gather(*(stream(lease, number, tokens) for number, lease in enumerate(leases)))
    seconds = max(last for _, _, last in made) - begin
    firsts = sorted(first - begin for _, first, _ in made)
    print(
        f"{name:<28} {sum(pieces for pieces, _, _ in made) / seconds:6.1f} tokens/s, first token {median(firsts):.2f} s, "
        f"the last one's {firsts[-1]:.2f} s",
        flush=True,
    )


async def wake(engines: EngineProcesses, spec: EngineSpec) -> float:
    """Seconds from a request for an engine that has ended, as nobody asked it, to its first token."""
    version = engines.lease(spec)
    await version.ready(300)
    while version.process.pid is not None:  # noqa: ASYNC110  # it ends on this loop
        await asyncio.sleep(0.05)
    begin = time.perf_counter()
    answer = version.again()
    await answer.ready(300)
    _, first, _ = await stream(answer, 0, 1)
    answer.release()
    version.release()
    return first - begin


async def start(engines: EngineProcesses, specs: Sequence[EngineSpec]) -> list[Lease]:
    """Start the engines of the base and of each adapter, one after the other."""
    leases, begin = [], time.perf_counter()
    for spec in specs:
        begin = time.perf_counter()
        leases.append(engines.lease(spec))
        await leases[-1].ready(300)
    print(f"the last of {len(leases)} engines was ready after {time.perf_counter() - begin:.2f} s")
    return leases


def print_memory(leases: Sequence[Lease], weights: Path) -> bool:
    """Print what the engines take; returns whether none has pages of the weights for itself."""
    found = [memory(lease.process.pid, weights) for lease in leases]
    for name, (private, with_share, _) in (("base", found[0]), ("an adapter", found[-1])):
        print(f"{name}: {private:.0f} MB for itself, {with_share:.0f} MB with its part of the weights")
    print(f"all of them: {sum(with_share for _, with_share, _ in found):.0f} MB")
    return not any(own_pages for _, _, own_pages in found)


async def measure(given: argparse.Namespace, folder: Path) -> bool:
    """Run the benchmark; returns whether no engine has weights for itself."""
    files = [
        write_adapter(folder / f"{seed}.gguf", given.weights, rank=given.rank, seed=seed)
        for seed in range(given.adapters)
    ]
    base = EngineSpec(given.weights, settings=SETTINGS, threads=given.threads)
    engines = EngineProcesses(
        engine_of("llama.cpp"), folder / "logs", patience=Patience(hung_s=300, check_s=0.2)
    )
    leases = await start(engines, [base, *(replace(base, adapter=each) for each in files)])
    is_shared = await asyncio.to_thread(print_memory, leases, given.weights)
    for _ in range(given.rounds):
        await run("all streams of the base", [leases[0]] * given.adapters, given.tokens)
        await run("all of one adapter", [leases[1]] * given.adapters, given.tokens)
        await run("one of each adapter", leases[1:], given.tokens)
    for lease in leases:
        lease.release()
    idle = replace(base, adapter=files[0], settings=SETTINGS.model_copy(update={"idle_s": IDLE_S}))
    woken = [await wake(engines, idle) for _ in range(given.rounds)]
    print(
        f"first token of an adapter whose engine had ended: {median(woken):.2f} s ({min(woken):.2f} to {max(woken):.2f})"
    )
    await engines.close()
    return is_shared


def main() -> None:
    """Run the benchmark by the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path)
    for name, default in (("adapters", 8), ("tokens", 32), ("rounds", 3), ("threads", 2), ("rank", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory(prefix="toque-adapters-") as folder:
        sys.exit(0 if asyncio.run(measure(given, Path(folder))) else 1)


if __name__ == "__main__":
    main()
