"""Routes of labels of earlier predictions, each by its prediction's id, and of what became of one request."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, PlainValidator
from pydantic_core import PydanticCustomError

from toque.clusters.telemetry.metrics import observe_all
from toque.functions.arguments import Name, Time
from toque.functions.prediction_log import OBSERVED_AHEAD, Label, encode_labels
from toque.ray_apps.admission import GuardedRoute, allowed
from toque.ray_apps.gateway.metrics import LABEL_DELAY, LABELS
from toque.ray_apps.gateway.problems import Problem
from toque.ray_apps.gateway.services import Viewer, context_of, services_of
from toque.ray_apps.gateway.wire import Json, rows_schema, take_rows
from toque.registry import Principal, Role

router = APIRouter(route_class=GuardedRoute, tags=["data"])
MAX_DAYS = 3_650
_MOST_ITEMS = 4_096  # items of a list, and letters of a name
_MOST_TEXT = 65_536  # letters of a text


@router.get("/traces/{request_id:path}")
async def get_trace(
    request: Request,
    request_id: Annotated[str, Path(min_length=1, max_length=512)],
    _: Viewer,
    model: Name | None = None,
    days: Annotated[int, Query(ge=1, le=MAX_DAYS)] = 7,
) -> Json:
    """Tell what became of a request: its predictions, their stages and labels, and the verdicts that used them.

    request_id: of a prediction or of a trace. model: the only one whose log is read; by default those of the workspace. days:
    how far to look back. Inputs, units and entities are left out.
    """
    services, context = services_of(request), await context_of(request)
    await services.ready()

    def found() -> dict[str, Any]:
        from toque.functions.reporting import find_request  # late: it is there once the functions are

        now = context.clock()
        models = [model] if model is not None else context.registry().list_models()
        since = now - timedelta(days=days)
        answer = find_request(context.store, models, request_id, since=since, until=now + timedelta(days=1))
        return answer.model_dump(mode="json")

    return Json(await services.run(found))


class TextLabel(BaseModel):
    """A label that is a text; a string alone is refused, since it may be a number that was sent as one."""

    model_config = ConfigDict(extra="forbid")

    text: str = Field(max_length=_MOST_TEXT)


_Value = float | str | list[str] | list[float]

_Sent = float | TextLabel | list[str] | list[float]


def _checked_label(value: Any) -> _Value:
    """Take a finite number, a named text, or a list of names or of such numbers; one validator, so that an error names the field alone."""
    if _is_number(value):
        return float(value)
    if isinstance(value, dict) and value.keys() == {"text"} and _is_text(value["text"]):
        return str(value["text"])
    if isinstance(value, list) and len(value) <= _MOST_ITEMS:
        if all(isinstance(each, str) and len(each) <= _MOST_ITEMS for each in value):
            return value
        if all(map(_is_number, value)):
            return [float(each) for each in value]
    raise PydanticCustomError(
        "label_type",
        f"want a finite number, a list of at most {_MOST_ITEMS:,} names or of finite numbers, or for a model that answers texts "
        f'{{"text": …}} with at most {_MOST_TEXT:,} letters',
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MOST_TEXT


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


class Feedback(BaseModel):
    """The label of one prediction: a number, a list of names or of numbers, or `{"text": …}` (docs/outcomes.md).

    observed_at: when the label became known, not in the future; the latest one of a prediction counts.
    """

    model_config = ConfigDict(extra="forbid")

    prediction_id: str = Field(min_length=1, max_length=512)
    label: Annotated[_Value, PlainValidator(_checked_label, json_schema_input_type=_Sent)]
    observed_at: Time | None = None


class FeedbackResult(BaseModel):
    """How many labels have been stored durably."""

    accepted: int


@router.post("/feedback", response_model=FeedbackResult, openapi_extra=rows_schema(Feedback))
async def give_feedback(request: Request, _: Annotated[Principal, allowed(Role.labeller)]) -> Json:
    """Store labels by prediction id; sending one again or correcting it is safe.

    The response leaves once they are in Redis, or says 503: send them again.
    """
    services = services_of(request)
    context = await context_of(request)
    body = await request.body()

    def store() -> int:
        received = context.clock()
        records: list[bytes] = []
        delays: list[float] = []

        def encode(first: int, rows: list[Feedback]) -> None:
            _require_observed(first, rows, received)
            labels = [_label(row, received) for row in rows]
            delays.extend((received - label.observed_at).total_seconds() for label in labels)
            records.append(encode_labels(labels))

        count = take_rows(body, Feedback, encode).rows
        if records:
            services.label_log(context.workspace).commit(records)
        observe_all(LABEL_DELAY.labels(context.workspace), delays)
        return count

    accepted = await services.run(store)
    LABELS.labels(context.workspace).inc(accepted)
    return Json({"accepted": accepted})


def _label(row: Feedback, received: datetime) -> Label:
    observed = row.observed_at or received
    return Label(row.prediction_id, row.label, observed_at=observed, received_at=received)


def _require_observed(first: int, labels: Sequence[Feedback], now: datetime) -> None:
    """Check that no label is from the future, where it would override every later one. Raises: Problem 409."""
    latest = now + OBSERVED_AHEAD
    fields = [
        {
            "field": f"body.{place}.observed_at",
            "message": f"lies in the future: it is {now.isoformat()}; send when the label became known, or leave it out",
            "value": each.observed_at.isoformat(),
        }
        for place, each in enumerate(labels, first)
        if each.observed_at is not None and each.observed_at > latest
    ]
    if fields:
        text = "; ".join(f"{each['field']}={each['value']} {each['message']}" for each in fields[:3])
        raise Problem(409, text, kind="invalid-request", fields=fields[:100])
