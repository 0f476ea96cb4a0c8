"""Business metrics of a canary: values per prediction, or scores of a language model's answers, by arm and cohort.

A unit that comes back is one observation, however often. The difference of the arms is a sum over units of `influence`: its residual
in each cohort, weighted as the cohort and its arm are (the delta method of a ratio, Σ values over Σ rows). The variance is the
sum of their squares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from toque.functions.evaluation.realised_loss import Scored
from toque.functions.monitoring.language.sample import monitors_journal
from toque.functions.monitoring.language.scores import ScoreTable, rule_of
from toque.functions.prediction_log.records import is_sampled
from toque.functions.rollout.evidence.slots import SlotSums
from toque.functions.rollout.evidence.sums import MetricSums
from toque.functions.rollout.policy import Guardrail
from toque.functions.runtime.context import Context
from toque.functions.stats import LARGEST, ClusterSums
from toque.functions.stats.comparison.cluster_sums import exact_sum
from toque.kernels.hashing import hash_strings
from toque.registry import ObjectStore, Table

METRIC = pa.schema(
    [
        pa.field("prediction_id", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("observed_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("day", pa.string(), nullable=False),
    ]
)
FROM_TABLES = frozenset({"table", "score"})
"""Sources whose values stand in a table of their own."""
Floats = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.int64]
_SCORE_COLUMNS = ("prediction_id", "shadow", "rule", "score")


@dataclass(frozen=True, slots=True)
class MetricRows:
    """Values of a metric that are read from a table.

    values: `prediction_id` and `value`, each id once. share: of the predictions that are looked at, as `is_sampled` draws them;
    the others are not expected to have a value.
    """

    values: pa.Table
    share: float = 1.0


# Of a guardrail whose source is in `FROM_TABLES`; observed from.
ReadMetric = Callable[[Guardrail, datetime], MetricRows]


class MetricValue(BaseModel):
    """Value of a metric for one prediction. A correction is a later row of the same prediction."""

    model_config = ConfigDict(frozen=True)

    prediction_id: str = Field(description="Id of the prediction, as its answer had it.")
    value: float = Field(allow_inf_nan=False, description="Value of the metric for the prediction; finite.")
    observed_at: AwareDatetime = Field(
        description="When the value was observed, with an offset from UTC; of several, the latest counts."
    )


def write_metric(store: ObjectStore, name: str, values: list[MetricValue]) -> int:
    """Add values to the table of metric `name`; returns how many."""
    if not values:
        return 0
    rows = [{**value.model_dump(), "day": _day(value.observed_at)} for value in values]
    Table(store, _table(name)).append(pa.Table.from_pylist(rows, schema=METRIC), partition_by=["day"])
    return len(values)


def read_metric(store: ObjectStore, name: str, since: datetime) -> pa.Table:
    """Read the values of metric `name` from the day of `since` on, the latest of each prediction."""
    table = Table(store, _table(name))
    if not table.exists():
        return METRIC.empty_table()
    where: Any = pc.field("day") >= _day(since)
    rows = pl.DataFrame(table.read(where=where))
    return rows.sort("observed_at").unique("prediction_id", keep="last", maintain_order=True).to_arrow()


def metric_values(rows: Scored, guardrail: Guardrail, metric: MetricRows | None) -> npt.NDArray[np.float64]:
    """Look up the guardrail's value of each row (rows,), clipped to its floor and cap; NaN where it is missing."""
    if guardrail.source in FROM_TABLES:
        values = _table_values(rows, None if metric is None else metric.values)
    else:
        source = "told" if guardrail.source == "label" else guardrail.source
        values = np.asarray(getattr(rows, source), dtype=np.float64)
    floor = -np.inf if guardrail.floor is None else guardrail.floor
    cap = np.inf if guardrail.cap is None else guardrail.cap
    held: npt.NDArray[np.float64] = np.clip(values, floor, cap)
    return np.where(np.isfinite(values), held, np.nan)


def metric_cohort(
    champion: Scored, challenger: Scored, guardrail: Guardrail, metric: MetricRows | None
) -> MetricCohort:
    """Take the metric of one cohort, of the answers that are looked at. champion, challenger: what each arm answered, without shadows."""
    bounds = guardrail.bounds
    return _cohort(
        (champion, challenger),
        metric,
        lambda arm: metric_values(arm, guardrail, metric),
        None if bounds is None else (max(bounds[0], -LARGEST), min(bounds[1], LARGEST)),
    )


