"""Columns of a training set: which are numbers, which categories, and which is the label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import pyarrow as pa

from toque.functions.training.errors import TrainingDataError
from toque.functions.training.splits import TIME_COLUMN
from toque.registry import Table, TableSnapshot


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
