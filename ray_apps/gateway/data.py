"""What comes in: labels for predictions, and feature rows."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import pyarrow as pa
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from functions.prediction_log import Label, encode_labels
from ray_apps.gateway.auth import allowed
from ray_apps.gateway.problems import Problem
from ray_apps.gateway.services import services_of
from ray_apps.gateway.wire import Json, Time
from registry import Principal, Role

router = APIRouter(tags=["data"])

MAX_ROWS = 100_000
TIMES = ("event_timestamp", "created_timestamp")


class Feedback(BaseModel):
    """The truth about one prediction. observed_at: when it became known; the latest one of an id counts."""

    model_config = ConfigDict(extra="forbid")

    prediction_id: str = Field(min_length=1, max_length=512)
    label: float = Field(strict=True, allow_inf_nan=False)
    observed_at: Time | None = None


class Acknowledged(BaseModel):
    """How many labels are safe now."""

    accepted: int


class Rows(BaseModel):
    """Feature rows: join keys, features, event_timestamp, and where they go."""

    model_config = ConfigDict(extra="forbid")

    rows: list[dict[str, Any]] = Field(min_length=1, max_length=MAX_ROWS)
    to: Literal["both", "online", "offline"] = "both"


class Pushed(BaseModel):
    """How many rows were written, and the offline table's version that has them."""

    rows: int
    table: str | None
    version: int | None


@router.post("/feedback", response_model=Acknowledged)
async def give_feedback(
    request: Request,
    body: Annotated[list[Feedback], Field(max_length=MAX_ROWS)],
    _: Annotated[Principal, allowed(Role.predictor)],
) -> Json:
    """Labels by prediction id; answered when they are durable. Sent twice, or corrected later, does no harm."""
    services = services_of(request)
    received = await services.run(services.context.clock)
    labels = [
        Label(each.prediction_id, each.label, observed_at=each.observed_at or received, received_at=received)
        for each in body
    ]
    if labels:
        await services.run(lambda: services.label_log.append(encode_labels(labels)))
    request.app.state.metrics.labels.inc(len(labels))
    return Json({"accepted": len(labels)})


@router.post("/features/{view}/push", response_model=Pushed)
async def push_features(
    request: Request, view: str, body: Rows, principal: Annotated[Principal, allowed(Role.operator)]
) -> Json:
    """Write rows of a feature view online, offline or both."""
    services = services_of(request)

    def pushed() -> dict[str, Any]:
        snapshot = services.acting(principal).features().push(view, table_of(body.rows), to=body.to)
        name, version = (snapshot.name, snapshot.version) if snapshot else (None, None)
        return {"rows": len(body.rows), "table": name, "version": version}

    return Json(await services.run(pushed))


def table_of(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as a table, ISO times as times. Raises: Problem 422 naming row and field."""
    parsed = [
        {field: _time(number, field, value) if field in TIMES else value for field, value in row.items()}
        for number, row in enumerate(rows)
    ]
    columns = list(dict.fromkeys(field for row in parsed for field in row))
    try:
        return pa.table({each: [row.get(each) for row in parsed] for each in columns})
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise Problem(422, f"rows: one column holds values of several types: {error}") from error


def _time(number: int, field: str, value: Any) -> datetime:
    try:
        time = datetime.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise Problem(422, f"rows[{number}].{field}={value!r} is not an ISO 8601 time") from error
    if time.tzinfo is None:
        raise Problem(422, f"rows[{number}].{field}={value!r} is naive; give its offset, as in Z")
    return time
