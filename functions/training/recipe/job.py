"""Training of a project's recipes as a trainer: trained here or on the cluster, exported, read back and compared."""

from __future__ import annotations

import json
import platform
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toque.functions.model_formats.load import DESCRIPTION_FILE, PROGRAM_FILE, example_arrays, load
from toque.functions.model_formats.program import export_program, save_program
from toque.functions.training.errors import TrainingError
from toque.functions.training.loop.distributed import TrainedNetwork, Worker, train_request
from toque.functions.training.loop.first_weights import FirstWeights, without_weights
from toque.functions.training.loop.training_loop import Trainer
from toque.functions.training.params import RecipeParams, weights_depend_on
from toque.functions.training.recipe.recipe import Recipe
from toque.functions.training.request import LOSS, Sharding, TrainingRequest
from toque.functions.training.trainer import Trained
from toque.registry.code_digest import digest_of

_PARITY_ATOL = 1e-4


@dataclass(frozen=True, slots=True)
class RecipeJob:
    """Specification of a recipe's training: the recipe and how its network is trained."""

    recipe: Recipe
    params: RecipeParams

    @property
    def code(self) -> str:
        """Digest of the recipe's code."""
        return digest_of(type(self.recipe))

    def checkpoint_key(self, sharding: Sharding) -> dict[str, Any]:
        """Everything that the weights depend on, as JSON, and whether checkpoints are in shards."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "data": self.recipe.data(),
            "params": weights_depend_on(self.params),
            "code": self.code,
            "sharding": sharding,
        }


@dataclass(frozen=True, slots=True)
class RecipeWork:
    """Training of a recipe as every worker does it."""

    recipe: Recipe
    params: RecipeParams

    def __call__(self, worker: Worker) -> TrainedNetwork:
        """Train as one worker of the group. Raises: TrainingDiverged."""
        task = self.recipe.task()
        net, weights = new_network(self.recipe, self.params.seed)
        trainer = Trainer(net, task, self.params, worker.group, weights)
        return worker.fit(trainer, rows=task.train_rows + task.valid_rows, frozen=True)


def new_network(recipe: Recipe, seed: int) -> tuple[nn.Module, FirstWeights | None]:
    """Make the recipe's network, with new weights or without any and their source; equal seeds give equal weights."""
    source = recipe.weights(seed)
    with torch.random.fork_rng(devices=[]), without_weights() if source else nullcontext():
        torch.manual_seed(seed)
        return recipe.network(), source


def train_network(job: RecipeJob, request: TrainingRequest) -> Trained:
    """Train the network that a request asks for, and write its files. Raises: TrainingError."""
    key = job.checkpoint_key(request.workers.sharding)
    trained = train_request(request, key, job.params, RecipeWork(job.recipe, job.params))
    request.run.log_metrics({"best_loss": trained.best_loss})
    write_network(request.folder, job, trained)
    return Trained(
        metrics={LOSS: trained.best_loss},
        best_epoch=trained.best_epoch,
        rows=trained.rows,
        signature=job.recipe.signature(),
    )


def write_network(folder: Path, job: RecipeJob, trained: TrainedNetwork) -> None:
    """Write `model.pt2` and `model.json`, read them back, and compare with the network in memory.

    Raises: TrainingError if what was read back answers otherwise; ArtifactRefused.
    """
    signature = job.recipe.signature()
    net = new_network(job.recipe, job.params.seed)[0].eval()
    net.load_state_dict(trained.weights, assign=True)
    arrays = example_arrays(signature)
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    save_program(export_program(net, inputs), folder / PROGRAM_FILE)
    description = {
        "kind": "recipe",
        "format": 1,
        "signature": signature.model_dump(mode="json"),
        "recipe": job.recipe.model_dump(mode="json"),
        "params": job.params.model_dump(mode="json"),
        "best_epoch": trained.best_epoch,
        "validation": {"valid_loss": trained.best_loss},
        "made_with": {"torch": torch.__version__, "python": platform.python_version()},
    }
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=1))
    with torch.inference_mode():
        wanted = net(*inputs.values())
    wanted = (wanted,) if isinstance(wanted, Tensor) else tuple(wanted)
    for (name, got), expected in zip(load(folder).predict(arrays).items(), wanted, strict=True):
        gap = float(np.abs(got - expected.numpy()).max())
        if not gap <= _PARITY_ATOL * max(1.0, float(expected.abs().max())):
            raise TrainingError(
                f"the saved network's {name!r} differs by {gap:.3g} from memory: not registered"
            )
