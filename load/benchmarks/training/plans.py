"""Plans of trainings beside short runs: memory and step time of small decoders on this machine's processor.

Each run is a process of its own. The first model's rate calibrates the time of all; memory is not calibrated. The exit code is 1 if a
plan's memory is more than 10 % off, or its time more than 15 %.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import psutil
import torch

from toque.functions.training.llm.texts import TextTask
from toque.functions.training.loop.training_loop import Trainer
from toque.functions.training.params import RecipeParams
from toque.functions.training.planning import Card, Decoder, Setup, plan
from toque.load.benchmarks.harness import MIB, bound, greatest_mib, in_child, main, say
from toque.load.benchmarks.training.fixtures import network, random_rows

STEPS = 3
# Bytes from which a freed block goes back to the system: for memory, so that the peak is of tensors; for time, as a card keeps its blocks.
_RETURNED, _KEPT = "65536", "2000000000"
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


def run() -> None:
    """Run the cases and print how far each plan is from what was measured."""
    card, gaps = Card(1e12, 1.0, 1.0, 1e12, 1e12), []
    for number, (name, setup) in enumerate(_CASES):
        (memory_bytes, _), (_, step_s) = (
            in_child(trained, number, environment=_malloc(size)) for size in (_RETURNED, _KEPT)
        )
        if number == 0:
            arithmetic = plan(_MODELS[name], setup, card, reached=1.0).step["arithmetic"]
            card = replace(card, flops32_s=arithmetic / step_s)
        planned = plan(_MODELS[name], setup, card, reached=1.0)
        gaps.append((planned.memory_bytes / memory_bytes - 1, planned.step_s / step_s - 1))
        say(
            f"{name} batch {setup.batch} accumulate {setup.accumulate} recompute {setup.recompute}: "
            f"{memory_bytes / 1e6:,.0f} MB planned {gaps[-1][0]:+.1%}, {step_s:.3f} s planned {gaps[-1][1]:+.1%}"
        )
    memory, seconds = (max(map(abs, column)) for column in zip(*gaps, strict=True))
    bound("memory, most off", memory, most=0.10)
    bound("time, most off", seconds, most=0.15)


def _malloc(size: str) -> dict[str, str]:
    return {"MALLOC_MMAP_THRESHOLD_": size, "MALLOC_TRIM_THRESHOLD_": size}


def trained(number: int) -> tuple[float, float]:
    """Train a case for some steps: bytes above those before its model, and processor seconds of the fastest step."""
    torch.set_num_threads(1)
    name, setup = _CASES[number]
    _steps(_WARM, replace(setup, batch=2, accumulate=1, length=16))  # imports, and what torch makes at first
    before = psutil.Process().memory_info().rss
    marks = _steps(_MODELS[name], setup)
    return greatest_mib() * MIB - before, min(b - a for a, b in itertools.pairwise(marks))


def _steps(model: Decoder, setup: Setup) -> list[float]:
    """Train an epoch of a few steps; returns the processor time at the beginning and after each."""
    rows = random_rows(model, setup.batch * STEPS, setup.length)
    params = RecipeParams(
        batch_size=setup.batch, accumulate=setup.accumulate, recompute=setup.recompute, checkpoint_s=None
    )
    trainer = Trainer(network(model, setup.length), TextTask(rows, rows), params)
    marks = [time.process_time()]
    trainer._pass_over_training_rows(lambda: marks.append(time.process_time()))  # noqa: SLF001 - what is planned
    return [*marks, time.process_time()]


if __name__ == "__main__":
    main(run, "torch", "transformers")
