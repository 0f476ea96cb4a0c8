"""Request of a training: all that a trainer gets, and helpers by which it learns from rows exactly as it will be asked.

The workers that it may ask for are known without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from toque.functions.evaluation.meanings import Outcome
from toque.functions.evaluation.outcome_kinds import OutcomeKind, kind_for
from toque.functions.model_formats.matrices import class_labels, label_names, named_column, tensor_shape
from toque.functions.model_formats.table_inputs import text_inputs
from toque.functions.runtime.cards import is_slice
from toque.functions.runtime.declaration import Demand
from toque.functions.runtime.environments import Environment
from toque.functions.training.errors import TrainingDataError, TrainingError
from toque.functions.training.splits import TIME_COLUMN, Split, held_out_rows
from toque.registry import Registry, Run, Table, TableSnapshot
from toque.registry.models import Signature, TensorSpec

if TYPE_CHECKING:
    from toque.functions.training.cost import ResourceUse


Sharding = Literal["replicate", "shard"]
SlowPolicy = Literal["name", "leave"]
# arguments of the functions that train
TrainedModel = Annotated[
    str, Field(description="Name of the model whose next version is trained; it is registered if it is new.")
]
HowSharded = Annotated[
    Sharding,
    Field(
        description=(
            'Whether every worker holds the whole model ("replicate", DDP) or a shard of weights, optimiser '
            'and checkpoints ("shard", FSDP2).'
        )
    ),
]
WorkersPerLayer = Annotated[
    int,
    Field(
        ge=1,
        le=1_024,
        description="Number of workers that split each layer of a sharded model among them; it divides all.",
    ),
]
MinWorkers = Annotated[
    int | None,
    Field(
        ge=1,
        le=10_000,
        description=(
            "Fewest workers that go on where there is no room for all, until there is; it waits for all "
            "unless given."
        ),
    ),
]
SlowWorkers = Annotated[
    SlowPolicy,
    Field(
        description=(
            'Whether a worker twice as slow as others is named, or they go on away from its node ("leave", '
            "with `min_workers`)."
        )
    ),
]
FeatureDigests = Annotated[
    dict[str, str] | None,
    Field(
        description=(
            "Digests of the definitions of the feature views that were used, by view, for the lineage."
        )
    ),
]
MoreDatasets = Annotated[
    list[TableSnapshot] | None, Field(description="Tables used beside the training set, for the lineage.")
]
Parent = Annotated[
    int | None,
    Field(
        ge=1,
        le=1_000_000_000,
        description="Version that the new one challenges, for the lineage; that of `start_from` unless given.",
    ),
]
LOSS = "valid_loss"  # name of the metric
_EXAMPLE_ROWS = 2
_FEWEST_VALUES = 2
Watch = Callable[[int, Mapping[str, float]], None]
"""Called with the number of an epoch or round and its metrics; may raise `TrialStopped`."""


class TrialStopped(TrainingError):  # noqa: N818 - says what happened
    """A sweep ends this trial, since others did better."""


@dataclass(frozen=True)
class TrainingRequest:
    """Request to learn `label` from the columns of a training set, and to write the model into `folder`.

    numeric, categorical, tensors: feature columns: numbers; texts, integers or booleans; lists of numbers, such as the pixels
    of an image. group: of a ranking, the column that names each row's request; its rows come one after the other. training_set: None for a trainer that brings its own rows. parameters: of the trainer, as runs record them.
    split, valid_fraction, seed: which rows are held out (see `Trainer`). workers: what it may use. start_from: the version to
    begin with, if it is a warm start. run, registry: where it is tracked, and what it may read. watch: see `report`.
    count_use: told what other processes used; when_registered: told what to do once the training has ended well.
    """

    model: str
    label: str
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    tensors: tuple[str, ...]
    outcome: Outcome
    training_set: TableSnapshot | None
    parameters: Mapping[str, Any]
    split: Split
    valid_fraction: float
    seed: int
    folder: Path
    workers: Workers
    registry: Registry
    run: Run
    group: str = ""
    start_from: int | None = None
    watch: Watch | None = None
    count_use: Callable[[ResourceUse], None] = field(default=lambda _: None)
    when_registered: Callable[[Callable[[], None]], None] = field(default=lambda _: None)

    @property
    def table(self) -> Table:
        """Table of the training set. Raises: TrainingDataError if there is none."""
        return Table(self.registry.store, self._snapshot.name)

    @cached_property
    def rows(self) -> pa.Table:
        """All rows of the training set: the features, the label, and the time. Raises: TrainingDataError if there are none."""
        table = self.table.read(version=self._snapshot.version)
        grouped = (self.group,) if self.group else ()
        for name in (*self.features, self.label, *grouped):
            named_column(table, name)
        if table.num_rows == 0:
            raise TrainingDataError(f"{self.training_set} has no rows: there is nothing to learn from")
        wanted = {*self.features, self.label, TIME_COLUMN, *grouped}
        rows = table.select([name for name in table.column_names if name in wanted])
        return rows.sort_by(self.group) if self.group else rows

    @cached_property
    def held_out(self) -> npt.NDArray[np.bool_]:
        """Marks of the rows (rows,) that are held out."""
        return held_out_rows(
            self.rows, valid_fraction=self.valid_fraction, by=self.split, seed=self.seed, group=self.group
        )

    @cached_property
    def train_rows(self) -> pa.Table:
        """Rows of the training set to learn from."""
        return self.rows.filter(pa.array(~self.held_out))

    @cached_property
    def valid_rows(self) -> pa.Table:
        """Rows held out, to stop early and to measure."""
        return self.rows.filter(pa.array(self.held_out))

    @property
    def features(self) -> tuple[str, ...]:
        """Names of all feature columns."""
        return (*self.numeric, *self.categorical, *self.tensors)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the answer; empty unless there are several."""
        if self.outcome == "multilabel":
            return label_names(self.rows, self.label)
        return class_labels(self.rows, self.label)[0] if self.outcome == "multiclass" else ()

    @cached_property
    def kind(self) -> OutcomeKind:
        """Kind of the outcome: how it is labelled, answered and measured."""
        size = (
            tensor_shape(named_column(self.rows, self.label), self.label)[0]
            if self.outcome == "vector"
            else 1
        )
        return kind_for(self.outcome, self.classes, self.group, size)

    def labels(self, rows: pa.Table) -> npt.NDArray[Any]:
        """Labels of rows: (rows,) of 0 and 1, indices into `classes`, numbers or counts; of several labels (rows, classes) of 0 and 1.

        Raises: TrainingDataError.
        """
        return self.kind.label(rows, self.label)

    def train_labels(self) -> npt.NDArray[Any]:
        """Labels of the rows to learn from. Raises: TrainingDataError if they do not differ, or a class is not among them."""
        found = self.labels(self.train_rows)
        if self.outcome == "multilabel":
            missing = [
                name for name, own in zip(self.classes, found.T, strict=True) if not 0 < own.sum() < len(own)
            ]
        else:
            missing = [] if len(np.unique(found)) >= max(_FEWEST_VALUES, len(self.classes)) else ["a class"]
        if missing:
            raise TrainingDataError(
                f"label {self.label!r} lacks rows with and without {missing[:5]} in the {len(found)} rows to learn from, first "
                f"{found[:5].tolist()}: give more rows, or split by 'random'"
            )
        return found

    @cached_property
    def signature(self) -> Signature:
        """Signature of a model that takes these columns and answers for the outcome; the example is the first rows."""
        inputs = []
        for name, datatype, columns in (
            ("numeric", "FP32", self.numeric),
            ("categorical", "BYTES", self.categorical),
        ):
            if columns:
                shape = [-1, len(columns)]
                inputs.append(TensorSpec(name=name, datatype=datatype, shape=shape, columns=list(columns)))
        for name in self.tensors:
            shape = [-1, *tensor_shape(named_column(self.rows, name), name)]
            inputs.append(TensorSpec(name=name, datatype="FP32", shape=shape))
        found = Signature(inputs=inputs, outputs=[self.kind.answer_spec])
        return found.model_copy(update={"example": _example(self.rows.slice(0, _EXAMPLE_ROWS), found)})

    def inputs(self, rows: pa.Table) -> dict[str, npt.NDArray[Any]]:
        """Inputs of the signature for the rows of a table, as the served model gets them; texts are texts."""
        return text_inputs(rows, self.signature)

    def group_sizes(self, rows: pa.Table) -> npt.NDArray[np.int64]:
        """Number of rows of each request of a ranking, in the order of `rows`, which are sorted by it."""
        names = named_column(rows, self.group).combine_chunks().dictionary_encode()
        return np.bincount(names.indices.to_numpy()).astype(np.int64)

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of an epoch or round in the run; "valid_loss" is what sweeps compare.

        Raises: TrialStopped if a sweep ends this trial here: let it pass.
        """
        self.run.log_metrics(dict(metrics), step=step)
        if self.watch is not None:
            self.watch(step, metrics)

    @property
    def _snapshot(self) -> TableSnapshot:
        if self.training_set is None:
            raise TrainingDataError(f"model {self.model!r} is trained without a training set: pass one")
        return self.training_set


@dataclass(frozen=True, slots=True)
class Workers:
    """Number of workers, CPUs and GPUs of each, and whether each holds the whole model ("replicate") or a shard.

    card: type of the GPUs as Ray names it, None for any whole ones; slices of a card, as in "H100-1g.10gb", take one worker.
    Without GPUs a worker computes on its CPUs. least: fewest workers that go on where there is no room for `count`, until there is;
    None: always `count`. tensor: how many workers split each layer of a sharded model among them, and so take the same rows.
    slow: whether one that is slow is named, or left, so that others go on away from its node.
    Raises: TrainingError if several are asked to work on slices, `least` is not between 1 and `count`, `tensor` does not fit, or slow
    ones are to be left and all have to stay.
    """

    count: int = 1
    cpus_each: float = 1.0
    gpus_each: float = 0.0
    sharding: Sharding = "replicate"
    card: str | None = None
    least: int | None = None
    tensor: int = 1
    slow: SlowPolicy = "name"

    def __post_init__(self) -> None:
        if self.least is not None and not 1 <= self.least <= self.count:
            raise TrainingError(
                f"min_workers={self.least} and num_workers={self.count}: give 1 to {self.count}, or null"
            )
        if self.slow == "leave" and self.least is None:
            raise TrainingError(
                f"slow_workers='leave' with num_workers={self.count}: give min_workers, the fewest that go on without the slow ones"
            )
        if self.count > 1 and is_slice(self.card):
            raise TrainingError(
                f"card={self.card!r} with num_workers={self.count}: slices of a card cannot work together; ask for "
                "num_workers=1, or for whole cards"
            )
        if self.tensor != 1:
            self._check_tensor()

    def _check_tensor(self) -> None:
        given = f"tensor={self.tensor} with num_workers={self.count}"
        if self.tensor < 1 or self.count % self.tensor:
            raise TrainingError(
                f"{given}: the workers that split a layer are a divisor of all; give one, or 1"
            )
        if self.sharding != "shard":
            raise TrainingError(
                f"{given} and sharding={self.sharding!r}: layers are split with sharding='shard'"
            )
        if self.least is not None:
            raise TrainingError(
                f"{given} and min_workers={self.least}: layers are split by a fixed number of workers; leave it out"
            )

    @property
    def threads(self) -> int:
        """Number of threads that a worker may use."""
        return max(1, int(self.cpus_each))

    @property
    def device(self) -> str:
        """Kind of device that a worker computes on."""
        return "cuda" if self.gpus_each > 0 else "cpu"


def workers_demand(
    num_workers: int,
    worker_cpus: float,
    worker_gpus: float,
    priority: int,
    card: str | None,
    limit_s: float | None,
    environment: Environment | None,
    **_: Any,
) -> Demand:
    """Demand of a function that trains with so many workers, which goes on from its checkpoint when it is preempted."""
    return Demand(
        cpus=max(1.0, num_workers * worker_cpus),
        gpus=num_workers * worker_gpus,
        priority=priority,
        workers=num_workers,
        card=card,
        limit_s=limit_s,
        preemptible=True,
        environment=environment,
    )


def _example(rows: pa.Table, signature: Signature) -> dict[str, Any]:
    """Example of a signature from the first rows; a missing text is empty, since an example has no null."""
    found: dict[str, Any] = {}
    for spec in signature.inputs:
        values = text_inputs(rows, Signature(inputs=[spec], outputs=signature.outputs))[spec.name].tolist()
        texts = spec.datatype == "BYTES"
        found[spec.name] = [[text or "" for text in row] for row in values] if texts else values
    return found
