"""Limits of the offline gate, which a version must keep on data that it has not learnt from.

`judge` is pure: numbers in, checks out. A gate never passes for want of evidence: too few rows, a NaN, or a
comparison that could not be made fail the gate and say so. Where the model's policy demands a gate, its limits stand
before the caller's, and its data before the caller's choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from toque.functions.evaluation.baselines import Baseline
from toque.functions.evaluation.checks import (
    Behaviour,
    Check,
    FairnessRule,
    RobustnessRule,
    SliceRule,
    at_least,
    at_most,
)
from toque.functions.evaluation.errors import EvaluationError
from toque.functions.evaluation.meanings import MEANINGS, Outcome
from toque.registry import (
    GateData,
    GateDemand,
    ModelPolicy,
    ModelVersion,
    NotFound,
    Registry,
    Table,
    TableSnapshot,
)

LINEAR_NAMES = ("linear", "ridge", "poisson", "nearest")
"""Names of the linear baseline beside the stored one, which is that of two classes."""
POPULARITY: Baseline = "popularity"


class GateLimits(BaseModel):
    """Limits of a gate of any kind, under the name by which its outcome stands with the version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str

    def demand(self, data: GateData | None = None) -> GateDemand:
        """Make the demand by which a model's policy sets these limits, and the data to judge on if given."""
        limits = self.model_dump(mode="json", exclude={"name"}, exclude_defaults=True)
        return GateDemand(name=self.name, limits=limits, data=data)


class Gate(GateLimits):
    """Limits that a version must keep to pass.

    Losses are those of the outcome. Of the baselines "constant" is the mean or the share of each class, and "linear" (also
    "logistic", "ridge", "poisson") a linear model, of texts ("nearest") the answer of the nearest row.
    """

    name: str = Field(
        default="offline", description="Name of the gate, by which its outcome stands with the version."
    )
    max_log_loss_ratio: dict[Baseline, float] = Field(
        default={"constant": 0.99, "logistic": 1.01},
        description=(
            "Most that the version's mean loss may be over a baseline's, by baseline; "
            "empty compares with none."
        ),
    )
    max_champion_ratio: float | None = Field(
        default=None,
        gt=0.0,
        description=(
            "Most that the mean loss may be over the champion's, if there is one; not compared unless given."
        ),
    )
    max_ece: float | None = Field(
        default=0.1,
        gt=0.0,
        le=1.0,
        description=(
            "Greatest expected calibration error; "
            "null leaves it out, as does the default for outcomes that have none."
        ),
    )
    min_auc: float | None = Field(
        default=None, ge=0.0, le=1.0, description="Least area under the ROC curve; not checked unless given."
    )
    min_rows: int = Field(
        default=200, ge=1, description="Fewest rows to judge by, of a ranking requests; with fewer it fails."
    )
    max_ece_high: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        description=(
            "Greatest upper end of the calibration error's 95 % interval, which proves it small; "
            "not checked unless given."
        ),
    )
    entity: str | None = Field(
        default=None,
        description=(
            "Column of the entity, whose rows count as one observation in intervals and slices; "
            "each row is one unless given."
        ),
    )
    slices: SliceRule | None = Field(
        default=None,
        description=(
            "Parts of the data on which it must not be worse than a reference; not checked unless given."
        ),
    )
    fairness: tuple[FairnessRule, ...] = Field(
        default=(), description="Gaps between groups of rows that must stay small."
    )
    robustness: RobustnessRule | None = Field(
        default=None,
        description="How much missing and shifted inputs may raise the loss; not tried unless given.",
    )
    behaviours: tuple[Behaviour, ...] = Field(
        default=(), description="Changes of an input that must not, or must, move the answer."
    )
    item: str | None = Field(
        default=None,
        description="Column of the item in the rows of a ranking, which the baseline `popularity` needs.",
    )
    max_latency_ms: float | None = Field(
        default=None,
        gt=0.0,
        description=(
            "Greatest median time to score one row in the evaluating process, in ms; "
            "not checked unless given."
        ),
    )
    max_size_bytes: int | None = Field(
        default=None,
        gt=0,
        description="Greatest size of all files of the version, in bytes; not checked unless given.",
    )

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

    @property
    def needs_champion(self) -> bool:
        """Whether the version is compared with the champion, over all rows or on slices."""
        by_slice = self.slices is not None and self.slices.against == "champion"
        return by_slice or self.max_champion_ratio is not None

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


