"""Fairness checks of gaps between groups, in decisions at a threshold or in calibration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from functions.evaluation.checks.check import Check, at_most

Floats = npt.NDArray[np.float64]
Measure = Literal["selection_rate", "true_positive_rate", "false_positive_rate", "calibration"]


class FairnessRule(BaseModel):
    """Rule that a gap between the groups of a column must stay small.

    measure: share of answers above the threshold (selection_rate), the same among label 1 (true_positive_rate, equal
    opportunity) or label 0 (false_positive_rate), or mean answer less mean label (calibration).
    max_gap: greatest less least value over groups. min_rows: smaller groups, counted by the rows that the measure uses, are
    named but not judged; with fewer than two groups left the check fails.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    column: str
    measure: Measure = "calibration"
    max_gap: float = Field(gt=0.0, le=1.0)
    threshold: float = Field(default=0.5, gt=0.0, lt=1.0)
    min_rows: int = Field(default=100, ge=1)


def judge_fairness(rule: FairnessRule, table: pa.Table, label: Floats, probability: Floats) -> Check:
    """Check the gap between the groups of a column.

    table: the evaluation rows; label, probability: (rows,). Raises: KeyError if the column is absent.
    Source: Hardt, Price and Srebro, Equality of opportunity in supervised learning, 2016; Pleiss et al., On fairness and
    calibration, 2017.
    """
    groups = np.asarray(
        pc.fill_null(table[rule.column].cast(pa.string()), "missing").to_numpy(zero_copy_only=False), dtype=np.str_
    )  # fmt: skip
    values, small = {}, []
    for group in np.unique(groups).tolist():
        rows = (groups == group) & _counted(rule.measure, label)
        if rows.sum() < rule.min_rows:
            small.append(group)
            continue
        values[group] = _MEASURES[rule.measure](label[rows], probability[rows], rule.threshold)
    note = ", ".join(f"{group} {value:.4f}" for group, value in values.items())
    note += f"; too few rows: {', '.join(small)}" if small else ""
    gap = max(values.values()) - min(values.values()) if len(values) > 1 else float("nan")
    return at_most(f"{rule.measure} gap over {rule.column}", gap, rule.max_gap, note)


def _counted(measure: Measure, label: Floats) -> npt.NDArray[np.bool_]:
    if measure == "true_positive_rate":
        return np.equal(label, 1.0)
    if measure == "false_positive_rate":
        return np.equal(label, 0.0)
    return np.ones(len(label), dtype=bool)


def _selection_rate(_: Floats, probability: Floats, threshold: float) -> float:
    return float((probability >= threshold).mean())


def _calibration_gap(label: Floats, probability: Floats, _: float) -> float:
    return float((probability - label).mean())


_MEASURES: dict[Measure, Callable[[Floats, Floats, float], float]] = {
    "selection_rate": _selection_rate,
    "true_positive_rate": _selection_rate,
    "false_positive_rate": _selection_rate,
    "calibration": _calibration_gap,
}
