"""Checks of a model's behaviour: answers must not change with some inputs, and must move one way with others."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from toque.functions.evaluation.checks.check import Check, at_least
from toque.functions.evaluation.checks.robustness import Predict, added, replaced

Floats = npt.NDArray[np.float64]
_SEED = 2013
_ROUNDING = 1e-6  # error of a probability in 32-bit arithmetic


class Invariance(BaseModel):
    """Rule that other values of a column must hardly change the answer.

    values: given to every row, one value after the other; empty: the column's own values, shuffled.
    max_change: of the answer, up to which it counts as unchanged. min_share: of rows that must stay unchanged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["invariance"] = "invariance"
    column: str
    values: tuple[str | float, ...] = ()
    max_change: float = Field(default=0.01, gt=0.0)
    min_share: float = Field(default=0.95, gt=0.0, le=1.0)


class Direction(BaseModel):
    """Rule that more of a numeric column must move the answer one way.

    change: amount that is added. expected: direction of the answer. min_share: of rows that must not move the other way; the
    mean must move the expected way, so that a model which ignores the column fails.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["direction"] = "direction"
    column: str
    change: float = Field(allow_inf_nan=False)
    expected: Literal["up", "down"]
    min_share: float = Field(default=0.9, gt=0.0, le=1.0)


Behaviour = Annotated[Invariance | Direction, Field(discriminator="kind")]


def judge_behaviour(rule: Invariance | Direction, table: pa.Table, predict: Predict) -> Check:
    """Check the share of rows that behave as the rule says; NaN answers do not.

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
