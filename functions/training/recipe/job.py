"""How a recipe is carried out: trained here or on the cluster, gathered, exported, read back, registered."""

from __future__ import annotations

import json
import platform
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from functions.model_formats.load import DESCRIPTION_FILE, PROGRAM_FILE, example_arrays, load
from functions.model_formats.program import export_program, save_program
from functions.runtime.digest import digest_of
from functions.runtime.receipt import Prices
from functions.training.checkpoints import Checkpoints, keep_of
from functions.training.errors import TrainingError
from functions.training.loop.cost import billed
from functions.training.loop.distributed import Sharding, Workers, carry_through
from functions.training.loop.parallel import World
from functions.training.loop.training_loop import OnEpoch, Trainer
from functions.training.loop.training_loop import train as train_epochs
from functions.training.params import RecipeParams, weights_depend_on
from functions.training.recipe.recipe import Recipe
from functions.training.trained import Trained
from registry import Lineage, ModelVersion, Registry, Run

_PARITY_ATOL = 1e-4


@dataclass(frozen=True, slots=True)
class RecipeOrder:
    """What is to be trained, under which name."""

    model: str
    recipe: Recipe
    params: RecipeParams
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def code(self) -> str:
        """The digest of the recipe's code."""
        return digest_of(type(self.recipe))

    def determined_by(self, sharding: Sharding) -> dict[str, Any]:
        """What the weights depend on, and whether checkpoints are in shares."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "data": self.recipe.data(),
            "params": weights_depend_on(self.params),
            "code": self.code,
            "sharding": sharding,
        }


@dataclass(frozen=True, slots=True)
class Learnt:
    """A trained network's weights by name, whole and on the CPU (the first worker's; the others return none)."""

    weights: dict[str, Tensor]
    best_epoch: int
    best_loss: float
    rows: int


@dataclass(frozen=True, slots=True)
class RecipeJob:
    """The order as every worker is told it."""

    run: Run
    recipe: Recipe
    params: RecipeParams
    checkpoints: Checkpoints

    def work(self, world: World, on_epoch: OnEpoch | None) -> Learnt:
        """Train, as one of `world`. Raises: TrainingDiverged."""
        lesson = self.recipe.lesson()
        trainer = Trainer(seeded(self.recipe, self.params.seed), lesson, self.params, world)
        train_epochs(trainer, world, on_epoch=on_epoch, checkpoints=self.checkpoints)
        weights = {}
        for name, value in trainer.net.state_dict().items():
            whole = world.whole(value)
            if world.rank == 0:
                weights[name] = whole.cpu()
        return Learnt(weights, trainer.best_epoch, trainer.best_loss, lesson.train_rows + lesson.valid_rows)


def seeded(recipe: Recipe, seed: int) -> nn.Module:
    """A new network; equal seeds give equal ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return recipe.network()


def train(
    registry: Registry,
    run: Run,
    order: RecipeOrder,
    workers: Workers,
    *,
    register: bool,
    prices: Prices | None,
) -> Trained:
    """Train, and register the next version if asked. Raises: TrainingError."""
    began = time.perf_counter()
    checkpoints = Checkpoints.of(registry.store, order.determined_by(workers.sharding), keep_of(order.params))
    cards = workers.gpus_each if workers.count == 1 else 0.0
    with billed(run, prices, device=workers.device if cards else "cpu", gpus=cards) as bill:
        done = carry_through(RecipeJob(run, order.recipe, order.params, checkpoints), workers)
        learnt, bill.others = done.made, done.spent
        metrics = {"valid_loss": learnt.best_loss}
        run.log_metrics({"best_loss": learnt.best_loss, "best_epoch": learnt.best_epoch, "rows": learnt.rows})
        version = _register(registry, run, order, learnt, metrics) if register else None
        checkpoints.drop()
        return Trained(
            run_id=run.id,
            model=order.model,
            version=None if version is None else version.version,
            metrics=metrics,
            best_epoch=learnt.best_epoch,
            rows=learnt.rows,
            seconds=time.perf_counter() - began,
            cost=bill.cost(),
        )


def _register(
    registry: Registry, run: Run, order: RecipeOrder, learnt: Learnt, metrics: dict[str, float]
) -> ModelVersion:
    with tempfile.TemporaryDirectory(prefix="toque-model-") as folder:
        write_network(Path(folder), order, learnt)
        registry.create_model(order.model, exist_ok=True)
        version = registry.create_version(
            order.model,
            folder,
            signature=order.recipe.signature(),
            metrics=metrics,
            tags={"kind": "recipe", "data": order.recipe.data(), **order.tags},
            lineage=Lineage(run=run.id, code=order.code),
            key=run.id,
        )
    run.set_tags({"version": str(version.version)})
    return version


def write_network(folder: Path, order: RecipeOrder, learnt: Learnt) -> None:
    """Write `model.pt2` and `model.json`, read them back, and compare with the network in memory.

    Raises: TrainingError if what was read back answers otherwise; ArtifactRefused.
    """
    signature = order.recipe.signature()
    net = seeded(order.recipe, order.params.seed).eval()
    net.load_state_dict(learnt.weights)
    arrays = example_arrays(signature)
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    save_program(export_program(net, inputs), folder / PROGRAM_FILE)
    description = {
        "kind": "recipe",
        "format": 1,
        "signature": signature.model_dump(mode="json"),
        "recipe": order.recipe.model_dump(mode="json"),
        "params": order.params.model_dump(mode="json"),
        "best_epoch": learnt.best_epoch,
        "validation": {"valid_loss": learnt.best_loss},
        "made_with": {"torch": torch.__version__, "python": platform.python_version()},
    }
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=1))
    with torch.inference_mode():
        wanted = net(*inputs.values())
    wanted = (wanted,) if isinstance(wanted, Tensor) else tuple(wanted)
    for (name, got), there in zip(load(folder).predict(arrays).items(), wanted, strict=True):
        gap = float(np.abs(got - there.numpy()).max())
        if not gap <= _PARITY_ATOL * max(1.0, float(there.abs().max())):
            raise TrainingError(
                f"the saved network's {name!r} differs by {gap:.3g} from memory: not registered"
            )
