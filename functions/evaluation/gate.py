"""Limits of the offline gate, which a version must keep on data that it has not learnt from.

`judge` is pure: numbers in, checks out. A gate never passes for want of evidence: too few rows, a NaN, or a comparison that
could not be made fail the gate and say so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from toque.functions.evaluation.baselines import Baseline
from toque.functions.evaluation.checks.behaviour import Behaviour
from toque.functions.evaluation.checks.check import Check, at_least, at_most
from toque.functions.evaluation.checks.fairness import FairnessRule
from toque.functions.evaluation.checks.robustness import RobustnessRule
from toque.functions.evaluation.checks.slices import SliceRule
from toque.functions.evaluation.meanings import MEANINGS, Outcome
from toque.registry import GateData, GateDemand

LINEAR_NAMES = ("linear", "ridge", "poisson", "nearest")
"""Names of the linear baseline beside the stored one, which is that of two classes."""


POPULARITY: Baseline = "popularity"


class Gate(BaseModel):
    """Limits that a version must keep to pass.

    max_log_loss_ratio: baseline -> the model's loss, as its outcome has it, over the baseline's, at most; "constant" is the mean or
    the share of each class, "linear" (also "logistic", "ridge", "poisson") a linear model, of texts ("nearest") the answer of the nearest row; max_champion_ratio: the same
    over the champion's (None: not compared; no champion yet: passes); max_ece: expected calibration error, at most; the default
    is left out for an outcome that has none;
    min_auc: at least; min_rows: fewer rows of evaluation fail. max_ece_high: the upper end of the calibration error's 95 %
    interval, at most: calibration that is proven, not only estimated.
    entity: the column that names a row's entity; intervals and slices take rows of one entity as one observation.
    slices: parts of the data on which it must not be worse than a reference. fairness: gaps between groups. robustness:
    missing and shifted inputs. behaviours: changes of an input that must not, or must, move the answer.
    item: the column that names the item of a ranking's row, for the baseline "popularity".
    max_latency_ms: median time of one row in this process; max_size_bytes: of all files of the version.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "offline"
    max_log_loss_ratio: dict[Baseline, float] = Field(default={"constant": 0.99, "logistic": 1.01})
    max_champion_ratio: float | None = Field(default=None, gt=0.0)
    max_ece: float | None = Field(default=0.1, gt=0.0, le=1.0)
    min_auc: float | None = Field(default=None, ge=0.0, le=1.0)
    min_rows: int = Field(default=200, ge=1)
    max_ece_high: float | None = Field(default=None, gt=0.0, le=1.0)
    entity: str | None = None
    slices: SliceRule | None = None
    fairness: tuple[FairnessRule, ...] = ()
    robustness: RobustnessRule | None = None
    behaviours: tuple[Behaviour, ...] = ()
    item: str | None = None
    max_latency_ms: float | None = Field(default=None, gt=0.0)
    max_size_bytes: int | None = Field(default=None, gt=0)

    @field_validator("max_log_loss_ratio", mode="before")
    @classmethod
    def _one_name_for_the_linear_model(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {"logistic" if name in LINEAR_NAMES else name: limit for name, limit in given.items()}

    @model_validator(mode="after")
    def _names_the_item(self) -> Self:
        if POPULARITY in self.max_log_loss_ratio and self.item is None:
            raise ValueError(f"the baseline {POPULARITY!r} needs the column of the item: name it, item=…")
        return self

    def unmeasurable(self, outcome: Outcome) -> dict[str, str]:
        """Name the limits that answers of this outcome cannot show, each with the remedy; the default `max_ece` is no demand."""
        named = {aspect.removeprefix("gate."): text for aspect, text in MEANINGS[outcome].refused.items()}
        demanded = {name for name in named if getattr(self, name, None)}
        if self.max_ece == type(self)().max_ece:
            demanded.discard("max_ece")
        if all(rule.measure == "loss" for rule in self.fairness):  # which every outcome has
            demanded.discard("fairness")
        if POPULARITY in self.max_log_loss_ratio and outcome != "ranking":
            named["max_log_loss_ratio"] = f"{POPULARITY!r} is a baseline of rankings: leave it out"
            demanded.add("max_log_loss_ratio")
        return {name: named[name] for name in sorted(demanded)}

    def demand(self, data: GateData | None = None) -> GateDemand:
        """Make the demand by which a model's policy sets these limits, and the data to judge on if given."""
        limits = self.model_dump(mode="json", exclude={"name"}, exclude_defaults=True)
        return GateDemand(name=self.name, limits=limits, data=data)


def judge(
    gate: Gate,
    *,
    rows: int,
    metrics: Mapping[str, float],
    ratios: Mapping[str, float],
    has_champion: bool,
    ece_high: float = math.nan,
    loss: str = "log loss",
    linear: str = "logistic",
    calibrated: bool = True,
) -> list[Check]:
    """Check measured values against the limits of `gate`.

    metrics: `log_loss`, `auc`, `ece` of the model; ratios: its log loss over that of each baseline and of "champion";
    ece_high: the upper end of the calibration error's interval; loss: name of the loss in the ratios;
    linear: name of the linear baseline; calibrated: whether the answers have a calibration error at all. An absent value counts
    as NaN, and NaN passes no check.
    """
    checks = [at_least("rows", rows, gate.min_rows)]
    for name, limit in gate.max_log_loss_ratio.items():
        named = linear if name == "logistic" else name
        checks.append(at_most(f"{loss} / {named}", ratios.get(named, math.nan), limit))
    if gate.max_champion_ratio is not None and has_champion:
        checks.append(
            at_most(f"{loss} / champion", ratios.get("champion", math.nan), gate.max_champion_ratio)
        )
    if gate.max_ece is not None and calibrated:
        checks.append(at_most("ece", metrics.get("ece", math.nan), gate.max_ece))
    if gate.max_ece_high is not None:
        checks.append(at_most("ece, upper end", ece_high, gate.max_ece_high))
    if gate.min_auc is not None:
        checks.append(at_least("auc", metrics.get("auc", math.nan), gate.min_auc))
    return checks
