"""Checks of a gate beyond its metrics: slices, robustness, fairness and behaviour, each judged against one limit.

Slices are each category, each quarter of a number, and pairs, corrected for their number. Robustness is of the loss
when an input is missing or shifted, as by another unit or a drifting sensor. Fairness is of gaps between groups, in
decisions at a threshold, in calibration or in loss, each with its interval. By behaviour, answers must not change
with some inputs, and must move one way with others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import special

from toque.functions.evaluation.errors import EvaluationError
from toque.functions.stats.slices import Slice, slices_above

Floats = npt.NDArray[np.float64]
Take = Callable[[pa.Table, npt.NDArray[np.int64]], pa.Table]
Predict = Callable[[pa.Table], Floats]
MeanLoss = Callable[[Floats, Floats], float]
Measure = Literal["selection_rate", "true_positive_rate", "false_positive_rate", "calibration", "loss"]
"""Share of answers at or above a threshold, the same among label 1 (equal opportunity) or label 0, mean answer less mean
label, or mean loss, which every outcome has."""

_MIN_SLICE_ENTITIES = 10
_SHOWN_SLICES = 5
_GAP_LEVEL = 0.95  # of the interval
_FEWEST_UNITS = 2  # for a spread
_SEED = 2013  # of the values that invariance tries
_ROUNDING = 1e-6  # error of a probability in 32-bit arithmetic


class Check(BaseModel):
    """Result of checking one limit: the value found, the limit, and which side is good. note: details for the reader."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    name: str
    value: float
    limit: float
    rule: str
    passed: bool
    note: str = ""


def at_most(name: str, value: float, limit: float, note: str = "") -> Check:
    """Check that value <= limit; NaN does not pass."""
    return Check(name=name, value=value, limit=limit, rule="at most", passed=bool(value <= limit), note=note)


def at_least(name: str, value: float, limit: float, note: str = "") -> Check:
    """Check that value >= limit; NaN does not pass."""
    return Check(name=name, value=value, limit=limit, rule="at least", passed=bool(value >= limit), note=note)


@dataclass(frozen=True, slots=True)
class Judged:
    """Judged rows of one length. answers: probabilities (rows,), or what the loss was computed of; entity: None if independent."""

    table: pa.Table
    label: Floats
    answers: Floats
    loss: Floats | None = None
    entity: npt.NDArray[np.generic] | None = None


class SliceRule(BaseModel):
    """Rule that a model's loss must not be proven higher than the reference's on any slice of the data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: tuple[str, ...] = Field(
        min_length=1,
        description=(
            "Columns of texts (a value is a slice) and numbers (a quarter of the rows is one); "
            "missing values are a slice too."
        ),
    )
    depth: Literal[1, 2] = Field(
        default=1,
        description="Number of columns that a slice may combine; 2 checks all pairs of columns too.",
    )
    against: Literal["champion", "constant", "logistic"] = Field(
        default="constant",
        description=(
            "Reference whose loss on the same rows is compared; "
            "a baseline must be one that the gate compares with over all rows, too."
        ),
    )
    max_excess: float = Field(
        default=0.0,
        ge=0.0,
        description="Excess of a slice's mean loss over the reference's that is tolerated.",
    )
    alpha: float = Field(
        default=0.05,
        gt=0.0,
        lt=0.5,
        description="Chance that a model that is nowhere worse fails, over all slices (Holm's correction).",
    )
    min_rows: int = Field(
        default=100,
        ge=2,
        description="Fewest rows of a slice that is judged; the check fails if no slice has them.",
    )


def judge_slices(
    rule: SliceRule,
    table: pa.Table,
    excess: Floats,
    entity: npt.NDArray[np.generic] | None,
    possible: float = 0.0,
) -> tuple[Check, tuple[Slice, ...]]:
    """Check the slices of a rule; returns the check, and the slices that were tested, the worst first.

    table: the evaluation rows. excess: (rows,) the model's loss less the reference's. entity: (rows,), or None if rows are
    independent. possible: the most by which the losses of a row could have differed; 0: not known. The check's note gives the mean excess of the worst slices with its interval, corrected for all that were
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
        min_units=_MIN_SLICE_ENTITIES,
        possible=possible,
    )
    name = f"slices against {rule.against}: least p of {len(worst)}"
    if not worst:
        note = f"no slice of {rule.columns} has {rule.min_rows} rows of {_MIN_SLICE_ENTITIES} entities"
        return at_least(name, float("nan"), rule.alpha, note), ()
    shown = []
    for part in worst[:_SHOWN_SLICES]:
        low, high = part.interval(rule.alpha / len(worst))
        loss = f"loss {part.mean:+.4f} ({low:+.4f} to {high:+.4f}) on {part.rows} rows"
        shown.append(f"{part.name}: {loss}, p = {part.corrected:.3g}")
    return at_least(name, worst[0].corrected, rule.alpha, "; ".join(shown)), worst


