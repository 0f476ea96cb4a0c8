"""Routes of a model's traffic: the split, its arms' live figures, a preview, and experiment layers with their holdouts."""

from __future__ import annotations

from typing import Annotated, Any, Self

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator

from toque.functions.arguments import Name
from toque.functions.live_counts import LiveFigures, read_figures
from toque.ray_apps.admission import GuardedRoute
from toque.ray_apps.gateway.routes.models import (
    ChangeRequest,
    Number,
    Operator,
    Viewer,
    by_registry,
    require_may_override,
)
from toque.ray_apps.gateway.services import context_of, services_of
from toque.ray_apps.gateway.wire import Json
from toque.registry import LayerShare, Registry, Traffic, TrafficRule, Unavailable
from toque.registry.models.traffic import Move, moves

router = APIRouter(route_class=GuardedRoute, prefix="/models", tags=["models"])
layers_router = APIRouter(route_class=GuardedRoute, tags=["models"])


class ArmShare(BaseModel):
    """The version of an arm and its share of the traffic, 0 to 1."""

    model_config = ConfigDict(extra="forbid")

    version: Number
    share: float = Field(ge=0, le=1)


class TrafficSplit(ChangeRequest):
    """A traffic split: arms beside the champion, which gets the rest; `expected` is the `entry` it was decided on.

    With a `layer` the arms share that part of it only, and none of its units is in another model's experiment. `rules`
    are applied first: requests whose attributes meet a rule go to the version of that rule.
    """

    arms: dict[Name, ArmShare] = Field(default={}, json_schema_extra={"additionalProperties": False})
    shadows: list[Number] = Field(default=[])
    layer: LayerShare | None = None
    rules: list[TrafficRule] = Field(default=[])
    expected: int | None = None
    override: str = Field(default="", max_length=2000)


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


@router.get("/{model}/traffic", response_model=Traffic)
async def get_traffic(request: Request, model: Name, _: Viewer) -> Json:
    """Get the traffic split in force."""
    return await by_registry(request, lambda registry: registry.traffic(model))


@router.put("/{model}/traffic", response_model=Traffic)
async def set_traffic(request: Request, model: Name, body: TrafficSplit, _: Operator) -> Json:
    """Split the traffic; the champion gets what the arms leave. An override of the policy needs the role admin."""
    require_may_override(request, model, body.override)

    def changed(registry: Registry) -> Traffic:
        return registry.set_traffic(
            model,
            {name: (arm.version, arm.share) for name, arm in body.arms.items()},
            shadows=body.shadows,
            layer=body.layer,
            rules=body.rules,
            expected=body.expected,
            reason=body.reason,
            override=body.override,
        )

    return await by_registry(request, changed)


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


class ModelLayerPart(BaseModel):
    """A model's part of a layer.

    used: its traffic is split in this layer now; else the part is only claimed, and may be taken back.
    """

    model: str
    share: float
    buckets: list[tuple[int, int]]
    used: bool


class Layer(BaseModel):
    """Parts of a layer by model, and the share that is free."""

    name: str
    free: float
    parts: list[ModelLayerPart]


class HoldoutRequest(ChangeRequest):
    """Share of units to hold out, between 0 and 1."""

    share: float = Field(ge=0.0001, le=0.9999)


@layers_router.get("/layers", response_model=list[str])
async def list_layers(request: Request, _: Viewer) -> Json:
    """List the names of all layers."""
    return await by_registry(request, lambda registry: registry.list_layers())


@layers_router.get("/layers/{layer}", response_model=Layer)
async def get_layer(request: Request, layer: Name, _: Viewer) -> Json:
    """Get the parts of a layer by model; a layer without claims is wholly free."""
    return await by_registry(request, lambda registry: _layer(registry, layer))


@layers_router.put("/models/{model}/holdouts/{holdout}", response_model=Traffic)
async def begin_holdout(
    request: Request, model: Name, holdout: Name, body: HoldoutRequest, _: Operator
) -> Json:
    """Hold units out of every experiment of the model until the holdout is ended; returns the changed split."""

    def begun(registry: Registry) -> Any:
        return registry.begin_holdout(model, holdout, body.share, reason=body.reason)

    return await by_registry(request, begun)


@layers_router.delete("/models/{model}/holdouts/{holdout}", response_model=Traffic)
async def end_holdout(
    request: Request,
    model: Name,
    holdout: Name,
    _: Operator,
    reason: Annotated[str, Query(max_length=2000)] = "",
) -> Json:
    """End a holdout, so that its units take part again; an absent holdout is no error."""
    return await by_registry(request, lambda registry: registry.end_holdout(model, holdout, reason=reason))


def _layer(registry: Registry, name: str) -> Layer:
    parts = []
    for model, claim in sorted(registry.layer(name).items()):
        rests_on = registry.get_model(model).split.layer
        used = rests_on is not None and rests_on.name == name
        parts.append(ModelLayerPart(model=model, share=claim.share, buckets=list(claim.buckets), used=used))
    return Layer(name=name, free=round(1 - sum(part.share for part in parts), 4), parts=parts)
