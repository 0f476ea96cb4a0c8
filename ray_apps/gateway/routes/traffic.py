"""Routes that look at a model's traffic: what its arms answered in the last minutes, and who a new split would move."""

from __future__ import annotations

from typing import Annotated, Self

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field, model_validator

from functions.live_counts import LiveFigures, read_figures
from ray_apps.admission import GuardedRoute
from ray_apps.gateway.routes.models import ArmShare, Viewer
from ray_apps.gateway.services import context_of, services_of
from ray_apps.gateway.wire import Json, Name
from registry import Unavailable
from registry.models.traffic.preview import Move, moves

router = APIRouter(route_class=GuardedRoute, prefix="/models", tags=["models"])


class SplitRequest(BaseModel):
    """Arms beside the champion, as they would be."""

    arms: dict[Name, ArmShare] = Field(default={}, json_schema_extra={"additionalProperties": False})

    @model_validator(mode="after")
    def _leaves_the_champion_some(self) -> Self:
        shares = sum(arm.share for arm in self.arms.values())
        if shares > 1:
            raise ValueError(f"arms: shares sum to {shares:.4f}; the champion cannot have less than 0")
        return self


class Preview(BaseModel):
    """Shares of the units that would change arms; staying: the share that would not."""

    entry: int
    staying: float
    moves: list[Move]


@router.get("/{model}/live", response_model=LiveFigures)
async def get_live(
    request: Request, model: Name, _: Viewer, minutes: Annotated[int, Query(ge=2, le=120)] = 30
) -> Json:
    """Get rates and latencies of the arms over the last minute, and requests of each of the last minutes.

    Raises: Unavailable without Redis, in which requests are counted.
    """
    context = await context_of(request)
    if context.redis_url is None:
        raise Unavailable("requests are counted in Redis, which this platform has not; set TOQUE_REDIS_URL")
    found = await services_of(request).run(
        read_figures, context.redis_url, context.workspace, model, minutes=minutes
    )
    return Json(found.model_dump(mode="json"))


@router.post("/{model}/traffic/preview", response_model=Preview)
async def preview_traffic(request: Request, model: Name, body: SplitRequest, _: Viewer) -> Json:
    """Tell which share of the units would change arms if the arms were these; changes nothing."""
    registry = (await context_of(request)).registry()

    def told() -> Preview:
        now = registry.traffic(model)
        found = moves(now, {name: (arm.version, arm.share) for name, arm in body.arms.items()})
        return Preview(entry=now.entry, staying=1.0 - sum(move.share for move in found), moves=list(found))

    return Json((await services_of(request).run(told)).model_dump(mode="json"))