def slice_columns(rule: SliceRule, table: pa.Table) -> dict[str, npt.NDArray[np.generic]]:
    """Read the columns of a rule as numbers and texts, (rows,) each.

    Raises: KeyError if the table lacks a column; EvaluationError if its values are lists or records.
    """
    return {name: _column(name, table[name]) for name in rule.columns}


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


class RobustnessRule(BaseModel):
    """Rule on the loss with one disturbed input, over the undisturbed loss, at most."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_missing_ratio: float | None = Field(
        default=2.0,
        ge=1.0,
        description=(
            "Most that the loss with a column null in every row may be over the undisturbed one; "
            "null does not try it."
        ),
    )
    max_shift_ratio: float | None = Field(
        default=None,
        ge=1.0,
        description=(
            "Most that the loss with a numeric column shifted up or down may be over the undisturbed one; "
            "not tried unless given."
        ),
    )
    shift: float = Field(
        default=1.0, gt=0.0, description="Size of the shift, in interquartile ranges of the column."
    )
    columns: tuple[str, ...] = Field(
        default=(), description="Columns that are disturbed, one at a time; all inputs of the model if empty."
    )
    max_rows: int = Field(
        le=10_000_000,
        default=2_000,
        ge=10,
        description="Most rows that are tried, spread evenly over the data.",
    )


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
        types = ((name, table[name].type) for name in columns)
        numbers = [name for name, own in types if pa.types.is_integer(own) or pa.types.is_floating(own)]
        shifted = {name: _shifts(table, name, rule.shift) for name in numbers}
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


class FairnessRule(BaseModel):
    """Rule that a gap between the groups of a column must stay small."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    column: str = Field(description="Column whose values are the groups; rows without a value are one, too.")
    measure: Measure = Field(
        default="calibration",
        description=(
            "Measure of a group: share of answers at or above the threshold (of all, or of label 1 or 0), "
            "mean answer less mean label, or mean loss."
        ),
    )
    max_gap: float = Field(
        gt=0.0,
        description="Most that the measure may differ between two groups; at most 1, unless of losses.",
    )
    max_gap_high: float | None = Field(
        default=None,
        gt=0.0,
        description=(
            "Most that the upper end of the gap's 95 % interval may be, "
            "which proves it small; not checked unless given."
        ),
    )
    threshold: float = Field(
        default=0.5,
        gt=0.0,
        lt=1.0,
        description="Answer from which on a row counts as selected, for the rates.",
    )
    min_rows: int = Field(
        default=100,
        ge=1,
        description=(
            "Fewest rows, of those that the measure uses, of a group that is judged; "
            "with fewer than two such groups it fails."
        ),
    )

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
    radius = -float(special.ndtri((1 - _GAP_LEVEL) / 2 / pairs)) * math.hypot(error, other_error)
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


class Invariance(BaseModel):
    """Rule that other values of a column must hardly change the answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["invariance"] = Field(default="invariance", description="Kind of the behaviour.")
    column: str = Field(description="Column that is given other values.")
    values: tuple[str | float, ...] = Field(
        default=(),
        description=(
            "Values that every row is given, one after the other; the column's own, shuffled, if empty."
        ),
    )
    max_change: float = Field(
        default=0.01, gt=0.0, description="Change of the answer up to which it counts as unchanged."
    )
    min_share: float = Field(
        default=0.95,
        gt=0.0,
        le=1.0,
        description="Least share of rows whose answer must stay unchanged under all the values.",
    )


class Direction(BaseModel):
    """Rule that more of a numeric column must move the answer one way.

    The mean answer must move that way whatever the share of rows, so that a model which ignores the column fails.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["direction"] = Field(default="direction", description="Kind of the behaviour.")
    column: str = Field(description="Numeric column that is changed.")
    change: float = Field(
        allow_inf_nan=False,
        description="Amount that is added to the column in every row; negative takes away.",
    )
    expected: Literal["up", "down"] = Field(description="Way that the answer must move.")
    min_share: float = Field(
        default=0.9,
        gt=0.0,
        le=1.0,
        description="Least share of rows whose answer must not move the other way.",
    )


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
