"""Checks of a model's loss on slices: each category, each quarter of a number, and pairs, corrected for their number."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from toque.functions.evaluation.checks.check import Check, at_least
from toque.functions.evaluation.errors import EvaluationError
from toque.functions.stats.slices import Slice, slices_above

Floats = npt.NDArray[np.float64]
_MIN_ENTITIES = 10
_SHOWN = 5


class SliceRule(BaseModel):
    """Rule that a model's loss must not be proven higher than the reference's on any slice of the data.

    columns: texts, each value a slice, and numbers, each quarter of their range; missing values are a slice of their own.
    depth: 2 checks all pairs of columns too. against: the reference, on the same rows.
    max_excess: of the mean loss, that is tolerated. alpha: chance that a model that is nowhere worse fails (Holm's
    correction over all slices). min_rows: smaller slices are not judged; without any other slice the check fails.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: tuple[str, ...] = Field(min_length=1)
    depth: Literal[1, 2] = 1
    against: Literal["champion", "constant", "logistic"] = "constant"
    max_excess: float = Field(default=0.0, ge=0.0)
    alpha: float = Field(default=0.05, gt=0.0, lt=0.5)
    min_rows: int = Field(default=100, ge=2)


def judge_slices(
    rule: SliceRule, table: pa.Table, excess: Floats, entity: npt.NDArray[np.generic] | None
) -> tuple[Check, tuple[Slice, ...]]:
    """Check the slices of a rule; returns the check, and the slices that were tested, the worst first.

    table: the evaluation rows. excess: (rows,) the model's loss less the reference's. entity: (rows,), or None if rows are
    independent. The check's note gives the mean excess of the worst slices with its interval, corrected for all that were
    tested: the check fails exactly if that of the worst lies above `max_excess`.
    Raises: as `slice_columns`.
    Source: as `slices_above`.
    """
    worst = slices_above(
        excess,
        slice_columns(rule, table),
        level=rule.max_excess,
        unit=entity,
        depth=rule.depth,
        min_rows=rule.min_rows,
        min_units=_MIN_ENTITIES,
    )
    name = f"slices against {rule.against}: least p of {len(worst)}"
    if not worst:
        note = f"no slice of {rule.columns} has {rule.min_rows} rows of {_MIN_ENTITIES} entities"
        return at_least(name, float("nan"), rule.alpha, note), ()
    shown = [_described(part, rule.alpha / len(worst)) for part in worst[:_SHOWN]]
    return at_least(name, worst[0].corrected, rule.alpha, "; ".join(shown)), worst


def slice_columns(rule: SliceRule, table: pa.Table) -> dict[str, npt.NDArray[np.generic]]:
    """Read the columns of a rule as numbers and texts, (rows,) each.

    Raises: KeyError if the table lacks a column; EvaluationError if its values are lists or records.
    """
    return {name: _column(name, table[name]) for name in rule.columns}


def _described(part: Slice, alpha: float) -> str:
    low, high = part.interval(alpha)
    return f"{part.name}: loss {part.mean:+.4f} ({low:+.4f} to {high:+.4f}) on {part.rows} rows, p = {part.corrected:.3g}"


def _column(name: str, column: pa.ChunkedArray) -> npt.NDArray[np.generic]:
    """Convert a column to numbers with NaN for missing ones, or to texts with None."""
    if pa.types.is_nested(column.type):
        raise EvaluationError(
            f"slices.columns: {name!r} is of type {column.type}; name columns of texts or numbers"
        )
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return np.asarray(column.cast(pa.string()).to_pylist(), dtype=object)
    numbers = np.asarray(pc.fill_null(column.cast(pa.float64()), float("nan")).to_numpy(zero_copy_only=False))
    return np.where(np.isfinite(numbers), numbers, np.nan)
