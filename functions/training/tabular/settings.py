"""Settings of the tabular network, and the columns that it reads; known without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

import pyarrow as pa
from pydantic import Field

from toque.functions.evaluation.meanings import Outcome
from toque.functions.training.errors import TrainingDataError
from toque.functions.training.params import (
    Accumulate,
    Arithmetic,
    Clip,
    Compiled,
    KeepBest,
    KeepLast,
    LearningRate,
    RecipeParams,
    WeightDecay,
)
from toque.functions.training.splits import TIME_COLUMN
from toque.functions.training.trainer import Trainer
from toque.registry import Table, TableSnapshot

Task = Literal["binary", "multiclass", "regression"]
RowsIn = Literal["memory", "disk", "shards"]
_TASKS: dict[Outcome, Task] = {"binary": "binary", "multiclass": "multiclass", "number": "regression"}
_FEWEST_EPOCHS, _LEAST_PATIENCE = 6, 3
_MIN_BATCH, _MIN_STEPS, _MIN_TOTAL_STEPS = 16, 32, 200

Width = Annotated[int, Field(ge=1, le=1_048_576)]


class TabularSettings(Trainer):
    """How the tabular network is built and trained; `TabularParams` trains by them."""

    kind: ClassVar[str] = "tabular"
    data_settings: ClassVar[frozenset[str]] = Trainer.data_settings | {
        "task", "bins", "min_category_rows", "max_categories", "rows_in"
    }  # fmt: skip

    task: Task = Field(
        default="binary",
        description="What the label is: 0 or 1, one of several classes (texts or integers), or a number.",
    )
    hidden: tuple[Width, ...] = Field(
        default=(128, 64), description="Widths of the hidden layers, the first first."
    )
    dropout: float = Field(
        default=0.2,
        ge=0.0,
        lt=1.0,
        description="Share of each hidden layer's outputs that a step drops, in [0, 1).",
    )
    embedding_dim: int = Field(le=65_536, default=8, ge=1, description="Numbers that a category becomes.")
    bins: int = Field(
        le=100_000, default=12, ge=1, description="Pieces of the piecewise linear code of a number."
    )
    lr: LearningRate = 3e-3
    weight_decay: WeightDecay = 5e-2
    batch_size: int = Field(
        le=10_000_000,
        default=2048,
        ge=1,
        description=(
            "Rows of one optimiser step over all workers; fewer where the training rows are below 32 times "
            "that."
        ),
    )
    epochs: int | None = Field(
        le=1_000_000,
        default=None,
        ge=1,
        description="Epochs, which are the length of the schedule; six unless given, more on a small set.",
    )
    patience: int | None = Field(
        le=1_000_000,
        default=None,
        ge=1,
        description=(
            "Epochs without a better validation loss before it stops; a third of all, but at least 3, unless "
            "given."
        ),
    )
    unknown_rate: float = Field(
        default=0.02,
        ge=0.0,
        lt=1.0,
        description=(
            "Share of categories hidden in a step, in [0, 1), which teaches the embedding of unknown ones."
        ),
    )
    min_category_rows: int = Field(
        default=10, ge=1, description="Training rows that a category needs for an embedding of its own."
    )
    max_categories: int = Field(
        le=100_000_000,
        default=10_000,
        ge=1,
        description="Most categories of a column with an embedding of their own, the frequent ones.",
    )
    clip: Clip = None
    precision: Arithmetic = "fp32"
    accumulate: Accumulate = 1
    compiled: Compiled = False
    keep_last: KeepLast = 2
    keep_best: KeepBest = 0
    rows_in: RowsIn = Field(
        default="memory",
        description=(
            'Where a worker has its rows: in memory, in a file on its machine ("disk"), or in the store, '
            'with a bounded cache ("shards").'
        ),
    )

    def check(self, outcome: Outcome, columns: Mapping[str, tuple[str, ...]]) -> None:
        """Check that the network can learn the outcome, and that there are no tensors, which it cannot read. Raises: ValueError."""
        if outcome not in _TASKS:
            raise ValueError(
                f"the tabular network learns {', '.join(_TASKS)}, not {outcome!r}; declare another trainer, such as XGBoost()"
            )
        if columns.get("tensors"):
            raise ValueError(
                f"the tabular network reads no tensors such as {columns['tensors'][0]!r}; declare another trainer"
            )

    @property
    def outcome(self) -> Outcome:
        """Outcome that the task answers for."""
        return next(outcome for outcome, task in _TASKS.items() if task == self.task)

    def for_outcome(self, outcome: Outcome) -> Self:
        """Settings with the task that learns `outcome`."""
        return self.model_copy(update={"task": _TASKS[outcome]})

    def batch_rows(self, rows: int, *, workers: int = 1) -> int:
        """Rows of a step over `rows` training rows: an epoch has 32 steps at least, each worker equally many rows."""
        batch = min(self.batch_size, max(_MIN_BATCH, rows // _MIN_STEPS), rows)
        return max(workers, batch - batch % workers)

    def resolved(self, rows: int) -> Self:
        """Settings with epochs and patience decided for `rows` training rows."""
        steps = max(1, rows // self.batch_rows(rows))
        epochs = self.epochs or max(_FEWEST_EPOCHS, -(-_MIN_TOTAL_STEPS // steps))
        patience = self.patience or max(_LEAST_PATIENCE, epochs // 3)
        return self.model_copy(update={"epochs": epochs, "patience": patience})

    def for_loop(self, rows: int) -> RecipeParams:
        """Settings of the loop over `rows` training rows; those that a table's network has no choice of are the defaults."""
        known = self.resolved(rows).model_dump(include={*RecipeParams.model_fields})
        return RecipeParams.model_validate({**known, "batch_size": self.batch_rows(rows)})

    @property
    def epochs_and_patience(self) -> tuple[int, int]:
        """Epochs and patience of resolved settings. Raises: ValueError if they are not resolved."""
        if self.epochs is None or self.patience is None:
            raise ValueError(f"epochs={self.epochs}, patience={self.patience}: call resolved(rows) first")
        return self.epochs, self.patience


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the feature columns and the label of a training set."""

    numeric: Sequence[str]
    categorical: Sequence[str]
    label: str

    @classmethod
    def of(cls, numeric: Sequence[str], categorical: Sequence[str], label: str) -> Self:
        """Name the feature columns and the label. Raises: TrainingDataError if a column is named twice."""
        names = [*numeric, *categorical, label]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise TrainingDataError(f"columns {twice} are named twice among numeric, categorical and label")
        return cls(tuple(numeric), tuple(categorical), label)

    def read(self, table: Table, snapshot: TableSnapshot) -> pa.Table:
        """Read the columns of a snapshot, with the rows' time; an absent column is reported where it is used."""
        rows = table.read(version=snapshot.version)
        wanted = {*self.numeric, *self.categorical, self.label, TIME_COLUMN}
        return rows.select([name for name in rows.column_names if name in wanted])
