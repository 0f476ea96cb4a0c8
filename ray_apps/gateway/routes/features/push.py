"""Route that takes rows of a feature view, for the online store, the offline store or both."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import pyarrow as pa
from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, ValidationError

from toque.featurestore.definitions.casting.composites import column_of_values
from toque.ray_apps.admission import GuardedRoute, allowed
from toque.ray_apps.gateway.problems import Problem
from toque.ray_apps.gateway.row_bodies import rows_schema, take_rows
from toque.ray_apps.gateway.services import context_of, services_of
from toque.ray_apps.gateway.wire import Json, Time
from toque.registry import Principal, Role

router = APIRouter(route_class=GuardedRoute, tags=["data"])


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
async def push_features(request: Request, view: str, _: Annotated[Principal, allowed(Role.operator)]) -> Json:
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
