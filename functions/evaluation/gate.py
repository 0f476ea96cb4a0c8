"""The offline gate: limits that a version must keep on data it has not learnt from.

`judge` is pure: numbers in, checks out. It never passes for want of evidence: too few rows, a value that is no number,
or a comparison that could not be made fail the gate and say so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from functions.evaluation.baselines import Baseline


class Gate(BaseModel):
    """What a version must keep.

    max_log_loss_ratio: baseline -> the model's log loss over the baseline's, at most; max_champion_ratio: the same
    over the champion's (None: not compared; no champion yet: passes); max_ece: expected calibration error, at most;
    min_auc: at least; min_rows: fewer rows of evaluation fail.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "offline"
    max_log_loss_ratio: dict[Baseline, float] = Field(default={"constant": 0.99, "logistic": 1.01})
    max_champion_ratio: float | None = Field(default=None, gt=0.0)
    max_ece: float | None = Field(default=0.1, gt=0.0, le=1.0)
    min_auc: float | None = Field(default=None, ge=0.0, le=1.0)
    min_rows: int = Field(default=200, ge=1)


class Check(BaseModel):
    """One limit: the value found, the limit, and which side of it is good."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    name: str
    value: float
    limit: float
    rule: str
    passed: bool


def judge(
    gate: Gate, *, rows: int, metrics: Mapping[str, float], ratios: Mapping[str, float], has_champion: bool
) -> list[Check]:
    """All checks of `gate`.

    metrics: `log_loss`, `auc`, `ece` of the model; ratios: its log loss over that of each baseline and of
    "champion". What is absent counts as NaN, and NaN passes nothing.
    """
    checks = [_at_least("rows", rows, gate.min_rows)]
    for name, limit in gate.max_log_loss_ratio.items():
        checks.append(_at_most(f"log loss / {name}", ratios.get(name, math.nan), limit))
    if gate.max_champion_ratio is not None and has_champion:
        checks.append(
            _at_most("log loss / champion", ratios.get("champion", math.nan), gate.max_champion_ratio)
        )
    if gate.max_ece is not None:
        checks.append(_at_most("ece", metrics.get("ece", math.nan), gate.max_ece))
    if gate.min_auc is not None:
        checks.append(_at_least("auc", metrics.get("auc", math.nan), gate.min_auc))
    return checks


def _at_most(name: str, value: float, limit: float) -> Check:
    return Check(name=name, value=value, limit=limit, rule="at most", passed=value <= limit)


def _at_least(name: str, value: float, limit: float) -> Check:
    return Check(name=name, value=value, limit=limit, rule="at least", passed=value >= limit)
