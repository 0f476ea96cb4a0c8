"""Functions that find logged predictions by time and entity, and read what one of them was made of."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AwareDatetime, BaseModel, Field

from toque.featurestore import UnknownDefinition, row_times
from toque.functions.arguments import Model, PredictedAt, PredictionId, Time
from toque.functions.prediction_log import find_labels, outcomes
from toque.functions.prediction_log.reading.outcomes import read_columns
from toque.functions.runtime.context import context
from toque.functions.runtime.function import function
from toque.registry import ModelVersion, NotFound

_MOST, _MOST_HOURS = 1_000, 24 * 31
_FIRST, _LAST = (datetime(year, 1, 1, tzinfo=UTC) for year in (1900, 2200))  # room for hours around
_LISTED = ("prediction_id", "version", "arm", "shadow", "predicted_at", "latency_ms", "outputs")
_INSIDE = ("prediction_id", "version", "shadow", "predicted_at", "unit", "entities", "numeric", "categorical", "missing")  # fmt: skip


class LoggedPrediction(BaseModel, frozen=True):
    """Row of the prediction log without its inputs, unit and entities.

    label: in force, None before one came. error: how far the answer was from it, where the worst are listed.
    """

    prediction_id: str
    version: int
    arm: str
    shadow: bool
    predicted_at: AwareDatetime
    latency_ms: float | None
    outputs: list[float] | None
    label: float | None = None
    error: float | None = None


class PredictionInputs(BaseModel, frozen=True):
    """Inputs of a logged prediction: values by column, unit, entities, and the features that were missing."""

    prediction_id: str
    version: int
    unit: str | None
    entities: dict[str, Any]
    values: dict[str, float | str | None]
    missing: list[str]


@function(http=True, role="viewer", timeout_s=120)
def list_predictions(
    model: Model,
    before: Annotated[
        Time | None,
        Field(description="End of the period, with an offset from UTC, not included; now unless given."),
    ] = None,
    hours: Annotated[
        float, Field(gt=0, le=_MOST_HOURS, description="Hours that the period lasts, 31 days at most.")
    ] = 24.0,
    entity: Annotated[
        str | None,
        Field(description="Unit, or value of an entity's key, that the requests had; of all unless given."),
    ] = None,
    limit: Annotated[
        int, Field(ge=1, le=_MOST, description="Number of predictions at most; page by `before`.")
    ] = 50,
    order: Annotated[
        Literal["newest", "worst"],
        Field(
            description='What comes first: the newest; or the "worst", of those with a label the furthest from it.'
        ),
    ] = "newest",
    version: Annotated[
        int | None,
        Field(ge=1, le=1_000_000_000, description="Version that scored the requests; any unless given."),
    ] = None,
) -> list[LoggedPrediction]:
    """List the predictions of a model in some hours before a time, by default now, newest first.

    The worst answer is furthest from its label by the difference, or by what the probability of the label's class lacks to 1.
    Raises: ValueError for hours, a limit or a time out of range.
    """
    if not 0 < hours <= _MOST_HOURS:
        raise ValueError(f"hours={hours} must lie between 0 and {_MOST_HOURS}; page by `before`")
    if not 1 <= limit <= _MOST:
        raise ValueError(f"limit={limit} must lie between 1 and {_MOST}; page by `before`")
    if before is not None and not _FIRST <= before <= _LAST:
        raise ValueError(
            f"before={before.isoformat()} must lie between the years {_FIRST.year} and {_LAST.year}"
        )
    used = context()
    end = before or used.clock() + timedelta(minutes=1)
    columns = _LISTED if entity is None else (*_LISTED, "unit", "entities")
    start = end - timedelta(hours=hours)
    if order == "worst":
        rows = outcomes(used.store, model, start, end, columns=columns)
        return _worst(_chosen(rows, entity, version), limit)
    rows = _chosen(read_columns(used.store, model, start, end, columns), entity, version)
    newest = pc.select_k_unstable(rows, limit, [("predicted_at", "descending")])
    found = rows.take(newest).select(list(_LISTED)).to_pylist()
    ids = [row["prediction_id"] for row in found]
    labels = _labels(ids, min((row["predicted_at"] for row in found), default=end))
    return [LoggedPrediction(**row, label=labels.get(row["prediction_id"])) for row in found]


def _chosen(rows: pa.Table, entity: str | None, version: int | None) -> pa.Table:
    """Keep the rows of an entity and of a version; None: of any."""
    if version is not None:
        rows = rows.filter(pc.equal(rows["version"], version))
    return rows if entity is None else rows.filter(_is_of(rows, entity))


def _worst(rows: pa.Table, limit: int) -> list[LoggedPrediction]:
    """Take the labelled rows whose answers were furthest from their labels."""
    found = zip(rows["outputs"].to_pylist(), rows["label"].to_pylist(), strict=True)
    errors = [_error(outputs or [], label) for outputs, label in found]
    judged = [at for at, error in enumerate(errors) if error is not None]
    worst = sorted(judged, key=lambda at: errors[at] or 0.0, reverse=True)[:limit]
    taken = rows.take(worst).select([*_LISTED, "label"]).to_pylist()
    return [LoggedPrediction(**row, error=errors[at]) for row, at in zip(taken, worst, strict=True)]


def _error(outputs: Sequence[float], label: float | None) -> float | None:
    """Compute how far an answer was from its label; None where the label is no number, or no class of the answer."""
    if not outputs or label is None or not math.isfinite(label):
        return None
    if len(outputs) == 1:
        error = abs(label - outputs[0])
    elif label.is_integer() and 0 <= label < len(outputs):
        error = 1.0 - outputs[int(label)]
    else:
        return None
    return error if math.isfinite(error) else None


class FeatureTime(BaseModel, frozen=True):
    """Where and when an input of a prediction was known: feature of a view, time of its row, and when that was written.

    event_at, created_at: None if the view had no row that a read at the time of the prediction finds.
    """

    column: str
    view: str
    feature: str
    event_at: datetime | None
    created_at: datetime | None


@function(http=True, timeout_s=120)
def prediction_feature_times(
    model: Model,
    prediction_id: PredictionId,
    predicted_at: PredictedAt,
) -> list[FeatureTime]:
    """Find the rows of the feature views that a logged prediction's inputs came from, by point in time, as then known.

    Raises: NotFound; ValueError if its version was made with no feature service, or the service is gone.
    """
    inputs = prediction_inputs(model, prediction_id, predicted_at)
    version = context().registry().get_version(model, inputs.version)
    service = version.tags.get("feature_service")
    if service is None:
        raise ValueError(
            f"{model}@{inputs.version} was made with no feature service, so nothing tells where its inputs came from"
        )
    try:
        found = row_times(context().features(), inputs.entities, service, at=predicted_at)
    except UnknownDefinition as error:
        raise ValueError(f"the feature service of {model}@{inputs.version} is gone: {error}") from error
    return [
        FeatureTime(
            column=column, view=row.view, feature=feature, event_at=row.event_at, created_at=row.created_at
        )
        for row in found
        for column, feature in row.columns.items()
        if column in inputs.values
    ]


@function(http=True, timeout_s=120)
def prediction_inputs(
    model: Model,
    prediction_id: PredictionId,
    predicted_at: PredictedAt,
) -> PredictionInputs:
    """Read the inputs of a prediction from the log. Raises: NotFound."""
    used = context()
    moment = timedelta(milliseconds=1)
    rows = read_columns(used.store, model, predicted_at - moment, predicted_at + moment, _INSIDE)
    found = rows.filter(pc.field("prediction_id") == prediction_id).to_pylist()
    row = min(found, key=lambda each: each["shadow"], default=None)
    if row is None:
        raise NotFound(
            f"model {model!r} has no prediction {prediction_id!r} at {predicted_at.isoformat()} in its log"
        )
    version = used.registry().get_version(model, row["version"])
    return PredictionInputs(
        prediction_id=prediction_id,
        version=row["version"],
        unit=row["unit"],
        entities=json.loads(row["entities"]) if row["entities"] else {},
        values=_named(version, row["numeric"] or [], row["categorical"] or []),
        missing=row["missing"] or [],
    )


def _is_of(rows: pa.Table, entity: str) -> pa.Array:
    """Mark the rows whose unit, or a value of whose entities, is `entity`."""
    units = pc.fill_null(pc.equal(rows["unit"].cast(pa.string()), entity), False)
    likely = pc.fill_null(
        pc.match_substring(rows["entities"].cast(pa.string()), json.dumps(entity)[1:-1]), False
    )
    texts = rows["entities"].to_pylist()
    exact = [
        maybe and any(str(value) == entity for value in json.loads(text).values())
        for maybe, text in zip(likely.to_pylist(), texts, strict=True)
    ]
    return pc.or_(units, pa.chunked_array([pa.array(exact, pa.bool_())]))


def _labels(ids: list[str], since: datetime) -> dict[str, float | None]:
    if not ids:
        return {}
    rows = find_labels(context().store, ids, since=since).to_pylist()
    return {
        row["prediction_id"]: None if row["label"] != row["label"] else row["label"] for row in rows
    }  # NaN


def _named(
    version: ModelVersion, numeric: list[float], categorical: list[str]
) -> dict[str, float | str | None]:
    """Name the values of a row by the columns of its version, or by number if they do not fit."""
    inputs = version.signature.inputs if version.signature else []
    texts = [name for each in inputs if each.datatype == "BYTES" for name in each.columns or []]
    numbers = [name for each in inputs if each.datatype != "BYTES" for name in each.columns or []]
    return _shown("number", numbers, [None if math.isnan(each) else each for each in numeric]) | _shown(
        "text", texts, categorical
    )


def _shown(kind: str, names: list[str], found: Sequence[float | str | None]) -> dict[str, float | str | None]:
    if len(names) != len(found):
        names = [f"{kind} {at}" for at in range(1, len(found) + 1)]
    return dict(zip(names, found, strict=True))
