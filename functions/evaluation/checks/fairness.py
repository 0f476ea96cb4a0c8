"""Fairness checks of gaps between groups, in decisions at a threshold, in calibration or in loss, each with its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import special

from toque.functions.evaluation.checks.check import Check, at_most

Floats = npt.NDArray[np.float64]
Measure = Literal["selection_rate", "true_positive_rate", "false_positive_rate", "calibration", "loss"]
_LEVEL = 0.95
_FEWEST_UNITS = 2  # for a spread


class FairnessRule(BaseModel):
    """Rule that a gap between the groups of a column must stay small.

    measure: share of answers above the threshold (selection_rate), the same among label 1 (true_positive_rate, equal
    opportunity) or label 0 (false_positive_rate), mean answer less mean label (calibration), or mean loss, which every outcome has.
    max_gap: greatest less least value over groups; max_gap_high: the upper end of its 95 % interval, at most: a gap that is proven
    to be small. min_rows: smaller groups, counted by the rows that the measure uses, are named but not judged; with fewer than two
    groups left the check fails.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    column: str
    measure: Measure = "calibration"
    max_gap: float = Field(gt=0.0)
    max_gap_high: float | None = Field(default=None, gt=0.0)
    threshold: float = Field(default=0.5, gt=0.0, lt=1.0)
    min_rows: int = Field(default=100, ge=1)

    @model_validator(mode="after")
    def _a_share_is_at_most_one(self) -> Self:
        if self.measure != "loss" and self.max_gap > 1.0:
            raise ValueError(
                f"max_gap {self.max_gap} of {self.measure}: no gap of shares is above 1; lower it"
            )
        return self


@dataclass(frozen=True, slots=True)
class Gap:
    """Gap between the groups of a column with its interval; NaN with fewer than two groups. note: each group's value."""

    value: float
    low: float
    high: float
    note: str


@dataclass(frozen=True, slots=True)
class Judged:
    """Judged rows of one length. answers: probabilities (rows,), or what the loss was computed of; entity: None if independent."""

    table: pa.Table
    label: Floats
    answers: Floats
    loss: Floats | None = None
    entity: npt.NDArray[np.generic] | None = None


def judge_fairness(rule: FairnessRule, rows: Judged) -> list[Check]:
    """Check the gap between the groups of a column, and its upper end if the rule limits it. Raises: as `fairness_gap`."""
    gap, name = fairness_gap(rule, rows), f"{rule.measure} gap over {rule.column}"
    checks = [at_most(name, gap.value, rule.max_gap, gap.note)]
    if rule.max_gap_high is not None:
        checks.append(at_most(f"{name}, upper end", gap.high, rule.max_gap_high, gap.note))
    return checks


def fairness_gap(rule: FairnessRule, rows: Judged) -> Gap:
    """Measure the gap between the groups of a column.

    Its interval is that of the difference of the two groups that are farthest apart, at a level corrected for all pairs; rows of
    one entity are one observation. Raises: KeyError if the column is absent.
    Source: Hardt, Price and Srebro, Equality of opportunity in supervised learning, 2016; Pleiss et al., On fairness and
    calibration, 2017.
    """
    groups = np.asarray(
        pc.fill_null(rows.table[rule.column].cast(pa.string()), "missing").to_numpy(zero_copy_only=False), dtype=np.str_
    )  # fmt: skip
    values, counted = _values(rule, rows), _counted(rule.measure, rows.label)
    means: dict[str, tuple[float, float]] = {}
    small = []
    for group in np.unique(groups).tolist():
        mine = (groups == group) & counted
        if mine.sum() < rule.min_rows:
            small.append(group)
            continue
        means[group] = _mean_with_error(values[mine], None if rows.entity is None else rows.entity[mine])
    note = ", ".join(f"{group} {mean:.4f}" for group, (mean, _) in means.items())
    note += f"; too few rows: {', '.join(small)}" if small else ""
    if len(means) < _FEWEST_UNITS:
        return Gap(math.nan, math.nan, math.nan, note)
    (least, error), (most, other_error) = min(means.values()), max(means.values())
    pairs = len(means) * (len(means) - 1) / 2
    radius = -float(special.ndtri((1 - _LEVEL) / 2 / pairs)) * math.hypot(error, other_error)
    low, high = max(0.0, most - least - radius), most - least + radius
    return Gap(most - least, low, high, f"{note}; 95 % interval of the gap {low:.4f} to {high:.4f}")


def _values(rule: FairnessRule, rows: Judged) -> Floats:
    """Value of each row (rows,) of which a group's measure is the mean."""
    if rule.measure == "loss":
        if rows.loss is None:
            raise ValueError("the gap in loss needs the loss of each row: pass it")
        return rows.loss
    if rule.measure == "calibration":
        gaps: Floats = rows.answers - rows.label
        return gaps
    return (rows.answers >= rule.threshold).astype(np.float64)


def _counted(measure: Measure, label: Floats) -> npt.NDArray[np.bool_]:
    if measure == "true_positive_rate":
        return np.equal(label, 1.0)
    if measure == "false_positive_rate":
        return np.equal(label, 0.0)
    return np.ones(len(label), dtype=bool)


def _mean_with_error(values: Floats, entity: npt.NDArray[np.generic] | None) -> tuple[float, float]:
    """Mean of values, and its standard error over entities; infinite with one entity."""
    mean = float(values.mean())
    sums = values - mean
    if entity is not None:
        _, code = np.unique(entity, return_inverse=True)
        sums = np.bincount(code, sums).astype(np.float64)
    if len(sums) < _FEWEST_UNITS:
        return mean, math.inf
    spread = float((sums**2).sum()) * len(sums) / (len(sums) - 1)
    return mean, math.sqrt(spread) / len(values)
