"""Training of the tabular network as a trainer: fitted here or on the cluster, and written as a program."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from toque.functions.model_formats.load import DESCRIPTION_FILE, PROGRAM_FILE, ScoringModel, load
from toque.functions.model_formats.matrices import text_matrix
from toque.functions.model_formats.program import export_program, save_program
from toque.functions.runtime.context import context
from toque.functions.training.errors import TrainingDataError, TrainingError
from toque.functions.training.loop.distributed import Worker, train_request
from toque.functions.training.params import RecipeParams, weights_depend_on
from toque.functions.training.request import TrainingRequest
from toque.functions.training.tabular.fitting import Fitted, WarmStart, fit, load_warm_start, prepare
from toque.functions.training.tabular.out_of_core import prepare_on_disk
from toque.functions.training.tabular.settings import Columns, TabularSettings
from toque.functions.training.tabular.sharded import ShardedSets, prepare_in_shards
from toque.functions.training.tabular.target import Target
from toque.functions.training.trainer import Trained
from toque.functions.training_data import ShardCache
from toque.registry import Table, TableSnapshot
from toque.registry.models import Signature, TensorSpec

EXAMPLE_ROWS = 2
_PARITY_ATOL = 1e-5  # between the program that was written and the model in memory


@dataclass(frozen=True, slots=True)
class TabularJob:
    """Specification of a tabular training: model, training set, columns, settings, and the version to begin with."""

    model: str
    training_set: TableSnapshot
    columns: Columns
    params: TabularSettings
    start_from: int | None = None

    def checkpoint_key(self) -> dict[str, Any]:
        """Everything that the weights depend on, as JSON."""
        return {
            "training_set": self.training_set.model_dump(),
            "columns": [list(self.columns.numeric), list(self.columns.categorical), self.columns.label],
            "params": weights_depend_on(self.params),
            "code": self.params.code,
            "start": self.start_from,
        }


@dataclass(frozen=True, slots=True)
class TabularWork:
    """Training of a job as every worker does it."""

    job: TabularJob
    table: Table
    warm_start: WarmStart | None = None
    sets: ShardedSets | None = None

    def __call__(self, worker: Worker) -> Fitted:
        """Prepare and fit as one worker. Raises: TrainingError as `prepare` and `fit` do."""
        job = self.job
        if self.sets is not None:
            prepared = self.sets.opened(
                seed=job.params.seed,
                warm_start=self.warm_start,
                cache=ShardCache(most_bytes=context().shard_cache_bytes),
            )
        elif job.params.rows_in == "disk":
            prepared = prepare_on_disk(self.table, job.training_set, job.columns, job.params, self.warm_start)
        else:
            rows = job.columns.read(self.table, job.training_set)
            prepared = prepare(rows, job.columns, job.params, self.warm_start)
        return fit(prepared, job.params, group=worker.group, on_epoch=worker.on_epoch, keeper=worker.keeper)


def train_network(params: TabularSettings, request: TrainingRequest) -> Trained:
    """Train the network that a request asks for, and write its files. Raises: TrainingError."""
    if request.tensors:
        raise TrainingDataError(
            f"the tabular network takes no tensors such as {request.tensors[0]!r}: use a recipe or a trainer of your own"
        )
    if request.training_set is None:
        raise TrainingDataError(f"model {request.model!r} needs a training set")
    columns = Columns.of(request.numeric, request.categorical, request.label)
    job = TabularJob(request.model, request.training_set, columns, params, request.start_from)
    start, sets = None, None
    if job.start_from is not None:
        start = load_warm_start(request.registry, job.model, job.start_from, columns=columns, params=params)
    if params.rows_in == "shards":
        sets = prepare_in_shards(request.table, job.training_set, columns, params, start)
    kept = RecipeParams(keep_last=params.keep_last, keep_best=params.keep_best)
    fitted = train_request(request, job.checkpoint_key(), kept, TabularWork(job, request.table, start, sets))
    rows = request.table.head(EXAMPLE_ROWS, version=job.training_set.version)
    signature = tabular_signature(columns, rows, fitted.scorer.target)
    write_artifact(request.folder, fitted, signature=signature, columns=columns, params=params)
    return Trained(
        metrics=fitted.metrics,
        best_epoch=fitted.best_epoch,
        rows=fitted.rows_train + fitted.rows_valid,
        signature=signature,
    )


def tabular_signature(columns: Columns, table: pa.Table, target: Target) -> Signature:
    """Make the signature of a model: numbers and texts by column in, answers out; the example is `table`'s first rows."""
    rows = table.slice(0, EXAMPLE_ROWS)
    numbers = [
        [float("nan") if row[name] is None else float(row[name]) for name in columns.numeric]
        for row in rows.to_pylist()
    ]
    texts = [[text or "" for text in row] for row in text_matrix(rows, columns.categorical).tolist()]
    return Signature(
        inputs=[
            TensorSpec(
                name="numeric",
                datatype="FP32",
                shape=[-1, len(columns.numeric)],
                columns=list(columns.numeric),
            ),
            TensorSpec(
                name="categorical",
                datatype="BYTES",
                shape=[-1, len(columns.categorical)],
                columns=list(columns.categorical),
            ),
        ],
        outputs=[target.spec],
        example={"numeric": numbers, "categorical": texts},
    )


def write_artifact(
    folder: Path, fitted: Fitted, *, signature: Signature, columns: Columns, params: TabularSettings
) -> ScoringModel:
    """Write `model.pt2` and `model.json`, read them back, and compare with the model in memory.

    Returns: the model as it was read back.
    Raises: TrainingError if what was read back answers otherwise.
    """
    sample = fitted.sample
    program = export_program(fitted.scorer, {"numeric": sample.numeric, "categorical": sample.categorical})
    save_program(program, folder / PROGRAM_FILE)
    description = _description(fitted, signature=signature, columns=columns, params=params)
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=1))
    loaded = load(folder)
    _check_read_back(fitted, loaded)
    return loaded


def _description(
    fitted: Fitted, *, signature: Signature, columns: Columns, params: TabularSettings
) -> dict[str, Any]:
    return {
        "kind": "tabular",
        "format": 1,
        "signature": signature.model_dump(mode="json"),
        "task": params.task,
        "target": asdict(fitted.scorer.target),
        "label": columns.label,
        "params": params.model_dump(mode="json"),
        "inverse_temperature": fitted.inverse_temperature,
        "rows": {"train": fitted.rows_train, "valid": fitted.rows_valid},
        "validation": fitted.metrics,
        "best_epoch": fitted.best_epoch,
        "made_with": {"torch": torch.__version__, "python": platform.python_version()},
    }


def _check_read_back(fitted: Fitted, loaded: ScoringModel) -> None:
    sample = fitted.sample
    for rows in (1, len(sample)):
        part = sample.take(torch.arange(rows))
        with torch.inference_mode():
            wanted = fitted.scorer(part.numeric, part.categorical).numpy()
        got = loaded.predict({"numeric": part.numeric.numpy(), "categorical": part.categorical.numpy()})
        gap = float(np.abs(wanted - next(iter(got.values()))).max())
        if not gap <= _PARITY_ATOL * max(1.0, float(np.abs(wanted).max())):
            raise TrainingError(
                f"the saved model answers {rows} rows otherwise than the one in memory, by {gap:.3g}: not registered"
            )
