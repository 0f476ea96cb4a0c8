"""What a model must do whatever its loss: stay put when what should not matter changes, move the right way when it should."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from functions.evaluation.checks.check import Check, at_least
from functions.evaluation.checks.robustness import Predict, added, replaced

Floats = npt.NDArray[np.float64]
_SEED = 2013
_ROUNDING = 1e-6  # of a probability in 32-bit arithmetic


class Invariance(BaseModel):
    """Other values of a column must hardly change the answer.

    values: what every row gets, one after the other; empty: the column's own values, shuffled.
    max_change: of the answer, that counts as none. min_share: of rows that must not change by more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["invariance"] = "invariance"
    column: str
    values: tuple[str | float, ...] = ()
    max_change: float = Field(default=0.01, gt=0.0)
    min_share: float = Field(default=0.95, gt=0.0, le=1.0)


class Direction(BaseModel):
    """More of a numeric column must move the answer one way.

    change: what is added. expected: where the answer should go. min_share: of rows that must not go the other way; the
    mean must go the right way, so that a model to which the column is nothing fails.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["direction"] = "direction"
    column: str
    change: float = Field(allow_inf_nan=False)
    expected: Literal["up", "down"]
    min_share: float = Field(default=0.9, gt=0.0, le=1.0)


Behaviour = Annotated[Invariance | Direction, Field(discriminator="kind")]


def judge_behaviour(rule: Invariance | Direction, table: pa.Table, predict: Predict) -> Check:
    """The check: the share of rows that behave. Answers that are no numbers do not.

    Raises: KeyError if the table lacks the column.
    Source: Ribeiro et al., Beyond accuracy: behavioral testing of NLP models with CheckList, 2020.
    """
    if not table.num_rows:
        return at_least(f"{rule.kind} of {rule.column}", float("nan"), rule.min_share, "no rows")
    before = predict(table)
    if isinstance(rule, Invariance):
        changes = np.stack([np.abs(predict(other) - before) for other in _others(rule, table)])
        share = float((changes <= rule.max_change).all(axis=0).mean())
        note = f"answers change by up to {float(changes.max()):.4f}"
        return at_least(f"invariance to {rule.column}", share, rule.min_share, note)
    sign = 1.0 if rule.expected == "up" else -1.0
    moved = sign * (predict(added(table, rule.column, rule.change)) - before)
    mean = float(moved.mean())
    share = float((moved >= -_ROUNDING).mean()) if mean > 0 else 0.0
    note = f"{rule.change:+g} moves the mean answer by {sign * mean:+.5f}"
    return at_least(f"{rule.column} moves it {rule.expected}", share, rule.min_share, note)


def _others(rule: Invariance, table: pa.Table) -> list[pa.Table]:
    column = table[rule.column]
    if rule.values:
        return [
            replaced(table, rule.column, pa.array([value] * table.num_rows, type=column.type))
            for value in rule.values
        ]
    order = np.random.default_rng(_SEED).permutation(table.num_rows)
    return [replaced(table, rule.column, column.take(order))]
