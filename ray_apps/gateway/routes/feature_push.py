"""Route that takes rows of a feature view, for the online store, the offline store or both."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pyarrow as pa
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from ray_apps.admission import GuardedRoute, allowed
from ray_apps.gateway.problems import Problem
from ray_apps.gateway.services import context_of, services_of
from ray_apps.gateway.wire import Json, Time
from registry import Principal, Role

router = APIRouter(route_class=GuardedRoute, tags=["data"])

MAX_ROWS = 100_000


class FeatureRow(BaseModel):
    """A feature row: its times, and the join keys and features of its view."""

    model_config = ConfigDict(extra="allow")

    event_timestamp: Time
    created_timestamp: Time | None = None


class FeaturePush(BaseModel):
    """Feature rows to write, and the stores that get them."""

    model_config = ConfigDict(extra="forbid")

    rows: list[FeatureRow] = Field(min_length=1, max_length=MAX_ROWS)
    to: Literal["both", "online", "offline"] = "both"


class PushResult(BaseModel):
    """How many rows were written, and the version of the offline table that has them."""

    rows: int
    table: str | None
    version: int | None


@router.post("/features/{view}/push", response_model=PushResult)
async def push_features(
    request: Request, view: str, body: FeaturePush, _: Annotated[Principal, allowed(Role.operator)]
) -> Json:
    """Write rows of a feature view online, offline or both."""
    context = await context_of(request)

    def pushed() -> dict[str, Any]:
        features = context.features()
        snapshot = features.push(features.get_feature_view(view), table_of(body.rows), to=body.to)
        name, version = (snapshot.name, snapshot.version) if snapshot else (None, None)
        return {"rows": len(body.rows), "table": name, "version": version}

    return Json(await services_of(request).run(pushed))


def table_of(rows: list[FeatureRow]) -> pa.Table:
    """Convert feature rows to an Arrow table. Raises: Problem 409 if a column has values of several types."""
    plain = [dict(row) for row in rows]
    fields = dict.fromkeys(field for row in plain for field in row)
    columns = {field: [row.get(field) for row in plain] for field in fields}
    if not any(columns["created_timestamp"]):
        del columns["created_timestamp"]
    try:
        return pa.table(columns)
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        raise Problem(409, f"rows: one column cannot be of one type: {error}", kind="invalid-rows") from error
