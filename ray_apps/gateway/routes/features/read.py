"""Route that reads features of some entities from the online store."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from toque.featurestore import OnlineFeatures
from toque.ray_apps.admission import GuardedRoute, allowed
from toque.ray_apps.gateway.services import context_of, services_of
from toque.ray_apps.gateway.wire import Json
from toque.registry import Principal, Role

router = APIRouter(route_class=GuardedRoute, tags=["data"])

MAX_ENTITIES = 4_096


class ReadRequest(BaseModel):
    """A feature service or a list of `view:feature`, and the join keys and request values of each entity."""

    model_config = ConfigDict(extra="forbid")

    features: str | list[str]
    rows: list[dict[str, Any]] = Field(min_length=1, max_length=MAX_ENTITIES)


class FeatureColumns(BaseModel):
    """Values, statuses and event times by feature, in the order of the entities.

    A decimal is a text, a time is ISO 8601; a value that is missing or expired is null.
    """

    columns: dict[str, list[Any]]
    statuses: dict[str, list[str]]
    event_timestamps: dict[str, list[str | None]]


@router.post("/features/read", response_model=FeatureColumns)
async def read_features(
    request: Request, body: ReadRequest, _: Annotated[Principal, allowed(Role.viewer)]
) -> Json:
    """Read the newest features of entities from the online store, as of now."""
    context = await context_of(request)

    def read() -> OnlineFeatures:
        return context.features().get_online_features(body.features, body.rows)

    found = await services_of(request).run(read)
    return Json(
        {
            "columns": found.columns(),
            "statuses": found.statuses,
            "event_timestamps": found.event_timestamps,
        }
    )
