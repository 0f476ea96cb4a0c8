"""What comes in: labels for predictions, and feature rows."""

from __future__ import annotations

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


class Feedback(BaseModel):
    """The truth about one prediction. observed_at: when it became known; the latest one of an id counts."""

    model_config = ConfigDict(extra="forbid")

    prediction_id: str = Field(min_length=1, max_length=512)
    label: float = Field(strict=True, allow_inf_nan=False)
    observed_at: Time | None = None


class Acknowledged(BaseModel):
    """How many labels are safe now."""

    accepted: int


class Row(BaseModel):
    """A feature row: beside its times the join keys and features of the view."""

    model_config = ConfigDict(extra="allow")

    event_timestamp: Time
    created_timestamp: Time | None = None


class Rows(BaseModel):
    """Feature rows, and where they go."""

    model_config = ConfigDict(extra="forbid")

    rows: list[Row] = Field(min_length=1, max_length=MAX_ROWS)
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
        features = services.acting(principal).features()
        snapshot = features.push(features.get_feature_view(view), table_of(body.rows), to=body.to)
        name, version = (snapshot.name, snapshot.version) if snapshot else (None, None)
        return {"rows": len(body.rows), "table": name, "version": version}

    return Json(await services.run(pushed))


def table_of(rows: list[Row]) -> pa.Table:
    """Rows as a table. Raises: Problem 409 if a column cannot be one."""
    plain = [dict(row) for row in rows]
    fields = dict.fromkeys(field for row in plain for field in row)
    columns = {field: [row.get(field) for row in plain] for field in fields}
    if not any(columns["created_timestamp"]):
        del columns["created_timestamp"]
    try:
        return pa.table(columns)
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        raise Problem(409, f"rows: one column cannot be of one type: {error}", kind="invalid-rows") from error
