"""Robustness checks of the loss when an input is missing or shifted, as by another unit or a drifting sensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from toque.functions.evaluation.checks.check import Check, at_most
from toque.functions.evaluation.errors import EvaluationError

Floats = npt.NDArray[np.float64]
Predict = Callable[[pa.Table], Floats]
MeanLoss = Callable[[Floats, Floats], float]
Take = Callable[[pa.Table, npt.NDArray[np.int64]], pa.Table]


class RobustnessRule(BaseModel):
    """Rule on the loss with one disturbed input, over the undisturbed loss, at most.

    max_missing_ratio: with a column null in every row. max_shift_ratio: with a numeric column shifted by `shift` times its
    interquartile range, up and down. None: not tried. columns: to disturb, all inputs unless given.
    max_rows: rows that are tried, spread evenly.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_missing_ratio: float | None = Field(default=2.0, ge=1.0)
    max_shift_ratio: float | None = Field(default=None, ge=1.0)
    shift: float = Field(default=1.0, gt=0.0)
    columns: tuple[str, ...] = ()
    max_rows: int = Field(default=2_000, ge=10)


def judge_robustness(
    rule: RobustnessRule,
    table: pa.Table,
    label: Floats,
    predict: Predict,
    inputs: Sequence[str],
    loss: MeanLoss,
    take: Take = lambda table, rows: table.take(rows),
) -> list[Check]:
    """Check each kind of disturbance on its worst column; answers that have no loss fail.

    inputs: the columns that the model reads. loss: mean loss of labels and answers.
    take: selects the rows of some labels, by their numbers. Raises: KeyError if the table lacks a column.
    """
    keep = np.unique(np.linspace(0, len(label) - 1, min(rule.max_rows, len(label))).astype(np.int64))
    table, label = take(table, keep), label[keep]
    clean = loss(label, predict(table))
    columns = rule.columns or tuple(inputs)

    def disturbed(other: pa.Table) -> float:
        return loss(label, predict(other))

    checks = []
    if rule.max_missing_ratio is not None:
        missing = {name: [without(table, name)] for name in columns}
        checks.append(_worst("loss with an input missing", rule.max_missing_ratio, missing, disturbed, clean))
    if rule.max_shift_ratio is not None:
        shifted = {name: _shifts(table, name, rule.shift) for name in columns if _is_number(table, name)}
        checks.append(_worst("loss with an input shifted", rule.max_shift_ratio, shifted, disturbed, clean))
    return checks


def without(table: pa.Table, column: str) -> pa.Table:
    """Set `column` of the table to null."""
    return replaced(table, column, pa.nulls(table.num_rows, table[column].type))


def replaced(table: pa.Table, column: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Replace the values of `column` in the table."""
    return table.set_column(table.column_names.index(column), column, values)


def added(table: pa.Table, column: str, amount: float) -> pa.Table:
    """Add `amount` to a numeric column of the table."""
    return replaced(table, column, pc.add(table[column].cast(pa.float64()), amount))


def _shifts(table: pa.Table, column: str, shift: float) -> list[pa.Table]:
    numbers = pc.drop_null(table[column]).to_numpy(zero_copy_only=False).astype(np.float64)
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return []
    amount = shift * float(np.subtract(*np.quantile(numbers, [0.75, 0.25])))
    return [added(table, column, amount), added(table, column, -amount)] if amount else []


def _is_number(table: pa.Table, column: str) -> bool:
    return bool(pa.types.is_integer(table[column].type) or pa.types.is_floating(table[column].type))


def _worst(
    name: str,
    limit: float,
    tables_of: dict[str, list[pa.Table]],
    loss: Callable[[pa.Table], float],
    clean: float,
) -> Check:
    ratios: dict[str, float] = {}
    for column, tables in tables_of.items():
        for table in tables:
            try:
                ratio = loss(table) / clean
            except EvaluationError as error:
                return at_most(name, float("nan"), limit, f"{column}: {error}")
            ratios[column] = max(ratio, ratios.get(column, 0.0))
    if not ratios:
        return at_most(name, float("nan"), limit, "no column could be disturbed")
    ranked = sorted(ratios, key=lambda column: -ratios[column])[:5]
    note = ", ".join(f"{column} {ratios[column]:.3f}" for column in ranked)
    return at_most(name, ratios[ranked[0]], limit, note)
