"""Train the language model and let it write: `python -m examples.gpt [--workers 2 --sharding shard] [--gpus 1]`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import ray

from examples.gpt import RECIPES
from toque.functions.runtime.context import context, use_context
from toque.functions.training import RecipeParams, ScoringModel, Trained, load, train_recipe
from toque.registry import Registry

MODEL = "notes-gpt"
_BEGINNING = b"## "


def main() -> None:
    """Train the model, print its loss and cost, and let it write some text."""
    given = _parser().parse_args()
    if given.workers > 1 and not ray.is_initialized():
        ray.init(log_to_driver=False)
    with use_context(replace(context(), project="examples.gpt")) as with_project:
        trained = train_recipe(
            MODEL,
            "gpt",
            options={name: getattr(given, name) for name in RECIPES["gpt"].model_fields},
            params=RecipeParams(
                lr=given.lr,
                epochs=given.epochs,
                batch_size=given.batch,
                precision=given.precision,
                accumulate=given.accumulate,
                compiled=given.compiled,
            ),
            num_workers=given.workers,
            worker_gpus=given.gpus,
            sharding=given.sharding,
        )
        registry = with_project.registry()
        sys.stdout.write(summary(registry, trained) + "\n")
        if trained.version is not None:
            sys.stdout.write(sample(registry, trained.version, given.write) + "\n")


def sample(registry: Registry, version: int, count: int) -> str:
    """Let a registered version write `count` bytes."""
    with tempfile.TemporaryDirectory() as folder:
        registry.download(MODEL, version, to=folder)
        text = generate(load(Path(folder)), _BEGINNING, count)
    return text.decode(errors="replace")


def summary(registry: Registry, trained: Trained) -> str:
    """Describe loss, speed and cost of a training in one line."""
    speeds = [point.value for point in registry.get_run(trained.run_id).series("tokens_per_s")]
    line = (
        f"{trained.model}@{trained.version}: {trained.metrics['valid_loss']:.3f} nats a byte held out, "
        f"{np.median(speeds):,.0f} tokens/s, {trained.seconds:.1f} s"
    )
    cost = trained.cost
    if cost is not None:
        line += f", {cost.cpu_hours:.5f} CPU-hours, {cost.gpu_hours:.5f} GPU-hours"
        line += "" if cost.energy_kwh is None else f", {cost.energy_kwh:.5f} kWh"
        line += "" if cost.money is None else f", {cost.money:.5f} {cost.currency}"
    return line


def generate(model: ScoringModel, beginning: bytes, count: int, *, seed: int = 0) -> bytes:
    """Continue `beginning` by `count` bytes, drawn by the model's probabilities."""
    generator, text = np.random.default_rng(seed), beginning
    size = model.signature.inputs[0].shape[1]
    for _ in range(count):
        seen = text[-size:]
        tokens = np.frombuffer(seen.ljust(size, b" "), dtype=np.uint8).astype(np.int64)
        logits = model.predict({"tokens": tokens[None]})["logits"][0, len(seen) - 1].astype(np.float64)
        chances = np.exp(logits - logits.max())
        text += bytes([int(generator.choice(len(chances), p=chances / chances.sum()))])
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="examples.gpt", description=__doc__)
    for name, field in RECIPES["gpt"].model_fields.items():
        parser.add_argument(f"--{name}", type=int, default=field.default)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=32, help="windows of a step, over all workers")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches of a worker in a step")
    parser.add_argument("--compiled", action="store_true", help="steps go through torch.compile")
    parser.add_argument("--workers", type=int, default=1, help="more than one train on the Ray cluster")
    parser.add_argument("--gpus", type=float, default=0.0, help="of each worker")
    parser.add_argument("--sharding", choices=("replicate", "shard"), default="replicate")
    parser.add_argument("--write", type=int, default=200, help="bytes to write at the end")
    return parser


if __name__ == "__main__":
    main()