def exposure(name: str) -> str:
    """Name under which the share of answers that have a value of metric `name` is summed, as a metric of its own."""
    return f"{name}/exposure"


def exposure_cohort(
    champion: Scored, challenger: Scored, guardrail: Guardrail, metric: MetricRows | None
) -> MetricCohort:
    """Take, as `metric_cohort`, 1 of an answer that has a value of the metric and 0 of one without."""

    def has_value(arm: Scored) -> Floats:
        return np.isfinite(metric_values(arm, guardrail, metric)).astype(np.float64)

    return _cohort((champion, challenger), metric, has_value, (0.0, 1.0))


def _cohort(
    arms: tuple[Scored, Scored],
    metric: MetricRows | None,
    values_of: Callable[[Scored], Floats],
    bounds: tuple[float, float] | None,
) -> MetricCohort:
    """Sum the values of each arm by unit, of the answers that are looked at."""
    sampled = [_sampled(arm.first_by_id(), 1.0 if metric is None else metric.share) for arm in arms]
    sums = []
    for arm in sampled:
        values = values_of(arm)
        has_value = np.isfinite(values)
        values, units = values[has_value], hash_strings(arm.unit[has_value])
        too_large = int(np.sum(np.abs(values) > LARGEST))
        sums.append(MetricArm.of(np.clip(values, -LARGEST, LARGEST), units, too_large=too_large))
    champion, challenger = sums
    return MetricCohort(champion, challenger, requests=sum(map(len, sampled)), bounds=bounds)


def _sampled(rows: Scored, share: float) -> Scored:
    if share >= 1.0:
        return rows
    return rows.where(np.array([is_sampled(str(each), share) for each in rows.id], dtype=bool))


def _table_values(rows: Scored, metric: pa.Table | None) -> npt.NDArray[np.float64]:
    if metric is None or not metric.num_rows:
        return np.full(len(rows), np.nan)
    names = metric["prediction_id"].to_numpy(zero_copy_only=False).astype(str)
    order = np.argsort(names)
    wanted = rows.id.astype(str)
    place = np.minimum(np.searchsorted(names[order], wanted), len(names) - 1)
    values = metric["value"].to_numpy()[order]
    return np.where(names[order][place] == wanted, values[place], np.nan)


def _table(name: str) -> str:
    return f"metrics/{name}"


def _day(at: datetime) -> str:
    return at.astimezone(UTC).date().isoformat()


@dataclass(frozen=True, slots=True)
class MetricArm:
    """Values of one arm in one cohort, by unit: hash, sum and rows of each, (units,). too_large: values beyond `LARGEST`."""

    unit: Hashes
    total: Floats
    rows: Floats
    too_large: int = 0

    @classmethod
    def of(cls, values: Floats, units: Hashes, *, too_large: int = 0) -> Self:
        """Sum `values` (rows,), held within `LARGEST`, by the unit of each row."""
        unit, index = np.unique(units, return_inverse=True)
        total, rows = np.bincount(index, weights=values), np.bincount(index)
        return cls(unit, total.astype(np.float64), rows.astype(np.float64), too_large)

    @property
    def sums(self) -> ClusterSums:
        """The values clustered by unit."""
        return ClusterSums.of_sums(self.total, self.rows)


@dataclass(frozen=True, slots=True)
class MetricCohort:
    """Values of both arms in one cohort. requests: answered; bounds: least and greatest value that there can be, or None."""

    champion: MetricArm
    challenger: MetricArm
    requests: int
    bounds: tuple[float, float] | None = None

    def sums(self) -> MetricSums:
        """Sum the cohort, each unit being one of this cohort."""
        sums = MetricSums.of_cohort(
            self.champion.sums, self.challenger.sums, requests=self.requests, bounds=self.bounds
        )
        return sums.model_copy(update={"too_large": self.champion.too_large + self.challenger.too_large})


