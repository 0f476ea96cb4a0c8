"""Route that takes labels of earlier predictions, each by its prediction id."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from clusters.telemetry.metrics import observe_all
from functions.prediction_log import OBSERVED_AHEAD, Label, encode_labels
from ray_apps.admission import GuardedRoute, allowed
from ray_apps.gateway.metrics import LABEL_DELAY, LABELS
from ray_apps.gateway.problems import Problem
from ray_apps.gateway.row_bodies import rows_schema, take_rows
from ray_apps.gateway.services import context_of, services_of
from ray_apps.gateway.wire import Json, Time
from registry import Principal, Role

router = APIRouter(route_class=GuardedRoute, tags=["data"])


class Feedback(BaseModel):
    """The label of one prediction.

    observed_at: when the label became known, not in the future; the latest one of a prediction counts.
    """

    model_config = ConfigDict(extra="forbid")

    prediction_id: str = Field(min_length=1, max_length=512)
    label: float = Field(strict=True, allow_inf_nan=False)
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
