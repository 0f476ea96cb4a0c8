"""Business metrics of a canary: values per prediction, summed by arm and cohort."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from toque.functions.evaluation.realised_loss import Scored
from toque.functions.prediction_log.sampling import is_sampled
from toque.functions.rollout.evidence.metric_units import MetricArm, MetricCohort
from toque.functions.rollout.policy import Guardrail
from toque.functions.stats import LARGEST
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


@dataclass(frozen=True, slots=True)
class MetricRows:
    """Values of a metric that are read from a table.

    values: `prediction_id` and `value`, each id once. share: of the predictions that are looked at, as `is_sampled` draws them;
    the others are not expected to have a value.
    """

    values: pa.Table
    share: float = 1.0


ReadMetric = Callable[
    [Guardrail, datetime], MetricRows
]  # of a guardrail in whose `FROM_TABLES` it is; observed from
FROM_TABLES = frozenset({"table", "score"})
"""Sources whose values stand in a table of their own."""


class MetricValue(BaseModel):
    """Value of a metric for one prediction. A correction is a later row of the same prediction."""

    model_config = ConfigDict(frozen=True)

    prediction_id: str
    value: float = Field(allow_inf_nan=False)
    observed_at: AwareDatetime


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
    share = 1.0 if metric is None else metric.share
    arms = [_sampled(arm.first_by_id(), share) for arm in (champion, challenger)]
    theirs, ours = (_by_unit(arm, metric_values(arm, guardrail, metric)) for arm in arms)
    bounds = guardrail.bounds
    return MetricCohort(
        champion=theirs,
        challenger=ours,
        requests=sum(len(arm) for arm in arms),
        bounds=None if bounds is None else (max(bounds[0], -LARGEST), min(bounds[1], LARGEST)),
    )


def exposure(name: str) -> str:
    """Name under which the share of answers that have a value of metric `name` is summed, as a metric of its own."""
    return f"{name}/exposure"


def exposure_cohort(
    champion: Scored, challenger: Scored, guardrail: Guardrail, metric: MetricRows | None
) -> MetricCohort:
    """Take, as `metric_cohort`, 1 of an answer that has a value of the metric and 0 of one without."""
    share = 1.0 if metric is None else metric.share
    arms = [_sampled(arm.first_by_id(), share) for arm in (champion, challenger)]
    theirs, ours = (
        _by_unit(arm, np.isfinite(metric_values(arm, guardrail, metric)).astype(np.float64)) for arm in arms
    )
    return MetricCohort(
        champion=theirs, challenger=ours, requests=sum(len(arm) for arm in arms), bounds=(0.0, 1.0)
    )


def _by_unit(rows: Scored, values: npt.NDArray[np.float64]) -> MetricArm:
    has_value = np.isfinite(values)
    values, units = values[has_value], hash_strings(rows.unit[has_value])
    return MetricArm.of(
        np.clip(values, -LARGEST, LARGEST), units, too_large=int(np.sum(np.abs(values) > LARGEST))
    )


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