class ArmUnits(BaseModel):
    """Units of one arm over the cohorts so far.

    influence: by slot. made_up: influence of a unit that had each bound in every cohort. rows, observations: summed over cohorts.
    """

    model_config = ConfigDict(frozen=True)

    influence: SlotSums = SlotSums()
    made_up: tuple[float, ...] = ()
    rows: int = 0
    observations: int = 0

    @property
    def units(self) -> int:
        """Number of units so far, at most `SLOTS`."""
        return len(self.influence)

    def plus(self, arm: MetricArm, all_rows: float, bounds: tuple[float, ...]) -> Self:
        """Add a cohort, of `all_rows` rows in both arms."""
        count, rows = len(arm.unit), float(arm.rows.sum())
        weight = all_rows / rows
        mean = exact_sum(arm.total) / rows
        added = weight * np.sqrt(count / (count - 1)) * (arm.total - arm.rows * mean)
        typical = weight * rows / count
        before = self.made_up or (0.0,) * len(bounds)
        return self.model_copy(
            update={
                "influence": self.influence + SlotSums.of(arm.unit, added),
                "made_up": tuple(
                    sum_ + typical * (bound - mean) for sum_, bound in zip(before, bounds, strict=True)
                ),
                "rows": self.rows + int(rows),
                "observations": self.observations + count,
            }
        )

    def of_units(self) -> Floats:
        """Influence of each unit, (units,)."""
        return self.influence.column(0)

    def made_up_noise(self, cohorts: int) -> float:
        """Variance that made-up units add: one at each bound, which comes as often as the units do."""
        often = self.observations / self.units / cohorts
        return exact_sum(np.square(np.array(self.made_up) * often))


class MetricUnits(BaseModel):
    """Units of both arms over the cohorts of a split."""

    model_config = ConfigDict(frozen=True)

    champion: ArmUnits = ArmUnits()
    challenger: ArmUnits = ArmUnits()
    cohorts: int = 0

    def plus(self, cohort: MetricCohort) -> Self:
        """Add a cohort; one in which an arm has fewer than two units says nothing, as in `MetricSums`."""
        arms = (cohort.champion, cohort.challenger)
        if min(len(arm.unit) for arm in arms) < 2:  # noqa: PLR2004 - a variance needs two
            return self
        rows = sum(float(arm.rows.sum()) for arm in arms)
        bounds = cohort.bounds or ()
        return self.model_copy(
            update={
                "champion": self.champion.plus(cohort.champion, rows, bounds),
                "challenger": self.challenger.plus(cohort.challenger, rows, bounds),
                "cohorts": self.cohorts + 1,
            }
        )

    def on(self, sums: MetricSums) -> MetricSums:
        """Put the variance by unit, and how many units there are, on the sums of the same cohorts."""
        if not self.cohorts:
            return sums
        return sums.model_copy(
            update={
                "unit_noise": self._noise(),
                "champion_units": self.champion.units,
                "challenger_units": self.challenger.units,
            }
        )

    def _noise(self) -> float:
        """Variance of rows times the difference; neither arm is taken to vary less than both together do."""
        arms = (self.champion, self.challenger)
        rows = sum(arm.rows for arm in arms)
        own = [exact_sum(np.square(arm.of_units())) for arm in arms]
        both = sum(noise * (arm.rows / rows) ** 2 for noise, arm in zip(own, arms, strict=True))
        return sum(
            max(noise, both * rows / arm.rows) + arm.made_up_noise(self.cohorts)
            for noise, arm in zip(own, arms, strict=True)
        )


def read_score(used: Context, model: str, scorer: str, since: datetime) -> MetricRows:
    """Read the scores by a scorer, as it is set now, of the answers that callers got from the day of `since` on.

    Without such a scorer there are none, and every answer counts as one that lacks its value.
    """
    monitors = monitors_journal(used.store, model, actor=used.actor).refresh().monitors
    chosen = [] if monitors is None else [each for each in monitors.scorers if each.label == scorer]
    if monitors is None or not chosen:
        return MetricRows(METRIC.empty_table())
    rows = ScoreTable(used.store, model).read(since, columns=_SCORE_COLUMNS)
    mine = pc.and_(pc.equal(rows["rule"], rule_of(chosen[0])), pc.invert(rows["shadow"]))
    values = pl.DataFrame(rows.filter(pc.and_(mine, pc.is_valid(rows["score"]))))
    once = values.select("prediction_id", pl.col("score").alias("value")).unique("prediction_id")
    policy = used.registry().get_model(model).policy
    return MetricRows(once.to_arrow(), share=monitors.share_of(policy))
