"""Routes of features: push rows of a view, read the newest of some entities, and find the nearest rows by vectors."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import pyarrow as pa
from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toque.featurestore import Metric, Neighbours, OnlineFeatures
from toque.featurestore.definitions.casting import column_of_values
from toque.featurestore.vectors import MOST
from toque.functions.arguments import Time
from toque.ray_apps.admission import GuardedRoute
from toque.ray_apps.gateway.metrics import observe
from toque.ray_apps.gateway.problems import Problem
from toque.ray_apps.gateway.services import Operator, Viewer, context_of, services_of
from toque.ray_apps.gateway.wire import Json, rows_schema, take_rows

router = APIRouter(route_class=GuardedRoute, tags=["data"])
MAX_ENTITIES = 4_096


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


@router.post("/features/{view}/search", response_model=SearchResult)
async def search_features(request: Request, view: str, body: SearchRequest, _: Viewer) -> Json:
    """Find the nearest rows of a feature view, as of now or of any time before."""
    context, services = await context_of(request), services_of(request)

    def searched() -> Neighbours:
        embed = None if services.embed is None else services.embed(context)
        return context.features().search(view, **dict(body), embed=embed)

    began = time.perf_counter()
    found = await services.run(searched)
    observe(context.workspace, found, time.perf_counter() - began)
    return Json({name: getattr(found, name) for name in SearchResult.model_fields})


@router.post("/features/read", response_model=FeatureColumns)
async def read_features(request: Request, body: ReadRequest, _: Viewer) -> Json:
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


class FeatureRow(BaseModel):
    """A feature row: its times, and the join keys and features of its view."""

    model_config = ConfigDict(extra="allow")

    event_timestamp: Time
    created_timestamp: Time | None = None


class PushOptions(BaseModel):
    """Stores that get pushed feature rows."""

    model_config = ConfigDict(extra="forbid")

    to: Literal["both", "online", "offline"] = "both"


class PushResult(BaseModel):
    """How many rows were written, and the version of the offline table that has them."""

    rows: int
    table: str | None
    version: int | None


@router.post(
    "/features/{view}/push",
    response_model=PushResult,
    openapi_extra=rows_schema(
        FeatureRow, member="rows", others=PushOptions.model_json_schema()["properties"]
    ),
)
async def push_features(request: Request, view: str, _: Operator) -> Json:
    """Write rows of a feature view online, offline or both."""
    context = await context_of(request)
    body = await request.body()

    def pushed() -> dict[str, Any]:
        parts: list[pa.Table] = []
        taken = take_rows(body, FeatureRow, lambda _, rows: parts.append(table_of(rows)), member="rows")
        options = _options(taken.others)
        features = context.features()
        snapshot = features.push(features.get_feature_view(view), joined(parts), to=options.to)
        name, version = (snapshot.name, snapshot.version) if snapshot else (None, None)
        return {"rows": taken.rows, "table": name, "version": version}

    return Json(await services_of(request).run(pushed))


def _options(members: Mapping[str, Any]) -> PushOptions:
    try:
        return PushOptions.model_validate(members)
    except ValidationError as error:
        errors = [dict(each, loc=("body", *each["loc"])) for each in error.errors(include_url=False)]
        raise RequestValidationError(errors) from error


def table_of(rows: list[FeatureRow]) -> pa.Table:
    """Convert feature rows to an Arrow table. Raises: Problem 409 if a column has values of several types."""
    plain = [dict(row) for row in rows]
    fields = dict.fromkeys(field for row in plain for field in row)
    return pa.table({field: _column(field, [_in_utc(row.get(field)) for row in plain]) for field in fields})


def joined(parts: list[pa.Table]) -> pa.Table:
    """Join tables of rows, whose columns may be absent or of narrower types in some. Raises: Problem 409."""
    try:
        table = pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowException as error:
        raise _mixed("one column", error) from error
    created = table.column("created_timestamp")
    return table.drop_columns("created_timestamp") if created.null_count == len(created) else table


def _column(field: str, values: list[Any]) -> pa.Array:
    try:
        return column_of_values(values)
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        raise _mixed(f"column {field!r}", error) from error


def _in_utc(value: Any) -> Any:
    return value.astimezone(UTC) if isinstance(value, datetime) else value


def _mixed(what: str, error: Exception) -> Problem:
    return Problem(409, f"rows: {what} cannot be of one type: {error}", kind="invalid-rows")
