"""Plans of trainings beside short runs: memory and step time of small decoders on this machine's processor.

python -m toque.load.benchmarks.training.plans

Each run is a process of its own. The first model's rate calibrates the time of all; memory is not calibrated. The exit code is 1 if a
plan's memory is more than 10 % off, or its time more than 15 %.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toque.functions.training.planning import Card, Decoder, Setup, plan

MOST_MEMORY, MOST_TIME, STEPS = 0.10, 0.15, 3
_RETURNED, _KEPT = (
    "65536",
    "2000000000",
)  # for memory, so that the peak is of tensors; for time, as a card keeps its blocks
_WARM = Decoder(1, 64, 1, 1, 64, 64, 100)
_MODELS = {
    "4 × 512": Decoder(4, 512, 8, 8, 64, 1_536, 8_000),
    "8 × 512": Decoder(8, 512, 8, 8, 64, 1_536, 8_000),
    "4 × 768": Decoder(4, 768, 12, 4, 64, 2_304, 16_000),
}
_SETUP = Setup(1, 4, 512, "replicate", half=False)
_CASES = [
    ("4 × 512", _SETUP),
    ("8 × 512", _SETUP),
    ("4 × 768", _SETUP),
    ("8 × 512", replace(_SETUP, batch=8, accumulate=2)),
    ("8 × 512", replace(_SETUP, batch=8, recompute=True)),
]


@dataclass(frozen=True, slots=True)
class Measured:
    """Short run: bytes above those of the process before its model, and processor seconds of its fastest step."""

    memory_bytes: float
    step_s: float


def main() -> None:
    """Run the cases and print how far each plan is from what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", help="number of a case, to run in this process")
    given = parser.parse_args()
    if given.one is not None:
        name, setup = _CASES[int(given.one)]
        sys.stdout.write(json.dumps(run(_MODELS[name], setup)))
        return
    card, worst = Card(1e12, 1.0, 1.0, 1e12, 1e12), [0.0, 0.0]
    for number, (name, setup) in enumerate(_CASES):
        found = Measured(_child(number, _RETURNED)[0], _child(number, _KEPT)[1])
        told = plan(_MODELS[name], setup, card, reached=1.0)
        if number == 0:
            card = replace(card, flops32_s=told.step["arithmetic"] / found.step_s)
            told = plan(_MODELS[name], setup, card, reached=1.0)
        gaps = (told.memory_bytes / found.memory_bytes - 1, told.step_s / found.step_s - 1)
        worst = [max(a, abs(b)) for a, b in zip(worst, gaps, strict=True)]
        print(
            f"{name} batch {setup.batch} accumulate {setup.accumulate} recompute {setup.recompute}: "
            f"{found.memory_bytes / 1e6:,.0f} MB planned {gaps[0]:+.1%}, {found.step_s:.3f} s planned {gaps[1]:+.1%}",
            flush=True,
        )
    sys.exit(worst[0] > MOST_MEMORY or worst[1] > MOST_TIME)


def _child(number: int, malloc: str) -> tuple[float, float]:
    """Run a case in a process of its own. malloc: bytes from which a freed block goes back to the system."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": malloc, "MALLOC_TRIM_THRESHOLD_": malloc}
    command = [sys.executable, "-m", "toque.load.benchmarks.training.plans", "--one", str(number)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    memory, seconds = json.loads(done.stdout.splitlines()[-1])
    return memory, seconds


def run(model: Decoder, setup: Setup) -> tuple[float, float]:
    """Train some steps of random tokens in the platform's loop: bytes, and processor seconds of the fastest step."""
    import torch

    torch.set_num_threads(1)
    _steps(_WARM, replace(setup, batch=2, accumulate=1, length=16))  # imports, and what torch makes at first
    before = _resident_bytes()
    marks = _steps(model, setup)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return peak - before, min(b - a for a, b in itertools.pairwise(marks))


def _steps(model: Decoder, setup: Setup) -> list[float]:
    """Train an epoch of a few steps; returns the processor time at the beginning and after each."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from toque.functions.training.llm.texts import Rows, TextTask
    from toque.functions.training.loop.training_loop import Trainer
    from toque.functions.training.params import RecipeParams

    config = LlamaConfig(
        num_hidden_layers=model.layers, hidden_size=model.width, num_attention_heads=model.heads,
        num_key_value_heads=model.key_heads, intermediate_size=model.inner, vocab_size=model.vocabulary,
        max_position_embeddings=setup.length,
    )  # fmt: skip
    ids = torch.randint(model.vocabulary, (setup.batch * STEPS, setup.length))
    rows = Rows(ids, ids, torch.arange(setup.length).expand_as(ids))
    made: Any = AutoModelForCausalLM
    net = made.from_config(config, dtype=torch.float32)
    params = RecipeParams(
        batch_size=setup.batch, accumulate=setup.accumulate, recompute=setup.recompute, checkpoint_s=None
    )
    trainer = Trainer(net, TextTask(rows, rows), params)
    marks = [time.process_time()]
    trainer._pass_over_training_rows(lambda: marks.append(time.process_time()))  # noqa: SLF001 - what is planned
    return [*marks, time.process_time()]


def _resident_bytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


if __name__ == "__main__":
    main()
