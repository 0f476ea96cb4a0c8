"""Route that finds the rows of a feature view whose vectors are nearest to a vector, a stored key or a text."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from toque.featurestore import Metric, Neighbours
from toque.featurestore.vectors import MOST
from toque.ray_apps.admission import GuardedRoute, allowed
from toque.ray_apps.gateway.services import context_of, services_of
from toque.ray_apps.gateway.vector_series import observe
from toque.ray_apps.gateway.wire import Json, Time
from toque.registry import Principal, Role

router = APIRouter(route_class=GuardedRoute, tags=["data"])


class SearchRequest(BaseModel):
    """What is looked for: one of vector, key and text; and how.

    where: conditions on other columns, such as `{"lang": "de", "year": {"ge": 2020}, "kind": ["a", "b"]}`. at: what would have
    been found then. exact: compare every row, even where there is an index.
    """

    model_config = ConfigDict(extra="forbid")

    vector: list[float] | None = None
    key: dict[str, Any] | None = None
    text: str | None = None
    field: str | None = None
    k: int = Field(10, ge=1, le=MOST)
    where: dict[str, Any] = {}
    at: Time | None = None
    exact: bool = False


class FoundRow(BaseModel):
    """A row that was found. features: its columns without the vector."""

    key: dict[str, Any]
    distance: float
    features: dict[str, Any]
    event_timestamp: datetime


class SearchResult(BaseModel):
    """Rows that were found, nearest first, and what was searched."""

    view: str
    field: str
    metric: Metric
    at: datetime
    exact: bool
    table_version: int | None
    index: int | None
    recall: float | None
    found: list[FoundRow]


@router.post("/features/{view}/search", response_model=SearchResult)
async def search_features(
    request: Request, view: str, body: SearchRequest, _: Annotated[Principal, allowed(Role.viewer)]
) -> Json:
    """Find the nearest rows of a feature view, as of now or of any time before."""
    context, services = await context_of(request), services_of(request)

    def searched() -> Neighbours:
        embed = None if services.embed is None else services.embed(context)
        return context.features().search(view, **dict(body), embed=embed)

    began = time.perf_counter()
    found = await services.run(searched)
    observe(context.workspace, found, time.perf_counter() - began)
    return Json({name: getattr(found, name) for name in SearchResult.model_fields})