AnyGate = TypeVar("AnyGate", bound=GateLimits)


class RowsOrigin(BaseModel):
    """Origin of a built table, as its metadata say it: the entity rows, the label, and the event times [start, end)."""

    model_config = ConfigDict(frozen=True)

    entities: TableSnapshot
    label: str
    start: datetime
    end: datetime


def gate_in_force(policy: ModelPolicy, given: AnyGate) -> tuple[AnyGate, GateDemand]:
    """Choose the gate to judge by, with the demand whose digest its result carries.

    given: the caller's gate; with a name alone it is that of the policy if this sets limits for the name.
    Raises: EvaluationError if the caller asks for other limits than the policy's, or those do not fit a gate of this kind.
    """
    kind = type(given)
    demand = policy.demand(given.name)
    if demand is None:
        return given, given.demand()
    try:
        gate = kind.model_validate({**demand.limits, "name": demand.name})
    except ValidationError as error:
        raise EvaluationError(
            f"gate {demand.name!r} of the model's policy: {error}; have an admin mend its limits"
        ) from error
    if given.model_fields_set <= {"name"} or given == gate:
        return gate, demand
    other = sorted(field for field in kind.model_fields if getattr(given, field) != getattr(gate, field))
    raise EvaluationError(
        f"gate {demand.name!r}: the model's policy sets its limits, and {other} differ; leave them out, "
        "or have an admin change the policy"
    )


def require_demanded_data(
    registry: Registry,
    version: ModelVersion,
    demand: GateDemand,
    *,
    dataset: TableSnapshot,
    label: str,
    baseline_set: TableSnapshot | None,
) -> None:
    """Check that a gate of the policy is judged on the rows that the policy names.

    Raises: EvaluationError, naming what differs.
    """
    where = f"{version.model}@{version.version}, gate {demand.name!r}"
    if baseline_set is not None:
        raise EvaluationError(
            f"{where}: baseline_set={baseline_set}, but the policy sets this gate, so its baselines learn from the "
            "version's training set; leave it out"
        )
    data = demand.data
    if data is None:
        return
    if not data.allows(dataset.name):
        raise EvaluationError(
            f"{where}: dataset={dataset}, but the policy demands {data.table!r}; evaluate on that"
        )
    if data.label is not None and label != data.label:
        raise EvaluationError(f"{where}: label={label!r}, but the policy demands {data.label!r}; pass that")
    if data.entities is not None or data.min_days is not None:
        _require_origin(registry, version, data, dataset, where)


def refuse_training_data(version: ModelVersion, dataset: TableSnapshot) -> None:
    """Refuse to judge a version on the very rows that it learnt from. Raises: EvaluationError."""
    if dataset in version.lineage.datasets:
        raise EvaluationError(
            f"{version.model}@{version.version} learnt from {dataset}: judge it on rows that it has not seen"
        )


def _require_origin(
    registry: Registry, version: ModelVersion, data: GateData, dataset: TableSnapshot, where: str
) -> None:
    """Check what the rows were built from, how long they span, and that the version's training rows end before them."""
    rows = _origin(registry, dataset, where)
    span = rows.end - rows.start
    if data.min_days is not None and span < timedelta(days=data.min_days):
        raise EvaluationError(
            f"{where}: {dataset} spans {span}, but the policy demands {data.min_days:g} days"
        )
    if data.entities is None:
        return
    if rows.entities.name != data.entities:
        raise EvaluationError(
            f"{where}: {dataset} was built from {rows.entities.name!r}, but the policy demands {data.entities!r}"
        )
    trained = next(iter(version.lineage.datasets), None)
    if trained is None:
        raise EvaluationError(
            f"{where}: the version names no training set, so nobody knows that {dataset} is unseen"
        )
    learnt = _origin(registry, trained, where)
    if learnt.end > rows.start:
        raise EvaluationError(
            f"{where}: the version learnt from rows until {learnt.end}, and {dataset} begins at {rows.start}; "
            "evaluate on later rows"
        )


def _origin(registry: Registry, snapshot: TableSnapshot, where: str) -> RowsOrigin:
    try:
        found: Any = Table(registry.store, snapshot.name).metadata(snapshot.version).get("training_set")
    except NotFound as error:
        raise EvaluationError(f"{where}: {error}") from error
    if found is None:
        raise EvaluationError(
            f"{where}: {snapshot} has no record of what it was built from; make it with build_training_set"
        )
    return RowsOrigin.model_validate_json(found)
